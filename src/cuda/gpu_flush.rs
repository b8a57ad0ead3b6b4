//! Cools the caches down between measurements.

use super::gpu_handles::{Context, Function, Module, Scratch, Stream, failed};
use crate::error::Result;
use cudarc::driver::{result, sys};
use std::ffi::c_void;

/// Reads `words` stretches of 16 bytes from `at`. Reading leaves nothing that must be written back while what is measured
/// runs, which overwriting does: up to a cache full. Text for the driver's compiler, as a GPU that is measured need not be
/// one that the engine's compiler is there for.
const TEXT: &str = "
.version 7.0
.target sm_80
.address_size 64
.visible .entry flush(.param .u64 at, .param .u64 words)
{
    .reg .pred %p<3>;
    .reg .b32 %r<16>;
    .reg .b64 %rd<8>;
    ld.param.u64 %rd1, [at];
    ld.param.u64 %rd2, [words];
    mov.u32 %r1, %ctaid.x;
    mov.u32 %r2, %ntid.x;
    mov.u32 %r3, %tid.x;
    mov.u32 %r4, %nctaid.x;
    mul.wide.u32 %rd3, %r1, %r2;
    cvt.u64.u32 %rd4, %r3;
    add.u64 %rd3, %rd3, %rd4;
    mul.wide.u32 %rd5, %r4, %r2;
    mov.u32 %r5, 0;
    setp.ge.u64 %p1, %rd3, %rd2;
    @%p1 bra DONE;
LOOP:
    shl.b64 %rd6, %rd3, 4;
    add.u64 %rd6, %rd1, %rd6;
    ld.global.v4.u32 {%r6, %r7, %r8, %r9}, [%rd6];
    or.b32 %r6, %r6, %r7;
    or.b32 %r8, %r8, %r9;
    or.b32 %r6, %r6, %r8;
    or.b32 %r5, %r5, %r6;
    add.u64 %rd3, %rd3, %rd5;
    setp.lt.u64 %p1, %rd3, %rd2;
    @%p1 bra LOOP;
    // The memory is zero: nothing is ever stored, but the compiler cannot know and keeps the loads.
    setp.eq.u32 %p2, %r5, 0;
    @%p2 bra DONE;
    st.global.u32 [%rd1], %r5;
DONE:
    ret;
}
";
const WORD: usize = 16;
const THREADS: u32 = 256;
/// Blocks of each multiprocessor: all that are resident.
const BLOCKS: u32 = 8;

/// Memory of twice the second-level cache, and the kernel that reads it.
pub struct Flush {
    memory: Scratch,
    function: Function,
    blocks: u32,
    /// Behind what is of it.
    _module: Module,
}

impl Flush {
    pub fn new(context: &Context, multiprocessors: u32, stream: &Stream) -> Result<Self> {
        let cache = context.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?;
        let module = Module::load(TEXT.as_bytes(), "flush")?;
        let function = Function::new(&module, "flush")?;
        let bytes = (2 * cache.max(1) as usize).next_multiple_of(WORD);
        let memory = Scratch::new(bytes).map_err(|e| failed("no memory to cool the caches down", e))?;
        // SAFETY: the memory was just allocated.
        unsafe { result::memset_d8_async(memory.at, 0, bytes, stream.0) }
            .map_err(|e| failed("cannot clear memory", e))?;
        Ok(Flush { memory, function, blocks: BLOCKS * multiprocessors.max(1), _module: module })
    }

    /// Puts a pass on `stream`.
    pub fn enqueue(&self, stream: &Stream) -> Result<()> {
        let (mut at, mut words) = (self.memory.at, (self.memory.bytes / WORD) as u64);
        let mut params = [(&raw mut at).cast::<c_void>(), (&raw mut words).cast()];
        // SAFETY: the kernel takes these two and reads as many words of the memory, which lives as long as `self`.
        let status = unsafe {
            let (grid, block) = ((self.blocks, 1, 1), (THREADS, 1, 1));
            result::launch_kernel(self.function.handle, grid, block, 0, stream.0, &mut params)
        };
        status.map_err(|e| failed("cannot cool the caches down", e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::{Driver, Launch, VmDriver};

    #[test]
    fn a_pass_reads_every_byte_and_writes_none() {
        let mut vm = VmDriver::new((8, 0), 1 << 20);
        // More words than threads, and no multiple of them.
        let words = 2 * 256 * 3 + 5;
        let bytes = words * WORD;
        let at = vm.allocate(bytes).unwrap();
        vm.upload(at, &vec![0; bytes]).unwrap();
        let kernel = vm.load(TEXT.as_bytes(), "flush", 0).unwrap();
        let params: Vec<u8> = [at, words as u64].iter().flat_map(|p| p.to_ne_bytes()).collect();
        vm.launch(&Launch { kernel, grid: [2, 1, 1], block: [THREADS, 1, 1], shared: 0, params }).unwrap();
        let global = &vm.counts().global;
        assert_eq!((global.loaded, global.stored), (bytes as u64, 0));
    }
}
