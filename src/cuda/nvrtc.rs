//! NVRTC: CUDA C++ to PTX or machine code, and what its log tells.

use super::driver::ImageKind;
use crate::error::{Error, Result};
use cudarc::nvrtc::{result, sys};
use std::ffi::CString;

/// The image that `source` becomes, and the compiler's log; `name` stands for the source in messages. May be called from
/// several threads at once.
///
/// # Errors
/// [`Error::Device`] with NVRTC's log when the source does not compile. NVRTC must be installed.
pub fn compile(name: &str, source: &str, options: &[String], kind: ImageKind) -> Result<(Vec<u8>, String)> {
    let refused = |what: &str, e: result::NvrtcError| Error::device("cuda", format!("{name}: {what}: {e}"));
    let zero = |_| Error::device("cuda", format!("{name}: the source holds a zero byte"));
    let text = CString::new(source).map_err(zero)?;
    let file = CString::new(name).map_err(zero)?;
    let program = result::create_program(&text, Some(&file)).map_err(|e| refused("cannot be compiled", e))?;
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
    pub registers: u32,
    /// Bytes of registers that did not fit, stored and loaded.
    pub spills: u32,
    /// Static shared memory, bytes.
    pub shared: u32,
}

/// Reads ptxas' verbose log.
pub fn parse_facts(log: &str) -> Vec<CompiledKernel> {
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
}
