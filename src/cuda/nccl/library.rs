//! The library itself: its functions, looked up once, and what it says of errors. Result codes are plain numbers: a newer library
//! may have more of them than an enum of ours.

use crate::tensor::DType;
use libloading::Library;
use std::error::Error;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Results that mean no failure.
pub(super) const SUCCESS: c_int = 0;
pub(super) const IN_PROGRESS: c_int = 7;
/// `ncclSum`.
const SUM: c_int = 0;
/// The oldest version that has every function, and communicators that do not block.
const OLDEST: i32 = 21400;
/// `NCCL_API_MAGIC`, `NCCL_CONFIG_UNDEF_INT`.
const MAGIC: u32 = 0xcafe_beef;
const UNSET: c_int = c_int::MIN;

/// Names a communicator to those who are to join it; passed by value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct UniqueId(pub [u8; 128]);

/// A communicator as the library knows it.
pub(super) type Handle = *mut c_void;

/// `ncclConfig_t` as version 2.14 has it, the first that has one. Every later version reads no more than `size` tells, and takes its
/// defaults for what is younger than `version`: no version of ours has to follow theirs.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
    /// Padding in 2.14, `cgaClusterSize` from 2.17 on.
    unset: c_int,
}

/// Calls return at once; [`Nccl::state`] tells when they are done.
const CONFIG: Config =
    Config { size: size_of::<Config>(), magic: MAGIC, version: OLDEST as u32, blocking: 0, unset: UNSET };

macro_rules! functions {
    ($($field:ident = $name:literal: fn($($of:ty),*) -> $result:ty;)*) => {
        /// The functions that are called, as nccl.h declares them.
        #[derive(Clone, Copy)]
        struct Functions { $($field: unsafe extern "C" fn($($of),*) -> $result),* }

        impl Functions {
            /// All of them, or the name of the first that is missing.
            fn of(library: &Library) -> Result<Self, &'static str> {
                // SAFETY: the types are those of nccl.h, which has not changed any of them since version 2.14; the library is
                // never unloaded, so that the addresses stay good.
                Ok(Functions { $($field: *unsafe { library.get($name.as_bytes()) }.map_err(|_| $name)?),* })
            }
        }
    };
}

functions! {
    version = "ncclGetVersion": fn(*mut c_int) -> c_int;
    unique_id = "ncclGetUniqueId": fn(*mut UniqueId) -> c_int;
    init = "ncclCommInitRankConfig": fn(*mut Handle, c_int, UniqueId, c_int, *mut Config) -> c_int;
    finalize = "ncclCommFinalize": fn(Handle) -> c_int;
    destroy = "ncclCommDestroy": fn(Handle) -> c_int;
    abort = "ncclCommAbort": fn(Handle) -> c_int;
    state = "ncclCommGetAsyncError": fn(Handle, *mut c_int) -> c_int;
    count = "ncclCommCount": fn(Handle, *mut c_int) -> c_int;
    rank = "ncclCommUserRank": fn(Handle, *mut c_int) -> c_int;
    error_string = "ncclGetErrorString": fn(c_int) -> *const c_char;
    last_error = "ncclGetLastError": fn(Handle) -> *const c_char;
    all_reduce = "ncclAllReduce": fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, *mut c_void) -> c_int;
}

/// The library, open for as long as the process lives: threads of its own outlast what started them.
pub struct Nccl {
    functions: Functions,
    version: i32,
    file: PathBuf,
    _library: ManuallyDrop<Library>,
}

impl fmt::Debug for Nccl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Nccl({self})")
    }
}

/// Name, version and place, as messages have them.
impl fmt::Display for Nccl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NCCL {} ({})", self.version_text(), self.file.display())
    }
}

/// The text at `text`; empty where there is none.
///
/// # Safety
/// `text` must be null or a text with its zero that nobody writes meanwhile.
unsafe fn text_at(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_owned()
}

/// What to do about a result.
fn remedy(code: c_int) -> &'static str {
    match code {
        1 => "the driver or the GPU refuses: see nvidia-smi",
        2 => {
            "the system refuses: is /dev/shm full, is NCCL_SOCKET_IFNAME an interface that all machines have"
        }
        5 => "NCCL is used wrongly: has each rank a GPU of its own",
        6 => "another rank or the network failed: its own message tells more",
        _ => "NCCL_DEBUG=INFO tells more; SAIP_NCCL=none goes without NCCL",
    }
}

/// What the loader says, which the binding keeps behind words of its own.
fn loader_text(e: &libloading::Error) -> String {
    e.source().map_or_else(|| e.to_string(), ToString::to_string)
}

/// Where the file of a function lies, as the loader knows it.
fn file_of(function: *const c_void) -> Option<PathBuf> {
    let mut info = libc::Dl_info {
        dli_fname: std::ptr::null(),
        dli_fbase: std::ptr::null_mut(),
        dli_sname: std::ptr::null(),
        dli_saddr: std::ptr::null_mut(),
    };
    // SAFETY: the loader writes into `info`, whose text lives as long as the library, which is never unloaded.
    let name = unsafe { (libc::dladdr(function, &mut info) != 0).then(|| text_at(info.dli_fname)) };
    name.filter(|n| !n.is_empty()).map(PathBuf::from)
}

impl Nccl {
    /// Opens a file, or what the loader finds under a name.
    ///
    /// # Errors
    /// Why it cannot be used, without a remedy: who looked for it knows one.
    pub fn open(path: &Path) -> Result<Arc<Nccl>, String> {
        // SAFETY: loading the library runs its initialisers only; what is no library is refused.
        let library = unsafe { Library::new(path) }.map_err(|e| loader_text(&e))?;
        let library = ManuallyDrop::new(library);
        type Version = unsafe extern "C" fn(*mut c_int) -> c_int;
        // SAFETY: as it is declared in every version.
        let version = match unsafe { library.get::<Version>(b"ncclGetVersion") } {
            Ok(ask) => {
                let mut version = 0;
                // SAFETY: the pointer is to an integer that lives through the call.
                match unsafe { ask(&mut version) } {
                    SUCCESS => version,
                    code => return Err(format!("ncclGetVersion fails with {code}")),
                }
            }
            Err(_) => return Err("it is not NCCL: it lacks ncclGetVersion".to_owned()),
        };
        if version < OLDEST {
            let (have, need) = (version_text(version), version_text(OLDEST));
            return Err(format!("it is NCCL {have}, older than {need}"));
        }
        let lacks = |name| format!("it is NCCL {}, but lacks {name}", version_text(version));
        let functions = Functions::of(&library).map_err(lacks)?;
        let file = file_of(functions.version as *const c_void).unwrap_or_else(|| path.to_owned());
        Ok(Arc::new(Nccl { functions, version, file, _library: library }))
    }

    /// As `ncclGetVersion` tells it, such as 23007.
    pub fn version(&self) -> i32 {
        self.version
    }

    /// Such as `2.30.7`.
    pub fn version_text(&self) -> String {
        version_text(self.version)
    }

    /// The file that was opened.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// What the library calls a result.
    pub fn error_text(&self, code: i32) -> String {
        // SAFETY: takes any number; the text is the library's for ever.
        unsafe { text_at((self.functions.error_string)(code)) }
    }

    /// A failed call in words: the library's own, its last complaint, and what to do.
    pub(super) fn failure(&self, call: &str, code: c_int) -> String {
        // SAFETY: null stands for every communicator; the text is copied at once. Another thread's complaint might be written
        // over it meanwhile: the library keeps a buffer of fixed size that always ends with a zero.
        let last = unsafe { text_at((self.functions.last_error)(std::ptr::null_mut())) };
        let last = if last.is_empty() { last } else { format!(": {last}") };
        format!("{self}: {call} fails with {code}, {}{last}; {}", self.error_text(code), remedy(code))
    }

    fn checked(&self, call: &str, code: c_int) -> Result<(), String> {
        if code == SUCCESS { Ok(()) } else { Err(self.failure(call, code)) }
    }

    /// A name for a new communicator. The process that made it listens for the others: to be used once, at once.
    ///
    /// # Errors
    /// The library's.
    pub fn unique_id(&self) -> Result<UniqueId, String> {
        let mut id = UniqueId([0; 128]);
        // SAFETY: the pointer is to a place for the id that lives through the call.
        let code = unsafe { (self.functions.unique_id)(&mut id) };
        self.checked("ncclGetUniqueId", code).map(|()| id)
    }

    /// Begins to join a communicator, on the device that is current on this thread. The handle may be null, or one that must be
    /// aborted, whatever the result.
    pub(super) fn begin(&self, world: c_int, rank: c_int, id: UniqueId) -> (Handle, c_int) {
        let (mut handle, mut config) = (std::ptr::null_mut(), CONFIG);
        // SAFETY: both pointers live through the call, during which the library copies the configuration.
        let code = unsafe { (self.functions.init)(&mut handle, world, id, rank, &mut config) };
        (handle, code)
    }

    /// How the last call on a communicator stands: success, in progress, or its failure.
    ///
    /// # Safety
    /// `handle` must be a communicator that was not given back. So for all that take one.
    pub(super) unsafe fn state(&self, handle: Handle) -> c_int {
        let mut state = SUCCESS;
        // SAFETY: the caller's promise; the pointer lives through the call.
        match unsafe { (self.functions.state)(handle, &mut state) } {
            SUCCESS => state,
            code => code,
        }
    }

    /// Ranks of a communicator, and the own one.
    ///
    /// # Safety
    /// As [`Nccl::state`].
    pub(super) unsafe fn place(&self, handle: Handle) -> Result<[c_int; 2], String> {
        let (mut count, mut rank) = (0, 0);
        // SAFETY: the caller's promise; the pointers live through the calls.
        let codes =
            unsafe { [(self.functions.count)(handle, &mut count), (self.functions.rank)(handle, &mut rank)] };
        self.checked("ncclCommCount", codes[0])?;
        self.checked("ncclCommUserRank", codes[1])?;
        Ok([count, rank])
    }

    /// Puts the sum over all ranks of `elements` at `at` on `stream`, in place.
    ///
    /// # Safety
    /// As [`Nccl::state`]; the elements must lie in memory that the library can reach, and stay until the stream has come past
    /// them; the stream must be of the communicator's device.
    pub(super) unsafe fn all_reduce(
        &self,
        handle: Handle,
        at: u64,
        elements: usize,
        dtype: DType,
        stream: *mut c_void,
    ) -> Result<c_int, String> {
        let kind = match dtype {
            DType::F32 => 7,
            DType::Bf16 => 9,
            _ => return Err(format!("{self}: {dtype} is not summed")),
        };
        let at = at as usize as *mut c_void;
        // SAFETY: the caller's promises.
        Ok(unsafe { (self.functions.all_reduce)(at, at, elements, kind, SUM, handle, stream) })
    }

    /// Begins to end a communicator: what was asked for is done first, by all ranks.
    ///
    /// # Safety
    /// As [`Nccl::state`].
    pub(super) unsafe fn finalize(&self, handle: Handle) -> c_int {
        // SAFETY: the caller's promise.
        unsafe { (self.functions.finalize)(handle) }
    }

    /// Gives a communicator back, one that has come to its end or one that is to be torn down.
    ///
    /// # Safety
    /// As [`Nccl::state`], for the last time.
    pub(super) unsafe fn give_back(&self, handle: Handle, torn: bool) -> c_int {
        let give_back = if torn { self.functions.abort } else { self.functions.destroy };
        // SAFETY: the caller's promise.
        unsafe { give_back(handle) }
    }
}

/// Such as `2.30.7` for 23007; numbers up to 2.8 had a digit less.
pub(super) fn version_text(version: i32) -> String {
    let unit = if version < 10_000 { 1000 } else { 10_000 };
    let (major, rest) = (version / unit, version % unit);
    format!("{major}.{}.{}", rest / 100, rest % 100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn versions_in_words() {
        let told = [23007, 21400, 2804, 22703].map(version_text);
        assert_eq!(told, ["2.30.7", "2.14.0", "2.8.4", "2.27.3"]);
    }

    /// `ncclConfig_v21400`: what nccl.h of that version declares.
    #[test]
    fn the_configuration_is_laid_out_as_nccl_has_it() {
        let at = [offset_of!(Config, size), offset_of!(Config, magic), offset_of!(Config, version)];
        assert_eq!((at, offset_of!(Config, blocking)), ([0, 8, 12], 16));
        assert_eq!((CONFIG.size, size_of::<UniqueId>()), (24, 128));
    }

    #[test]
    fn other_libraries_are_told_apart() {
        let refused = |path: &str| Nccl::open(Path::new(path)).unwrap_err();
        assert!(refused("libc.so.6").contains("not NCCL: it lacks ncclGetVersion"));
        let missing = refused("/nowhere/libnccl.so.2");
        assert!(missing.contains("No such file"), "{missing}");
        let dir = tempfile::tempdir().unwrap();
        let garbage = dir.path().join("libnccl.so.2");
        std::fs::write(&garbage, "no library").unwrap();
        let why = refused(garbage.to_str().unwrap());
        assert!(!why.contains("No such file") && why.contains("libnccl.so.2"), "{why}");
    }
}
