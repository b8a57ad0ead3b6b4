//! What the CUDA driver hands out: events, pinned memory, functions, tensor maps.

use super::driver::TensorMap;
use crate::error::{Error, Result};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use std::ffi::c_void;

/// Bytes of one of the two pinned buffers that uploads go through.
pub const STAGING: usize = 16 << 20;

/// An error of the driver with what was wanted of it.
pub fn failed(what: &str, e: DriverError) -> Error {
    let text = e.error_string().ok().and_then(|s| s.to_str().ok()).unwrap_or("unknown error");
    Error::device("cuda", format!("{what}: {text} ({e:?})"))
}

/// A loaded kernel.
pub struct Function {
    pub handle: sys::CUfunction,
    pub name: String,
    /// Where its parameters lie in [`Launch::params`](super::Launch::params).
    pub offsets: Vec<usize>,
    /// Bytes of all of them.
    pub bytes: usize,
}

/// Offsets of a kernel's parameters, and the bytes of all of them. A driver that does not tell is trusted to find one.
pub fn parameters(function: sys::CUfunction) -> (Vec<usize>, usize) {
    let (mut offsets, mut bytes) = (Vec::new(), 0);
    loop {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: the function is live, both numbers live through the call.
        let status = unsafe { sys::cuFuncGetParamInfo(function, offsets.len(), &mut offset, &mut size) };
        if status.result().is_err() {
            break;
        }
        offsets.push(offset);
        bytes = bytes.max(offset + size);
    }
    if offsets.is_empty() {
        offsets.push(0);
    }
    (offsets, bytes)
}

/// Pinned host memory, and the event after which it may be written again.
pub struct Staging {
    pub at: *mut c_void,
    pub free: sys::CUevent,
}

impl Staging {
    pub fn new() -> Result<Self> {
        // SAFETY: the memory is freed once, in the driver's `drop`.
        let at = unsafe { result::malloc_host(STAGING, 0) }.map_err(|e| failed("no pinned memory", e))?;
        let free = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
            .map_err(|e| failed("no event", e))?;
        Ok(Staging { at, free })
    }
}

/// A moment on a stream, for measuring; its context must be current when it is dropped.
pub struct Event(pub sys::CUevent);

impl Event {
    pub fn new() -> Result<Self> {
        let made = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT);
        made.map(Event).map_err(|e| failed("no event", e))
    }

    pub fn record(&self, stream: sys::CUstream) -> Result<()> {
        // SAFETY: event and stream are live.
        unsafe { result::event::record(self.0, stream) }.map_err(|e| failed("no event", e))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed once.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}

/// A tensor map as kernels take it; a context must be current.
pub fn encode(map: &TensorMap) -> Result<[u64; 16]> {
    use sys::CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    use sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;
    use sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE;
    use sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
    use sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B;
    let sizes = [u64::from(map.columns), u64::from(map.rows)];
    let strides = [u64::from(map.columns) * 2];
    let boxes = [map.box_columns, map.box_rows];
    let mut made = sys::CUtensorMap { opaque: [0; 16] };
    // SAFETY: every pointer is to a live array of the rank, 2 (one less for strides); the driver only notes the address
    // of the matrix, which kernels read within its planned extent.
    let status = unsafe {
        sys::cuTensorMapEncodeTiled(
            &raw mut made,
            CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            2,
            map.at as *mut c_void,
            sizes.as_ptr(),
            strides.as_ptr(),
            boxes.as_ptr(),
            [1, 1].as_ptr(),
            CU_TENSOR_MAP_INTERLEAVE_NONE,
            CU_TENSOR_MAP_SWIZZLE_128B,
            CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    status.result().map_err(|e| failed(&format!("no tensor map for {map:?}"), e))?;
    Ok(made.opaque)
}
