//! Of which type a key's value is.

use super::Key;
use std::path::PathBuf;
use toml::Value;

/// What a key's value must be.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A whole number, 0 or more.
    Count,
    Float,
    Bool,
    Text,
    /// One of these names.
    Choice(&'static [&'static str]),
    /// `n` whole numbers.
    Counts(usize),
    /// `n` numbers.
    Floats(usize),
    /// No value, but keys below it.
    Section(&'static [Key]),
    /// No value, but keys beside it: `tag`, and those that its value brings.
    Variants {
        tag: &'static Key,
        of: fn(&str) -> Option<&'static [Key]>,
    },
}

impl Kind {
    /// In words.
    pub fn expected(self) -> String {
        match self {
            Kind::Count => "a whole number, 0 or more".into(),
            Kind::Float => "a number".into(),
            Kind::Bool => "true or false".into(),
            Kind::Text => "a string".into(),
            Kind::Choice(names) => format!("one of {}", names.join(", ")),
            Kind::Counts(2) => "two whole numbers such as [256, 128]".into(),
            Kind::Counts(n) => format!("an array of {n} whole numbers, 0 or more"),
            Kind::Floats(2) => "two numbers such as [0.75, 1.5]".into(),
            Kind::Floats(n) => format!("an array of {n} numbers"),
            Kind::Section(_) | Kind::Variants { .. } => "a section of keys".into(),
        }
    }

    /// The value in this kind's own TOML type (`1` becomes `1.0` for a number, `1e3` becomes `1000` for a whole one),
    /// or nothing when it is of another type.
    pub fn accept(self, value: &Value) -> Option<Value> {
        // Above 2^53 a float no longer says which whole number it means.
        const EXACT: f64 = 9_007_199_254_740_992.0;
        match (self, value) {
            (Kind::Count, Value::Integer(i)) => (*i >= 0).then_some(Value::Integer(*i)),
            (Kind::Count, Value::Float(f)) => {
                (f.fract() == 0.0 && (0.0..=EXACT).contains(f)).then_some(Value::Integer(*f as i64))
            }
            (Kind::Float, Value::Integer(i)) => Some(Value::Float(*i as f64)),
            (Kind::Float, Value::Float(f)) => f.is_finite().then_some(Value::Float(*f)),
            (Kind::Bool, Value::Boolean(_)) | (Kind::Text, Value::String(_)) => Some(value.clone()),
            (Kind::Choice(names), Value::String(s)) => names.contains(&s.as_str()).then(|| value.clone()),
            (Kind::Counts(n), Value::Array(a)) if a.len() == n => each(Kind::Count, a),
            (Kind::Floats(n), Value::Array(a)) if a.len() == n => each(Kind::Float, a),
            _ => None,
        }
    }
}

fn each(kind: Kind, values: &[Value]) -> Option<Value> {
    values.iter().map(|v| kind.accept(v)).collect::<Option<Vec<_>>>().map(Value::Array)
}

/// A type of a field.
pub trait Typed {
    const KIND: Kind;
    const OPTIONAL: bool = false;
}

macro_rules! typed {
    ($($ty:ty => $kind:expr),* $(,)?) => {
        $(impl Typed for $ty {
            const KIND: Kind = $kind;
        })*
    };
}

typed! {
    usize => Kind::Count,
    u64 => Kind::Count,
    f64 => Kind::Float,
    bool => Kind::Bool,
    String => Kind::Text,
    PathBuf => Kind::Text,
}

impl<const N: usize> Typed for [usize; N] {
    const KIND: Kind = Kind::Counts(N);
}

impl<const N: usize> Typed for [f64; N] {
    const KIND: Kind = Kind::Floats(N);
}

impl<const N: usize> Typed for [f32; N] {
    const KIND: Kind = Kind::Floats(N);
}

impl<T: Typed> Typed for Option<T> {
    const KIND: Kind = T::KIND;
    const OPTIONAL: bool = true;
}
