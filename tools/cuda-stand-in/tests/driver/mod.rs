//! The stand-in's functions as its users see them.

use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

// Linked for its functions, which nothing here names by a path.
use cuda_stand_in as _;

// SAFETY: as the driver's header and the stand-in declare them. Those that are marked safe look handles and addresses up, and
// write through references.
unsafe extern "C" {
    safe fn stand_in_reset(major: u32, minor: u32, multiprocessors: u32, memory: u64);
    safe fn stand_in_live(counts: &mut [u64; 8]);
    pub safe fn stand_in_fail(calls: u64, code: u32) -> bool;
    fn stand_in_refusal(text: *mut c_char, bytes: usize);
    pub safe fn cuInit(flags: u32) -> u32;
    pub safe fn cuDevicePrimaryCtxRetain(context: &mut u64, device: i32) -> u32;
    pub safe fn cuDevicePrimaryCtxRelease_v2(device: i32) -> u32;
    pub safe fn cuCtxSetCurrent(context: u64) -> u32;
    pub safe fn cuCtxSynchronize() -> u32;
    pub safe fn cuMemAlloc_v2(at: &mut u64, bytes: usize) -> u32;
    pub safe fn cuMemFree_v2(at: u64) -> u32;
    pub safe fn cuMemHostAlloc(at: &mut u64, bytes: usize, flags: u32) -> u32;
    pub safe fn cuMemFreeHost(at: u64) -> u32;
    pub safe fn cuMemsetD8Async(at: u64, value: u8, bytes: usize, stream: u64) -> u32;
    pub safe fn cuMemcpyHtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: u64) -> u32;
    safe fn cuMemcpyDtoH_v2(to: &mut u64, from: u64, bytes: usize) -> u32;
    fn cuModuleLoadData(module: &mut u64, image: *const c_char) -> u32;
    pub safe fn cuModuleUnload(module: u64) -> u32;
    fn cuModuleGetFunction(function: &mut u64, module: u64, name: *const c_char) -> u32;
    pub safe fn cuFuncSetAttribute(function: u64, attribute: u32, value: i32) -> u32;
    pub safe fn cuStreamCreate(stream: &mut u64, flags: u32) -> u32;
    pub safe fn cuStreamDestroy_v2(stream: u64) -> u32;
    pub safe fn cuStreamSynchronize(stream: u64) -> u32;
    pub safe fn cuStreamQuery(stream: u64) -> u32;
    pub safe fn cuStreamWaitEvent(stream: u64, event: u64, flags: u32) -> u32;
    pub safe fn cuStreamBeginCapture_v2(stream: u64, mode: u32) -> u32;
    pub safe fn cuStreamEndCapture(stream: u64, graph: &mut u64) -> u32;
    pub safe fn cuEventCreate(event: &mut u64, flags: u32) -> u32;
    pub safe fn cuEventDestroy_v2(event: u64) -> u32;
    pub safe fn cuEventRecord(event: u64, stream: u64) -> u32;
    pub safe fn cuEventRecordWithFlags(event: u64, stream: u64, flags: u32) -> u32;
    pub safe fn stand_in_work(stream: u64, at: u64, bytes: u64) -> u32;
    pub safe fn cuEventSynchronize(event: u64) -> u32;
    pub safe fn cuEventQuery(event: u64) -> u32;
    pub safe fn cuEventElapsedTime_v2(ms: &mut f32, start: u64, end: u64) -> u32;
    pub safe fn cuGraphInstantiateWithFlags(exec: &mut u64, graph: u64, flags: u64) -> u32;
    pub safe fn cuGraphDestroy(graph: u64) -> u32;
    pub safe fn cuGraphExecDestroy(exec: u64) -> u32;
    pub safe fn cuGraphLaunch(exec: u64, stream: u64) -> u32;
    fn cuLaunchKernel(
        function: u64,
        gx: u32,
        gy: u32,
        gz: u32,
        bx: u32,
        by: u32,
        bz: u32,
        shared: u32,
        stream: u64,
        params: *const *const c_void,
        extra: *const c_void,
    ) -> u32;
    fn cuTensorMapEncodeTiled(
        map: *mut u64,
        data_type: u32,
        rank: u32,
        at: u64,
        sizes: *const u64,
        strides: *const u64,
        boxes: *const u32,
        element_strides: *const u32,
        interleave: u32,
        swizzle: u32,
        promotion: u32,
        fill: u32,
    ) -> u32;
}

/// A kernel of two parameters.
pub const TEXT: &str = "
.version 8.0
.target sm_80
.address_size 64
.visible .entry two(.param .u64 at, .param .u32 n) .maxntid 64, 1, 1
{ ret; }
";

/// The stand-in for one test, as sm_90 with 1 GiB; others of the process wait.
pub struct Alone {
    _lock: MutexGuard<'static, ()>,
    pub context: u64,
}

/// As at first, nothing initialised.
pub fn fresh() -> Alone {
    static LOCK: Mutex<()> = Mutex::new(());
    let lock = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    stand_in_reset(9, 0, 132, 1 << 30);
    Alone { _lock: lock, context: 0 }
}

/// With a context that is current on this thread.
pub fn open() -> Alone {
    let mut alone = fresh();
    assert_eq!(cuInit(0), 0);
    assert_eq!(cuDevicePrimaryCtxRetain(&mut alone.context, 0), 0);
    assert_eq!(cuCtxSetCurrent(alone.context), 0);
    alone
}

/// Memory, pinned memory, streams, events, modules, graphs, executable graphs, contexts.
pub fn live() -> [u64; 8] {
    let mut counts = [0; 8];
    stand_in_live(&mut counts);
    counts
}

/// Why the last call was refused.
pub fn refusal() -> String {
    let mut text = [0u8; 400];
    // SAFETY: the room is as large as is told.
    unsafe { stand_in_refusal(text.as_mut_ptr().cast(), text.len()) };
    CStr::from_bytes_until_nul(&text).unwrap().to_string_lossy().into_owned()
}

/// What a function makes.
pub fn made(make: impl FnOnce(&mut u64) -> u32) -> u64 {
    let mut handle = 0;
    assert_eq!(make(&mut handle), 0, "{}", refusal());
    handle
}

/// A stream that waits for no other.
pub fn stream() -> u64 {
    made(|s| cuStreamCreate(s, 1))
}

pub fn event() -> u64 {
    made(|e| cuEventCreate(e, 0))
}

pub fn memory(bytes: usize) -> u64 {
    made(|at| cuMemAlloc_v2(at, bytes))
}

/// Eight bytes of the device.
pub fn download(from: u64) -> u32 {
    cuMemcpyDtoH_v2(&mut 0, from, 8)
}

pub fn load(text: &str, module: &mut u64) -> u32 {
    let text = CString::new(text).unwrap();
    // SAFETY: a text with its zero.
    unsafe { cuModuleLoadData(module, text.as_ptr()) }
}

pub fn function(module: u64, name: &str, function: &mut u64) -> u32 {
    let name = CString::new(name).unwrap();
    // SAFETY: a text with its zero.
    unsafe { cuModuleGetFunction(function, module, name.as_ptr()) }
}

/// Launches a block of 32 threads of a kernel of two parameters, those that are None without a place.
pub fn launch(function: u64, params: [Option<u64>; 2], stream: u64) -> u32 {
    let place =
        |p: &Option<u64>| p.as_ref().map_or(std::ptr::null(), |p| std::ptr::from_ref(p).cast::<c_void>());
    let places = [place(&params[0]), place(&params[1])];
    // SAFETY: two places, each null or of 8 bytes.
    unsafe { cuLaunchKernel(function, 1, 1, 1, 32, 1, 1, 0, stream, places.as_ptr(), std::ptr::null()) }
}

/// A request for a tensor map of bf16 in two dimensions.
#[derive(Clone, Copy, Debug)]
pub struct Tiled {
    pub at: u64,
    pub sizes: [u64; 2],
    pub stride: u64,
    pub boxes: [u32; 2],
    pub element_strides: [u32; 2],
    pub swizzle: u32,
    /// Whether the map's own place is 8 bytes off.
    pub off: bool,
}

/// Room for a tensor map.
#[repr(align(128))]
struct Room([u64; 17]);

pub fn encode(t: &Tiled) -> u32 {
    let mut room = Room([0; 17]);
    // SAFETY: the map fits at both places, and the arrays are of the rank.
    unsafe {
        cuTensorMapEncodeTiled(
            room.0.as_mut_ptr().add(usize::from(t.off)),
            9,
            2,
            t.at,
            t.sizes.as_ptr(),
            &t.stride,
            t.boxes.as_ptr(),
            t.element_strides.as_ptr(),
            0,
            t.swizzle,
            0,
            0,
        )
    }
}
