//! Compiles kernels with NVRTC, and keeps what it made on disk.

use crate::error::{Error, Result};
use cudarc::nvrtc::{result, sys};
use sha2::{Digest, Sha256};
use std::ffi::CString;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Where compiled kernels are kept: `SAIP_ENGINE_CACHE`, else `saip-engine` in the user's cache folder; None when there
/// is neither.
pub fn kernel_cache() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let root = set("SAIP_ENGINE_CACHE").or_else(|| {
        let user = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
        user.map(|user| user.join("saip-engine"))
    });
    root.map(|root| root.join("kernels"))
}

/// Compiles CUDA C++ for one architecture.
#[derive(Clone, Debug)]
pub struct Compiler {
    options: Vec<String>,
    version: (i32, i32),
    cache: Option<PathBuf>,
}

impl Compiler {
    /// A compiler for compute capability `capability`; what it makes is kept in `cache`, if any.
    ///
    /// # Errors
    /// [`Error::Device`] when NVRTC is not installed; the message says what to install.
    pub fn new(capability: (u32, u32), cache: Option<PathBuf>) -> Result<Self> {
        // SAFETY: loading the library runs its initialisers only; cudarc would panic at the first call without it.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::device(
                "cuda",
                "NVRTC (libnvrtc.so) is not on the library path: install the CUDA toolkit 13, or the Python package \
                 nvidia-cuda-nvrtc, and add the folder of libnvrtc.so.13 to LD_LIBRARY_PATH",
            ));
        }
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both pointers are to integers that live through the call.
        let status = unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
        status
            .result()
            .map_err(|e| Error::device("cuda", format!("NVRTC does not tell its version: {e}")))?;
        let (x, y) = capability;
        let options = vec![
            format!("--gpu-architecture=compute_{x}{y}"),
            "--std=c++17".to_owned(),
            "--device-as-default-execution-space".to_owned(),
        ];
        Ok(Compiler { options, version: (major, minor), cache })
    }

    /// PTX of `source`; `name` stands for it in messages.
    ///
    /// # Errors
    /// [`Error::Device`] with NVRTC's log when the source does not compile.
    pub fn ptx(&self, name: &str, source: &str) -> Result<String> {
        let at = self.cache.as_ref().map(|folder| folder.join(format!("{}.ptx", self.key(source))));
        // A cache that cannot be read or written costs time, nothing else.
        if let Some(text) =
            at.as_ref().and_then(|at| std::fs::read_to_string(at).ok()).filter(|t| !t.is_empty())
        {
            return Ok(text);
        }
        let text = self.compile(name, source)?;
        if let Some(at) = &at {
            let _ = keep(at, &text);
        }
        Ok(text)
    }

    /// Names everything that the result depends on.
    fn key(&self, source: &str) -> String {
        let mut hash = Sha256::new();
        hash.update(format!("nvrtc {}.{}\0{}\0", self.version.0, self.version.1, self.options.join("\0")));
        hash.update(source);
        hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
    }

    fn compile(&self, name: &str, source: &str) -> Result<String> {
        let refused =
            |what: &str, e: result::NvrtcError| Error::device("cuda", format!("{name}: {what}: {e}"));
        let zero = |_| Error::device("cuda", format!("{name}: the source holds a zero byte"));
        let text = CString::new(source).map_err(zero)?;
        let file = CString::new(name).map_err(zero)?;
        let program =
            result::create_program(&text, Some(&file)).map_err(|e| refused("cannot be compiled", e))?;
        // SAFETY: `program` was just created and is destroyed once, after its last use; `text` and `file` outlive it.
        unsafe {
            let compiled = result::compile_program(program, &self.options);
            let log = result::get_program_log(program).map(|l| text_of(&l)).unwrap_or_default();
            let made = compiled.and_then(|()| result::get_ptx(program));
            let _ = result::destroy_program(program);
            made.map(|ptx| text_of(&ptx))
                .map_err(|e| refused(&format!("does not compile:\n{}\n", log.trim_end()), e))
        }
    }
}

/// Text up to the terminating zero.
fn text_of(bytes: &[std::ffi::c_char]) -> String {
    let bytes: Vec<u8> = bytes.iter().take_while(|b| **b != 0).map(|b| *b as u8).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn keep(at: &Path, text: &str) -> Result<()> {
    if let Some(folder) = at.parent() {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, "create the folder", e))?;
    }
    // Written beside and renamed: another process never reads half of it.
    let write = || {
        let mut file = tempfile::NamedTempFile::new_in(at.parent().unwrap_or(Path::new(".")))?;
        file.write_all(text.as_bytes())?;
        file.persist(at).map_err(|e| e.error)
    };
    write().map(drop).map_err(|e| Error::io(at, "write", e))
}
