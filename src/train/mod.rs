//! A training run: its configuration, its folder, checkpoints, logs, progress and guards.

pub mod atomic;
pub mod engine;
pub mod fixture;
pub mod tensorboard;
