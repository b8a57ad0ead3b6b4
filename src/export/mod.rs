//! Encoders as files that the rest of the field can use.

pub mod onnx;
