//! What the CUDA backend asks of a driver: memory, modules, launches. An interpreter of PTX implements it as well as a
//! real driver, so everything above this trait runs on machines without a GPU.

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

/// A device with its memory. Addresses are the device's; launches run in order.
pub trait Driver: Send {
    fn info(&self) -> &DeviceInfo;

    /// Memory of at least `bytes`, aligned to 256 bytes, contents undefined.
    ///
    /// # Errors
    /// When there is not that much left; the message says how much was asked for.
    fn allocate(&mut self, bytes: usize) -> Result<u64>;

    /// Gives memory back.
    fn free(&mut self, at: u64) -> Result<()>;

    fn upload(&mut self, at: u64, bytes: &[u8]) -> Result<()>;

    /// Waits for what was launched, then copies out.
    fn download(&self, at: u64, bytes: &mut [u8]) -> Result<()>;

    /// The kernel `name` of a module given as PTX; loading the same text again is cheap.
    fn load(&mut self, ptx: &str, name: &str) -> Result<KernelId>;

    fn launch(&mut self, launch: &Launch) -> Result<()>;

    /// Waits until everything launched has ended.
    fn finish(&mut self) -> Result<()>;
}
