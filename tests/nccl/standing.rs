//! The stand-in for NCCL in the test's process.

use libloading::{Library, Symbol};
use saip_engine::cuda::Nccl;
use std::ffi::{CStr, CString, c_char};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// The library that cargo builds beside the tests.
pub fn path() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows where it lies");
    let path = test.with_file_name("libnccl_stand_in.so");
    assert!(path.is_file(), "{} is missing: run the tests with cargo", path.display());
    path
}

fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    // SAFETY: the library is ours and has no initialisers. It stays loaded.
    LIBRARY.get_or_init(|| unsafe { Library::new(path()) }.expect("the stand-in loads"))
}

fn symbol<T>(name: &str) -> Symbol<'static, T> {
    // SAFETY: `T` is what the stand-in declares under that name.
    unsafe { library().get(name) }.unwrap_or_else(|e| panic!("the stand-in lacks {name}: {e}"))
}

/// The stand-in for one test; others of the process wait.
pub struct Standing {
    _alone: MutexGuard<'static, ()>,
}

impl Standing {
    pub fn new() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let standing = Standing { _alone: ALONE.lock().unwrap_or_else(PoisonError::into_inner) };
        standing.faults("");
        standing.log();
        standing
    }

    /// The engine's own view of it.
    pub fn nccl(&self) -> Arc<Nccl> {
        Nccl::open(&path()).expect("the stand-in has every function that is called")
    }

    /// Makes calls fail, these and no others.
    pub fn faults(&self, faults: &str) {
        let text = CString::new(faults).unwrap();
        // SAFETY: as it is declared; a text with its zero.
        let read = unsafe {
            symbol::<unsafe extern "C" fn(*const c_char) -> bool>("nccl_stand_in_faults")(text.as_ptr())
        };
        assert!(read, "{faults:?} are no faults");
    }

    /// The calls since the last time, a line each.
    pub fn log(&self) -> Vec<String> {
        let mut text = vec![0u8; 1 << 16];
        // SAFETY: as it is declared; the text fits or is cut, with its zero.
        unsafe {
            symbol::<unsafe extern "C" fn(*mut u8, usize)>("nccl_stand_in_log")(
                text.as_mut_ptr(),
                text.len(),
            );
        }
        let text = CStr::from_bytes_until_nul(&text).unwrap().to_string_lossy().into_owned();
        text.lines().map(str::to_owned).collect()
    }

    /// Communicators that nobody gave back.
    pub fn live(&self) -> u64 {
        // SAFETY: as it is declared.
        unsafe { symbol::<unsafe extern "C" fn() -> u64>("nccl_stand_in_live")() }
    }

    /// Has each sum that goes to a stream told to `hook`.
    pub fn streams(&self, hook: Option<extern "C" fn(u64, u64, u64) -> u32>) {
        type Set = unsafe extern "C" fn(Option<extern "C" fn(u64, u64, u64) -> u32>);
        // SAFETY: as it is declared.
        unsafe { symbol::<Set>("nccl_stand_in_streams")(hook) }
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.faults("");
        self.streams(None);
    }
}
