//! Sums between the devices of several ranks: NVIDIA's library where it is, and a stand-in for it everywhere.

mod communicator;
mod group;
mod interpreted;
#[path = "../kernels/mod.rs"]
mod kernels;
mod library;
mod model;
#[path = "../stand_in/mod.rs"]
mod stand_in;
mod standing;
mod steps;
mod streams;
#[path = "../tiny/mod.rs"]
mod tiny;
