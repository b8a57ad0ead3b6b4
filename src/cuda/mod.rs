//! The CUDA device: kernels compiled at run time, launched through a small driver trait. No kernel needs a GPU to be
//! tested: a driver may as well interpret the PTX.

mod attention;
mod conv;
mod cublaslt;
mod dense_loss;
mod driver;
mod embed;
mod gemm;
mod gpu;
mod kernel;
mod layer_norm;
mod layout;
mod lower;
mod measure;
mod nvrtc;
mod occupancy;
mod optim;
mod planning;
mod pointwise;
mod probe;
mod program;
mod prototype_ce;
mod vm;

pub use driver::{
    DeviceInfo, Driver, GraphId, ImageKind, KernelFacts, KernelId, Launch, LibraryProduct, Measured,
    ProductId, Work,
};
pub use gemm::{Finish, GemmParams, PLAIN_TILES, Product, TENSOR_TILES};
pub use gpu::GpuDriver;
pub use kernel::{Call, Family, Given, KernelParams, Layout};
pub use nvrtc::{CompiledKernel, Compiler, kernel_cache};
pub use occupancy::{ARCHITECTURES, Architecture, architecture};
pub use planning::PlanningBackend;
pub use probe::{Gpu, Installed, cublaslt_version, installed};
pub use program::CudaBackend;
pub use vm::VmDriver;
