//! What the engine asks of a device: hold the regions, compile plans, run them, move data in and out.

mod in_place;
mod null;
mod resample;

pub use in_place::in_place;
pub use null::NullBackend;
pub use resample::{repeats_first_row, resample_weights};

use crate::error::{Error, Result};
use crate::ir::{Op, Region};
use crate::plan::Plan;
use crate::tensor::{DType, Shape};

/// Host data on its way into a region; a backend converts between float types.
#[derive(Clone, Copy, Debug)]
pub enum HostSlice<'a> {
    F32(&'a [f32]),
    F64(&'a [f64]),
    I32(&'a [i32]),
}

impl HostSlice<'_> {
    pub fn len(&self) -> usize {
        match self {
            HostSlice::F32(x) => x.len(),
            HostSlice::F64(x) => x.len(),
            HostSlice::I32(x) => x.len(),
        }
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Where host data from a region goes.
#[derive(Debug)]
pub enum HostSliceMut<'a> {
    F32(&'a mut [f32]),
    F64(&'a mut [f64]),
    I32(&'a mut [i32]),
}

/// Shape and type of an operand, for sizing workspaces.
#[derive(Clone, Copy, Debug)]
pub struct OperandType<'a> {
    pub shape: &'a Shape,
    pub dtype: DType,
}

/// A compiled plan, owned by the backend that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProgramId(pub usize);

/// What an interpreted op did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpCounts {
    /// Bytes of global memory that its threads read and wrote.
    pub global_bytes: u64,
    /// Sectors of 32 bytes that its accesses touched, and how few would have done.
    pub sectors: [u64; 2],
    pub bank_conflicts: u64,
    pub lane_instructions: u64,
}

/// One op of a program, measured.
#[derive(Clone, Debug, PartialEq)]
pub struct OpMeasure {
    pub path: String,
    pub op: &'static str,
    /// Shape of its first operand (of its output if it has none).
    pub shape: Shape,
    pub launches: usize,
    /// Of its matrix products.
    pub flops: u64,
    /// Bytes of all its operands: the least that it moves.
    pub least_bytes: u64,
    /// Median time, on a real device.
    pub seconds: Option<f64>,
    /// On an interpreted one.
    pub counts: Option<OpCounts>,
}

/// A device that holds the regions and executes plans. All programs of one backend share its regions and one arena.
pub trait Backend: Send {
    /// Short name with the device, such as `cpu (2 threads, f32)`.
    fn name(&self) -> String;

    /// The element type in which this backend computes.
    fn dtype(&self) -> DType;

    /// Scratch bytes that an op needs while it runs; the planner reserves them in the arena.
    fn workspace(&self, op: &Op, inputs: &[OperandType<'_>], outputs: &[OperandType<'_>]) -> usize;

    /// Inputs whose memory the op may reuse for its first output when they are not needed afterwards.
    fn in_place(&self, op: &Op) -> &'static [usize];

    /// Allocates what the plan needs beyond what is there (contents of regions are kept) and prepares every launch, so
    /// that [`Backend::run`] allocates nothing.
    fn compile(&mut self, plan: Plan) -> Result<ProgramId>;

    /// Copies into a region; `offset` in elements.
    fn write(&mut self, region: Region, offset: usize, data: HostSlice<'_>) -> Result<()>;

    /// Copies out of a region; `offset` in elements.
    fn read(&self, region: Region, offset: usize, data: HostSliceMut<'_>) -> Result<()>;

    /// Copies into a region for the next run of `program`, before which nobody sees it for certain. A device may copy while
    /// another program still runs.
    fn stage(
        &mut self,
        _program: ProgramId,
        region: Region,
        offset: usize,
        data: HostSlice<'_>,
    ) -> Result<()> {
        self.write(region, offset, data)
    }

    /// Starts a program; reads wait for its end, and tell if it failed.
    fn run(&mut self, program: ProgramId) -> Result<()>;

    /// Runs the ops of a program one after the other, each `repeats` times, and measures them. The regions must hold what
    /// a run needs; afterwards they hold nothing meaningful.
    ///
    /// # Errors
    /// Those of running; a backend that cannot measure single ops says so.
    fn measure(&mut self, _program: ProgramId, _repeats: usize) -> Result<Vec<OpMeasure>> {
        Err(Error::device(self.name(), "does not measure single ops"))
    }
}
