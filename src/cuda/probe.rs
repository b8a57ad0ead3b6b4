//! What of CUDA there is on this machine. Nothing here panics, whatever is installed.

use cudarc::cublaslt::sys as cublaslt;
use cudarc::driver::{result, sys};
use cudarc::nvrtc::sys as nvrtc;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Mutex;

/// A GPU as the driver describes it.
#[derive(Clone, Debug)]
pub struct Gpu {
    pub name: String,
    pub capability: (u32, u32),
    pub multiprocessors: u32,
    /// Bytes.
    pub memory: u64,
    /// By which it is told from all others, however many a process sees; as `nvidia-smi -L` has it.
    pub uuid: String,
}

/// Each part of CUDA, or why it cannot be used.
#[derive(Clone, Debug)]
pub struct Installed {
    /// Version of CUDA that the driver supports.
    pub driver: Result<(i32, i32), String>,
    pub nvrtc: Result<(i32, i32), String>,
    pub gpus: Vec<Gpu>,
}

/// What to install for a driver.
const DRIVER_REMEDY: &str = "install the NVIDIA driver";
/// What to install for NVRTC.
const NVRTC_REMEDY: &str =
    "install CUDA 13 (or the PyPI package nvidia-cuda-nvrtc) and add its folder to LD_LIBRARY_PATH";

/// What to install for cuBLASLt.
const CUBLASLT_REMEDY: &str = "install CUDA 13 (or the PyPI package nvidia-cublas) and add the folder of \
                               libcublasLt.so.13 to LD_LIBRARY_PATH";
/// Functions of cuBLASLt that are called.
const CUBLASLT_FUNCTIONS: [&str; 13] = [
    "cublasLtCreate",
    "cublasLtDestroy",
    "cublasLtGetVersion",
    "cublasLtMatmul",
    "cublasLtMatmulAlgoGetHeuristic",
    "cublasLtMatmulDescCreate",
    "cublasLtMatmulDescDestroy",
    "cublasLtMatmulDescSetAttribute",
    "cublasLtMatmulPreferenceCreate",
    "cublasLtMatmulPreferenceDestroy",
    "cublasLtMatmulPreferenceSetAttribute",
    "cublasLtMatrixLayoutCreate",
    "cublasLtMatrixLayoutDestroy",
];
/// The oldest major version of cuBLASLt whose attributes are those that the bindings know.
const CUBLASLT_OLDEST: i32 = 12;

/// Looks for the driver, its GPUs and NVRTC.
pub fn installed() -> Installed {
    let driver = driver();
    let gpus = if driver.is_ok() { guarded(gpus).unwrap_or_default() } else { Vec::new() };
    Installed { driver, nvrtc: nvrtc_version(), gpus }
}

/// Held while the process' panic hook is another.
static ASKING: Mutex<()> = Mutex::new(());

/// The bindings panic where a library lacks a function: that is an answer here.
fn guarded<R>(ask: impl FnOnce() -> R) -> Result<R, String> {
    // One at a time, or the silent hook could be taken for the one to put back.
    let asking = ASKING.lock();
    let hook = take_hook();
    set_hook(Box::new(|_| {}));
    let answer = catch_unwind(AssertUnwindSafe(ask));
    set_hook(hook);
    drop(asking);
    answer.map_err(|_| "the library lacks functions that this program needs".to_owned())
}

fn driver() -> Result<(i32, i32), String> {
    // SAFETY: loading the library runs its initialisers only.
    if !unsafe { sys::is_culib_present() } {
        return Err(format!("libcuda.so is missing or cannot be loaded: {DRIVER_REMEDY}"));
    }
    let ask = || {
        result::init().map_err(|e| format!("the driver does not start: {e:?}"))?;
        let mut version = 0;
        // SAFETY: the pointer is to an integer that lives through the call.
        let status = unsafe { sys::cuDriverGetVersion(&mut version) };
        status.result().map_err(|e| format!("the driver does not tell its version: {e:?}"))?;
        Ok((version / 1000, version % 1000 / 10))
    };
    guarded(ask).and_then(|r| r).map_err(|e| format!("{e}: {DRIVER_REMEDY}"))
}

/// Version of NVRTC.
///
/// # Errors
/// Why it cannot be used, and what to install.
pub(super) fn nvrtc_version() -> Result<(i32, i32), String> {
    // SAFETY: loading the library runs its initialisers only.
    if !unsafe { nvrtc::is_culib_present() } {
        return Err(format!("libnvrtc.so is missing or cannot be loaded: {NVRTC_REMEDY}"));
    }
    let ask = || {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both pointers are to integers that live through the call.
        let status = unsafe { nvrtc::nvrtcVersion(&mut major, &mut minor) };
        status
            .result()
            .map(|()| (major, minor))
            .map_err(|e| format!("NVRTC does not tell its version: {e:?}"))
    };
    guarded(ask).and_then(|r| r).map_err(|e| format!("{e}: {NVRTC_REMEDY}"))
}

/// Version of cuBLASLt. No training needs it: it is what `bench ops` measures our products against.
///
/// # Errors
/// Why it cannot be used, and what to install.
pub fn cublaslt_version() -> Result<(i32, i32), String> {
    // SAFETY: loading the library runs its initialisers only.
    if !unsafe { cublaslt::is_culib_present() } {
        return Err(format!("libcublasLt.so is missing or cannot be loaded: {CUBLASLT_REMEDY}"));
    }
    let ask = || {
        // SAFETY: as above; a symbol is looked up here, never called.
        let has =
            |name: &str| unsafe { cublaslt::culib().get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_ok();
        if let Some(name) = CUBLASLT_FUNCTIONS.into_iter().find(|name| !has(name)) {
            return Err(format!("libcublasLt.so lacks {name}"));
        }
        // SAFETY: takes nothing, and the library has it.
        let version = unsafe { cublaslt::cublasLtGetVersion() } as i32;
        let (major, minor) = (version / 10000, version % 10000 / 100);
        if major < CUBLASLT_OLDEST {
            return Err(format!("libcublasLt.so is version {major}.{minor}, older than {CUBLASLT_OLDEST}.0"));
        }
        Ok((major, minor))
    };
    guarded(ask).and_then(|r| r).map_err(|e| format!("{e}: {CUBLASLT_REMEDY}"))
}

fn gpus() -> Vec<Gpu> {
    let count = result::device::get_count().unwrap_or(0);
    (0..count).filter_map(|i| gpu(i).ok()).collect()
}

/// The GPU number `ordinal`; the driver must have been initialised.
pub(super) fn gpu(ordinal: i32) -> Result<Gpu, result::DriverError> {
    use sys::CUdevice_attribute as A;
    let device = result::device::get(ordinal)?;
    // SAFETY: `device` was just given out by the driver.
    let attribute = |a| unsafe { result::device::get_attribute(device, a) }.map(|v| v.max(0) as u32);
    Ok(Gpu {
        name: result::device::get_name(device)?,
        capability: (
            attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        // SAFETY: as above.
        memory: unsafe { result::device::total_mem(device) }? as u64,
        uuid: uuid(&result::device::get_uuid(device)?.bytes.map(|b| b as u8)),
    })
}

/// As `nvidia-smi -L` prints it.
fn uuid(bytes: &[u8; 16]) -> String {
    let hex: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
    let part = |range: std::ops::Range<usize>| hex[range].concat();
    format!("GPU-{}-{}-{}-{}-{}", part(0..4), part(4..6), part(6..8), part(8..10), part(10..16))
}
