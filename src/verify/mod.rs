//! Checks of the engine against what does not depend on it.

pub mod fixture;
pub mod numeric;
pub mod recording;
