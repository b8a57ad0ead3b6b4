//! Compiles kernels with NVRTC, and keeps what it made on disk.

use super::driver::ImageKind;
use super::probe::nvrtc_version;
use crate::error::{Error, Result};
use cudarc::nvrtc::{result, sys};
use sha2::{Digest, Sha256};
use std::ffi::CString;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Where compiled kernels and measurements are kept: `SAIP_ENGINE_CACHE`, else `saip-engine` in the user's cache folder; None when there
/// is neither.
pub fn cache_folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("SAIP_ENGINE_CACHE").or_else(|| {
        let user = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
        user.map(|user| user.join("saip-engine"))
    })
}

/// Compiles CUDA C++ for one architecture.
#[derive(Clone, Debug)]
pub struct Compiler {
    capability: (u32, u32),
    version: (i32, i32),
    cache: Option<PathBuf>,
}

/// Bytes of the checksum in front of a kept image.
const CHECKSUM: usize = 32;

impl Compiler {
    /// A compiler for compute capability `capability`; what it makes is kept in `cache`, if any.
    ///
    /// # Errors
    /// [`Error::Device`] when NVRTC is not installed; the message says what to install.
    pub fn new(capability: (u32, u32), cache: Option<PathBuf>) -> Result<Self> {
        let version = nvrtc_version().map_err(|why| Error::device("cuda", why))?;
        Ok(Compiler { capability, version, cache })
    }

    /// PTX of `source`; `name` stands for it in messages.
    ///
    /// # Errors
    /// [`Error::Device`] with NVRTC's log when the source does not compile.
    pub fn ptx(&self, name: &str, source: &str) -> Result<String> {
        let image = self.image(name, source, ImageKind::Ptx)?;
        String::from_utf8(image).map_err(|_| Error::device("cuda", format!("{name}: its PTX is no text")))
    }

    /// What `source` becomes; `name` stands for it in messages.
    ///
    /// # Errors
    /// [`Error::Device`] with NVRTC's log when the source does not compile.
    pub fn image(&self, name: &str, source: &str, kind: ImageKind) -> Result<Vec<u8>> {
        let options = self.options(kind);
        let at = self.cache.as_ref().map(|folder| folder.join(self.key(source, &options)));
        // A cache that cannot be read or written, or that was spoilt, costs time, nothing else.
        if let Some(image) = at.as_ref().and_then(|at| kept(at)) {
            return Ok(image);
        }
        let (image, _) = self.compile(name, source, &options, kind)?;
        if let Some(at) = &at {
            let _ = keep(at, &image);
        }
        Ok(image)
    }

    fn options(&self, kind: ImageKind) -> Vec<String> {
        let (x, y) = self.capability;
        let what = if kind == ImageKind::Ptx { "compute" } else { "sm" };
        // Some instructions of these generations exist on their own architecture only.
        let own = if matches!(x, 9 | 10) { "a" } else { "" };
        let target = format!("{what}_{x}{y}{own}");
        vec![
            format!("--gpu-architecture={target}"),
            "--std=c++17".to_owned(),
            "--device-as-default-execution-space".to_owned(),
        ]
    }

    /// Names everything that the result depends on.
    fn key(&self, source: &str, options: &[String]) -> String {
        let mut hash = Sha256::new();
        hash.update(format!("nvrtc {}.{}\0{}\0", self.version.0, self.version.1, options.join("\0")));
        hash.update(source);
        let name: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
        name + ".kernel"
    }

    /// What the compiler makes of every kernel of `source` for this very architecture.
    ///
    /// # Errors
    /// [`Error::Device`] with NVRTC's log when the source does not compile.
    pub fn facts(&self, name: &str, source: &str) -> Result<Vec<CompiledKernel>> {
        let mut options = self.options(ImageKind::Cubin);
        options.push("--ptxas-options=-v".to_owned());
        let at = self.cache.as_ref().map(|folder| folder.join(self.key(source, &options)));
        let log = at.as_ref().and_then(|at| kept(at)).and_then(|log| String::from_utf8(log).ok());
        let log = match log {
            Some(log) => log,
            None => {
                let (_, log) = self.compile(name, source, &options, ImageKind::Cubin)?;
                if let Some(at) = &at {
                    let _ = keep(at, log.as_bytes());
                }
                log
            }
        };
        Ok(parse_facts(&log))
    }

    /// The image and the compiler's log.
    fn compile(
        &self,
        name: &str,
        source: &str,
        options: &[String],
        kind: ImageKind,
    ) -> Result<(Vec<u8>, String)> {
        let refused =
            |what: &str, e: result::NvrtcError| Error::device("cuda", format!("{name}: {what}: {e}"));
        let zero = |_| Error::device("cuda", format!("{name}: the source holds a zero byte"));
        let text = CString::new(source).map_err(zero)?;
        let file = CString::new(name).map_err(zero)?;
        let program =
            result::create_program(&text, Some(&file)).map_err(|e| refused("cannot be compiled", e))?;
        // SAFETY: `program` was just created and is destroyed once, after its last use; `text` and `file` outlive it.
        unsafe {
            let compiled = result::compile_program(program, options);
            let log = result::get_program_log(program).map(|l| text_of(&l)).unwrap_or_default();
            let made = compiled.and_then(|()| match kind {
                ImageKind::Ptx => result::get_ptx(program).map(|ptx| text_of(&ptx).into_bytes()),
                ImageKind::Cubin => cubin(program),
            });
            let _ = result::destroy_program(program);
            match made {
                Ok(image) => Ok((image, log)),
                Err(e) => Err(refused(&format!("does not compile:\n{}\n", log.trim_end()), e)),
            }
        }
    }
}

/// What the compiler tells of a kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CompiledKernel {
    pub name: String,
    pub registers: u32,
    /// Bytes of registers that did not fit, stored and loaded.
    pub spills: u32,
    /// Static shared memory, bytes.
    pub shared: u32,
}

/// Reads ptxas' verbose log.
fn parse_facts(log: &str) -> Vec<CompiledKernel> {
    let before = |line: &str, unit: &str| -> u32 {
        let words = line.split(unit).next().unwrap_or("").split_whitespace();
        words.last().and_then(|n| n.parse().ok()).unwrap_or(0)
    };
    let mut kernels: Vec<CompiledKernel> = Vec::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let name = rest.split('\'').next().unwrap_or("").to_owned();
            kernels.push(CompiledKernel { name, ..CompiledKernel::default() });
            continue;
        }
        let Some(kernel) = kernels.last_mut() else { continue };
        if line.contains("bytes spill stores") {
            kernel.spills = before(line, "bytes spill stores") + before(line, "bytes spill loads");
        }
        if line.contains(" registers") {
            kernel.registers = before(line, "registers");
            kernel.shared = if line.contains("bytes smem") { before(line, "bytes smem") } else { 0 };
        }
    }
    kernels
}

/// Machine code of a compiled program.
///
/// # Safety
/// `program` must be live.
unsafe fn cubin(program: sys::nvrtcProgram) -> std::result::Result<Vec<u8>, result::NvrtcError> {
    let mut size = 0;
    // SAFETY: the caller's promise; `size` lives through the call.
    unsafe { sys::nvrtcGetCUBINSize(program, &mut size) }.result()?;
    let mut image = vec![0u8; size];
    // SAFETY: the buffer has the size that NVRTC asked for.
    unsafe { sys::nvrtcGetCUBIN(program, image.as_mut_ptr().cast()) }.result()?;
    Ok(image)
}

/// An image from the cache, if it is there and whole.
fn kept(at: &Path) -> Option<Vec<u8>> {
    let bytes = std::fs::read(at).ok()?;
    let (checksum, image) = bytes.split_at_checked(CHECKSUM)?;
    (!image.is_empty() && Sha256::digest(image)[..] == *checksum).then(|| image.to_vec())
}

/// Text up to the terminating zero.
fn text_of(bytes: &[std::ffi::c_char]) -> String {
    let bytes: Vec<u8> = bytes.iter().take_while(|b| **b != 0).map(|b| *b as u8).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn keep(at: &Path, image: &[u8]) -> Result<()> {
    if let Some(folder) = at.parent() {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, "create the folder", e))?;
    }
    // Written beside and renamed: another process never reads half of it.
    let write = || {
        let mut file = tempfile::NamedTempFile::new_in(at.parent().unwrap_or(Path::new(".")))?;
        file.write_all(&Sha256::digest(image))?;
        file.write_all(image)?;
        file.persist(at).map_err(|e| e.error)
    };
    write().map(drop).map_err(|e| Error::io(at, "write", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compilers_log_is_read() {
        let log = "ptxas info    : 0 bytes gmem\n\
                   ptxas info    : Compiling entry function 'gemm' for 'sm_90a'\n\
                   ptxas info    : Function properties for gemm\n\
                   \x20   8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads\n\
                   ptxas info    : Used 128 registers, used 1 barriers, 17408 bytes smem\n\
                   ptxas info    : Compiling entry function 'add' for 'sm_90a'\n\
                   ptxas info    : Used 7 registers, used 0 barriers\n";
        let kernel = |name: &str, registers, spills, shared| CompiledKernel {
            name: name.into(),
            registers,
            spills,
            shared,
        };
        assert_eq!(parse_facts(log), [kernel("gemm", 128, 28, 17408), kernel("add", 7, 0, 0)]);
    }

    #[test]
    fn a_spoilt_image_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("x.kernel");
        keep(&at, b"image").unwrap();
        assert_eq!(kept(&at).as_deref(), Some(&b"image"[..]));
        let mut bytes = std::fs::read(&at).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        for spoilt in [&bytes[..], &bytes[..10], &[]] {
            std::fs::write(&at, spoilt).unwrap();
            assert_eq!(kept(&at), None);
        }
    }
}
