//! JSON values read leniently: a value of another type than expected is taken for an absent one, so that one odd entry
//! costs itself and not the file.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// A value that is neither list nor object, whatever its type; those count as absent.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Scalar {
    #[default]
    Absent,
    Bool(bool),
    Integer(i64),
    Unsigned(u64),
    Float(f64),
    Text(String),
}

impl Scalar {
    /// A finite number, given as one or as text.
    pub fn number(&self) -> Option<f64> {
        let value = match self {
            Scalar::Integer(n) => *n as f64,
            Scalar::Unsigned(n) => *n as f64,
            Scalar::Float(f) => *f,
            Scalar::Text(s) => s.trim().parse().ok()?,
            Scalar::Absent | Scalar::Bool(_) => return None,
        };
        value.is_finite().then_some(value)
    }

    /// `7`, `7.0` and `"7"` are the same identifier: tools that pass tables around change one into the other.
    pub fn id(&self) -> Option<String> {
        match self {
            Scalar::Integer(n) => Some(n.to_string()),
            Scalar::Unsigned(n) => Some(n.to_string()),
            Scalar::Float(f) => (f.is_finite() && f.fract() == 0.0).then(|| format!("{f:.0}")),
            Scalar::Text(s) => (!s.is_empty()).then(|| s.clone()),
            Scalar::Absent | Scalar::Bool(_) => None,
        }
    }

    pub fn text(&self) -> Option<&str> {
        match self {
            Scalar::Text(s) => Some(s),
            _ => None,
        }
    }

    /// Whether a flag is set: `true`, `1`, and either as text.
    pub fn flag(&self) -> bool {
        match self {
            Scalar::Bool(b) => *b,
            Scalar::Text(s) if s.trim().eq_ignore_ascii_case("true") => true,
            other => other.number().is_some_and(|n| n != 0.0),
        }
    }
}

/// A visitor that gives `$value` for every scalar `v`, and what `$list` and `$object` make of the rest.
macro_rules! visitor {
    ($visitor:ident -> $value:ty, $expecting:literal, |$v:ident| $scalar:expr, $list:expr, $object:expr) => {
        struct $visitor;

        impl<'de> Visitor<'de> for $visitor {
            type Value = $value;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str($expecting)
            }
            fn visit_bool<E>(self, v: bool) -> Result<$value, E> {
                let $v = Scalar::Bool(v);
                Ok($scalar)
            }
            fn visit_i64<E>(self, v: i64) -> Result<$value, E> {
                let $v = Scalar::Integer(v);
                Ok($scalar)
            }
            fn visit_u64<E>(self, v: u64) -> Result<$value, E> {
                let $v = Scalar::Unsigned(v);
                Ok($scalar)
            }
            fn visit_f64<E>(self, v: f64) -> Result<$value, E> {
                let $v = Scalar::Float(v);
                Ok($scalar)
            }
            fn visit_str<E>(self, v: &str) -> Result<$value, E> {
                let $v = Scalar::Text(v.to_owned());
                Ok($scalar)
            }
            fn visit_string<E>(self, v: String) -> Result<$value, E> {
                let $v = Scalar::Text(v);
                Ok($scalar)
            }
            fn visit_unit<E>(self) -> Result<$value, E> {
                let $v = Scalar::Absent;
                Ok($scalar)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<$value, A::Error> {
                $list(seq)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<$value, A::Error> {
                $object(map)
            }
        }

        impl<'de> Deserialize<'de> for $value {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any($visitor)
            }
        }
    };
}
pub(super) use visitor;

/// Passes over the rest of a list.
pub fn drain_list<'de, T: Default, A: SeqAccess<'de>>(mut seq: A) -> Result<T, A::Error> {
    while seq.next_element::<IgnoredAny>()?.is_some() {}
    Ok(T::default())
}

/// Passes over the rest of an object.
pub fn drain_object<'de, T: Default, A: MapAccess<'de>>(mut map: A) -> Result<T, A::Error> {
    while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
    Ok(T::default())
}

visitor!(ScalarVisitor -> Scalar, "a value", |v| v, drain_list, drain_object);

/// An object of which a few fields are wanted. Unlike a derived implementation, it takes any other value for an object
/// without fields (`is_object` tells), and the last of several fields of a name.
macro_rules! object {
    ($(#[$doc:meta])* $name:ident, $visitor:ident { $($field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        struct $name {
            is_object: bool,
            $($field: $type,)*
        }

        impl $name {
            fn read<'de, A: MapAccess<'de>>(mut map: A) -> Result<Self, A::Error> {
                let mut out = $name { is_object: true, ..$name::default() };
                while let Some(key) = map.next_key::<Scalar>()? {
                    match key.text() {
                        $(Some(stringify!($field)) => out.$field = map.next_value()?,)*
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(out)
            }
        }

        visitor!($visitor -> $name, "an object", |_v| $name::default(), drain_list, $name::read);
    };
}
pub(super) use object;

/// A list of numbers seen once, of which a few facts are kept: a file holds millions of keypoints.
#[derive(Debug)]
pub struct NumberList {
    pub count: usize,
    /// The first four; what is no finite number is NaN.
    pub first: [f64; 4],
    /// Triples (x, y, visibility) whose visibility is above 0.
    pub visible: u32,
}

impl Default for NumberList {
    fn default() -> Self {
        NumberList { count: 0, first: [f64::NAN; 4], visible: 0 }
    }
}

impl NumberList {
    fn push(&mut self, value: &Scalar) {
        let value = value.number().unwrap_or(f64::NAN);
        if let Some(slot) = self.first.get_mut(self.count) {
            *slot = value;
        }
        if self.count % 3 == 2 && value > 0.0 {
            self.visible = self.visible.saturating_add(1);
        }
        self.count += 1;
    }

    fn read<'de, A: SeqAccess<'de>>(mut seq: A) -> Result<Self, A::Error> {
        let mut list = NumberList::default();
        while let Some(value) = seq.next_element::<Scalar>()? {
            list.push(&value);
        }
        Ok(list)
    }

    /// `"[1, 2, 3, 4]"`, as tables write a list.
    fn of(value: &Scalar) -> Self {
        let mut list = NumberList::default();
        let text = value.text().unwrap_or_default().trim().trim_matches(['[', ']', '(', ')']);
        let parts = text.split([',', ' ']).filter(|part| !part.is_empty());
        parts.for_each(|part| list.push(&Scalar::Text(part.to_owned())));
        list
    }
}

visitor!(NumberListVisitor -> NumberList, "a list of numbers", |v| NumberList::of(&v), NumberList::read, drain_object);

/// The extent of the polygons of a `segmentation`: `[[x, y, x, y, ...], ...]`, a single such list, or lists of points.
#[derive(Debug)]
pub struct Outline {
    low: [f64; 2],
    high: [f64; 2],
    count: usize,
}

impl Default for Outline {
    fn default() -> Self {
        Outline { low: [f64::INFINITY; 2], high: [f64::NEG_INFINITY; 2], count: 0 }
    }
}

impl Outline {
    /// `[x, y, width, height]`; `None` without an area, as for a mask in run lengths.
    pub fn bbox(&self) -> Option<[f64; 4]> {
        let [x, y] = self.low;
        let [width, height] = [self.high[0] - x, self.high[1] - y];
        (width > 0.0 && height > 0.0).then_some([x, y, width, height])
    }

    fn extend(&mut self, low: [f64; 2], high: [f64; 2]) {
        for axis in 0..2 {
            self.low[axis] = self.low[axis].min(low[axis]);
            self.high[axis] = self.high[axis].max(high[axis]);
        }
    }

    fn read<'de, A: SeqAccess<'de>>(mut seq: A) -> Result<Self, A::Error> {
        let mut outline = Outline::default();
        while let Some(part) = seq.next_element::<OutlinePart>()? {
            match part {
                OutlinePart::Polygon(p) => outline.extend(p.low, p.high),
                OutlinePart::Number(value) => {
                    let (mut low, mut high) = ([f64::INFINITY; 2], [f64::NEG_INFINITY; 2]);
                    if let Some(value) = value {
                        let axis = outline.count % 2;
                        (low[axis], high[axis]) = (value, value);
                    }
                    outline.extend(low, high);
                    outline.count += 1;
                }
            }
        }
        Ok(outline)
    }
}

visitor!(OutlineVisitor -> Outline, "polygons", |_v| Outline::default(), Outline::read, drain_object);

#[derive(Debug)]
enum OutlinePart {
    Number(Option<f64>),
    Polygon(Outline),
}

impl OutlinePart {
    fn read<'de, A: SeqAccess<'de>>(seq: A) -> Result<Self, A::Error> {
        Outline::read(seq).map(OutlinePart::Polygon)
    }
    fn pass_over<'de, A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        drain_object(map).map(OutlinePart::Polygon)
    }
}

visitor!(OutlinePartVisitor -> OutlinePart, "a polygon", |v| OutlinePart::Number(v.number()), OutlinePart::read, OutlinePart::pass_over);

#[cfg(test)]
mod tests {
    use super::*;

    fn parse<T: for<'de> Deserialize<'de>>(text: &str) -> T {
        serde_json::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn numbers_and_flags_may_be_text() {
        for (text, number, flag) in [
            ("7", Some(7.0), true),
            ("\" 7.5 \"", Some(7.5), true),
            ("-1e3", Some(-1000.0), true),
            ("\"0\"", Some(0.0), false),
            ("\"TRUE\"", None, true),
            ("true", None, true),
            ("\"inf\"", None, false),
            ("[1, {\"a\": [2]}]", None, false),
            ("{\"a\": {\"b\": 1}}", None, false),
            ("null", None, false),
        ] {
            let value: Scalar = parse(text);
            assert_eq!((value.number(), value.flag()), (number, flag), "{text}");
        }
    }

    #[test]
    fn lists_may_be_text_and_hold_anything() {
        for text in ["[1, \"2\", 3.0, \"4.5\"]", "\"[1, 2, 3, 4.5]\"", "\"1 2 3 4.5\""] {
            let list: NumberList = parse(text);
            assert_eq!((list.count, list.first), (4, [1.0, 2.0, 3.0, 4.5]), "{text}");
        }
        let list: NumberList = parse("[1, [2, 3], {\"a\": 4}, null, true]");
        assert!(list.count == 5 && list.first[0] == 1.0 && list.first[1..].iter().all(|v| v.is_nan()));
        assert_eq!(parse::<NumberList>("{\"x\": [1]}").count, 0);
    }

    #[test]
    fn polygons_have_an_extent_however_they_are_nested() {
        let want = Some([10.0, 20.0, 30.0, 5.0]);
        for text in [
            "[[10, 20, 40, 20, 40, 25], [12, 21, 13, 22]]",
            "[10, 20, 40, \"25\"]",
            "[[10, 20], [40, 25], [null, 22]]",
            "[[[10, 20], [40, 25]]]",
        ] {
            assert_eq!(parse::<Outline>(text).bbox(), want, "{text}");
        }
        for text in [
            "[]",
            "[[1, 2]]",
            "[[1, 2, 3, 2]]",
            "{\"counts\": \"Zei6\", \"size\": [1, 2]}",
            "\"x\"",
            "[{\"a\": 1}]",
        ] {
            assert_eq!(parse::<Outline>(text).bbox(), None, "{text}");
        }
    }
}
