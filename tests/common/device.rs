//! The device that kernels are tested on: an interpreter of their PTX, or with SAIP_ENGINE_TEST_DEVICE=cuda the first GPU.

#[path = "../kernels/mod.rs"]
mod kernels;

pub use kernels::compiler;
use saip_engine::cuda::{Choices, CudaBackend, Driver, GpuDriver, VmDriver};
use saip_engine::tensor::DType;
use std::sync::{Mutex, OnceLock};

/// Memory of the interpreter, bytes.
const MEMORY: u64 = 256 << 20;
/// Compute capability of the GPUs that have `wgmma`.
pub const HOPPER: (u32, u32) = (9, 0);

/// Whether the tests run on a GPU.
pub fn is_gpu() -> bool {
    match std::env::var("SAIP_ENGINE_TEST_DEVICE").as_deref() {
        Ok("cuda") => true,
        Err(_) | Ok("" | "ptx-vm") => false,
        Ok(other) => panic!("SAIP_ENGINE_TEST_DEVICE is `{other}`: set it to cuda or ptx-vm, or not at all"),
    }
}

fn gpu() -> GpuDriver {
    GpuDriver::new(0).unwrap_or_else(|e| panic!("SAIP_ENGINE_TEST_DEVICE asks for a GPU: {e}"))
}

/// The first GPU, if tests run on one.
pub fn open_gpu() -> Option<GpuDriver> {
    // A GPU's context lives as long as one driver of it does: this one keeps it until the process ends.
    static HELD: OnceLock<Mutex<GpuDriver>> = OnceLock::new();
    is_gpu().then(|| {
        HELD.get_or_init(|| Mutex::new(gpu()));
        gpu()
    })
}

/// An interpreter with this capability.
pub fn interpreter(capability: (u32, u32)) -> Box<dyn Driver> {
    Box::new(VmDriver::new(capability, MEMORY))
}

/// The interpreter with this capability, or the first GPU with its own.
pub fn driver(capability: (u32, u32)) -> Box<dyn Driver> {
    match open_gpu() {
        Some(gpu) => Box::new(gpu),
        None => interpreter(capability),
    }
}

/// Capability of the GPU if there is one, else the one asked for.
pub fn capability(asked: (u32, u32)) -> (u32, u32) {
    open_gpu().map_or(asked, |gpu| gpu.info().capability)
}

/// Whether there is Hopper to test on; says what is skipped otherwise.
pub fn has_hopper(what: &str) -> bool {
    let (x, y) = capability(HOPPER);
    if (x, y) != HOPPER {
        println!("{what}: skipped, it is for compute capability 9.0 and this GPU has {x}.{y}");
    }
    (x, y) == HOPPER
}

/// A backend on the device that is tested.
pub fn backend(capability: (u32, u32), dtype: DType) -> CudaBackend<Box<dyn Driver>> {
    let driver = driver(capability);
    let compiler = compiler(driver.info().capability);
    CudaBackend::new(driver, compiler, dtype).expect("both types are computed in")
}

/// A Hopper GPU, real or interpreted, whose products use the newest tier wherever they can.
pub fn hopper(dtype: DType) -> CudaBackend<Box<dyn Driver>> {
    let driver = driver(HOPPER);
    let choices = Choices::new(driver.info()).newest_tier();
    let compiler = compiler(driver.info().capability);
    CudaBackend::new(driver, compiler, dtype).expect("both types are computed in").with_choices(choices)
}
