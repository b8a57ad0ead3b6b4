//! Which sizes a view may have.

use crate::error::{Error, Result};
use crate::ir::PATCH;
use crate::keys::MAX_EDGE;

/// Checks `[height, width]` of the views that the key `key` sizes.
///
/// # Errors
/// [`Error::Config`] naming the key: for edges that are no multiples of a patch, or too long.
pub fn check_view_size(key: &str, size: [usize; 2]) -> Result<()> {
    if size.iter().all(|s| *s > 0 && s.is_multiple_of(PATCH) && *s <= MAX_EDGE) {
        return Ok(());
    }
    let message = format!("{size:?} must be positive multiples of {PATCH} pixels, at most {MAX_EDGE}");
    Err(Error::config(key, message))
}
