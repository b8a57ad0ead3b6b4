//! The SAIP training step: its configuration, the graph of one step, schedules.

pub mod config;
pub mod schedule;

mod csm;
mod csr;
mod css;
mod embed;
mod inspect;
mod io;
mod model;
mod scalars;
mod step;
mod views;

pub use embed::{EmbedGraph, EmbedOptions, build_embed};
pub use inspect::{InspectGraph, build_inspect};
pub use io::IoSlot;
pub use model::Model;
pub use scalars::{StepPoint, scalar_block};
pub use step::{StepGraph, StepOptions, build_step};
