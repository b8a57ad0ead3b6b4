//! Planning for the device without one.

use super::driver::DeviceInfo;
use super::lower::{self, Operands};
use super::program::with_shapes;
use super::tiles::Choices;
use crate::backend::{Backend, HostSlice, HostSliceMut, NullBackend, OperandType, ProgramId, in_place};
use crate::error::{Error, Result};
use crate::ir::{Op, Region};
use crate::plan::{Plan, Slot, Step};
use crate::tensor::DType;

/// Plans exactly as [`super::CudaBackend`] does, and computes nothing.
#[derive(Debug)]
pub struct PlanningBackend(NullBackend);

impl PlanningBackend {
    /// Plans for kernels that compute in `dtype`.
    pub fn new(dtype: DType) -> Self {
        PlanningBackend(NullBackend::new(dtype))
    }
}

impl Backend for PlanningBackend {
    fn name(&self) -> String {
        format!("cuda ({}), planned without a device", self.0.dtype())
    }

    fn dtype(&self) -> DType {
        self.0.dtype()
    }

    fn workspace(&self, op: &Op, inputs: &[OperandType<'_>], outputs: &[OperandType<'_>]) -> usize {
        lower::workspace(op, inputs, outputs)
    }

    fn in_place(&self, op: &Op) -> &'static [usize] {
        in_place(op)
    }

    /// Every op must have kernels that take its sizes.
    fn compile(&mut self, plan: Plan) -> Result<ProgramId> {
        // An H200: of all devices that are supported, the one with the most ways to compute a product.
        let device = DeviceInfo { name: String::new(), capability: (9, 0), multiprocessors: 132 };
        let choices = Choices::new(&device);
        plan.steps.iter().try_for_each(|step| launchable(step, &choices))?;
        self.0.compile(plan)
    }

    fn write(&mut self, region: Region, offset: usize, data: HostSlice<'_>) -> Result<()> {
        self.0.write(region, offset, data)
    }

    fn read(&self, region: Region, offset: usize, data: HostSliceMut<'_>) -> Result<()> {
        self.0.read(region, offset, data)
    }

    fn run(&mut self, program: ProgramId) -> Result<()> {
        self.0.run(program)
    }
}

/// Where memory is pretended to be.
const BASE: u64 = 1 << 40;
/// What CUDA takes: blocks along the axes of a grid, and bytes of shared memory of the largest block.
const MOST_BLOCKS: [u32; 3] = [i32::MAX as u32, 65535, 65535];
const MOST_SHARED: u32 = 227 << 10;

/// Checks that a step can be launched.
fn launchable(step: &Step, choices: &Choices) -> Result<()> {
    let at = |slots: &[Slot]| slots.iter().map(|s| BASE + s.offset as u64).collect::<Vec<_>>();
    let (inputs, outputs) = (at(&step.inputs), at(&step.outputs));
    let inputs = with_shapes(&step.inputs, &inputs);
    let outputs = with_shapes(&step.outputs, &outputs);
    let scratch = BASE + step.workspace.0 as u64;
    let operands = Operands { inputs: &inputs, outputs: &outputs, scratch, choices };
    let refused = |why: String| Error::device("cuda", format!("{}: {} {why}", step.path, step.op.name()));
    for call in lower::lower(&step.op, &operands).map_err(refused)? {
        let blocks = call.grid.iter().zip(MOST_BLOCKS).all(|(n, most)| (1..=most).contains(n));
        if !blocks || call.shared > MOST_SHARED {
            let what = format!("{}: a grid of {:?} with {} bytes", call.kernel, call.grid, call.shared);
            return Err(refused(format!("cannot be launched ({what}): use a smaller batch")));
        }
    }
    Ok(())
}
