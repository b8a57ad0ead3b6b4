//! The choice of a backend.

use crate::backend::Backend;
use crate::cpu::CpuBackend;
use crate::error::{Error, Result};
use crate::tensor::DType;

/// Opens the device called `name` (`auto`, `cpu`) computing in `dtype`; `threads` CPU threads, 0 for one per core.
///
/// # Errors
/// [`Error::Device`] for a device that this build or this machine does not have.
pub fn open(name: &str, dtype: DType, threads: usize) -> Result<Box<dyn Backend>> {
    match (name, dtype) {
        ("auto" | "cpu", DType::F32) => Ok(Box::new(CpuBackend::<f32>::new(threads)?)),
        ("auto" | "cpu", DType::F64) => Ok(Box::new(CpuBackend::<f64>::new(threads)?)),
        ("auto" | "cpu", other) => {
            Err(Error::device(name, format!("computes in f32 or f64, not in {other}")))
        }
        (cuda, _) if cuda == "cuda" || cuda.starts_with("cuda:") => {
            Err(Error::device(cuda, "this build has no CUDA backend; use --device cpu"))
        }
        (other, _) => Err(Error::device(other, "is not known; use --device auto or --device cpu")),
    }
}

/// Parses `bf16`, `f32` or `f64`.
pub fn parse_dtype(text: &str) -> std::result::Result<DType, String> {
    match text {
        "bf16" => Ok(DType::Bf16),
        "f32" => Ok(DType::F32),
        "f64" => Ok(DType::F64),
        other => Err(format!("`{other}` is none of bf16, f32, f64")),
    }
}
