//! The driver's functions, as its header declares them: those that the engine calls, and a few that break rules.

use crate::codes::{self, Answer, Code, refuse};
use crate::control::{Needs, call};
use crate::launch::Shape;
use crate::limits::{BLOCK, GRID, PLAIN_SHARED, REGISTERS, THREADS};
use crate::state::State;
use crate::streams::Mode;
use crate::tensor_map::{FEWEST_OF_IMAGES, Im2col, MOST_RANK, Tensor, Tiled};
use std::ffi::{CStr, c_char, c_void};

/// Version of CUDA that the stand-in claims.
const VERSION: i32 = 13000;
/// `CU_STREAM_NON_BLOCKING`, `CU_EVENT_DISABLE_TIMING`.
const NON_BLOCKING: u32 = 1;
const UNTIMED: u32 = 2;
/// `CU_EVENT_RECORD_EXTERNAL`.
const EXTERNAL: u32 = 1;
/// Alignment of a tensor map, bytes.
const MAP_ALIGNED: usize = 64;
/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
const MOST_DYNAMIC: u32 = 8;
/// Longest text that is loaded, bytes.
const MOST_TEXT: usize = 64 << 20;

/// Writes an answer.
///
/// # Safety
/// `to` must be null or a place for a `T`.
unsafe fn put<T>(to: *mut T, value: T) -> Answer {
    if to.is_null() {
        return refuse(Code::InvalidValue, "the place for the answer is null");
    }
    // SAFETY: the caller's promise; no alignment is asked of it.
    unsafe { to.write_unaligned(value) };
    Ok(())
}

/// Reads `n` elements.
///
/// # Safety
/// `from` must be null or have as many.
unsafe fn take<T: Copy>(from: *const T, n: usize) -> Answer<Vec<T>> {
    if from.is_null() && n > 0 {
        return refuse(Code::InvalidValue, "an array is null");
    }
    // SAFETY: the caller's promise; no alignment is asked of it.
    Ok((0..n).map(|i| unsafe { from.add(i).read_unaligned() }).collect())
}

#[unsafe(no_mangle)]
pub extern "C" fn cuInit(flags: u32) -> u32 {
    call("cuInit", Needs::Nothing, |s, _| {
        s.initialised |= flags == 0;
        if flags == 0 { Ok(()) } else { refuse(Code::InvalidValue, "flags must be 0") }
    })
}

macro_rules! of_codes {
    ($name:ident, $field:tt) => {
        /// # Safety
        /// As the driver's manual says.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(error: u32, text: *mut *const c_char) -> u32 {
            call(stringify!($name), Needs::Nothing, |_, _| {
                let Some(found) = codes::of(error) else {
                    return refuse(Code::InvalidValue, format!("no error has the number {error}"));
                };
                // SAFETY: the caller's promise; the text lives for ever.
                unsafe { put(text, found.$field.as_ptr()) }
            })
        }
    };
}
of_codes!(cuGetErrorName, 0);
of_codes!(cuGetErrorString, 1);

/// Functions that only write answers, or take handles only: name, parameters, what they need, and their work.
macro_rules! functions {
    ($($needs:ident $name:ident($($p:ident: $t:ty),*) |$s:ident, $thread:ident| $work:expr;)*) => {
        $(
            /// # Safety
            /// As the driver's manual says.
            #[unsafe(no_mangle)]
            #[allow(clippy::too_many_arguments)]
            pub unsafe extern "C" fn $name($($p: $t),*) -> u32 {
                call(stringify!($name), Needs::$needs, |$s, $thread| {
                    let _ = &$thread;
                    // SAFETY: pointers are what the driver's manual asks for, as the caller promises.
                    #[allow(unused_unsafe)]
                    unsafe { $work }
                })
            }
        )*
    };
}

functions! {
    Nothing cuDriverGetVersion(version: *mut i32) |_s, t| put(version, VERSION);
    Initialised cuDeviceGetCount(count: *mut i32) |_s, t| put(count, 1);
    Initialised cuDeviceGet(device: *mut i32, ordinal: i32) |s, t| s.device(ordinal).and_then(|()| put(device, ordinal));
    Initialised cuDeviceTotalMem_v2(bytes: *mut usize, device: i32) |s, t| {
        s.device(device)?;
        put(bytes, s.config.memory as usize)
    };
    Initialised cuDeviceGetName(name: *mut c_char, len: i32, device: i32) |s, t| {
        s.device(device)?;
        let room = usize::try_from(len).unwrap_or(0);
        let text = s.config.name.bytes().filter(|b| *b != 0).take(room.saturating_sub(1)).chain([0]);
        text.take(room).enumerate().try_for_each(|(i, b)| put(name.wrapping_add(i), b as c_char))
    };
    Initialised cuDeviceGetUuid_v2(uuid: *mut u8, device: i32) |s, t| {
        s.device(device)?;
        (0..16).try_for_each(|i| put(uuid.wrapping_add(i), i as u8))
    };
    Initialised cuDeviceGetAttribute(value: *mut i32, attribute: u32, device: i32) |s, t| {
        s.device(device)?;
        put(value, device_attribute(s, attribute)?)
    };
    Initialised cuDevicePrimaryCtxRetain(context: *mut u64, device: i32) |s, t| {
        s.device(device)?;
        put(context, s.retain())
    };
    Initialised cuDevicePrimaryCtxRelease_v2(device: i32) |s, t| s.device(device).and_then(|()| s.release());
    Initialised cuCtxSetCurrent(context: u64) |s, thread| s.set_current(context, thread);
    Context cuCtxSynchronize() |s, t| {
        s.streams.context_wide("cuCtxSynchronize")?;
        s.streams.synchronize_all();
        Ok(())
    };

    Context cuMemAlloc_v2(at: *mut u64, bytes: usize) |s, thread| {
        s.streams.potentially_unsafe("cuMemAlloc", thread)?;
        put(at, s.memory.allocate(bytes as u64)?)
    };
    GivesBack cuMemFree_v2(at: u64) |s, thread| {
        s.streams.potentially_unsafe("cuMemFree", thread)?;
        s.streams.synchronize_all();
        if at == 0 { Ok(()) } else { s.memory.free(at) }
    };
    Context cuMemGetInfo_v2(free: *mut usize, total: *mut usize) |s, t| {
        let (left, all) = s.memory.info();
        put(free, left as usize)?;
        put(total, all as usize)
    };
    Context cuMemHostAlloc(at: *mut u64, bytes: usize, _flags: u32) |s, thread| {
        s.streams.potentially_unsafe("cuMemHostAlloc", thread)?;
        put(at, s.pinned.allocate(bytes)?)
    };
    GivesBack cuMemFreeHost(at: u64) |s, thread| {
        s.streams.potentially_unsafe("cuMemFreeHost", thread)?;
        if s.streams.is_copying(at) {
            // The driver frees it; what the copy then reads is anybody's.
            return refuse(Code::InvalidValue, format!("pinned memory {at:#x} is freed before a copy of it is waited for"));
        }
        s.pinned.free(at)
    };
    Context cuMemsetD8Async(at: u64, _value: u8, bytes: usize, stream: u64) |s, t| {
        on(s, stream, |s| s.transfer(&[at], None, bytes as u64, stream))
    };
    Context cuMemcpyHtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: u64) |s, t| {
        on(s, stream, |s| s.transfer(&[to], Some(from), bytes as u64, stream))
    };
    Context cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: u64) |s, t| {
        on(s, stream, |s| s.transfer(&[to, from], None, bytes as u64, stream))
    };
    Context cuMemcpyDtoH_v2(to: *mut u8, from: u64, bytes: usize) |s, thread| {
        s.streams.potentially_unsafe("cuMemcpyDtoH", thread)?;
        s.streams.legacy_wide("cuMemcpyDtoH")?;
        s.memory.range(from, bytes as u64)?;
        s.pinned.range(to as u64, bytes as u64)?;
        if to.is_null() {
            return refuse(Code::InvalidValue, "the place for the bytes is null");
        }
        to.write_bytes(0, bytes);
        Ok(())
    };

    Context cuModuleLoadData(module: *mut u64, image: *const u8) |s, thread| {
        s.streams.potentially_unsafe("cuModuleLoadData", thread)?;
        let image = image_bytes(image)?;
        put(module, s.load(image)?)
    };
    GivesBack cuModuleUnload(module: u64) |s, thread| {
        s.streams.potentially_unsafe("cuModuleUnload", thread)?;
        s.unload(module)
    };
    Context cuModuleGetFunction(function: *mut u64, module: u64, name: *const c_char) |s, t| {
        if name.is_null() {
            return refuse(Code::InvalidValue, "the name is null");
        }
        put(function, s.function(module, &CStr::from_ptr(name).to_string_lossy())?)
    };
    Context cuFuncGetAttribute(value: *mut i32, attribute: u32, function: u64) |s, t| {
        put(value, function_attribute(s, attribute, function)?)
    };
    Context cuFuncSetAttribute(function: u64, attribute: u32, value: i32) |s, t| {
        if attribute == MOST_DYNAMIC {
            return s.permit(function, value);
        }
        s.called(function)?;
        refuse(Code::InvalidValue, format!("attribute {attribute} of a function is not settable here"))
    };
    Context cuFuncGetParamInfo(function: u64, index: usize, offset: *mut usize, size: *mut usize) |s, t| {
        let params = &s.called(function)?.kernel.params;
        let Some((at, bytes)) = params.get(index) else {
            return refuse(Code::InvalidValue, format!("parameter {index} of {}", params.len()));
        };
        put(offset, *at)?;
        if size.is_null() { Ok(()) } else { put(size, *bytes) }
    };
    Context cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks: *mut i32, function: u64, threads: i32, shared: usize) |s, t| {
        let kernel = &s.called(function)?.kernel;
        let threads = u32::try_from(threads).ok().filter(|t| (1..=THREADS).contains(t));
        let Some(threads) = threads else { return refuse(Code::InvalidValue, "a block of no, or too many, threads") };
        let shared = u32::try_from(shared).unwrap_or(u32::MAX).saturating_add(kernel.shared);
        put(blocks, s.limits.resident(threads, kernel.registers, shared) as i32)
    };

    Context cuStreamCreate(stream: *mut u64, flags: u32) |s, t| put(stream, s.streams.create(flags & NON_BLOCKING == 0));
    GivesBack cuStreamDestroy_v2(stream: u64) |s, t| s.streams.destroy(stream);
    Context cuStreamSynchronize(stream: u64) |s, t| s.streams.synchronize(stream);
    Context cuStreamQuery(stream: u64) |s, t| s.streams.query(stream);
    Context cuStreamWaitEvent(stream: u64, event: u64, _flags: u32) |s, t| {
        on(s, stream, |s| s.streams.wait_event(stream, event))
    };
    Context cuStreamBeginCapture_v2(stream: u64, mode: u32) |s, thread| {
        let mode = match mode {
            0 => Mode::Global,
            1 => Mode::ThreadLocal,
            2 => Mode::Relaxed,
            _ => return refuse(Code::InvalidValue, format!("capture mode {mode}")),
        };
        s.streams.begin_capture(stream, mode, thread)
    };
    // Ends what was begun, so that it must come through.
    GivesBack cuStreamEndCapture(stream: u64, graph: *mut u64) |s, thread| {
        put(graph, 0)?;
        let made = s.streams.end_capture(stream, thread)?;
        put(graph, s.add_graph(made))
    };
    Context cuEventCreate(event: *mut u64, flags: u32) |s, t| put(event, s.streams.create_event(flags & UNTIMED == 0));
    GivesBack cuEventDestroy_v2(event: u64) |s, t| s.streams.destroy_event(event);
    Context cuEventRecord(event: u64, stream: u64) |s, t| on(s, stream, |s| s.streams.record(event, stream));
    Context cuEventRecordWithFlags(event: u64, stream: u64, flags: u32) |s, t| on(s, stream, |s| match flags {
        0 => s.streams.record(event, stream),
        EXTERNAL => s.streams.record_from_graph(event, stream),
        _ => refuse(Code::InvalidValue, format!("flags {flags} of a record")),
    });
    Context cuEventSynchronize(event: u64) |s, t| s.streams.synchronize_event(event);
    Context cuEventQuery(event: u64) |s, t| s.streams.query_event(event);
    Context cuEventElapsedTime(ms: *mut f32, start: u64, end: u64) |s, t| put(ms, s.streams.elapsed(start, end)?);
    Context cuEventElapsedTime_v2(ms: *mut f32, start: u64, end: u64) |s, t| put(ms, s.streams.elapsed(start, end)?);

    Context cuGraphInstantiateWithFlags(exec: *mut u64, graph: u64, _flags: u64) |s, t| put(exec, s.instantiate(graph)?);
    GivesBack cuGraphDestroy(graph: u64) |s, t| s.destroy_graph(graph);
    GivesBack cuGraphExecDestroy(exec: u64) |s, t| s.destroy_exec(exec);
    Context cuGraphLaunch(exec: u64, stream: u64) |s, t| on(s, stream, |s| s.launch_graph(exec, stream));

    Context cuLaunchKernel(
        function: u64, gx: u32, gy: u32, gz: u32, bx: u32, by: u32, bz: u32, shared: u32, stream: u64,
        params: *const *const c_void, extra: *const *const c_void
    ) |s, t| {
        let shape = Shape { grid: [gx, gy, gz], block: [bx, by, bz], shared };
        on(s, stream, |s| {
            if !extra.is_null() {
                return refuse(Code::NotSupported, "parameters are taken from kernelParams only");
            }
            let words = parameter_words(s, function, params)?;
            s.launch(function, &shape, &words, stream)
        })
    };
    Initialised cuTensorMapEncodeTiled(
        map: *mut [u64; 16], data_type: u32, rank: u32, at: u64, sizes: *const u64, strides: *const u64,
        boxes: *const u32, element_strides: *const u32, interleave: u32, swizzle: u32, _promotion: u32, _fill: u32
    ) |s, t| {
        let rank = map_rank(s, map, [rank, interleave], 1)?;
        let [sizes, strides] = [take(sizes, rank)?, take(strides, rank - 1)?];
        let tensor = Tensor { data_type, at, sizes, strides, element_strides: take(element_strides, rank)?, swizzle };
        let tiled = Tiled { tensor, boxes: take(boxes, rank)? };
        s.memory.range(at, tiled.check()?)?;
        put(map, tiled.tensor.encode())
    };
    Initialised cuTensorMapEncodeIm2col(
        map: *mut [u64; 16], data_type: u32, rank: u32, at: u64, sizes: *const u64, strides: *const u64,
        lower: *const i32, upper: *const i32, channels: u32, pixels: u32, element_strides: *const u32, interleave: u32,
        swizzle: u32, _promotion: u32, _fill: u32
    ) |s, t| {
        let rank = map_rank(s, map, [rank, interleave], FEWEST_OF_IMAGES)?;
        let [sizes, strides] = [take(sizes, rank)?, take(strides, rank - 1)?];
        let tensor = Tensor { data_type, at, sizes, strides, element_strides: take(element_strides, rank)?, swizzle };
        let im2col = Im2col { tensor, lower: take(lower, rank - 2)?, upper: take(upper, rank - 2)?, channels, pixels };
        s.memory.range(at, im2col.check()?)?;
        put(map, im2col.tensor.encode())
    };
}

/// The rank of a map to be made, if there can be one: of `fewest` dimensions at least.
fn map_rank(s: &State, map: *mut [u64; 16], [rank, interleave]: [u32; 2], fewest: usize) -> Answer<usize> {
    if s.config.capability.0 < 9 {
        return refuse(Code::NotSupported, "tensor maps need sm_90 or later");
    }
    if map.is_null() || !(map as usize).is_multiple_of(MAP_ALIGNED) {
        return refuse(Code::InvalidValue, format!("a tensor map must be aligned to {MAP_ALIGNED} bytes"));
    }
    let rank = rank as usize;
    if !(fewest..=MOST_RANK).contains(&rank) || interleave != 0 {
        return refuse(Code::InvalidValue, format!("tensor maps of rank {rank}, interleave {interleave}"));
    }
    Ok(rank)
}

/// Work of another library, of `bytes` at `at`, on a stream.
#[unsafe(no_mangle)]
pub extern "C" fn stand_in_work(stream: u64, at: u64, bytes: u64) -> u32 {
    call("stand_in_work", Needs::Context, |s, _| on(s, stream, |s| s.library_work(at, bytes, stream)))
}

/// Work on a stream; a refusal spoils the capture that the stream is part of.
fn on(state: &mut State, stream: u64, work: impl FnOnce(&mut State) -> Answer) -> Answer {
    work(state).inspect_err(|r| state.streams.spoil_of(stream, &r.why))
}

/// `CUdevice_attribute`.
fn device_attribute(s: &State, attribute: u32) -> Answer<i32> {
    let value = match attribute {
        1 => THREADS,
        2..=4 => BLOCK[attribute as usize - 2],
        5..=7 => GRID[attribute as usize - 5],
        8 => PLAIN_SHARED,
        10 => 32,
        12 | 82 => REGISTERS,
        16 => s.config.multiprocessors,
        38 => s.limits.cache,
        39 => s.limits.warps * 32,
        75 => s.config.capability.0,
        76 => s.config.capability.1,
        81 => s.limits.shared,
        97 => s.limits.most_shared(),
        _ => {
            return refuse(
                Code::InvalidValue,
                format!("attribute {attribute} of a device is not known here"),
            );
        }
    };
    Ok(value as i32)
}

/// `CUfunction_attribute`.
fn function_attribute(s: &State, attribute: u32, function: u64) -> Answer<i32> {
    let function = s.called(function)?;
    let kernel = &function.kernel;
    let value = match attribute {
        0 => s.limits.most_threads(kernel.registers).min(kernel.threads.unwrap_or(THREADS)),
        1 => kernel.shared,
        3 => kernel.local,
        4 => kernel.registers,
        MOST_DYNAMIC => function.most_dynamic,
        _ => {
            return refuse(
                Code::InvalidValue,
                format!("attribute {attribute} of a function is not known here"),
            );
        }
    };
    Ok(value as i32)
}

/// Every 8 bytes of a launch's parameters, as addresses would lie.
///
/// # Safety
/// `params` must be null or point to as many parameters as the kernel has, each of its size.
unsafe fn parameter_words(s: &State, function: u64, params: *const *const c_void) -> Answer<Vec<u64>> {
    let kernel = &s.called(function)?.kernel;
    // SAFETY: the caller's promise.
    let places = unsafe { take(params, kernel.params.len()) }?;
    let mut words = Vec::new();
    for (i, (place, (_, size))) in places.into_iter().zip(&kernel.params).enumerate() {
        if place.is_null() {
            let count = kernel.params.len();
            let why = format!("kernel {} takes {count} parameters, number {i} is null", kernel.name);
            return refuse(Code::InvalidValue, why);
        }
        // SAFETY: the caller's promise; no more whole words are read than the parameter has.
        words.extend(unsafe { take(place.cast::<u64>(), size / size_of::<u64>()) }?);
    }
    Ok(words)
}

/// The bytes of an image, which tells its length itself: an ELF file by its last table, text by its zero.
///
/// # Safety
/// `image` must be null, a whole ELF file, or a text with its zero.
unsafe fn image_bytes<'a>(image: *const u8) -> Answer<&'a [u8]> {
    if image.is_null() {
        return refuse(Code::InvalidValue, "the image is null");
    }
    // SAFETY: each byte is read only if those before it are an ELF file's, or no zero.
    unsafe {
        let is_elf = b"\x7fELF".iter().enumerate().all(|(i, b)| image.add(i).read() == *b);
        if !is_elf {
            let len = (0..MOST_TEXT).take_while(|i| image.add(*i).read() != 0).count();
            return Ok(std::slice::from_raw_parts(image, len));
        }
        let header = std::slice::from_raw_parts(image, 64);
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| header[at + i]));
        let half = |at: usize| u64::from(u16::from_le_bytes([header[at], header[at + 1]]));
        let tables = [word(32).checked_add(half(54) * half(56)), word(40).checked_add(half(58) * half(60))];
        match tables.into_iter().flatten().max().map(usize::try_from) {
            Some(Ok(len)) if (64..=MOST_TEXT).contains(&len) => Ok(std::slice::from_raw_parts(image, len)),
            _ => refuse(Code::InvalidImage, "the ELF file's header tells no length"),
        }
    }
}
