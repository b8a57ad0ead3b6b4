//! NVRTC: CUDA C++ to PTX or machine code, and what its log tells.

use super::driver::ImageKind;
use crate::error::{Error, Result};
use cudarc::nvrtc::{result, sys};
use std::ffi::CString;

/// The image that `source` becomes; `name` stands for the source in messages. May be called from several threads at once.
///
/// # Errors
/// [`Error::Device`] with NVRTC's log when the source does not compile. NVRTC must be installed.
pub fn compile(name: &str, source: &str, options: &[String], kind: ImageKind) -> Result<Vec<u8>> {
    let (image, _) = compiled(name, source, options, |program| {
        // SAFETY: `compiled` hands out a live program.
        unsafe { if kind == ImageKind::Ptx { ptx(program).map(String::into_bytes) } else { cubin(program) } }
    })?;
    Ok(image)
}

/// The machine code and the PTX that `source` becomes, and what the compiler tells of it, verbosely if `options` ask for it.
///
/// # Errors
/// Those of [`compile`].
pub fn told(name: &str, source: &str, options: &[String]) -> Result<Told> {
    let read = |program| {
        // SAFETY: `compiled` hands out a live program.
        unsafe { Ok((cubin(program)?, ptx(program)?)) }
    };
    let ((cubin, ptx), log) = compiled(name, source, options, read)?;
    let heads = ptx.split(".entry ").skip(1).filter_map(|kernel| kernel.split('{').next());
    let log = heads.fold(log + "\n", |text, head| text + ".entry " + head + "{\n");
    Ok(Told { cubin, ptx, log })
}

/// What [`told`] gives.
pub struct Told {
    /// Machine code.
    pub cubin: Vec<u8>,
    pub ptx: String,
    /// ptxas' log, and how each kernel begins in the PTX.
    pub log: String,
}

/// What `read` takes from the compiled program, and the log.
fn compiled<R>(
    name: &str,
    source: &str,
    options: &[String],
    read: impl FnOnce(sys::nvrtcProgram) -> std::result::Result<R, result::NvrtcError>,
) -> Result<(R, String)> {
    let refused = |what: &str, e: result::NvrtcError| Error::device("cuda", format!("{name}: {what}: {e}"));
    let zero = |_| Error::device("cuda", format!("{name}: the source holds a zero byte"));
    let text = CString::new(source).map_err(zero)?;
    let file = CString::new(name).map_err(zero)?;
    let program = result::create_program(&text, Some(&file)).map_err(|e| refused("cannot be compiled", e))?;
    // SAFETY: `program` was just created and is destroyed once, after its last use; `text` and `file` outlive it.
    unsafe {
        let compiled = result::compile_program(program, options);
        let log = result::get_program_log(program).map(|l| text_of(&l)).unwrap_or_default();
        let made = compiled.and_then(|()| read(program));
        let _ = result::destroy_program(program);
        match made {
            Ok(made) => Ok((made, log)),
            Err(e) => Err(refused(&format!("does not compile:\n{}\n", log.trim_end()), e)),
        }
    }
}

/// PTX of a compiled program, whatever it was compiled to.
///
/// # Safety
/// `program` must be live.
unsafe fn ptx(program: sys::nvrtcProgram) -> std::result::Result<String, result::NvrtcError> {
    // SAFETY: the caller's promise.
    unsafe { result::get_ptx(program) }.map(|ptx| text_of(&ptx))
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

/// Text up to the terminating zero.
fn text_of(bytes: &[std::ffi::c_char]) -> String {
    let bytes: Vec<u8> = bytes.iter().take_while(|b| **b != 0).map(|b| *b as u8).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What the compiler tells of a kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CompiledKernel {
    pub name: String,
    /// Threads of a block that it is compiled for, at most; none where the source does not say.
    pub threads: Option<u32>,
    pub registers: u32,
    /// Bytes of registers that did not fit, stored and loaded.
    pub spills: u32,
    /// Static shared memory, bytes.
    pub shared: u32,
}

/// Reads what [`told`] gives.
pub fn parse_facts(log: &str) -> Vec<CompiledKernel> {
    let before = |line: &str, unit: &str| -> u32 {
        let words = line.split(unit).next().unwrap_or("").split_whitespace();
        words.last().and_then(|n| n.parse().ok()).unwrap_or(0)
    };
    let mut kernels: Vec<CompiledKernel> = Vec::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let name = rest.split('\'').next().unwrap_or("").to_owned();
            let threads = most_threads(log, &name);
            kernels.push(CompiledKernel { name, threads, ..CompiledKernel::default() });
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

/// What PTX says of the threads of a kernel's block.
fn most_threads(ptx: &str, kernel: &str) -> Option<u32> {
    let (_, from) = ptx.split_once(&format!(".entry {kernel}("))?;
    let (_, bound) = from.split('{').next()?.split_once(".maxntid")?;
    bound.lines().next()?.split(',').map(|n| n.trim().parse::<u32>().ok()).product()
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
                   ptxas info    : Used 7 registers, used 0 barriers\n\
                   .visible .entry add(\n.param .u64 add_param_0\n)\n{\n.reg .b32 %r1;\n}\n\
                   .visible .entry gemm(\n.param .u64 gemm_param_0\n)\n.maxntid 64, 2, 1\n{\n}\n";
        let kernel = |name: &str, threads, registers, spills, shared| CompiledKernel {
            name: name.into(),
            threads,
            registers,
            spills,
            shared,
        };
        assert_eq!(
            parse_facts(log),
            [kernel("gemm", Some(128), 128, 28, 17408), kernel("add", None, 7, 0, 0)]
        );
    }
}
