//! A `libnccl.so.2` that sums over TCP on one machine, so that code which calls NCCL is tested on machines without a GPU. See README.md.

mod communicator;
mod control;
mod exports;
mod link;
mod numbers;
