//! The stand-in for NVIDIA's driver in the test's process: loaded before anyone asks for the driver, so that the program gets
//! it, whatever else the machine has.

#![allow(dead_code, reason = "each test file uses its part")]

use libloading::{Library, Symbol};
use saip_engine::cuda::GpuDriver;
use std::ffi::{CStr, CString, c_char};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// `CUresult`s.
pub mod code {
    pub const OUT_OF_MEMORY: u32 = 2;
    pub const INVALID_CONTEXT: u32 = 201;
}

/// The library that cargo builds beside the tests, which depend on its package.
pub fn path() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows where it lies");
    let path = test.with_file_name("libcuda_stand_in.so");
    assert!(path.is_file(), "{} is missing: run the tests with cargo", path.display());
    path
}

/// A folder for LD_LIBRARY_PATH with the stand-in under the name that programs look for first.
pub fn folder() -> PathBuf {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    let make = || {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("stand-in");
        std::fs::create_dir_all(&folder).expect("the build's folder can be written");
        // Made beside and renamed: another test's process never finds it missing.
        let link = folder.join(format!("{}.so", std::process::id()));
        std::os::unix::fs::symlink(path(), &link).expect("the build's folder holds links");
        std::fs::rename(&link, folder.join("libcuda.so")).expect("the build's folder can be written");
        folder
    };
    MADE.get_or_init(make).clone()
}

fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    // SAFETY: the library is ours and has no initialisers. It stays loaded: the program asks for it by its name, which is
    // `libcuda.so` inside, and the loader gives the one that is there.
    LIBRARY.get_or_init(|| unsafe { Library::new(path()) }.expect("the stand-in loads"))
}

/// Memory of an H100.
pub const MEMORY: u64 = 80 << 30;

/// The stand-in for one test; others of the process wait.
pub struct StandIn {
    _alone: MutexGuard<'static, ()>,
}

/// What is live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Live {
    pub memory: u64,
    pub pinned: u64,
    pub streams: u64,
    pub events: u64,
    pub modules: u64,
    pub graphs: u64,
    pub instances: u64,
    pub contexts: u64,
}

fn symbol<T>(name: &str) -> Symbol<'static, T> {
    // SAFETY: `T` is what the stand-in declares under that name.
    unsafe { library().get(name) }.unwrap_or_else(|e| panic!("the stand-in lacks {name}: {e}"))
}

impl StandIn {
    /// As an H100.
    pub fn new() -> Self {
        StandIn::of((9, 0), MEMORY)
    }

    pub fn of(capability: (u32, u32), memory: u64) -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: as it is declared.
        unsafe {
            symbol::<unsafe extern "C" fn(u32, u32, u32, u64)>("stand_in_reset")(
                capability.0,
                capability.1,
                132,
                memory,
            );
        }
        StandIn { _alone: alone }
    }

    /// The engine's driver on it.
    pub fn driver(&self) -> GpuDriver {
        use saip_engine::cuda::Driver;
        let driver = GpuDriver::new(0).expect("the stand-in is a GPU");
        let name = &driver.info().name;
        assert!(name.starts_with("stand-in"), "another driver answers: {name}");
        driver
    }

    /// What nobody has given back.
    pub fn live(&self) -> Live {
        let mut live = Live::default();
        // SAFETY: as it is declared; eight numbers.
        unsafe { symbol::<unsafe extern "C" fn(*mut Live)>("stand_in_live")(&mut live) };
        live
    }

    /// Makes a call from now on fail; whether one was still to fail.
    pub fn fail(&self, calls: u64, code: u32) -> bool {
        // SAFETY: as it is declared.
        unsafe { symbol::<unsafe extern "C" fn(u64, u32) -> bool>("stand_in_fail")(calls, code) }
    }

    /// How often a function of the driver was called.
    pub fn calls(&self, name: &str) -> u64 {
        let name = CString::new(name).unwrap();
        // SAFETY: as it is declared; a text with its zero.
        unsafe { symbol::<unsafe extern "C" fn(*const c_char) -> u64>("stand_in_calls")(name.as_ptr()) }
    }

    /// What streams were asked for since the last time, a line each; nothing before the first time.
    pub fn trace(&self) -> Vec<String> {
        let mut text = vec![0u8; 1 << 20];
        // SAFETY: as it is declared; the text fits or is cut, with its zero.
        unsafe {
            symbol::<unsafe extern "C" fn(*mut u8, usize)>("stand_in_trace")(text.as_mut_ptr(), text.len());
        }
        let text = CStr::from_bytes_until_nul(&text).unwrap().to_string_lossy().into_owned();
        text.lines().map(str::to_owned).collect()
    }

    /// What puts work of another library on a stream: stream, address, bytes.
    pub fn library_work(&self) -> extern "C" fn(u64, u64, u64) -> u32 {
        // SAFETY: as it is declared; the library stays loaded.
        *unsafe { library().get(b"stand_in_work") }.expect("the stand-in has it")
    }

    /// Why the last call of this thread that was refused was.
    pub fn refusal(&self) -> String {
        let mut text = [0u8; 1000];
        // SAFETY: as it is declared; the text fits or is cut, with its zero.
        unsafe {
            symbol::<unsafe extern "C" fn(*mut u8, usize)>("stand_in_refusal")(text.as_mut_ptr(), text.len());
        }
        CStr::from_bytes_until_nul(&text).unwrap().to_string_lossy().into_owned()
    }
}

impl StandIn {
    /// Bytes that are left, as the driver tells the thread whose context is current.
    pub fn left(&self) -> usize {
        let (mut free, mut total) = (0, 0);
        // SAFETY: as the driver's header declares it.
        let status = unsafe {
            symbol::<unsafe extern "C" fn(&mut usize, &mut usize) -> u32>("cuMemGetInfo_v2")(
                &mut free, &mut total,
            )
        };
        assert_eq!(status, 0, "{}", self.refusal());
        free
    }
}
