//! What a launch is: its options, and everything its blocks share.

use crate::memory::Memory;
use crate::module::Kernel;

/// What happens when a kernel does something wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFault {
    /// The launch fails with the fault of the lowest block that has one.
    Abort,
    /// The launch continues where it can, up to this many faults per block; [`crate::Report::faults`] lists them.
    Collect(usize),
}

/// How a launch is checked and bounded.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Abort or collect.
    pub on_fault: OnFault,
    /// Report reads of global, shared and local memory that nobody wrote.
    pub check_uninitialised: bool,
    /// Report reads of registers that nobody wrote.
    pub check_registers: bool,
    /// Report shared-memory races between warps.
    pub check_races: bool,
    /// Also report races between lanes of one warp that no warp-wide synchronisation orders.
    pub strict_warp: bool,
    /// Most warp instructions one warp may execute.
    pub instruction_limit: u64,
    /// Most shared memory a block may have.
    pub shared_limit: u32,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            on_fault: OnFault::Abort,
            check_uninitialised: true,
            check_registers: true,
            check_races: true,
            strict_warp: false,
            instruction_limit: 1 << 28,
            shared_limit: 227 << 10,
        }
    }
}

/// Everything the blocks of a launch share.
pub(crate) struct Env<'a> {
    pub kernel: &'a Kernel<'a>,
    pub memory: &'a Memory,
    /// Address of every module symbol, in its own space.
    pub symbols: Vec<u64>,
    pub params: &'a [u8],
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared_bytes: u32,
    pub dynamic_shared: u32,
    pub options: &'a Options,
}
