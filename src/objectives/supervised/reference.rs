//! Supervised training as the reference's fixtures describe it.

use super::config::StepConfig;
use super::objective::Supervised;
use crate::error::{Error, Result};
use serde_json::{Map, Value};

/// What all cases of the reference carry, and nothing here reads: other views, temperatures, an expert.
const OTHERS: [&str; 7] =
    ["mask_ratio", "local_size", "locals", "student_temp", "teacher_temp", "center_momentum", "momentum"];

/// The objective of a fixture's configuration, without its `objective`.
///
/// # Errors
/// [`Error::Usage`] for a configuration that cannot be read; those of [`Supervised::of`].
pub fn of_reference(mut config: Map<String, Value>) -> Result<Supervised> {
    OTHERS.iter().for_each(|key| drop(config.remove(*key)));
    let decay = config.remove("decay");
    if decay.as_ref().and_then(Value::as_str) != Some("saip") {
        let message = format!("its `decay` is {decay:?}: supervised training knows saip alone");
        return Err(Error::usage(message));
    }
    match config.remove("clip") {
        None | Some(Value::Null) => {}
        Some(Value::Array(by)) if by.first().and_then(Value::as_str) == Some("global") => {
            config.insert("clip_norm".to_owned(), by.get(1).cloned().unwrap_or(Value::Null));
        }
        Some(other) => {
            let message = format!(
                "its `clip` is {other}: supervised training clips by the whole norm, [\"global\", c]"
            );
            return Err(Error::usage(message));
        }
    }
    let cfg: StepConfig =
        serde_json::from_value(Value::Object(config)).map_err(|e| Error::usage(e.to_string()))?;
    Supervised::of(cfg)
}
