//! Graphs of ONNX, built layer by layer: what an encoder's own form in ONNX is written with. Knows no encoder and no file.

mod builder;
mod parts;
pub mod proto;

pub use builder::{Builder, Conv, Value, Weights};
pub use parts::{Grid, OnnxTokens, TAP_STAGE, tokens_of};
pub use proto::Attribute;
