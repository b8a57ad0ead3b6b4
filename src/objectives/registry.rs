//! The objectives by their names.

use super::dino;
use super::objective::Objective;
use super::saip::Saip;
use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::sync::Arc;

/// All objectives; the first is that of a configuration that names none.
pub const NAMES: &[&str] = &["saip", "dino"];

/// What an objective's recipe has of its own among the keys that objectives share, as TOML: taken when a configuration
/// changes to it. None where there is no such objective.
pub fn recipe(name: &str) -> Option<&'static str> {
    match name {
        "saip" => Some(super::saip::RECIPE),
        "dino" => Some(dino::RECIPE),
        _ => None,
    }
}

/// The objective of a reference's configuration, in JSON.
///
/// # Errors
/// [`Error::Usage`] for a configuration that cannot be read, and an objective that there is not; those of the objective.
pub fn of_reference(config: &str) -> Result<Arc<dyn Objective>> {
    let unreadable = |e: serde_json::Error| Error::usage(e.to_string());
    let mut config: Map<String, Value> = serde_json::from_str(config).map_err(unreadable)?;
    let name = config.remove("objective").unwrap_or_else(|| NAMES[0].into());
    match name.as_str() {
        Some("saip") => {
            let cfg = serde_json::from_value(Value::Object(config)).map_err(unreadable)?;
            Ok(Arc::new(Saip::of(cfg)?))
        }
        Some("dino") => Ok(Arc::new(dino::of_reference(config)?)),
        _ => {
            let known = NAMES.join(", ");
            Err(Error::usage(format!("its `objective` {name} is not built here: there are {known}")))
        }
    }
}
