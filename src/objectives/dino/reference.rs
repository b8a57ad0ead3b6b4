//! DINO as the reference's fixtures describe it.

use super::config::StepConfig;
use super::objective::Dino;
use crate::error::{Error, Result};
use serde_json::{Map, Value};

/// The objective of a fixture's configuration, without its `objective`.
///
/// # Errors
/// [`Error::Usage`] for a configuration that cannot be read; those of [`Dino::of`].
pub fn of_reference(mut config: Map<String, Value>) -> Result<Dino> {
    // All cases of the reference carry a mask ratio; there is nothing masked here.
    config.remove("mask_ratio");
    let tapped = with_tap(&mut config);
    let cfg: StepConfig =
        serde_json::from_value(Value::Object(config)).map_err(|e| Error::usage(e.to_string()))?;
    Dino::of(cfg, tapped)
}

/// Whether the encoder has a tap: the reference's plain ViT has none, nor the norm behind it. Ours is told one all the same.
fn with_tap(config: &mut Map<String, Value>) -> bool {
    let Some(encoder) = config.get_mut("encoder").and_then(Value::as_object_mut) else { return true };
    let depth = encoder.get("depth").and_then(Value::as_u64);
    match (encoder.get("kind").and_then(Value::as_str), depth) {
        (Some("vit"), Some(depth)) if !encoder.contains_key("tap") => {
            encoder.insert("tap".to_owned(), depth.saturating_sub(1).into());
            false
        }
        _ => true,
    }
}
