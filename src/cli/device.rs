//! The choice of a backend.

use crate::backend::Backend;
use crate::cpu::CpuBackend;
use crate::cuda::{Compiler, CudaBackend, VmDriver, kernel_cache};
use crate::error::{Error, Result};
use crate::tensor::DType;

/// Compute capability that the interpreter claims: the oldest one that the kernels are written for.
const VM_CAPABILITY: (u32, u32) = (8, 0);
/// Device memory of the interpreter, bytes.
const VM_MEMORY: u64 = 8 << 30;

/// Opens the device called `name` (`auto`, `cpu`, `ptx-vm`) computing in `dtype`; `threads` CPU threads, 0 for one per
/// core.
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
        ("ptx-vm", _) => {
            let compiler = Compiler::new(VM_CAPABILITY, kernel_cache())?;
            Ok(Box::new(CudaBackend::new(VmDriver::new(VM_CAPABILITY, VM_MEMORY), compiler, dtype)?))
        }
        (cuda, _) if cuda == "cuda" || cuda.starts_with("cuda:") => {
            Err(Error::device(cuda, "this build has no CUDA backend; use --device cpu"))
        }
        (other, _) => Err(Error::device(other, "is not known; use --device auto, cpu or ptx-vm")),
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
