//! What is learned: one folder an objective, each behind [`Objective`]. Nothing else knows what a view is called.

mod collapse;
mod objective;
mod registry;
pub mod saip;

pub use collapse::{Collapse, CollapseAlarm, CollapseStats, Thresholds};
pub use objective::{Inspect, Monitor, Objective, Outputs};
pub use registry::of_reference;
