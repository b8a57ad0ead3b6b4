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
    /// Run only so many blocks, spread evenly over the grid; 0 for all.
    pub sample: u64,
    /// Compute matrix products. Without it they are counted, and leave whatever their sums were.
    pub products: bool,
    /// Follow when every instruction could run, for [`crate::Counts::cycles`].
    pub latencies: Option<Latencies>,
}

/// Cycles from an instruction to the first that can use its result, on a multiprocessor without other work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latencies {
    /// Arithmetic.
    pub arithmetic: u64,
    /// Approximate functions.
    pub special: u64,
    /// Exchanges between lanes.
    pub exchange: u64,
    /// Loads from shared memory.
    pub shared: u64,
    /// Loads from global memory, and copies of it.
    pub global: u64,
    /// `mma.sync`.
    pub product: u64,
    /// From the last arrival at a barrier to the first instruction behind it.
    pub barrier: u64,
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
            sample: 0,
            products: true,
            latencies: None,
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
