//! A backend that records everything and computes nothing: for planning without a device and for tests.

use super::{Backend, HostSlice, HostSliceMut, ProgramId};
use crate::error::{Error, Result};
use crate::ir::{Op, Region};
use crate::plan::{OperandType, Plan, RegionSize, Target};
use crate::tensor::DType;

/// One call that the null backend received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    Compile { steps: usize, arena_bytes: usize },
    Write { region: Region, offset: usize, elements: usize },
    Read { region: Region, offset: usize, elements: usize },
    Run { program: usize },
}

/// Takes every plan, checks every access against the regions' sizes, computes nothing; reads give zeros.
#[derive(Debug)]
pub struct NullBackend {
    dtype: DType,
    plans: Vec<Plan>,
    regions: Vec<RegionSize>,
    pub calls: std::cell::RefCell<Vec<Call>>,
}

impl NullBackend {
    /// A null device that plans as if it computed in `dtype`.
    pub fn new(dtype: DType) -> Self {
        NullBackend { dtype, plans: Vec::new(), regions: Vec::new(), calls: Default::default() }
    }

    /// The plan compiled as `program`.
    pub fn plan(&self, program: ProgramId) -> Option<&Plan> {
        self.plans.get(program.0)
    }

    fn check(&self, region: Region, offset: usize, elements: usize) -> Result<()> {
        let size = self.regions.iter().find(|r| r.region == region).map_or(0, |r| r.elements);
        if offset.checked_add(elements).is_some_and(|end| end <= size) {
            return Ok(());
        }
        let message = format!("elements {offset}..+{elements} lie outside {} of {size}", region.name());
        Err(Error::device("null", message))
    }
}

impl Target for NullBackend {
    fn workspace(&self, _: &Op, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn in_place(&self, _: &Op) -> &'static [usize] {
        &[]
    }
}

impl Backend for NullBackend {
    fn name(&self) -> String {
        format!("null ({})", self.dtype)
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn compile(&mut self, plan: Plan) -> Result<ProgramId> {
        for size in &plan.regions {
            match self.regions.iter_mut().find(|r| r.region == size.region) {
                Some(have) => have.elements = have.elements.max(size.elements),
                None => self.regions.push(*size),
            }
        }
        self.calls.get_mut().push(Call::Compile { steps: plan.steps.len(), arena_bytes: plan.arena_bytes });
        self.plans.push(plan);
        Ok(ProgramId(self.plans.len() - 1))
    }

    fn write(&mut self, region: Region, offset: usize, data: HostSlice<'_>) -> Result<()> {
        self.check(region, offset, data.len())?;
        self.calls.get_mut().push(Call::Write { region, offset, elements: data.len() });
        Ok(())
    }

    fn read(&self, region: Region, offset: usize, data: HostSliceMut<'_>) -> Result<()> {
        let elements = match data {
            HostSliceMut::F32(x) => {
                x.fill(0.0);
                x.len()
            }
            HostSliceMut::F64(x) => {
                x.fill(0.0);
                x.len()
            }
            HostSliceMut::I32(x) => {
                x.fill(0);
                x.len()
            }
        };
        self.check(region, offset, elements)?;
        self.calls.borrow_mut().push(Call::Read { region, offset, elements });
        Ok(())
    }

    fn run(&mut self, program: ProgramId) -> Result<()> {
        if program.0 >= self.plans.len() {
            return Err(Error::device("null", format!("program {} was never compiled", program.0)));
        }
        self.calls.get_mut().push(Call::Run { program: program.0 });
        Ok(())
    }
}
