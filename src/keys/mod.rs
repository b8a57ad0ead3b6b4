//! Keys of a configuration. A section is declared once, by `section!`: each field with its meaning, its
//! default and its range. The struct, its default, what is read and refused, the nearest name of a misspelt one and the
//! printed text with its comments all follow from that declaration.
//!
//! A macro of our own rather than a schema derived by a crate: a JSON schema has bounds, but neither "a divisor of that other
//! key" nor a remedy in words, and would have to be walked at run time; a section costs no more than its struct.

mod kind;
mod macros;
mod range;

pub use kind::{Kind, Typed};
pub(crate) use macros::section;
pub use range::{MAX_COUNT, MAX_DEPTH, MAX_EDGE, MAX_WIDTH, Range};

use crate::error::{Error, Result};
use serde::Serialize;
use toml::{Table, Value};

/// Stands for an absent optional value, because TOML has none of its own.
pub const NONE: &str = "none";

/// One key of a section, or a section below it.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Within its section.
    pub name: &'static str,
    pub kind: Kind,
    /// May be [`NONE`].
    pub optional: bool,
    pub range: Range,
    /// A run may be continued with another value.
    pub may_change: bool,
    /// What it means: its field's doc comment.
    pub doc: &'static str,
}

impl Key {
    /// What its value must be, in words.
    pub fn expected(&self) -> String {
        match self.range {
            Range::OneOf(names) => format!("one of {}", names.join(", ")),
            _ => self.kind.expected(),
        }
    }

    /// The value in this key's own TOML type, or nothing when it is of another type.
    pub fn accept(&self, value: &Value) -> Option<Value> {
        let known = |names: &[&str]| value.as_str().is_some_and(|name| names.contains(&name));
        match self.range {
            Range::OneOf(names) if !known(names) => None,
            _ => self.kind.accept(value),
        }
    }

    /// What it means, on one line and without a full stop; one that takes names is followed by these.
    pub fn meaning(&self) -> String {
        let doc = self.doc.trim().trim_end_matches('.');
        match (self.kind, self.range) {
            (Kind::Choice(names), _) | (_, Range::OneOf(names)) => format!("{doc}: {}", names.join(", ")),
            _ => doc.to_owned(),
        }
    }
}

/// A key by its whole name.
#[derive(Clone, Debug)]
pub struct Named {
    /// Dotted, such as `optim.base_lr`.
    pub name: String,
    pub key: Key,
}

impl Named {
    /// The section that it stands in; empty for none.
    pub fn section(&self) -> &str {
        self.name.rsplit_once('.').map_or("", |(section, _)| section)
    }
}

/// The value of that dotted name.
pub fn get<'a>(tree: &'a Table, name: &str) -> Option<&'a Value> {
    match name.split_once('.') {
        Some((section, rest)) => get(tree.get(section)?.as_table()?, rest),
        None => tree.get(name),
    }
}

/// Every key of `keys` that has a value of its own, in their order and by the name that it has below `prefix`. `tree` tells which
/// keys there are where that depends on one of them.
pub fn leaves(keys: &[Key], tree: &Table, prefix: &str) -> Vec<Named> {
    let empty = Table::new();
    let mut all = Vec::new();
    for key in keys {
        let name = format!("{prefix}{}", key.name);
        match key.kind {
            Kind::Section(below) => {
                let inner = tree.get(key.name).and_then(Value::as_table).unwrap_or(&empty);
                all.extend(leaves(below, inner, &format!("{name}.")));
            }
            Kind::Variants { tag, of, .. } => {
                all.push(Named { name: format!("{prefix}{}", tag.name), key: *tag });
                let chosen = tree.get(tag.name).and_then(Value::as_str).and_then(of);
                all.extend(leaves(chosen.unwrap_or_default(), tree, prefix));
            }
            _ => all.push(Named { name, key: *key }),
        }
    }
    all
}

/// The dotted names of all sections, in the order of printing: each before those below it.
pub fn sections(keys: &[Key], prefix: &str) -> Vec<(String, &'static str)> {
    let mut all = Vec::new();
    for key in keys {
        if let Kind::Section(below) = key.kind {
            let name = format!("{prefix}{}", key.name);
            all.push((name.clone(), key.doc));
            all.extend(sections(below, &format!("{name}.")));
        }
    }
    all
}

/// A section's values as TOML, absent ones left out.
///
/// # Errors
/// [`Error::Config`] for one that TOML cannot hold.
pub fn tree(section: &impl Serialize, name: &str) -> Result<Table> {
    Table::try_from(section).map_err(|e| Error::config(name, format!("cannot be written as TOML: {e}")))
}

/// Checks the range of every value of `tree`, which is the section of that name; the empty name is all of a configuration.
///
/// # Errors
/// [`Error::Config`] for the first value that is out of range: names its key, what it must be, and what to set.
pub fn check(keys: &[Key], tree: &Table, section: &str) -> Result<()> {
    let whole = |name: &str| match section {
        "" => name.to_owned(),
        _ => format!("{section}.{name}"),
    };
    for Named { name, key } in leaves(keys, tree, "") {
        let prefix = name.strip_suffix(key.name).unwrap_or_default();
        let beside = match prefix.strip_suffix('.') {
            Some(below) => get(tree, below).and_then(Value::as_table),
            None => Some(tree),
        };
        let Some((beside, value)) = beside.and_then(|beside| Some((beside, beside.get(key.name)?))) else {
            continue;
        };
        let sibling = |other: &str| whole(&format!("{prefix}{other}"));
        key.range.check(value, beside, &sibling).map_err(|message| Error::config(whole(&name), message))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
