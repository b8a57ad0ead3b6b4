//! A `libcuda.so` that computes nothing: memory is addresses, launches are checked and dropped, events tell invented times.
//! It refuses what NVIDIA's driver refuses, with the driver's codes, so that code which calls the driver is tested on
//! machines without one. See README.md for the rules.

mod codes;
mod control;
mod elf;
mod exports;
mod launch;
mod limits;
mod memory;
mod state;
mod streams;
mod table;
mod tensor_map;
mod text;
