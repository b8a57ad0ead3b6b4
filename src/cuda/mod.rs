//! The CUDA device: kernels compiled at run time, launched through a small driver trait. No kernel needs a GPU to be
//! tested: a driver may as well interpret the PTX.

mod attention;
mod attention_resident;
mod batch_norm;
mod cache;
mod choices;
mod compiler;
mod conv;
mod cublaslt;
mod dense_loss;
mod depthwise_conv;
mod driver;
mod embed;
mod families;
mod gemm;
mod gpu;
mod gpu_flush;
mod gpu_handles;
mod gpu_link;
mod host;
mod joined;
mod kernel;
mod launch;
mod layer_norm;
mod layout;
mod linear;
mod lower;
mod measure;
mod mixup;
mod model;
mod nccl;
mod nvrtc;
mod occupancy;
mod optim;
mod pixels;
mod planning;
mod pointwise;
mod pool;
mod probe;
mod product;
mod products;
mod program;
mod prototype_ce;
mod prototype_ce_sm90;
mod prototype_extent;
mod sass;
mod sources;
mod stretch;
mod tile;
mod tune;
mod vm;
mod vm_link;
mod window_attention;
mod window_attention_resident;
mod windows;

pub use cache::{cache_folder, kernels_folder};
pub use compiler::{CompileProgress, Compiler, Wanted};
pub use driver::{
    DeviceInfo, Driver, GraphId, ImageKind, KernelFacts, KernelId, Launch, LibraryProduct, Measured,
    ProductId, Sum, TensorMap, Windows, Work,
};

pub use choices::{Choice, Choices};
pub use gpu::GpuDriver;
pub use kernel::{Call, Family, Given, KernelParams, Layout};
pub use model::{Image, Modelled, ModelledLaunch, ModelledOp, modelled};
pub use nccl::{Communicator, Nccl, NcclChoice, Seat, UniqueId, nccl, pin_nccl};
pub use nvrtc::CompiledKernel;
pub use occupancy::{ARCHITECTURES, Architecture, architecture};
pub use pixels::Pixels;
pub use planning::{Collected, PlanningBackend, planned_ops};
pub use probe::{Gpu, Installed, cublaslt_version, installed};
pub use product::{Finish, Gather, GemmParams, Product};
pub use products::{PlannedProduct, products};
pub use program::CudaBackend;
pub use sources::Sources;
pub use tile::{HOPPER_TILES, PIXEL_TILE, PLAIN_TILES, TENSOR_TILES, Tier, Tile};
pub use tune::{TuneProgress, Tuner, Tuning};
pub use vm::VmDriver;
