//! What the CUDA backend asks of a driver: memory, modules, launches. An interpreter of PTX implements it as well as a
//! real driver, so everything above this trait runs on machines without a GPU.

use super::nccl::Seat;
use crate::backend::OpCounts;
use crate::error::{Error, Result};
use crate::tensor::DType;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    /// The kernel's parameters, laid out as C does; ours take one struct by value. Where there are several, none is aligned
    /// to more than 16 bytes.
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
    /// At most 256; of windows 1024.
    pub box_rows: u32,
    /// At most 64.
    pub box_columns: u32,
    /// None: a box is of neighbouring rows. Else rows are pixels, and a box is what neighbouring windows see at one tap.
    pub windows: Option<Windows>,
}

/// Where the windows of a convolution begin on images, as the driver's manual has it of `cuTensorMapEncodeIm2col`.
/// Coordinates are `[x, y]`; windows follow each other along x, then y, then from image to image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Pixels of an image.
    pub width: u32,
    pub height: u32,
    /// Where the first window begins: -128 to 127.
    pub lower: [i32; 2],
    /// Where the last window may begin, from the last pixel of the image: -128 to 127.
    pub upper: [i32; 2],
    /// Pixels from one window to the next, both ways: 1 to 8.
    pub step: u32,
}

impl TensorMap {
    /// Images of the rows.
    ///
    /// # Errors
    /// Rows that are no whole images of the windows.
    pub fn images(&self, windows: &Windows) -> Result<u32> {
        let pixels = u64::from(windows.width) * u64::from(windows.height);
        let rows = u64::from(self.rows);
        match rows.checked_div(pixels).filter(|images| *images > 0 && images * pixels == rows) {
            // No more than there are rows.
            Some(images) => Ok(images as u32),
            None => Err(Error::invariant(
                "a tensor map",
                format!("{rows} rows are no images of {}x{} pixels", windows.width, windows.height),
            )),
        }
    }
}

/// A product of a library, prepared by the driver that gave it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProductId(pub usize);

/// What a library can be asked for instead of our own kernel: `y[m, n] = op(a) op(b) + bias`, sums in f32, all by rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LibraryProduct {
    /// Addresses.
    pub y: u64,
    pub a: u64,
    pub b: u64,
    /// `n` elements of f32, or 0 for none. Libraries take it with results in f32 only.
    pub bias: u64,
    pub m: u32,
    pub n: u32,
    pub k: u32,
    /// Whether `a` is stored `[k][m]` instead of `[m][k]`.
    pub a_trans: bool,
    /// Whether `b` is stored `[k][n]` instead of `[n][k]`.
    pub b_trans: bool,
    /// Of `a` and `b`.
    pub element: DType,
    /// Of `y`.
    pub stored: DType,
}

impl Default for LibraryProduct {
    fn default() -> Self {
        let (element, stored) = (DType::Bf16, DType::Bf16);
        let (m, n, k, a_trans, b_trans) = (0, 0, 0, false, false);
        LibraryProduct { y: 0, a: 0, b: 0, bias: 0, m, n, k, a_trans, b_trans, element, stored }
    }
}

/// One entry of a list that is recorded, measured or started.
#[derive(Clone, Debug)]
pub enum Work {
    Kernel(Launch),
    /// A product of a library.
    Product(ProductId),
    /// Within the device's memory; the two stretches do not overlap.
    Copy {
        to: u64,
        from: u64,
        bytes: usize,
    },
    /// What lies at `at` is final for those who wait for the signal: sums over all ranks begin beside the work that follows.
    Signal {
        /// One of those that [`Driver::connect`] made.
        signal: usize,
        at: u64,
        bytes: usize,
    },
}

/// A sum over all ranks, in place, beside what else the device does.
#[derive(Clone, Debug)]
pub struct Sum {
    /// The signal that it waits for; without one, it waits for all that was asked for before.
    pub after: Option<usize>,
    pub at: u64,
    pub elements: usize,
    /// What is summed, and rounded to after each addition: f32 or bf16.
    pub dtype: DType,
    /// What brings the elements to `at`, and their sums back, where they are of another type or place.
    pub carried: Option<[Launch; 2]>,
}

/// What the compiler made of a kernel, and how many of its blocks a multiprocessor holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelFacts {
    pub registers: u32,
    /// Local memory of a thread, bytes: spills, and arrays that are indexed.
    pub local: u32,
    /// Static shared memory, bytes.
    pub shared: u32,
    pub blocks_per_multiprocessor: u32,
}

/// A device with its memory. Addresses are the device's; launches run in order.
pub trait Driver: Send {
    fn info(&self) -> &DeviceInfo;

    /// What [`Driver::load`] takes.
    fn image_kind(&self) -> ImageKind;

    /// Bytes of its memory that are free, and all of them.
    ///
    /// # Errors
    /// Those of the driver.
    fn memory(&self) -> Result<[u64; 2]>;

    /// Memory of at least `bytes`, aligned to 256 bytes, contents undefined.
    ///
    /// # Errors
    /// [`Error::Memory`](crate::error::Error::Memory) when there is not that much left.
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

    /// Starts an entry of a list.
    fn start(&mut self, work: &Work) -> Result<()>;

    /// Prepares a list of work to be started as one.
    fn record(&mut self, work: &[Work]) -> Result<GraphId>;

    /// Starts a recorded list.
    fn replay(&mut self, graph: GraphId) -> Result<()>;

    /// Drops a recorded list.
    fn forget(&mut self, graph: GraphId) -> Result<()>;

    /// Does `work` as a unit `repeats` times: the median of its times, each with cold caches, or what it did.
    fn measure(&mut self, work: &[Work], repeats: usize) -> Result<Measured>;

    /// Whether [`Driver::measure`] tells times.
    fn is_timed(&self) -> bool {
        false
    }

    /// Version of the library that [`Driver::library_product`] asks, or why there is none and what to install.
    fn library(&mut self) -> std::result::Result<(i32, i32), String> {
        Err("this device has no library of matrix products".to_owned())
    }

    /// Prepares a product of a library; None when there is no library, or it does not offer the product. The operands must
    /// stay where they are as long as it is used.
    ///
    /// # Errors
    /// Those of the library.
    fn library_product(&mut self, _product: &LibraryProduct) -> Result<Option<ProductId>> {
        Ok(None)
    }

    /// What the compiler made of a kernel; None when the device cannot tell.
    ///
    /// # Errors
    /// Those of the driver.
    fn facts(&self, _launch: &Launch) -> Result<Option<KernelFacts>> {
        Ok(None)
    }

    /// Waits until everything launched has ended.
    fn finish(&mut self) -> Result<()>;

    /// Whether [`Driver::connect`] may be asked, for a library that somebody `named` or one that was found.
    fn connects(&self, _named: bool) -> bool {
        false
    }

    /// Joins the devices of all ranks; makes the signals `0..signals`.
    ///
    /// # Errors
    /// Those of the library and the driver; a device that has no way to others says so.
    fn connect(&mut self, _seat: &Seat, _signals: usize) -> Result<()> {
        Err(Error::device(&self.info().name, "cannot be joined to other devices"))
    }

    /// Starts sums, one after the other in this order, which is that of all ranks. What is asked for from now on comes after
    /// all of them. Whoever waits for that waits no longer than the seat tells.
    ///
    /// # Errors
    /// Those of the library and the driver. The device takes part in no sum afterwards.
    fn sum(&mut self, _sums: &[Sum]) -> Result<()> {
        Err(Error::device(&self.info().name, "is not joined to other devices"))
    }

    /// Leaves the other devices, in order where nothing has failed, within seconds.
    fn disconnect(&mut self) {}
}

impl<D: Driver + ?Sized> Driver for Box<D> {
    fn info(&self) -> &DeviceInfo {
        (**self).info()
    }
    fn image_kind(&self) -> ImageKind {
        (**self).image_kind()
    }
    fn memory(&self) -> Result<[u64; 2]> {
        (**self).memory()
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
    fn start(&mut self, work: &Work) -> Result<()> {
        (**self).start(work)
    }
    fn record(&mut self, work: &[Work]) -> Result<GraphId> {
        (**self).record(work)
    }
    fn replay(&mut self, graph: GraphId) -> Result<()> {
        (**self).replay(graph)
    }
    fn forget(&mut self, graph: GraphId) -> Result<()> {
        (**self).forget(graph)
    }
    fn measure(&mut self, work: &[Work], repeats: usize) -> Result<Measured> {
        (**self).measure(work, repeats)
    }
    fn is_timed(&self) -> bool {
        (**self).is_timed()
    }
    fn library(&mut self) -> std::result::Result<(i32, i32), String> {
        (**self).library()
    }
    fn library_product(&mut self, product: &LibraryProduct) -> Result<Option<ProductId>> {
        (**self).library_product(product)
    }
    fn facts(&self, launch: &Launch) -> Result<Option<KernelFacts>> {
        (**self).facts(launch)
    }
    fn finish(&mut self) -> Result<()> {
        (**self).finish()
    }
    fn connects(&self, named: bool) -> bool {
        (**self).connects(named)
    }
    fn connect(&mut self, seat: &Seat, signals: usize) -> Result<()> {
        (**self).connect(seat, signals)
    }
    fn sum(&mut self, sums: &[Sum]) -> Result<()> {
        (**self).sum(sums)
    }
    fn disconnect(&mut self) {
        (**self).disconnect();
    }
}
