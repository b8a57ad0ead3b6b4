//! A real GPU through the CUDA driver.

use super::cublaslt::CublasLt;
use super::driver::{
    DeviceInfo, Driver, GraphId, ImageKind, KernelFacts, KernelId, Launch, LibraryProduct, Measured,
    ProductId, TensorMap, Work,
};
use super::gpu_handles::{Event, Function, STAGING, Staging, encode, failed, parameters};
use super::probe;
use crate::error::{Error, Result};
use cudarc::driver::result;
use cudarc::driver::sys;
use rayon::prelude::*;
use std::collections::HashMap;
use std::ffi::{CString, c_void};

/// Version of CUDA that a driver must support to have every function that is called here.
const OLDEST_DRIVER: (i32, i32) = (12, 4);
/// What one thread copies into pinned memory at a time, bytes.
const PIECE: usize = 1 << 20;
/// Dynamic shared memory that needs no permission, bytes.
const PLAIN_SHARED: u32 = 48 << 10;

/// One GPU: its primary context, one stream, the modules that were loaded.
pub struct GpuDriver {
    info: DeviceInfo,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    /// Copies of inputs beside what runs.
    copies: sys::CUstream,
    /// The last staged copy, for the launches that need it; the last copy on the device, for what is staged over it.
    staged: sys::CUevent,
    moved: sys::CUevent,
    staging: [Staging; 2],
    /// Which of them is used next.
    turn: usize,
    modules: HashMap<Vec<u8>, sys::CUmodule>,
    functions: Vec<Function>,
    graphs: Vec<Option<sys::CUgraphExec>>,
    /// Opened when it is first asked for; or why it cannot be.
    library: Option<std::result::Result<CublasLt, String>>,
    /// Memory that is overwritten to cool the caches down, twice the second-level cache: address and bytes.
    flush: Option<(u64, usize)>,
}

/// First bytes of machine code; anything else that is loaded is text.
const ELF: &[u8] = b"\x7fELF";

// SAFETY: handles of the driver API and of cuBLASLt may be used from any thread; every method makes the context current first.
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
        let open = |e| failed("cannot open the GPU", e);
        let device = result::device::get(ordinal as i32).map_err(open)?;
        // SAFETY: `device` was just given out; the context is released once, in `drop`.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(open)?;
        // SAFETY: `context` was just retained.
        unsafe { result::ctx::set_current(context) }.map_err(open)?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(open)?;
        let copies = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(open)?;
        let event = || result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).map_err(open);
        let (staged, moved) = (event()?, event()?);
        let staging = [Staging::new()?, Staging::new()?];
        Ok(GpuDriver {
            info,
            device,
            context,
            stream,
            copies,
            staged,
            moved,
            staging,
            turn: 0,
            modules: HashMap::new(),
            functions: Vec::new(),
            graphs: Vec::new(),
            library: None,
            flush: None,
        })
    }

    /// Makes the context current on the calling thread.
    fn enter(&self) -> Result<()> {
        // SAFETY: the context lives as long as `self`.
        unsafe { result::ctx::set_current(self.context) }.map_err(|e| failed("the context is lost", e))
    }

    fn function(&self, kernel: KernelId) -> Result<&Function> {
        self.functions
            .get(kernel.0)
            .ok_or_else(|| Error::device("cuda", format!("kernel {} was never loaded", kernel.0)))
    }

    fn enqueue(&self, launch: &Launch) -> Result<()> {
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
                self.stream,
                &mut params,
            )
        };
        status.map_err(|e| failed(&format!("kernel {} does not start", function.name), e))
    }

    /// Copies through pinned memory on `stream`; returns when `bytes` may change.
    fn send(&mut self, at: u64, bytes: &[u8], stream: sys::CUstream) -> Result<()> {
        let refused = |e| failed("cannot copy to the GPU", e);
        for (i, part) in bytes.chunks(STAGING).enumerate() {
            let staging = &self.staging[self.turn];
            self.turn = (self.turn + 1) % self.staging.len();
            // SAFETY: the event is live; once it has happened nothing reads the buffer, which is as large as a part and
            // which this thread alone writes.
            let pinned = unsafe {
                result::event::synchronize(staging.free).map_err(refused)?;
                std::slice::from_raw_parts_mut(staging.at.cast::<u8>(), part.len())
            };
            let pieces = pinned.par_chunks_mut(PIECE).zip(part.par_chunks(PIECE));
            pieces.for_each(|(to, from)| to.copy_from_slice(from));
            // SAFETY: the buffer lives as long as `self` and is not written before the event has happened.
            unsafe {
                result::memcpy_htod_async(at + (i * STAGING) as u64, pinned, stream).map_err(refused)?;
                result::event::record(staging.free, stream).map_err(refused)?;
            }
        }
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::synchronize(self.stream) }.map_err(|e| failed("a kernel failed", e))
    }

    /// Puts an entry of a list on the stream.
    fn enqueue_work(&self, work: &Work) -> Result<()> {
        match work {
            Work::Kernel(launch) => self.enqueue(launch),
            Work::Product(product) => match &self.library {
                Some(Ok(library)) => library.enqueue(product.0, self.stream),
                _ => Err(Error::device("cuda", format!("product {} was never prepared", product.0))),
            },
            // SAFETY: both stretches lie in live allocations, as the caller promised.
            Work::Copy { to, from, bytes } => {
                unsafe { result::memcpy_dtod_async(*to, *from, *bytes, self.stream) }
                    .map_err(|e| failed("cannot copy on the GPU", e))
            }
        }
    }

    /// The memory that is overwritten between repeats, allocated when it is first needed.
    fn flush(&mut self) -> Result<(u64, usize)> {
        if let Some(flush) = self.flush {
            return Ok(flush);
        }
        let size = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE;
        // SAFETY: the driver gave the device out.
        let cache = unsafe { result::device::get_attribute(self.device, size) }
            .map_err(|e| failed("does not tell its cache's size", e))?;
        let bytes = 2 * cache.max(1) as usize;
        let flush = (self.allocate(bytes)?, bytes);
        self.flush = Some(flush);
        Ok(flush)
    }

    /// Milliseconds that each of `repeats` runs of `work` takes with cold caches, by events on the GPU.
    ///
    /// # Errors
    /// Those of the launches.
    pub fn time(&mut self, work: &[Work], repeats: usize) -> Result<Vec<f32>> {
        self.enter()?;
        let (at, bytes) = self.flush()?;
        let [start, end] = [Event::new()?, Event::new()?];
        let mut times = Vec::with_capacity(repeats);
        for _ in 0..repeats {
            // While this runs the launches below are queued, so that none of them waits for the host.
            // SAFETY: the memory is live and holds nothing.
            unsafe { result::memset_d8_async(at, 0, bytes, self.stream) }
                .map_err(|e| failed("cannot overwrite the cache", e))?;
            start.record(self.stream)?;
            work.iter().try_for_each(|w| self.enqueue_work(w))?;
            end.record(self.stream)?;
            self.wait()?;
            // SAFETY: both events have happened: the stream was waited for.
            times.push(unsafe { result::event::elapsed(start.0, end.0) }.map_err(|e| failed("no time", e))?);
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
        self.enter()?;
        self.wait()?;
        // SAFETY: `at` came from `allocate`, and nothing that runs uses it any more.
        unsafe { result::free_sync(at) }.map_err(|e| failed("cannot free memory", e))
    }

    fn upload(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        self.enter()?;
        self.send(at, bytes, self.stream)
    }

    fn stage(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        self.enter()?;
        let refused = |e| failed("cannot order the copies", e);
        let wait = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: streams and events live as long as `self`; an event that was never recorded counts as having happened.
        unsafe { result::stream::wait_event(self.copies, self.moved, wait) }.map_err(refused)?;
        self.send(at, bytes, self.copies)?;
        // SAFETY: as above.
        unsafe { result::event::record(self.staged, self.copies) }.map_err(refused)
    }

    fn join(&mut self) -> Result<()> {
        self.enter()?;
        let wait = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: as in `stage`.
        unsafe { result::stream::wait_event(self.stream, self.staged, wait) }
            .map_err(|e| failed("cannot order the copies", e))
    }

    fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.enter()?;
        let refused = |e| failed("cannot copy on the GPU", e);
        // SAFETY: both places were planned within live allocations, apart from each other; the event is live.
        unsafe {
            result::memcpy_dtod_async(to, from, bytes, self.stream).map_err(refused)?;
            result::event::record(self.moved, self.stream).map_err(refused)
        }
    }

    fn download(&self, at: u64, bytes: &mut [u8]) -> Result<()> {
        self.enter()?;
        self.wait()?;
        // SAFETY: the caller asks for memory that it allocated; the copy ends before the call does.
        unsafe { result::memcpy_dtoh_sync(bytes, at) }.map_err(|e| failed("cannot copy from the GPU", e))
    }

    fn load(&mut self, image: &[u8], name: &str, shared: u32) -> Result<KernelId> {
        self.enter()?;
        let refused = |e| failed(&format!("kernel {name} cannot be loaded"), e);
        let module = match self.modules.get(image) {
            Some(module) => *module,
            None => {
                // Text is compiled by the driver, and must end with a zero.
                let text = if image.starts_with(ELF) { None } else { CString::new(image).ok() };
                let start = text.as_ref().map_or(image.as_ptr().cast(), |t| t.as_ptr().cast());
                // SAFETY: the image is what NVRTC made for this GPU, or text with its zero; the driver copies it.
                let module = unsafe { result::module::load_data(start) }.map_err(refused)?;
                self.modules.insert(image.to_vec(), module);
                module
            }
        };
        let text = CString::new(name)
            .map_err(|_| Error::device("cuda", format!("`{name}` is no name of a kernel")))?;
        // SAFETY: the module stays loaded as long as `self`.
        let handle = unsafe { result::module::get_function(module, text) }.map_err(refused)?;
        if shared > PLAIN_SHARED {
            let most = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: as above.
            unsafe { result::function::set_function_attribute(handle, most, shared as i32) }
                .map_err(refused)?;
        }
        let (offsets, bytes) = parameters(handle);
        self.functions.push(Function { handle, name: name.to_owned(), offsets, bytes });
        Ok(KernelId(self.functions.len() - 1))
    }

    fn launch(&mut self, launch: &Launch) -> Result<()> {
        self.enter()?;
        self.enqueue(launch)
    }

    fn tensor_map(&self, map: &TensorMap) -> Result<[u64; 16]> {
        self.enter()?;
        encode(map)
    }

    fn start(&mut self, work: &Work) -> Result<()> {
        self.enter()?;
        self.enqueue_work(work)
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
        unsafe { result::stream::begin_capture(self.stream, mode) }.map_err(refused)?;
        let queued = work.iter().try_for_each(|w| self.enqueue_work(w));
        // SAFETY: the capture was begun above; it ends whatever the launches said.
        let graph = unsafe { result::stream::end_capture(self.stream) };
        queued?;
        let graph = graph.map_err(refused)?;
        // SAFETY: the graph was just made; it is destroyed once, after its instance was.
        let instance = unsafe {
            let instance = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            result::graph::destroy(graph).map_err(refused)?;
            instance.map_err(refused)?
        };
        self.graphs.push(Some(instance));
        Ok(GraphId(self.graphs.len() - 1))
    }

    fn replay(&mut self, graph: GraphId) -> Result<()> {
        self.enter()?;
        match self.graphs.get(graph.0) {
            // SAFETY: instance and stream are live.
            Some(Some(instance)) => unsafe { result::graph::launch(*instance, self.stream) }
                .map_err(|e| failed("the step does not start", e)),
            _ => Err(Error::device("cuda", format!("graph {} was never recorded", graph.0))),
        }
    }

    fn forget(&mut self, graph: GraphId) -> Result<()> {
        self.enter()?;
        match self.graphs.get_mut(graph.0).and_then(Option::take) {
            // SAFETY: taken out, so destroyed once.
            Some(instance) => unsafe { result::graph::exec_destroy(instance) }
                .map_err(|e| failed("cannot drop a recorded step", e)),
            None => Ok(()),
        }
    }

    fn measure(&mut self, work: &[Work], repeats: usize) -> Result<Measured> {
        let mut times = self.time(work, repeats.max(1))?;
        times.sort_by(f32::total_cmp);
        Ok(Measured { seconds: Some(f64::from(times[times.len() / 2]) * 1e-3), counts: None })
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
        let handle = self.function(launch.kernel)?.handle;
        let ask = |a| {
            // SAFETY: the function's module stays loaded as long as `self`.
            unsafe { result::function::get_function_attribute(handle, a) }
                .map(|v| v.max(0) as u32)
                .map_err(|e| failed("no attribute", e))
        };
        let threads = launch.block.iter().product::<u32>() as i32;
        // SAFETY: as above.
        let blocks = unsafe {
            result::occupancy::max_active_block_per_multiprocessor(handle, threads, launch.shared as usize)
        };
        Ok(Some(KernelFacts {
            registers: ask(A::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
            local: ask(A::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
            shared: ask(A::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?,
            blocks_per_multiprocessor: blocks.map_err(|e| failed("no occupancy", e))?.max(0) as u32,
        }))
    }

    fn finish(&mut self) -> Result<()> {
        self.enter()?;
        self.wait()
    }
}

impl Drop for GpuDriver {
    fn drop(&mut self) {
        // Nothing can be done about an error here; the process ends or goes on without this GPU.
        if self.enter().is_err() {
            return;
        }
        let _ = self.wait();
        // Its own `drop` needs the context that is given back below.
        self.library = None;
        // SAFETY: everything below was made by `self`, is destroyed once and used by nothing that runs.
        unsafe {
            for instance in self.graphs.drain(..).flatten() {
                let _ = result::graph::exec_destroy(instance);
            }
            for (_, module) in self.modules.drain() {
                let _ = result::module::unload(module);
            }
            if let Some((at, _)) = self.flush.take() {
                let _ = result::free_sync(at);
            }
            for staging in &self.staging {
                let _ = result::event::destroy(staging.free);
                let _ = result::free_host(staging.at);
            }
            let _ = result::event::destroy(self.staged);
            let _ = result::event::destroy(self.moved);
            let _ = result::stream::destroy(self.copies);
            let _ = result::stream::destroy(self.stream);
            let _ = result::primary_ctx::release(self.device);
        }
    }
}
