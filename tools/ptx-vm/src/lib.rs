#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod cfg;
mod decode;
mod env;
mod error;
mod exec;
mod ir;
mod launch;
mod lex;
mod memory;
mod module;
mod parse;
mod report;
mod shared;
mod tensor_map;
mod timeline;
mod warp;

pub use env::{Latencies, OnFault, Options};
pub use error::{Error, Fault, FaultKind, Result};
pub use ir::Param;
pub use launch::launch;
pub use memory::Memory;
pub use module::{Kernel, Module};
pub use report::{CLASSES, Class, Counts, Report, Traffic};
pub use tensor_map::{TensorMap, Windows};
