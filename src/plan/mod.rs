//! From a graph to a plan: fusion, schedule, liveness, arena offsets.

mod activate;
mod arena;
mod compile;
mod fuse;
mod layout;
mod machine;
mod recompute;
mod scaling;
mod schedule;
mod target;

pub use arena::{Interval, lower_bound, place};
pub use compile::compile;
pub use fuse::{eliminate_dead, fuse};
pub use layout::{Buffer, Plan, RegionSize, Slot, Space, Step, plan};
pub use machine::{Bound, FITTED, Latencies, LaunchWork, MACHINES, Machine, Prediction};
pub use recompute::recompute;
pub use scaling::{Links, Sum, exposed, sums};
pub use target::{OperandType, Target};
