//! The choice of a backend.

use super::cuda::CudaArgs;
use crate::backend::Backend;
use crate::cpu::CpuBackend;
use crate::cuda::{
    ARCHITECTURES, Compiler, Driver, Gpu, GpuDriver, VmDriver, cache_folder, installed, kernels_folder,
};
use crate::error::{Error, Result};
use crate::tensor::DType;

/// Compute capability that the interpreter claims: the oldest one that the kernels are written for.
pub const VM_CAPABILITY: (u32, u32) = (8, 0);
/// Device memory of the interpreter, bytes.
const VM_MEMORY: u64 = 8 << 30;

/// What else there is to choose about a device.
#[derive(Clone, Debug)]
pub struct DeviceOptions {
    /// CPU threads; 0 for one per core.
    pub threads: usize,
    pub cuda: CudaArgs,
    /// Compute capability that the interpreter claims.
    pub interpreted: (u32, u32),
}

impl Default for DeviceOptions {
    fn default() -> Self {
        DeviceOptions { threads: 0, cuda: CudaArgs::default(), interpreted: VM_CAPABILITY }
    }
}

/// A device as `--device` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    Cpu,
    /// A GPU by its number.
    Cuda(usize),
    /// The CUDA kernels, interpreted.
    PtxVm,
}

impl Device {
    /// Parses `auto` (a GPU if everything that it needs is there, else the CPU), `cpu`, `cuda`, `cuda:N`, `ptx-vm`.
    ///
    /// # Errors
    /// [`Error::Device`] for anything else.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "cpu" => Ok(Device::Cpu),
            "cuda" => Ok(Device::Cuda(0)),
            "ptx-vm" => Ok(Device::PtxVm),
            "auto" => {
                let found = installed();
                let kernels = || cache_folder().map(|root| kernels_folder(&root));
                // Kernels that were built ahead do instead of NVRTC.
                let usable = |gpu: &Gpu| Compiler::new(gpu.capability, kernels()).is_ok();
                let gpu = found.gpus.first().filter(|gpu| found.driver.is_ok() && usable(gpu));
                Ok(if gpu.is_some() { Device::Cuda(0) } else { Device::Cpu })
            }
            other => match other.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(ordinal)) => Ok(Device::Cuda(ordinal)),
                _ => {
                    Err(Error::device(other, "is not known; use --device auto, cpu, cuda, cuda:N or ptx-vm"))
                }
            },
        }
    }

    /// The precision in which training on this device is fastest.
    pub fn training_dtype(self) -> DType {
        if let Device::Cuda(_) = self { DType::Bf16 } else { DType::F32 }
    }

    /// Whether it computes in `dtype`.
    pub fn computes_in(self, dtype: DType) -> bool {
        match self {
            Device::Cpu => matches!(dtype, DType::F32 | DType::F64),
            Device::Cuda(_) | Device::PtxVm => matches!(dtype, DType::F32 | DType::Bf16),
        }
    }

    /// Refuses a number of CPU threads for a device that has none.
    ///
    /// # Errors
    /// [`Error::Usage`].
    pub fn check_threads(self, threads: usize) -> Result<()> {
        match self {
            Device::Cpu => Ok(()),
            _ if threads == 0 => Ok(()),
            _ => Err(Error::usage(format!(
                "--threads {threads} counts threads of the CPU, on which nothing is computed: leave it out, or pass \
                 --device cpu"
            ))),
        }
    }

    /// Opens it for computing in `dtype`.
    ///
    /// # Errors
    /// [`Error::Device`] when it, or a library that it needs, is not there; the message says what to install.
    pub fn open(self, dtype: DType, options: &DeviceOptions) -> Result<Box<dyn Backend>> {
        let DeviceOptions { threads, ref cuda, interpreted } = *options;
        if let (Device::Cpu, Some(folder)) = (self, &cuda.kernels) {
            return Err(Error::usage(format!(
                "--kernels {}: nothing is computed by CUDA kernels on the CPU: leave it out, or pass --device ptx-vm",
                folder.display()
            )));
        }
        match (self, dtype) {
            (Device::Cpu, DType::F32) => Ok(Box::new(CpuBackend::<f32>::new(threads)?)),
            (Device::Cpu, DType::F64) => Ok(Box::new(CpuBackend::<f64>::new(threads)?)),
            (Device::Cpu, other) => Err(Error::device(
                "cpu",
                format!("computes in f32 or f64, not in {other}: choose --dtype f32"),
            )),
            (Device::Cuda(ordinal), _) => {
                let driver = GpuDriver::new(ordinal)?;
                let tuner = cuda.tuner(driver.info())?;
                let backend = cuda.backend(driver, dtype)?;
                Ok(Box::new(match tuner {
                    Some(tuner) => backend.with_tuner(tuner),
                    None => backend,
                }))
            }
            (Device::PtxVm, _) => Ok(Box::new(cuda.backend(VmDriver::new(interpreted, VM_MEMORY), dtype)?)),
        }
    }
}

/// Parses an architecture such as `sm_90` or `sm_90a` into its compute capability.
pub fn parse_target(text: &str) -> std::result::Result<(u32, u32), String> {
    let digits = text.strip_prefix("sm_").map(|rest| rest.strip_suffix('a').unwrap_or(rest));
    let number = digits.and_then(|d| d.parse::<u32>().ok());
    let known = |number: u32| ARCHITECTURES.iter().find(|a| a.capability == (number / 10, number % 10));
    number.and_then(known).map(|a| a.capability).ok_or_else(|| {
        let names = ARCHITECTURES.iter().map(|a| format!("sm_{}{}", a.capability.0, a.capability.1));
        format!("`{text}` is none of {}", names.collect::<Vec<_>>().join(", "))
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        assert_eq!(parse_target("sm_90a"), Ok((9, 0)));
        assert_eq!(parse_target("sm_120"), Ok((12, 0)));
        for unknown in ["sm_70", "90", "sm_", "sm_90b", "sm_99999999999"] {
            let why = parse_target(unknown).unwrap_err();
            assert!(why.contains(unknown) && why.contains("sm_80"), "{why}");
        }
    }
}
