//! saip-engine: pretrains lightweight human-centric vision models with SAIP (Scale-Aware Image Pretraining).
//!
//! The layers, each using only those above it: [`error`], [`console`], [`interrupt`], [`atomic`], [`output_folder`], [`tensor`], [`ir`], [`plan`], [`backend`], ([`cpu`],
//! [`cuda`]), [`nn`], [`saip`], [`data`], [`weights`], [`export`], [`eval`], [`train`], [`verify`], [`report`], [`cli`].

// First, so that all others print by its macros.
#[macro_use]
pub mod console;

pub mod atomic;
pub mod backend;
pub mod cli;
pub mod cpu;
pub mod cuda;
pub mod data;
pub mod embed;
pub mod error;
pub mod eval;
pub mod export;
pub mod interrupt;
pub mod ir;
pub mod nn;
pub mod output_folder;
pub mod plan;
pub mod report;
pub mod saip;
pub mod tensor;
pub mod train;
pub mod units;
pub mod verify;
pub mod weights;

pub use error::{Error, Result};
