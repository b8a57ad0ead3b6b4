//! The SAIP training step: its configuration, the graph of one step, schedules.

pub mod config;
pub mod schedule;
