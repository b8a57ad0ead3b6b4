//! A step without a recipe: graphs, registries, named inputs, outputs, scalars and state; gradients, optimizer, moving
//! average and accumulation. What is learned is an objective's matter.

mod builder;
mod graph;
mod io;
mod options;
mod point;
pub mod schedule;

pub use builder::{Builder, Carried};
pub use graph::{DROP_PATH, HEALTH, OWN_SCALARS, ROWS, Registries, SCALARS, STATISTICS, Step, TARGET, TOTAL};
pub use io::{IoSlot, Slots, Types};
pub use options::StepOptions;
pub use point::{BETAS, StepPoint};
