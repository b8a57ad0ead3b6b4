//! saip-engine: pretrains lightweight human-centric vision models with SAIP (Scale-Aware Image Pretraining).
//!
//! The floors, each using only those below it: [`cli`]; [`verify`], [`export`], [`embed`]; [`train`]; [`objectives`]; [`report`];
//! [`metrics`]; [`data`]; [`weights`]; [`models`]; [`step`]; [`nn`], [`onnx`]; [`dist`]; [`cpu`], [`cuda`]; [`backend`]; [`plan`]; [`ir`]; and the ground:
//! [`tensor`], [`error`], [`console`], [`interrupt`], [`files`], [`keys`], [`units`].

// First, so that all others print by its macros.
#[macro_use]
pub mod console;

pub mod backend;
pub mod cli;
pub mod cpu;
pub mod cuda;
pub mod data;
pub mod dist;
pub mod embed;
pub mod error;
pub mod export;
pub mod files;
pub mod interrupt;
pub mod ir;
pub mod keys;
pub mod metrics;
pub mod models;
pub mod nn;
pub mod objectives;
pub mod onnx;
pub mod plan;
pub mod report;
pub mod step;
pub mod tensor;
pub mod train;
pub mod units;
pub mod verify;
pub mod weights;

pub use error::{Error, Result};
