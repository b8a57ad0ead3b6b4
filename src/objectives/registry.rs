//! The table of objectives: the one place where they stand side by side.

use super::dino;
use super::objective::Objective;
use super::saip::{self, Saip};
use super::supervised;
use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::sync::Arc;

/// Of a reference's configuration, without the objective's name.
type OfReference = fn(Map<String, Value>) -> Result<Arc<dyn Objective>>;

/// An objective.
struct Row {
    /// What the key `objective` calls it.
    name: &'static str,
    /// What its recipe has of its own among the keys that objectives share, as TOML.
    recipe: &'static str,
    /// Whether it learns the classes of images.
    classes: bool,
    reference: OfReference,
}

/// All objectives; the first is that of a configuration that names none.
const OBJECTIVES: &[Row] = &[
    Row { name: "saip", recipe: saip::RECIPE, classes: false, reference: saip_of_reference },
    Row {
        name: "dino",
        recipe: dino::RECIPE,
        classes: false,
        reference: |config| Ok(Arc::new(dino::of_reference(config)?)),
    },
    Row {
        name: "supervised",
        recipe: supervised::RECIPE,
        classes: true,
        reference: |config| Ok(Arc::new(supervised::of_reference(config)?)),
    },
];

/// Their names, in the table's order.
pub const NAMES: &[&str] = &names();

const fn names() -> [&'static str; OBJECTIVES.len()] {
    let mut names = [""; OBJECTIVES.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = OBJECTIVES[i].name;
        i += 1;
    }
    names
}

fn row(name: &str) -> Option<&'static Row> {
    OBJECTIVES.iter().find(|row| row.name == name)
}

/// What an objective's recipe has of its own among the keys that objectives share, as TOML: taken when a configuration
/// changes to it. None where there is no such objective.
pub fn recipe(name: &str) -> Option<&'static str> {
    row(name).map(|row| row.recipe)
}

/// Whether the objective of that name learns the classes of images, which their source has to know.
pub fn learns_classes(name: &str) -> bool {
    row(name).is_some_and(|row| row.classes)
}

/// The objective of a reference's configuration, in JSON.
///
/// # Errors
/// [`Error::Usage`] for a configuration that cannot be read, and an objective that there is not; those of the objective.
pub fn of_reference(config: &str) -> Result<Arc<dyn Objective>> {
    let mut config: Map<String, Value> = serde_json::from_str(config).map_err(unreadable)?;
    let name = config.remove("objective").unwrap_or_else(|| NAMES[0].into());
    match name.as_str().and_then(row) {
        Some(row) => (row.reference)(config),
        None => {
            let known = NAMES.join(", ");
            Err(Error::usage(format!("its `objective` {name} is not built here: there are {known}")))
        }
    }
}

fn saip_of_reference(config: Map<String, Value>) -> Result<Arc<dyn Objective>> {
    Ok(Arc::new(Saip::of(serde_json::from_value(Value::Object(config)).map_err(unreadable)?)?))
}

fn unreadable(e: serde_json::Error) -> Error {
    Error::usage(e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_there_once() {
        for (i, name) in NAMES.iter().enumerate() {
            assert!(!NAMES[..i].contains(name), "{name} is there twice");
        }
        let e = of_reference("{\"objective\": \"dyno\"}").err().unwrap().to_string();
        assert!(e.contains("dyno") && e.contains("saip, dino"), "{e}");
        assert!(learns_classes("supervised") && !learns_classes("saip") && !learns_classes("dyno"));
        assert!(recipe("dyno").is_none());
    }
}
