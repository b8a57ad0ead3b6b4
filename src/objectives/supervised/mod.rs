//! Supervised training: the encoder tells the classes of images by a linear layer on its image token.
//!
//! After facebookresearch/deit (Touvron et al. 2021): smoothed labels, batches mixed with their reverse by mixup or cutmix,
//! AdamW. There is no expert.

pub mod config;

mod model;
mod objective;
mod recipe;
mod reference;
mod step;

pub use config::{RECIPE, StepConfig, SupervisedSection};
pub use objective::Supervised;
pub use reference::of_reference;
