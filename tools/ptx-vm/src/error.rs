//! What can go wrong: text that does not parse, a launch that cannot start, and faults of the kernel itself.

use std::fmt;

use thiserror::Error;

/// Everything this crate's functions return instead of panicking.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum Error {
    /// The text is not PTX this interpreter understands.
    #[error("PTX line {line}{}: {message}", in_function(.function))]
    Parse {
        /// Line of the PTX text, from 1.
        line: u32,
        /// Kernel or device function the line belongs to; empty at module level.
        function: String,
        /// What was found and what was expected.
        message: String,
    },
    /// The module has no such kernel.
    #[error("the module has no kernel `{0}`")]
    NoKernel(String),
    /// The launch configuration does not fit the kernel.
    #[error("kernel `{kernel}` cannot be launched: {message}")]
    Launch {
        /// The kernel's name.
        kernel: String,
        /// What is wrong with the configuration.
        message: String,
    },
    /// A host access to device memory outside an allocation, a double free and the like.
    #[error("device memory: {0}")]
    Memory(String),
    /// The kernel did something wrong, and [`crate::OnFault::Abort`] was chosen.
    #[error("{0}")]
    Fault(Box<Fault>),
}

fn in_function(name: &str) -> String {
    if name.is_empty() { String::new() } else { format!(" in `{name}`") }
}

/// The crate's result type.
pub type Result<T> = std::result::Result<T, Error>;

/// The classes of mistakes a kernel can make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FaultKind {
    /// An address outside every allocation (guard gaps included), shared array, parameter block or local frame.
    OutOfBounds,
    /// An address that is not a multiple of the access size.
    Misaligned,
    /// A read of global, shared or local bytes that nobody wrote.
    UninitialisedMemory,
    /// A read of a register that no instruction wrote in this thread.
    UninitialisedRegister,
    /// Two threads touched the same shared byte, one of them writing, with no barrier between.
    SharedRace,
    /// A barrier that part of a warp executes, that exited threads never reach, or that can never complete.
    BarrierDivergence,
    /// A warp-wide operation whose mask names lanes that do not execute it.
    WarpDivergence,
    /// Shared bytes touched while an asynchronous copy into them is still in flight.
    AsyncNotWaited,
    /// A thread exits with asynchronous copies it never waited for.
    AsyncLeaked,
    /// An asynchronous reader (`wgmma`) meets stores that no `fence.proxy.async` of their warp followed, or registers
    /// that no `wgmma.fence` ordered.
    AsyncNotFenced,
    /// An mbarrier that was not initialised, is given more arrivals than it expects, or can never complete.
    Mbarrier,
    /// A store to read-only memory.
    ReadOnly,
    /// More instructions than [`crate::Options::instruction_limit`]: most likely an endless loop.
    Runaway,
    /// The kernel executed `trap` (or fell into a failed assertion).
    Trap,
    /// Operands that the instruction does not allow (descriptor, count, barrier number).
    BadOperand,
    /// Device function calls nested too deeply.
    StackOverflow,
}

impl FaultKind {
    /// A short description for messages.
    pub fn describe(self) -> &'static str {
        match self {
            FaultKind::OutOfBounds => "out-of-bounds access",
            FaultKind::Misaligned => "misaligned access",
            FaultKind::UninitialisedMemory => "read of memory that was never written",
            FaultKind::UninitialisedRegister => "read of a register that was never written",
            FaultKind::SharedRace => "shared-memory race",
            FaultKind::BarrierDivergence => "barrier divergence",
            FaultKind::WarpDivergence => "divergent warp-wide operation",
            FaultKind::AsyncNotWaited => "asynchronous copy not waited for",
            FaultKind::AsyncLeaked => "asynchronous copy left pending at exit",
            FaultKind::AsyncNotFenced => "missing fence before an asynchronous operation",
            FaultKind::Mbarrier => "mbarrier misuse",
            FaultKind::ReadOnly => "write to read-only memory",
            FaultKind::Runaway => "instruction limit reached",
            FaultKind::Trap => "trap",
            FaultKind::BadOperand => "invalid operand",
            FaultKind::StackOverflow => "call stack overflow",
        }
    }
}

/// One mistake of a kernel, with the place where it happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The class.
    pub kind: FaultKind,
    /// The launched kernel.
    pub kernel: String,
    /// Line of the PTX text, from 1.
    pub line: u32,
    /// The text of that line.
    pub instruction: String,
    /// Block index.
    pub block: [u32; 3],
    /// Thread index in the block (the first thread concerned).
    pub thread: [u32; 3],
    /// Addresses, sizes, the other thread: what the class needs to be understood.
    pub detail: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([bx, by, bz], [tx, ty, tz]) = (self.block, self.thread);
        write!(f, "{} in kernel `{}`: {}", self.kind.describe(), self.kernel, self.detail)?;
        write!(f, " [block ({bx},{by},{bz}) thread ({tx},{ty},{tz}), PTX line {}", self.line)?;
        write!(f, ": `{}`]", self.instruction)
    }
}
