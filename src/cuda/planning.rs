//! Planning for the device without one.

use super::lower;
use crate::backend::{Backend, HostSlice, HostSliceMut, NullBackend, OperandType, ProgramId, in_place};
use crate::error::Result;
use crate::ir::{Op, Region};
use crate::plan::Plan;
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

    fn compile(&mut self, plan: Plan) -> Result<ProgramId> {
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
