//! From a graph to a plan: fusion, schedule, liveness, arena offsets.

mod arena;
mod fuse;
mod layout;
mod recompute;
mod schedule;

pub use arena::{Interval, lower_bound, place};
pub use fuse::{eliminate_dead, fuse};
pub use layout::{Buffer, Plan, RegionSize, Slot, Space, Step, plan};
pub use recompute::recompute;
