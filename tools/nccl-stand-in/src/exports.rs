//! The library's functions, as nccl.h declares them: those that the engine calls.

use crate::communicator::{Communicator, Door, Job};
use crate::control::{
    CUDA_ERROR, Fault, IN_PROGRESS, INVALID_ARGUMENT, INVALID_USAGE, SUCCESS, SYSTEM_ERROR, fault,
    last_complaint, locked, note, refuse, text,
};
use crate::numbers;
use std::collections::HashMap;
use std::ffi::{c_char, c_void};
use std::net::TcpListener;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread::sleep;
use std::time::Duration;

const MAGIC: u32 = 0xcafe_beef;
const FIRST_WITH_CONFIG: u32 = 21400;
/// What marks an id as one of this library.
const MARK: [u8; 8] = *b"STAND-IN";
/// How long a call hangs that nothing can break off.
const MINUTE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy)]
#[repr(C)]
pub struct UniqueId([u8; 128]);

/// The beginning of `ncclConfig_t`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: i32,
}

type Hook = extern "C" fn(stream: u64, at: u64, bytes: u64) -> u32;

static COMMUNICATORS: LazyLock<Mutex<HashMap<u64, Arc<Communicator>>>> = LazyLock::new(Mutex::default);
/// Listeners of ids that nobody has used, by nonce.
static DOORS: LazyLock<Mutex<HashMap<u64, TcpListener>>> = LazyLock::new(Mutex::default);
static STREAMS: Mutex<Option<Hook>> = Mutex::new(None);
static NEXT: AtomicU64 = AtomicU64::new(1);

/// A number that no other has, of this process or another.
fn nonce() -> u64 {
    u64::from(std::process::id()) << 32 | NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Fails if `function` is made to at once.
fn at_once(function: &str, rank: Option<i32>) -> Result<(), i32> {
    match fault(function, rank) {
        Some(Fault::Returns(code)) => Err(refuse(code, format!("{function} is made to fail"))),
        _ => Ok(()),
    }
}

fn find(handle: u64) -> Result<Arc<Communicator>, i32> {
    let found = locked(&COMMUNICATORS).get(&handle).cloned();
    found.ok_or_else(|| {
        refuse(INVALID_ARGUMENT, format!("communicator {handle:#x} is none, or was given back"))
    })
}

/// One whose last call has come to its end, for a call of `function`.
fn ready(handle: u64, function: &str) -> Result<Arc<Communicator>, i32> {
    let communicator = find(handle)?;
    at_once(function, Some(communicator.shared.rank))?;
    match communicator.state() {
        SUCCESS => Ok(communicator),
        IN_PROGRESS => {
            let why = "Attempt to use communicator before the previous operation returned ncclSuccess";
            Err(refuse(INVALID_ARGUMENT, why))
        }
        code => Err(code),
    }
}

fn code(result: Result<i32, i32>) -> i32 {
    result.unwrap_or_else(|code| code)
}

/// # Safety
/// As nccl.h says. So for all below.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetVersion(version: *mut i32) -> i32 {
    let claimed = std::env::var("NCCL_STAND_IN_VERSION").ok().and_then(|v| v.parse().ok());
    code(at_once("ncclGetVersion", None).map(|()| {
        // SAFETY: the caller's promise.
        unsafe { version.write(claimed.unwrap_or(23000)) };
        SUCCESS
    }))
}

/// # Safety
/// As nccl.h says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetUniqueId(id: *mut UniqueId) -> i32 {
    if let Err(code) = at_once("ncclGetUniqueId", None) {
        return code;
    }
    let made = TcpListener::bind(("127.0.0.1", 0)).and_then(|l| Ok((l.local_addr()?.port(), l)));
    let (port, listener) = match made {
        Ok(made) => made,
        Err(e) => return refuse(SYSTEM_ERROR, e.to_string()),
    };
    let (nonce, mut bytes) = (nonce(), [0; 128]);
    bytes[..8].copy_from_slice(&MARK);
    bytes[8..16].copy_from_slice(&nonce.to_ne_bytes());
    bytes[16..18].copy_from_slice(&port.to_ne_bytes());
    locked(&DOORS).insert(nonce, listener);
    // SAFETY: the caller's promise.
    unsafe { id.write(UniqueId(bytes)) };
    SUCCESS
}

/// # Safety
/// As nccl.h says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommInitRankConfig(
    handle: *mut u64,
    world: i32,
    id: UniqueId,
    rank: i32,
    config: *const Config,
) -> i32 {
    note(format!("{rank} ncclCommInitRankConfig"));
    // SAFETY: the caller's promise.
    unsafe { handle.write(0) };
    code(at_once("ncclCommInitRankConfig", Some(rank)).and_then(|()| {
        // SAFETY: as above.
        let config = unsafe { config.as_ref() }.copied();
        let known = |c: &Config| {
            c.size >= size_of::<Config>() - 4 && c.magic == MAGIC && c.version >= FIRST_WITH_CONFIG
        };
        let Some(config) = config.filter(known) else {
            return Err(refuse(INVALID_ARGUMENT, "the configuration was not initialised"));
        };
        if !(0..world).contains(&rank) || id.0[..8] != MARK {
            return Err(refuse(INVALID_ARGUMENT, format!("rank {rank} of {world}, or no id")));
        }
        let nonce = u64::from_ne_bytes(std::array::from_fn(|i| id.0[8 + i]));
        let door = if rank == 0 {
            let listener = locked(&DOORS).remove(&nonce);
            let why = "the id is used twice, or by another process than made it";
            Door::Open(listener.ok_or_else(|| refuse(INVALID_USAGE, why))?)
        } else {
            Door::At(u16::from_ne_bytes([id.0[16], id.0[17]]))
        };
        let communicator = Arc::new(Communicator::begin(door, nonce, rank, world));
        let key = NEXT.fetch_add(1, Ordering::Relaxed) << 8;
        locked(&COMMUNICATORS).insert(key, Arc::clone(&communicator));
        // SAFETY: as above.
        unsafe { handle.write(key) };
        while config.blocking != 0 && communicator.state() == IN_PROGRESS {
            sleep(Duration::from_millis(1));
        }
        Ok(communicator.state())
    }))
}

/// # Safety
/// As nccl.h says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommGetAsyncError(handle: u64, state: *mut i32) -> i32 {
    code(find(handle).and_then(|communicator| {
        at_once("ncclCommGetAsyncError", Some(communicator.shared.rank))?;
        // SAFETY: the caller's promise.
        unsafe { state.write(communicator.state()) };
        Ok(SUCCESS)
    }))
}

/// # Safety
/// As nccl.h says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommCount(handle: u64, count: *mut i32) -> i32 {
    code(ready(handle, "ncclCommCount").map(|communicator| {
        // SAFETY: the caller's promise.
        unsafe { count.write(communicator.shared.world) };
        SUCCESS
    }))
}

/// # Safety
/// As nccl.h says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommUserRank(handle: u64, rank: *mut i32) -> i32 {
    code(ready(handle, "ncclCommUserRank").map(|communicator| {
        // SAFETY: the caller's promise.
        unsafe { rank.write(communicator.shared.rank) };
        SUCCESS
    }))
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclGetErrorString(code: i32) -> *const c_char {
    text(code).as_ptr()
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclGetLastError(_handle: u64) -> *const c_char {
    last_complaint()
}

/// # Safety
/// As nccl.h says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclAllReduce(
    from: *const c_void,
    to: *mut c_void,
    count: usize,
    dtype: i32,
    op: i32,
    handle: u64,
    stream: u64,
) -> i32 {
    code(ready(handle, "ncclAllReduce").and_then(|communicator| {
        let at = from as u64;
        let rank = communicator.shared.rank;
        note(format!("{rank} ncclAllReduce {count} {} {at:#x}", numbers::name(dtype)));
        let Some(each) = numbers::bytes(dtype).filter(|_| op == 0 && !from.is_null() && !to.is_null()) else {
            return Err(refuse(INVALID_ARGUMENT, format!("type {dtype}, operation {op}, or a null address")));
        };
        if let Some(hook) = locked(&STREAMS).filter(|_| stream != 0) {
            let refused = hook(stream, at, (count * each) as u64);
            if refused != 0 {
                return Err(refuse(CUDA_ERROR, format!("Cuda failure {refused}")));
            }
        }
        communicator.ask(Job::Sum { from: from as usize, to: to as usize, count, dtype });
        Ok(IN_PROGRESS)
    }))
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclCommFinalize(handle: u64) -> i32 {
    code(ready(handle, "ncclCommFinalize").map(|communicator| {
        note(format!("{} ncclCommFinalize", communicator.shared.rank));
        communicator.ask(Job::Finalize);
        IN_PROGRESS
    }))
}

fn give_back(handle: u64, function: &str) -> i32 {
    code(find(handle).and_then(|communicator| {
        let rank = communicator.shared.rank;
        note(format!("{rank} {function}"));
        at_once(function, Some(rank))?;
        locked(&COMMUNICATORS).remove(&handle);
        communicator.stop();
        if fault(function, Some(rank)) == Some(Fault::Hangs) {
            sleep(MINUTE);
        }
        Ok(SUCCESS)
    }))
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclCommDestroy(handle: u64) -> i32 {
    give_back(handle, "ncclCommDestroy")
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclCommAbort(handle: u64) -> i32 {
    give_back(handle, "ncclCommAbort")
}

/// Communicators that nobody gave back.
#[unsafe(no_mangle)]
pub extern "C" fn nccl_stand_in_live() -> u64 {
    locked(&COMMUNICATORS).len() as u64
}

/// Tells `hook` of each sum that goes to a stream: stream, address, bytes; what it returns is a driver's result.
#[unsafe(no_mangle)]
pub extern "C" fn nccl_stand_in_streams(hook: Option<Hook>) {
    *locked(&STREAMS) = hook;
}
