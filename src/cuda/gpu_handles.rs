//! What the CUDA driver hands out: the context, streams, events, pinned memory, modules, functions, graphs, tensor maps. Each
//! is given back when it is dropped, for which its context must be current, so that an opening that fails half-way leaves
//! nothing behind. An error then cannot be acted on: what was to go is gone either way.

use super::driver::TensorMap;
use crate::error::{Error, Result};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use std::ffi::{CString, c_void};

/// Bytes of one of the two pinned buffers that uploads go through.
pub const STAGING: usize = 16 << 20;
/// Shared memory of a block, static and dynamic together, that needs no permission, bytes.
const PLAIN_SHARED: u32 = 48 << 10;

/// An error of the driver with what was wanted of it.
pub fn failed(what: &str, e: DriverError) -> Error {
    let text = e.error_string().ok().and_then(|s| s.to_str().ok()).unwrap_or("unknown error");
    Error::device("cuda", format!("{what}: {text} ({e:?})"))
}

/// The primary context of a GPU, shared with whatever else of this process uses the GPU.
pub struct Context {
    handle: sys::CUcontext,
    pub device: sys::CUdevice,
}

impl Context {
    /// Retains the context of the GPU number `ordinal` and makes it current on this thread.
    pub fn new(ordinal: i32) -> Result<Self> {
        let open = |e| failed("cannot open the GPU", e);
        let device = result::device::get(ordinal).map_err(open)?;
        // SAFETY: `device` was just given out; the context is released once, in `drop`.
        let handle = unsafe { result::primary_ctx::retain(device) }.map_err(open)?;
        let context = Context { handle, device };
        context.enter()?;
        Ok(context)
    }

    /// Makes it current on the calling thread.
    pub fn enter(&self) -> Result<()> {
        // SAFETY: the context lives as long as `self`.
        unsafe { result::ctx::set_current(self.handle) }.map_err(|e| failed("the context is lost", e))
    }

    /// What the driver tells of the GPU.
    pub fn attribute(&self, attribute: sys::CUdevice_attribute) -> Result<u32> {
        // SAFETY: the driver gave the device out.
        unsafe { result::device::get_attribute(self.device, attribute) }
            .map(|v| v.max(0) as u32)
            .map_err(|e| failed("the GPU does not tell its limits", e))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained in `new`, released once.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// A stream that does not wait for the one that programs share.
pub struct Stream(pub sys::CUstream);

impl Stream {
    pub fn new() -> Result<Self> {
        let made = result::stream::create(result::stream::StreamKind::NonBlocking);
        made.map(Stream).map_err(|e| failed("no stream", e))
    }

    /// Waits for everything on it.
    pub fn wait(&self) -> std::result::Result<(), DriverError> {
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::synchronize(self.0) }
    }

    /// Whether everything on it is done.
    pub fn is_done(&self) -> std::result::Result<bool, DriverError> {
        // SAFETY: the stream lives as long as `self`.
        match unsafe { sys::cuStreamQuery(self.0) }.result() {
            Ok(()) => Ok(true),
            Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// What is put on it from now on comes after `event`; one that was never recorded counts as having happened.
    pub fn wait_for(&self, event: &Event) -> std::result::Result<(), DriverError> {
        // SAFETY: stream and event are live.
        unsafe { result::stream::wait_event(self.0, event.0, sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed once.
        let _ = unsafe { result::stream::destroy(self.0) };
    }
}

/// A moment on a stream.
pub struct Event(pub sys::CUevent);

impl Event {
    /// One that tells times.
    pub fn timed() -> Result<Self> {
        Event::new(sys::CUevent_flags::CU_EVENT_DEFAULT)
    }

    /// One that only orders work.
    pub fn ordering() -> Result<Self> {
        Event::new(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    fn new(flags: sys::CUevent_flags) -> Result<Self> {
        result::event::create(flags).map(Event).map_err(|e| failed("no event", e))
    }

    pub fn record(&self, stream: &Stream) -> std::result::Result<(), DriverError> {
        // SAFETY: event and stream are live.
        unsafe { result::event::record(self.0, stream.0) }
    }

    /// Makes the graph that `stream` captures record it whenever it runs, for those who wait outside of the graph.
    pub fn record_from_graph(&self, stream: &Stream) -> std::result::Result<(), DriverError> {
        let flags = sys::CUevent_record_flags::CU_EVENT_RECORD_EXTERNAL as u32;
        // SAFETY: event and stream are live.
        unsafe { sys::cuEventRecordWithFlags(self.0, stream.0, flags) }.result()
    }

    /// Waits until it has happened.
    pub fn wait(&self) -> std::result::Result<(), DriverError> {
        // SAFETY: the event is live.
        unsafe { result::event::synchronize(self.0) }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed once.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}

/// Pinned host memory of [`STAGING`] bytes, and the event after which it may be written again.
pub struct Staging {
    pub at: *mut c_void,
    pub free: Event,
}

impl Staging {
    pub fn new() -> Result<Self> {
        let free = Event::ordering()?;
        // SAFETY: the memory is freed once, in `drop`.
        let at = unsafe { result::malloc_host(STAGING, 0) }.map_err(|e| failed("no pinned memory", e))?;
        Ok(Staging { at, free })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`, freed once; who drops it has waited for the copies.
        let _ = unsafe { result::free_host(self.at) };
    }
}

/// A stretch of device memory.
pub struct Scratch {
    pub at: sys::CUdeviceptr,
    pub bytes: usize,
}

impl Scratch {
    pub fn new(bytes: usize) -> std::result::Result<Self, DriverError> {
        // SAFETY: freed once, in `drop`; nothing is read before it is written.
        unsafe { result::malloc_sync(bytes) }.map(|at| Scratch { at, bytes })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`, freed once; the driver waits for what uses it.
        let _ = unsafe { result::free_sync(self.at) };
    }
}

/// First bytes of machine code; anything else that is loaded is text.
const ELF: &[u8] = b"\x7fELF";

/// A loaded image.
pub struct Module(pub sys::CUmodule);

impl Module {
    /// Loads machine code or text, which the driver compiles.
    ///
    /// # Errors
    /// Text with a zero byte, machine code that is cut off, and what the driver refuses.
    pub fn load(image: &[u8], name: &str) -> Result<Self> {
        let refused = |why: &str| Error::device("cuda", format!("kernel {name} cannot be loaded: {why}"));
        let text = match image.starts_with(ELF) {
            // The driver goes by the lengths that the image tells.
            true if !is_whole(image) => {
                return Err(refused("its machine code is cut off; remove the kernel cache"));
            }
            true => None,
            false => Some(CString::new(image).map_err(|_| refused("its text holds a zero byte"))?),
        };
        let start = text.as_ref().map_or(image.as_ptr().cast(), |t| t.as_ptr().cast());
        // SAFETY: an ELF file that is whole, or text with its zero; the driver copies it. Unloaded once, in `drop`.
        let module = unsafe { result::module::load_data(start) };
        module.map(Module).map_err(|e| failed(&format!("kernel {name} cannot be loaded"), e))
    }
}

/// Whether an ELF file holds the tables that its header tells of: NVIDIA's lie at its end.
fn is_whole(image: &[u8]) -> bool {
    let number = |at: usize, bytes: usize| {
        let field = image.get(at..at + bytes)?;
        Some(field.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b)))
    };
    let end = |at, size, count| number(at, 8)?.checked_add(number(size, 2)? * number(count, 2)?);
    // Program headers, section headers: offset, size of an entry, entries.
    [end(32, 54, 56), end(40, 58, 60)].iter().all(|e| e.is_some_and(|e| e <= image.len() as u64))
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: loaded in `load`, unloaded once; who drops it has waited for its kernels.
        let _ = unsafe { result::module::unload(self.0) };
    }
}

/// A loaded kernel; its module must stay loaded.
pub struct Function {
    pub handle: sys::CUfunction,
    pub module: sys::CUmodule,
    pub name: String,
    /// Where its parameters lie in [`Launch::params`](super::Launch::params).
    pub offsets: Vec<usize>,
    /// Bytes of all of them.
    pub bytes: usize,
    /// Static shared memory, bytes.
    fixed: u32,
    /// Dynamic shared memory that it may be launched with, bytes.
    permitted: u32,
}

impl Function {
    /// The kernel `name` of a module.
    pub fn new(module: &Module, name: &str) -> Result<Self> {
        let refused = |e| failed(&format!("kernel {name} cannot be loaded"), e);
        let text = CString::new(name)
            .map_err(|_| Error::device("cuda", format!("{name:?} is no name of a kernel")))?;
        // SAFETY: the module is loaded.
        let handle = unsafe { result::module::get_function(module.0, text) }.map_err(refused)?;
        let (offsets, bytes) = parameters(handle).map_err(refused)?;
        let mut function = Function {
            handle,
            module: module.0,
            name: name.to_owned(),
            offsets,
            bytes,
            fixed: 0,
            permitted: 0,
        };
        function.fixed =
            function.attribute(sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?;
        function.permitted = PLAIN_SHARED.saturating_sub(function.fixed);
        Ok(function)
    }

    /// What the driver tells of it.
    pub fn attribute(&self, attribute: sys::CUfunction_attribute) -> Result<u32> {
        // SAFETY: the function's module is loaded.
        unsafe { result::function::get_function_attribute(self.handle, attribute) }
            .map(|v| v.max(0) as u32)
            .map_err(|e| failed(&format!("nothing is told of kernel {}", self.name), e))
    }

    /// Lets it be launched with `shared` bytes of dynamic shared memory, and with what it was permitted before: the
    /// permission belongs to the kernel, whoever else loaded it.
    pub fn permit(&mut self, shared: u32, context: &Context) -> Result<()> {
        if shared <= self.permitted {
            return Ok(());
        }
        let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let asked = i32::try_from(shared).unwrap_or(i32::MAX);
        // SAFETY: as above.
        if let Err(e) = unsafe { result::function::set_function_attribute(self.handle, most, asked) } {
            let limit = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
            let has = context.attribute(limit)?;
            let what = format!(
                "kernel {} needs {shared} bytes of dynamic and {} of static shared memory, a block of this GPU has {has}",
                self.name, self.fixed
            );
            return Err(failed(&what, e));
        }
        self.permitted = shared;
        Ok(())
    }
}

/// Offsets of a kernel's parameters in [`Launch::params`](super::Launch::params), and the bytes of all of them. The driver
/// tells of the GPU's own layout, which does not begin at a multiple of 64 on every GPU: a struct with tensor maps, aligned
/// to that, lies 48 bytes behind its beginning on sm_90. So offsets count from the first parameter.
fn parameters(function: sys::CUfunction) -> std::result::Result<(Vec<usize>, usize), DriverError> {
    let (mut offsets, mut bytes, mut first) = (Vec::new(), 0, 0);
    loop {
        let (mut offset, mut size) = (0usize, 0);
        // SAFETY: the function is live, both numbers live through the call.
        let status = unsafe { sys::cuFuncGetParamInfo(function, offsets.len(), &mut offset, &mut size) };
        match status.result() {
            Ok(()) => {}
            // Behind the last one.
            Err(DriverError(sys::CUresult::CUDA_ERROR_INVALID_VALUE)) => return Ok((offsets, bytes)),
            Err(e) => return Err(e),
        }
        if offsets.is_empty() {
            first = offset;
        }
        let offset = offset.saturating_sub(first);
        offsets.push(offset);
        bytes = bytes.max(offset + size);
    }
}

/// A graph as it was recorded.
pub struct Graph(pub sys::CUgraph);

impl Graph {
    /// What can be started.
    pub fn instance(&self) -> std::result::Result<Instance, DriverError> {
        // SAFETY: the graph is live; the instance is destroyed once, in its `drop`.
        unsafe { result::graph::instantiate(self.0, sys::CUgraphInstantiate_flags(0)) }.map(Instance)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: ended up here once, from the end of its capture.
            let _ = unsafe { result::graph::destroy(self.0) };
        }
    }
}

/// A graph that can be started.
pub struct Instance(pub sys::CUgraphExec);

impl Drop for Instance {
    fn drop(&mut self) {
        // SAFETY: made in `instance`, destroyed once.
        let _ = unsafe { result::graph::exec_destroy(self.0) };
    }
}

/// A tensor map as kernels take it; a context must be current.
pub fn encode(map: &TensorMap) -> Result<[u64; 16]> {
    use sys::CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    use sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;
    use sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE;
    use sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
    use sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B;
    let mut made = sys::CUtensorMap { opaque: [0; 16] };
    let (at, row) = (map.at as *mut c_void, u64::from(map.columns) * 2);
    let status = if let Some(windows) = &map.windows {
        let (width, height) = (u64::from(windows.width), u64::from(windows.height));
        let sizes = [u64::from(map.columns), width, height, map.images(windows)?.into()];
        let strides = [row, row * width, row * width * height];
        // SAFETY: every pointer is to a live array of the rank, 4 (one less for strides, two for corners); the driver only
        // notes the address of the images, which kernels read within their planned extent.
        unsafe {
            sys::cuTensorMapEncodeIm2col(
                &raw mut made,
                CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                4,
                at,
                sizes.as_ptr(),
                strides.as_ptr(),
                windows.lower.as_ptr(),
                windows.upper.as_ptr(),
                map.box_columns,
                map.box_rows,
                [1, windows.step, windows.step, 1].as_ptr(),
                CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
    } else {
        // SAFETY: as above, of rank 2.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &raw mut made,
                CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                2,
                at,
                [u64::from(map.columns), u64::from(map.rows)].as_ptr(),
                [row].as_ptr(),
                [map.box_columns, map.box_rows].as_ptr(),
                [1, 1].as_ptr(),
                CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
    };
    status.result().map_err(|e| failed(&format!("no tensor map for {map:?}"), e))?;
    Ok(made.opaque)
}
