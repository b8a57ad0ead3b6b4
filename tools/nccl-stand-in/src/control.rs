//! Results, what is made to fail, and what was called.

use std::ffi::{CStr, CString, c_char};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

/// `ncclResult_t`.
pub const SUCCESS: i32 = 0;
pub const CUDA_ERROR: i32 = 1;
pub const SYSTEM_ERROR: i32 = 2;
pub const INVALID_ARGUMENT: i32 = 4;
pub const INVALID_USAGE: i32 = 5;
pub const REMOTE_ERROR: i32 = 6;
pub const IN_PROGRESS: i32 = 7;

/// The library's text of a result.
pub fn text(code: i32) -> &'static CStr {
    match code {
        SUCCESS => c"no error",
        CUDA_ERROR => c"unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
        SYSTEM_ERROR => c"unhandled system error (run with NCCL_DEBUG=INFO for details)",
        3 => c"internal error - please report this issue to the NCCL developers",
        INVALID_ARGUMENT => c"invalid argument (run with NCCL_DEBUG=WARN for details)",
        INVALID_USAGE => c"invalid usage (run with NCCL_DEBUG=WARN for details)",
        REMOTE_ERROR => c"remote process exited or there was a network error",
        IN_PROGRESS => c"NCCL operation in progress",
        _ => c"unknown result code",
    }
}

/// What a call is made to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Returns(i32),
    Later(i32),
    Hangs,
}

#[derive(Debug)]
struct Planned {
    function: String,
    rank: Option<i32>,
    fault: Fault,
}

fn parse(text: &str) -> Option<Vec<Planned>> {
    let one = |part: &str| {
        let (whom, what) = part.split_once('=')?;
        let (function, rank) = match whom.split_once('@') {
            Some((function, rank)) => (function, Some(rank.parse().ok()?)),
            None => (whom, None),
        };
        let fault = match (what, what.strip_prefix("later:")) {
            ("hang", _) => Fault::Hangs,
            (_, Some(code)) => Fault::Later(code.parse().ok()?),
            (code, None) => Fault::Returns(code.parse().ok()?),
        };
        Some(Planned { function: function.to_owned(), rank, fault })
    };
    text.split(';').map(str::trim).filter(|p| !p.is_empty()).map(one).collect()
}

static FAULTS: LazyLock<Mutex<Vec<Planned>>> = LazyLock::new(|| {
    let text = std::env::var("NCCL_STAND_IN_FAULTS").unwrap_or_default();
    Mutex::new(parse(&text).unwrap_or_else(|| panic!("NCCL_STAND_IN_FAULTS={text} is no list of faults")))
});
static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());
/// A text with its zero, kept for ever: a library's.
static LAST: AtomicPtr<c_char> = AtomicPtr::new(ptr::null_mut());

pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No holder leaves it half changed: the process is a test.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What `function` of `rank` is made to do, if anything.
pub fn fault(function: &str, rank: Option<i32>) -> Option<Fault> {
    let faults = locked(&FAULTS);
    faults.iter().find(|p| p.function == function && (p.rank.is_none() || p.rank == rank)).map(|p| p.fault)
}

/// Notes a call.
pub fn note(line: String) {
    locked(&LOG).push(line);
}

/// Refuses with `code`: `why` is the library's last complaint from here on.
pub fn refuse(code: i32, why: impl Into<Vec<u8>>) -> i32 {
    let why = CString::new(why).unwrap_or_default();
    // What it was before is not freed: somebody may hold it, as the library's texts live for ever.
    LAST.store(why.into_raw(), Ordering::Relaxed);
    code
}

pub fn last_complaint() -> *const c_char {
    let text = LAST.load(Ordering::Relaxed);
    if text.is_null() { c"".as_ptr() } else { text }
}

/// Sets what is made to fail, and forgets what was. False where the text is none of faults.
///
/// # Safety
/// `text` must be a text with its zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nccl_stand_in_faults(text: *const c_char) -> bool {
    // SAFETY: the caller's promise.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    match parse(&text) {
        Some(faults) => {
            *locked(&FAULTS) = faults;
            true
        }
        None => false,
    }
}

/// Writes the calls since the last time, a line each, as far as there is room, with a zero.
///
/// # Safety
/// `text` must have room for `bytes`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nccl_stand_in_log(text: *mut u8, bytes: usize) {
    let lines = std::mem::take(&mut *locked(&LOG)).join("\n");
    let Some(room) = bytes.checked_sub(1) else { return };
    let len = lines.len().min(room);
    // SAFETY: the caller's promise; `len` and the zero fit.
    unsafe {
        ptr::copy_nonoverlapping(lines.as_ptr(), text, len);
        text.add(len).write(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_or_refused() {
        let read = parse("ncclAllReduce@1=5; ncclCommAbort=hang;;x=later:6").unwrap();
        let told: Vec<_> = read.iter().map(|p| (&*p.function, p.rank, p.fault)).collect();
        let want = [
            ("ncclAllReduce", Some(1), Fault::Returns(5)),
            ("ncclCommAbort", None, Fault::Hangs),
            ("x", None, Fault::Later(6)),
        ];
        assert_eq!(told, want);
        for text in ["x", "x=", "x@=1", "x=later:", "x=hangs"] {
            assert!(parse(text).is_none(), "{text}");
        }
    }
}
