//! What is learned: one folder an objective, each behind [`Objective`]. Nothing else knows what a view is called.

mod attention;
mod collapse;
pub mod dino;
mod objective;
pub mod prototype_head;
mod registry;
pub mod saip;
mod self_distillation;
pub mod supervised;
mod view_size;

pub use collapse::{Collapse, CollapseAlarm, CollapseStats, Thresholds};
pub use objective::{Inspect, Monitor, Objective, Outputs, Target};
pub use registry::{NAMES, learns_classes, of_reference, recipe};
