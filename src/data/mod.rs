//! From a folder of person images (or the synthetic generator) to batches of views.

pub mod augment;
pub mod batch;
pub mod decode;
pub mod formats;
pub mod labelled;
pub mod left_out;
pub mod listing;
pub mod loader;
pub mod market;
pub mod prepare;
pub mod recipe;
pub mod rng;
pub mod sample;
pub mod scene;
pub mod source;
pub mod synth;
