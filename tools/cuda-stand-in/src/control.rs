//! How tests see and set the stand-in: functions with the prefix `stand_in_`, beside the driver's. Every call of either
//! kind goes through here.

use crate::codes::{self, Answer, Refusal};
use crate::state::{Config, KINDS, State};
use std::cell::RefCell;
use std::ffi::{CStr, c_char};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread::{ThreadId, current};

static STATE: LazyLock<Mutex<State>> = LazyLock::new(|| Mutex::new(State::new(Config::from_environment())));

thread_local! {
    /// Why the last call of this thread that was refused was.
    static REFUSED: RefCell<String> = const { RefCell::new(String::new()) };
}

fn state() -> MutexGuard<'static, State> {
    // No call leaves it half changed where that matters: the process is a test.
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What must have been done before a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    Nothing,
    Initialised,
    Context,
    /// A context, to give something back: never made to fail.
    GivesBack,
}

/// A call of the driver's function `name`.
pub fn call(name: &'static str, needs: Needs, work: impl FnOnce(&mut State, ThreadId) -> Answer) -> u32 {
    let mut state = state();
    let thread = current().id();
    let answer = checked(&mut state, name, needs, thread).and_then(|()| work(&mut state, thread));
    match answer {
        Ok(()) => 0,
        Err(Refusal { code, why }) => {
            let text = format!("{name}: {why}");
            if state.config.verbose {
                eprintln!("stand-in: {text} ({code:?})");
            }
            REFUSED.with_borrow_mut(|r| *r = text);
            code as u32
        }
    }
}

fn checked(state: &mut State, name: &'static str, needs: Needs, thread: ThreadId) -> Answer {
    *state.calls.entry(name).or_default() += 1;
    if needs != Needs::Nothing && !state.initialised {
        return codes::refuse(codes::Code::NotInitialized, "cuInit was not called");
    }
    if needs != Needs::GivesBack
        && let Some((left, code)) = state.failing
    {
        state.failing = (left > 1).then_some((left - 1, code));
        if left <= 1 {
            return codes::refuse(code, "is made to fail");
        }
    }
    if matches!(needs, Needs::Context | Needs::GivesBack) { state.has_context(thread) } else { Ok(()) }
}

/// Everything as at first, as a device of a capability with `multiprocessors` and `memory` bytes; the rest as the environment says.
#[unsafe(no_mangle)]
pub extern "C" fn stand_in_reset(major: u32, minor: u32, multiprocessors: u32, memory: u64) {
    let capability = (major, minor);
    let mut config = Config::from_environment();
    if std::env::var_os("STAND_IN_NAME").is_none() {
        config.name = format!("stand-in for sm_{major}{minor}");
    }
    state().reset(Config { capability, multiprocessors, memory, ..config });
}

/// Writes how many things are live, with those that died with their context: memory, pinned memory, streams, events,
/// modules, graphs, executable graphs, retained contexts.
///
/// # Safety
/// `counts` must be an array of 8.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stand_in_live(counts: *mut u64) {
    let live: [u64; KINDS] = state().live();
    // SAFETY: the caller's promise.
    unsafe { counts.cast::<[u64; KINDS]>().write_unaligned(live) };
}

/// Makes the call with number `calls` from now on fail with a code; 0 makes none fail. What gives something back never does.
/// Returns whether a failure was still to come.
#[unsafe(no_mangle)]
pub extern "C" fn stand_in_fail(calls: u64, code: u32) -> bool {
    let mut state = state();
    let pending = state.failing.is_some();
    state.failing = codes::code(code).filter(|_| calls > 0).map(|code| (calls, code));
    pending
}

/// How often a function of the driver was called.
///
/// # Safety
/// `name` must be a text with its zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stand_in_calls(name: *const c_char) -> u64 {
    // SAFETY: the caller's promise.
    let name = unsafe { CStr::from_ptr(name) };
    name.to_str().ok().and_then(|n| state().calls.get(n).copied()).unwrap_or(0)
}

/// Writes what streams were asked for since the last time, a line each, as far as there is room, with a zero. Nothing is written
/// down before the first time.
///
/// # Safety
/// `text` must have room for `bytes`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stand_in_trace(text: *mut c_char, bytes: usize) {
    let lines = state().streams.trace.replace(Vec::new()).unwrap_or_default().join("\n");
    // SAFETY: the caller's promise.
    unsafe { put_text(&lines, text, bytes) };
}

/// Writes `from` as far as there is room, with a zero.
///
/// # Safety
/// `text` must have room for `bytes`.
unsafe fn put_text(from: &str, text: *mut c_char, bytes: usize) {
    let Some(room) = bytes.checked_sub(1) else { return };
    let len = from.len().min(room);
    // SAFETY: the caller's promise; `len` and the zero fit.
    unsafe {
        std::ptr::copy_nonoverlapping(from.as_ptr(), text.cast(), len);
        text.add(len).write(0);
    }
}

/// Writes why the last refused call of this thread was refused, as far as there is room, with a zero.
///
/// # Safety
/// `text` must have room for `bytes`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stand_in_refusal(text: *mut c_char, bytes: usize) {
    // SAFETY: the caller's promise.
    REFUSED.with_borrow(|why| unsafe { put_text(why, text, bytes) });
}
