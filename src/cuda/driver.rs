//! What the CUDA backend asks of a driver: memory, modules, launches. An interpreter of PTX implements it as well as a
//! real driver, so everything above this trait runs on machines without a GPU.

use crate::backend::OpCounts;
use crate::error::Result;

/// What kernels are compiled for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    pub name: String,
    /// Compute capability, such as `(9, 0)`.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
}

/// A loaded kernel, owned by the driver that loaded it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KernelId(pub usize);

/// A recorded list of launches, owned by the driver that recorded it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GraphId(pub usize);

/// What a driver loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageKind {
    /// Text for any device of a capability or later.
    Ptx,
    /// Machine code of one architecture.
    Cubin,
}

/// What a driver can tell of launches.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measured {
    pub seconds: Option<f64>,
    pub counts: Option<OpCounts>,
}

/// One launch, prepared ahead: nothing is looked up or formatted when it is made.
#[derive(Clone, Debug)]
pub struct Launch {
    pub kernel: KernelId,
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y, z.
    pub block: [u32; 3],
    /// Dynamic shared memory, bytes.
    pub shared: u32,
    /// The kernel's one parameter, a struct passed by value.
    pub params: Vec<u8>,
}

/// A contiguous row-major matrix of bf16 as tensor copies see it, in boxes that land in shared memory swizzled by 128 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// Aligned to 16 bytes.
    pub at: u64,
    pub rows: u32,
    /// A multiple of 8.
    pub columns: u32,
    /// At most 256.
    pub box_rows: u32,
    /// At most 64.
    pub box_columns: u32,
}

/// A device with its memory. Addresses are the device's; launches run in order.
pub trait Driver: Send {
    fn info(&self) -> &DeviceInfo;

    /// What [`Driver::load`] takes.
    fn image_kind(&self) -> ImageKind;

    /// Memory of at least `bytes`, aligned to 256 bytes, contents undefined.
    ///
    /// # Errors
    /// When there is not that much left; the message says how much was asked for.
    fn allocate(&mut self, bytes: usize) -> Result<u64>;

    /// Gives memory back.
    fn free(&mut self, at: u64) -> Result<()>;

    fn upload(&mut self, at: u64, bytes: &[u8]) -> Result<()>;

    /// Copies to the device beside what runs; `bytes` may change once this returns. Comes after earlier
    /// [`Driver::copy`]s, and before what is launched after the next [`Driver::join`].
    fn stage(&mut self, at: u64, bytes: &[u8]) -> Result<()>;

    /// Everything that is asked for from now on comes after all staged copies.
    fn join(&mut self) -> Result<()>;

    /// Copies within the device, in order with launches.
    fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<()>;

    /// Waits for what was launched, then copies out.
    fn download(&self, at: u64, bytes: &mut [u8]) -> Result<()>;

    /// The kernel `name` of a module, to be launched with `shared` bytes of dynamic shared memory; loading the same image
    /// again is cheap.
    fn load(&mut self, image: &[u8], name: &str, shared: u32) -> Result<KernelId>;

    fn launch(&mut self, launch: &Launch) -> Result<()>;

    /// The map in the device's own form: a kernel's parameter.
    ///
    /// # Errors
    /// A matrix or box that tensor copies do not take; a device without them.
    fn tensor_map(&self, map: &TensorMap) -> Result<[u64; 16]>;

    /// Prepares a list of launches to be made as one.
    fn record(&mut self, launches: &[Launch]) -> Result<GraphId>;

    /// Starts a recorded list.
    fn replay(&mut self, graph: GraphId) -> Result<()>;

    /// Drops a recorded list.
    fn forget(&mut self, graph: GraphId) -> Result<()>;

    /// Makes `launches` as a unit `repeats` times: the median of its times, or what they did.
    fn measure(&mut self, launches: &[Launch], repeats: usize) -> Result<Measured>;

    /// Waits until everything launched has ended.
    fn finish(&mut self) -> Result<()>;
}

impl<D: Driver + ?Sized> Driver for Box<D> {
    fn info(&self) -> &DeviceInfo {
        (**self).info()
    }
    fn image_kind(&self) -> ImageKind {
        (**self).image_kind()
    }
    fn allocate(&mut self, bytes: usize) -> Result<u64> {
        (**self).allocate(bytes)
    }
    fn free(&mut self, at: u64) -> Result<()> {
        (**self).free(at)
    }
    fn upload(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        (**self).upload(at, bytes)
    }
    fn stage(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        (**self).stage(at, bytes)
    }
    fn join(&mut self) -> Result<()> {
        (**self).join()
    }
    fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<()> {
        (**self).copy(to, from, bytes)
    }
    fn download(&self, at: u64, bytes: &mut [u8]) -> Result<()> {
        (**self).download(at, bytes)
    }
    fn load(&mut self, image: &[u8], name: &str, shared: u32) -> Result<KernelId> {
        (**self).load(image, name, shared)
    }
    fn launch(&mut self, launch: &Launch) -> Result<()> {
        (**self).launch(launch)
    }
    fn tensor_map(&self, map: &TensorMap) -> Result<[u64; 16]> {
        (**self).tensor_map(map)
    }
    fn record(&mut self, launches: &[Launch]) -> Result<GraphId> {
        (**self).record(launches)
    }
    fn replay(&mut self, graph: GraphId) -> Result<()> {
        (**self).replay(graph)
    }
    fn forget(&mut self, graph: GraphId) -> Result<()> {
        (**self).forget(graph)
    }
    fn measure(&mut self, launches: &[Launch], repeats: usize) -> Result<Measured> {
        (**self).measure(launches, repeats)
    }
    fn finish(&mut self) -> Result<()> {
        (**self).finish()
    }
}
