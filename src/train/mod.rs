//! A training run: its configuration, its folder, checkpoints, logs, progress and guards.

pub mod checkpoint;
pub mod config;
pub mod engine;
pub mod features;
pub mod folder;
pub mod guard;
pub mod image_set;
pub mod metrics;
pub mod objective;
pub mod presets;
pub mod pretrained;
pub mod probe;
pub mod programs;
pub mod progress;
mod record;
pub mod resume;
pub mod rewrite;
pub mod run;
pub mod source;
pub mod sources;
pub mod stepper;
pub mod summary;
pub mod tensorboard;
pub mod trained;
