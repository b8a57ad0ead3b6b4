//! NCCL, NVIDIA's library that sums between GPUs: found, opened, and used as one communicator of all ranks.

mod communicator;
mod environment;
mod find;
mod library;
mod meeting;

pub use communicator::{Communicator, Seat};
pub use environment::pin_nccl;
pub use find::{NcclChoice, nccl};
pub use library::{Nccl, UniqueId};
pub use meeting::{Hello, meet};
