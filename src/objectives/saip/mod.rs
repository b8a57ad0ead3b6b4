//! SAIP: matching, reconstruction and search across scales.

pub mod config;

mod csr;
mod css;
mod geometry;
mod inspect;
mod model;
mod objective;
mod pictures;
mod recipe;
mod step;
mod views;

pub use config::RECIPE;
pub use model::Model;
pub use objective::Saip;
pub use recipe::{MOST_SCALE, SCALE_RANGE, scale_buckets};
pub use step::build_step;
