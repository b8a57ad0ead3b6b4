//! A real GPU through the CUDA driver.

use super::cublaslt::CublasLt;
use super::driver::{
    DeviceInfo, Driver, GraphId, ImageKind, KernelFacts, KernelId, Launch, LibraryProduct, Measured,
    ProductId, Sum, TensorMap, Work,
};
use super::gpu_flush::Flush;
use super::gpu_handles::{
    Context, Event, Function, Graph, Instance, Module, STAGING, Staging, Stream, encode, failed,
};
use super::gpu_link::Link;
use super::nccl::Seat;
use super::probe;
use crate::error::{Error, Result};
use crate::units::median;
use cudarc::driver::result;
use cudarc::driver::sys;
use rayon::prelude::*;
use std::collections::HashMap;
use std::ffi::c_void;

/// Version of CUDA that a driver must support to have every function that is called here.
const OLDEST_DRIVER: (i32, i32) = (12, 4);
/// What one thread copies into pinned memory at a time, bytes.
const PIECE: usize = 1 << 20;

/// One GPU: its primary context, one stream, the modules that were loaded.
pub struct GpuDriver {
    info: DeviceInfo,
    /// To the GPUs of other ranks.
    link: Option<Link>,
    /// Opened when it is first asked for; or why it cannot be.
    library: Option<std::result::Result<CublasLt, String>>,
    /// Made when it is first needed.
    flush: Option<Flush>,
    graphs: Vec<Option<Instance>>,
    functions: Vec<Function>,
    modules: HashMap<Vec<u8>, Module>,
    staging: [Staging; 2],
    /// Which of them is used next.
    turn: usize,
    /// The last staged copy, for the launches that need it; the last copy on the device, for what is staged over it.
    staged: Event,
    moved: Event,
    stream: Stream,
    /// Copies of inputs beside what runs.
    copies: Stream,
    /// Given back last: everything above is of it.
    context: Context,
}

// SAFETY: handles of the driver API and of cuBLASLt may be used from any thread; every method, and `drop`, makes the context
// current first. The pinned memory is written by methods that take `self` mutably.
unsafe impl Send for GpuDriver {}

impl GpuDriver {
    /// The GPU number `ordinal`.
    ///
    /// # Errors
    /// [`Error::Device`] when there is no driver or no such GPU; the message says what to install.
    pub fn new(ordinal: usize) -> Result<Self> {
        let found = probe::installed();
        let version = found.driver;
        let version = version.map_err(|why| Error::device("cuda", format!("{why}, or use --device cpu")))?;
        if version < OLDEST_DRIVER {
            let (major, minor) = version;
            let message = format!("the driver supports CUDA {major}.{minor}: install one for CUDA 13");
            return Err(Error::device("cuda", message));
        }
        if ordinal >= found.gpus.len() {
            let message = match found.gpus.len() {
                0 => "the driver finds no GPU; use --device cpu".to_owned(),
                n => format!("there is no GPU {ordinal}: the driver finds {n}"),
            };
            return Err(Error::device("cuda", message));
        }
        let gpu = &found.gpus[ordinal];
        let info = DeviceInfo {
            name: gpu.name.clone(),
            capability: gpu.capability,
            multiprocessors: gpu.multiprocessors,
        };
        let context = Context::new(ordinal as i32)?;
        let (copies, stream) = (Stream::new()?, Stream::new()?);
        let (staged, moved) = (Event::ordering()?, Event::ordering()?);
        Ok(GpuDriver {
            info,
            link: None,
            library: None,
            flush: None,
            graphs: Vec::new(),
            functions: Vec::new(),
            modules: HashMap::new(),
            staging: [Staging::new()?, Staging::new()?],
            turn: 0,
            staged,
            moved,
            stream,
            copies,
            context,
        })
    }

    /// Makes the context current on the calling thread.
    fn enter(&self) -> Result<()> {
        self.context.enter()
    }

    fn function(&self, kernel: KernelId) -> Result<&Function> {
        self.functions
            .get(kernel.0)
            .ok_or_else(|| Error::device("cuda", format!("kernel {} was never loaded", kernel.0)))
    }

    fn enqueue(&self, launch: &Launch, stream: &Stream) -> Result<()> {
        let function = self.function(launch.kernel)?;
        let ([gx, gy, gz], [bx, by, bz]) = (launch.grid, launch.block);
        if launch.params.len() < function.bytes {
            let (needs, has) = (function.bytes, launch.params.len());
            let message = format!("kernel {} takes {needs} bytes of parameters, not {has}", function.name);
            return Err(Error::device("cuda", message));
        }
        let base = launch.params.as_ptr().cast_mut();
        // SAFETY: every offset lies within the `bytes` that there are.
        let place = |offset: &usize| unsafe { base.add(*offset) }.cast::<c_void>();
        let mut params: Vec<*mut c_void> = function.offsets.iter().map(place).collect();
        // SAFETY: each parameter lies whole within `launch.params`, by what the driver told of the kernel; the driver copies
        // them during the call. What the kernel reads and writes was planned within live allocations.
        let status = unsafe {
            result::launch_kernel(
                function.handle,
                (gx, gy, gz),
                (bx, by, bz),
                launch.shared,
                stream.0,
                &mut params,
            )
        };
        status.map_err(|e| failed(&format!("kernel {} does not start", function.name), e))
    }

    /// Copies through pinned memory beside what runs, or in order with it; returns when `bytes` may change.
    fn send(&mut self, at: u64, bytes: &[u8], beside: bool) -> Result<()> {
        let refused = |e| failed("cannot copy to the GPU", e);
        let stream = if beside { &self.copies } else { &self.stream };
        for (i, part) in bytes.chunks(STAGING).enumerate() {
            let staging = &self.staging[self.turn];
            self.turn = (self.turn + 1) % self.staging.len();
            staging.free.wait().map_err(refused)?;
            // SAFETY: nothing reads the buffer any more, which is as large as a part and which this thread alone writes.
            let pinned = unsafe { std::slice::from_raw_parts_mut(staging.at.cast::<u8>(), part.len()) };
            let pieces = pinned.par_chunks_mut(PIECE).zip(part.par_chunks(PIECE));
            pieces.for_each(|(to, from)| to.copy_from_slice(from));
            // SAFETY: the buffer lives as long as `self` and is not written before the event has happened.
            unsafe { result::memcpy_htod_async(at + (i * STAGING) as u64, pinned, stream.0) }
                .map_err(refused)?;
            if let Err(e) = staging.free.record(stream) {
                // The buffer is read, and no event tells until when.
                let _ = stream.wait();
                return Err(refused(e));
            }
        }
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        self.link.iter().try_for_each(|link| link.wait(&self.stream))?;
        self.stream.wait().map_err(|e| failed("a kernel failed", e))
    }

    /// Puts an entry of a list on the stream, which records a graph if it is `captured`.
    fn enqueue_work(&self, work: &Work, captured: bool) -> Result<()> {
        match work {
            Work::Kernel(launch) => self.enqueue(launch, &self.stream),
            Work::Product(product) => match &self.library {
                Some(Ok(library)) => library.enqueue(product.0, self.stream.0),
                _ => Err(Error::device("cuda", format!("product {} was never prepared", product.0))),
            },
            // SAFETY: both stretches lie in live allocations, as the caller promised.
            Work::Copy { to, from, bytes } => {
                unsafe { result::memcpy_dtod_async(*to, *from, *bytes, self.stream.0) }
                    .map_err(|e| failed("cannot copy on the GPU", e))
            }
            Work::Signal { signal, .. } => {
                let event = self.link()?.signal(*signal)?;
                let recorded = match captured {
                    true => event.record_from_graph(&self.stream),
                    false => event.record(&self.stream),
                };
                recorded.map_err(|e| failed("cannot order the sums", e))
            }
        }
    }

    fn link(&self) -> Result<&Link> {
        self.link.as_ref().ok_or_else(|| Error::device("cuda", "the GPU is not joined to others"))
    }

    fn sum_all(&self, sums: &[Sum]) -> Result<()> {
        let link = self.link()?;
        for sum in sums {
            link.wait_for(sum.after, &self.stream)?;
            let [before, behind] = match &sum.carried {
                Some([before, behind]) => [Some(before), Some(behind)],
                None => [None, None],
            };
            before.into_iter().try_for_each(|launch| self.enqueue(launch, &link.stream))?;
            link.sum(sum.at, sum.elements, sum.dtype)?;
            behind.into_iter().try_for_each(|launch| self.enqueue(launch, &link.stream))?;
        }
        link.hand_back(&self.stream)
    }

    /// Milliseconds that each of `repeats` runs of `work` takes with cold caches, by events on the GPU.
    ///
    /// # Errors
    /// Those of the launches.
    pub fn time(&mut self, work: &[Work], repeats: usize) -> Result<Vec<f32>> {
        self.enter()?;
        if self.flush.is_none() {
            self.flush = Some(Flush::new(&self.context, self.info.multiprocessors, &self.stream)?);
        }
        let refused = |e| failed("no time", e);
        let [start, end] = [Event::timed()?, Event::timed()?];
        let mut times = Vec::with_capacity(repeats);
        for _ in 0..repeats {
            // While this runs the launches below are queued, so that none of them waits for the host.
            self.flush.iter().try_for_each(|flush| flush.enqueue(&self.stream))?;
            start.record(&self.stream).map_err(refused)?;
            work.iter().try_for_each(|w| self.enqueue_work(w, false))?;
            end.record(&self.stream).map_err(refused)?;
            self.wait()?;
            // SAFETY: both events have happened: the stream was waited for.
            times.push(unsafe { result::event::elapsed(start.0, end.0) }.map_err(refused)?);
        }
        Ok(times)
    }

    /// The library, opened when it is first asked for.
    fn cublaslt(&mut self) -> Result<&mut std::result::Result<CublasLt, String>> {
        self.enter()?;
        Ok(self.library.get_or_insert_with(|| CublasLt::new().map_err(|e| e.to_string())))
    }
}

impl Driver for GpuDriver {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn image_kind(&self) -> ImageKind {
        ImageKind::Cubin
    }

    fn memory(&self) -> Result<[u64; 2]> {
        self.enter()?;
        let (free, total) = result::mem_get_info().map_err(|e| failed("does not tell its memory", e))?;
        Ok([free as u64, total as u64])
    }

    fn allocate(&mut self, bytes: usize) -> Result<u64> {
        self.enter()?;
        // SAFETY: nothing is read before it is written, or the kernel's contract says so.
        unsafe { result::malloc_sync(bytes.max(1)) }.map_err(|e| match e.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                Error::memory("cuda", bytes as u64, self.memory().unwrap_or_default())
            }
            _ => failed("cannot allocate memory", e),
        })
    }

    fn free(&mut self, at: u64) -> Result<()> {
        // Whatever fails before, the memory is given back: nobody asks for it twice.
        let ended = self.enter().and_then(|()| self.wait());
        // SAFETY: `at` came from `allocate`; the driver waits for what uses it.
        let freed = unsafe { result::free_sync(at) }.map_err(|e| failed("cannot free memory", e));
        ended.and(freed)
    }

    fn upload(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        self.enter()?;
        self.send(at, bytes, false)
    }

    fn stage(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        self.enter()?;
        let refused = |e| failed("cannot order the copies", e);
        self.copies.wait_for(&self.moved).map_err(refused)?;
        self.send(at, bytes, true)?;
        self.staged.record(&self.copies).map_err(refused)
    }

    fn join(&mut self) -> Result<()> {
        self.enter()?;
        self.stream.wait_for(&self.staged).map_err(|e| failed("cannot order the copies", e))
    }

    fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.enter()?;
        let refused = |e| failed("cannot copy on the GPU", e);
        // SAFETY: both places were planned within live allocations, apart from each other.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.0) }.map_err(refused)?;
        self.moved.record(&self.stream).map_err(refused)
    }

    fn download(&self, at: u64, bytes: &mut [u8]) -> Result<()> {
        self.enter()?;
        self.wait()?;
        // SAFETY: the caller asks for memory that it allocated; the copy ends before the call does.
        unsafe { result::memcpy_dtoh_sync(bytes, at) }.map_err(|e| failed("cannot copy from the GPU", e))
    }

    fn load(&mut self, image: &[u8], name: &str, shared: u32) -> Result<KernelId> {
        self.enter()?;
        // Every launch of a step asks; only the first one of a module copies the image.
        let module = match self.modules.get(image) {
            Some(known) => known,
            None => self.modules.entry(image.to_vec()).or_insert(Module::load(image, name)?),
        };
        // What is set of a kernel holds for all who loaded it: one entry knows.
        let known = self.functions.iter().position(|f| f.module == module.0 && f.name == name);
        let id = match known {
            Some(id) => id,
            None => {
                self.functions.push(Function::new(module, name)?);
                self.functions.len() - 1
            }
        };
        self.functions[id].permit(shared, &self.context)?;
        Ok(KernelId(id))
    }

    fn launch(&mut self, launch: &Launch) -> Result<()> {
        self.enter()?;
        self.enqueue(launch, &self.stream)
    }

    fn tensor_map(&self, map: &TensorMap) -> Result<[u64; 16]> {
        self.enter()?;
        encode(map)
    }

    fn start(&mut self, work: &Work) -> Result<()> {
        self.enter()?;
        self.enqueue_work(work, false)
    }

    fn record(&mut self, work: &[Work]) -> Result<GraphId> {
        self.enter()?;
        let refused = |e| failed("cannot record the step", e);
        // A library may load its kernels when they are first used, which the stricter mode would refuse.
        let mode = if work.iter().any(|w| matches!(w, Work::Product(_))) {
            sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED
        } else {
            sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        };
        // SAFETY: the stream is live and this thread captures nothing else.
        unsafe { result::stream::begin_capture(self.stream.0, mode) }.map_err(refused)?;
        let queued = work.iter().try_for_each(|w| self.enqueue_work(w, true));
        // SAFETY: the capture was begun above; it ends whatever the launches said, and its graph is owned at once.
        let graph = unsafe { result::stream::end_capture(self.stream.0) }.map(Graph);
        queued?;
        let instance = graph.and_then(|g| g.instance()).map_err(refused)?;
        self.graphs.push(Some(instance));
        Ok(GraphId(self.graphs.len() - 1))
    }

    fn replay(&mut self, graph: GraphId) -> Result<()> {
        self.enter()?;
        match self.graphs.get(graph.0) {
            // SAFETY: instance and stream are live.
            Some(Some(instance)) => unsafe { result::graph::launch(instance.0, self.stream.0) }
                .map_err(|e| failed("the step does not start", e)),
            _ => Err(Error::device("cuda", format!("graph {} was never recorded", graph.0))),
        }
    }

    fn forget(&mut self, graph: GraphId) -> Result<()> {
        self.enter()?;
        // An instance that still runs ends first: the driver keeps it until then.
        drop(self.graphs.get_mut(graph.0).and_then(Option::take));
        Ok(())
    }

    fn measure(&mut self, work: &[Work], repeats: usize) -> Result<Measured> {
        let mut times: Vec<f64> = self.time(work, repeats.max(1))?.into_iter().map(f64::from).collect();
        Ok(Measured { seconds: Some(median(&mut times) * 1e-3), counts: None })
    }

    fn is_timed(&self) -> bool {
        true
    }

    fn library(&mut self) -> std::result::Result<(i32, i32), String> {
        match self.cublaslt().map_err(|e| e.to_string())? {
            Ok(library) => Ok(library.version()),
            Err(why) => Err(why.clone()),
        }
    }

    fn library_product(&mut self, product: &LibraryProduct) -> Result<Option<ProductId>> {
        match self.cublaslt()? {
            Ok(library) => Ok(library.prepare(product)?.map(ProductId)),
            Err(_) => Ok(None),
        }
    }

    fn facts(&self, launch: &Launch) -> Result<Option<KernelFacts>> {
        use sys::CUfunction_attribute_enum as A;
        self.enter()?;
        let function = self.function(launch.kernel)?;
        let threads =
            launch.block.iter().try_fold(1u32, |n, b| n.checked_mul(*b)).and_then(|n| i32::try_from(n).ok());
        let threads = threads.ok_or_else(|| {
            Error::device(
                "cuda",
                format!("kernel {}: blocks of {:?} are too large", function.name, launch.block),
            )
        })?;
        // SAFETY: the function's module stays loaded as long as `self`.
        let blocks = unsafe {
            let shared = launch.shared as usize;
            result::occupancy::max_active_block_per_multiprocessor(function.handle, threads, shared)
        };
        Ok(Some(KernelFacts {
            registers: function.attribute(A::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
            local: function.attribute(A::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
            shared: function.attribute(A::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?,
            blocks_per_multiprocessor: blocks.map_err(|e| failed("no occupancy", e))?.max(0) as u32,
        }))
    }

    fn finish(&mut self) -> Result<()> {
        self.enter()?;
        self.wait()
    }

    fn connects(&self, _named: bool) -> bool {
        true
    }

    fn connect(&mut self, seat: &Seat, signals: usize) -> Result<()> {
        self.enter()?;
        self.link = Some(Link::open(seat, signals)?);
        Ok(())
    }

    fn sum(&mut self, sums: &[Sum]) -> Result<()> {
        self.enter()?;
        // A list that ends half-way leaves other ranks in sums that this one never joins.
        self.sum_all(sums).inspect_err(|_| self.link.iter().for_each(Link::abort))
    }

    fn disconnect(&mut self) {
        if let Some(link) = self.link.take()
            && self.enter().is_ok()
        {
            link.end(&self.stream);
        }
    }
}

impl Drop for GpuDriver {
    fn drop(&mut self) {
        // Whatever is dropped after this is given back to the context that is current now, once nothing uses it. Nothing can be
        // done about an error here; the process ends or goes on without this GPU.
        if self.enter().is_ok() {
            // Graphs first, then what they signal; a sum that never ends must not keep the streams.
            self.graphs.clear();
            self.disconnect();
            let _ = self.stream.wait();
            let _ = self.copies.wait();
        }
    }
}
