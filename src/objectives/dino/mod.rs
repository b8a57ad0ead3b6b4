//! DINO: self-distillation without labels. The student's views of an image, two global and several local ones, are matched
//! with what its moving average makes of the two global ones.
//!
//! After facebookresearch/dino (Caron et al. 2021): pairs, centre and temperatures of `main_dino.py`, clipping of every
//! tensor by its own norm, the last layer held for the first epochs, schedules of `utils.py`.

pub mod config;

mod model;
mod objective;
mod recipe;
mod reference;
mod step;

pub use config::{ClipBy, Decay, DinoSection, RECIPE, StepConfig};
pub use objective::Dino;
pub use reference::of_reference;
