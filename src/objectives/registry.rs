//! The objectives by their names.

use super::objective::Objective;
use super::saip::Saip;
use crate::error::{Error, Result};
use std::sync::Arc;

/// The objective of a reference's configuration, in JSON.
///
/// # Errors
/// [`Error::Usage`](crate::error::Error::Usage) for a configuration that cannot be read; those of the objective.
pub fn of_reference(config: &str) -> Result<Arc<dyn Objective>> {
    Ok(Arc::new(Saip::of(serde_json::from_str(config).map_err(|e| Error::usage(e.to_string()))?)?))
}
