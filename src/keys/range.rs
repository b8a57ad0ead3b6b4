//! What the value of a key must be beside its type, and what to set where it is not.

use toml::{Table, Value};

/// Edges in pixels beyond this are slips of the keyboard, and would overflow sizes further on.
pub const MAX_EDGE: usize = 4096;
/// Likewise for widths of model parts.
pub const MAX_WIDTH: usize = 1 << 20;
/// Likewise for their number.
pub const MAX_DEPTH: usize = 1024;
/// Images per update and similar counts.
pub const MAX_COUNT: usize = 1 << 24;

/// Which values a key may have; of an array, each of them.
#[derive(Clone, Copy, Debug)]
pub enum Range {
    Any,
    /// A text that is not empty, and what to give where it is.
    Given(&'static str),
    /// One of these names.
    OneOf(&'static [&'static str]),
    /// More than 0.
    Positive,
    /// 0 or more.
    NotNegative,
    /// From this whole number on.
    AtLeast(u64),
    /// A whole number from the one to the other.
    Whole(usize, usize),
    /// A number from 0 to this.
    UpTo(f64),
    /// 0 for "off", or a number from the one to the other.
    OffOr([f64; 2]),
    /// 0 or more and less than 1.
    BelowOne,
    /// Between 0 and 1, both excluded, and what is usual.
    Inside(f64),
    /// A smallest and a largest value, above 0 and at most this.
    Spread(f64),
    /// Pixels, a multiple of this.
    Pixels(usize),
    /// A divisor of the value, or of each value, of that other key of the section.
    Divides(&'static str),
    /// A number from 0, below the value of that other key of the section.
    Below(&'static str),
}

/// A number as it was given.
fn number(value: &Value) -> f64 {
    value.as_float().or_else(|| value.as_integer().map(|i| i as f64)).unwrap_or(f64::NAN)
}

fn whole(value: &Value) -> usize {
    value.as_integer().and_then(|i| usize::try_from(i).ok()).unwrap_or(usize::MAX)
}

/// A value as an array of itself.
fn all(value: &Value) -> &[Value] {
    value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice)
}

fn require(ok: bool, message: impl FnOnce() -> String) -> Result<(), String> {
    if ok { Ok(()) } else { Err(message()) }
}

impl Range {
    /// Checks `value` of a section whose values are `beside`; `sibling` gives the whole name of another key of that section.
    ///
    /// # Errors
    /// In words, which begin with the value.
    pub(super) fn check(
        &self,
        value: &Value,
        beside: &Table,
        sibling: &dyn Fn(&str) -> String,
    ) -> Result<(), String> {
        if let Range::Spread(most) = *self {
            let [low, high] = [0, 1].map(|i| all(value).get(i).map_or(f64::NAN, number));
            return require(low > 0.0 && low <= high && high <= most, || {
                format!("[{low}, {high}] must be a smallest and a largest value, above 0 and at most {most}")
            });
        }
        let others = |key: &str| beside.get(key).map_or(&[][..], all);
        for (i, one) in all(value).iter().enumerate() {
            match *self {
                // As many as there are of the other; the types of both say how many.
                Range::Divides(key) => {
                    others(key).get(i).map_or(Ok(()), |of| divides(whole(one), whole(of), &sibling(key)))?
                }
                Range::Below(key) => {
                    let (v, end) = (whole(one), others(key).get(i).map_or(usize::MAX, whole));
                    require(v < end, || format!("{v} is none of {end}: use 0 to {}", end.saturating_sub(1)))?;
                }
                _ => self.check_one(one)?,
            }
        }
        Ok(())
    }

    fn check_one(&self, value: &Value) -> Result<(), String> {
        let v = number(value);
        match *self {
            Range::Given(remedy) => require(value.as_str() != Some(""), || format!("is empty: {remedy}")),
            Range::OneOf(names) => require(value.as_str().is_some_and(|v| names.contains(&v)), || {
                format!("{value} must be one of {}", names.join(", "))
            }),
            Range::Positive => require(v.is_finite() && v > 0.0, || format!("{v} must be more than 0")),
            Range::NotNegative => require(v.is_finite() && v >= 0.0, || format!("{v} must be 0 or more")),
            Range::AtLeast(least) => require(v >= least as f64, || format!("{v} must be at least {least}")),
            Range::Whole(least, most) => require((least..=most).contains(&whole(value)), || {
                format!("{v} must be between {least} and {most}")
            }),
            Range::UpTo(most) => {
                require((0.0..=most).contains(&v), || format!("{v} must be between 0 and {most}"))
            }
            Range::OffOr([least, most]) => require(v == 0.0 || (least..=most).contains(&v), || {
                format!("{v} must be from {least} to {most}, or 0 to switch it off")
            }),
            Range::BelowOne => {
                require((0.0..1.0).contains(&v), || format!("{v} must be 0 or more and less than 1"))
            }
            Range::Inside(usual) => require(v > 0.0 && v < 1.0, || {
                format!("{v} must lie between 0 and 1, both excluded; {usual} is usual")
            }),
            Range::Pixels(multiple) => pixels(whole(value), multiple),
            Range::Any | Range::Spread(_) | Range::Divides(_) | Range::Below(_) => Ok(()),
        }
    }
}

fn divides(value: usize, of: usize, key: &str) -> Result<(), String> {
    require(value > 0 && of.is_multiple_of(value), || {
        let fitting: Vec<_> =
            (1..=of.min(64)).filter(|v| of.is_multiple_of(*v)).map(|v| v.to_string()).collect();
        format!("{value} does not divide `{key}` = {of}: use one of {}", fitting.join(", "))
    })
}

fn pixels(edge: usize, multiple: usize) -> Result<(), String> {
    require((1..=MAX_EDGE).contains(&edge), || {
        format!("{edge} pixels must be between {multiple} and {MAX_EDGE}")
    })?;
    require(edge.is_multiple_of(multiple), || {
        let above = edge.next_multiple_of(multiple);
        let below = above - multiple;
        let nearest = if below == 0 { format!("{above}") } else { format!("{below} or {above}") };
        format!("{edge} is no multiple of {multiple}, the edge of a patch: use {nearest}")
    })
}
