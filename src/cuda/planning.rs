//! Planning for the device without one.

use super::choices::Choices;
use super::compiler::Wanted;
use super::driver::{DeviceInfo, Measured};
use super::kernel::Call;
use super::launch::want;
use super::lower::{Lower, Operands};
use super::measure::op_measure;
use super::program::with_shapes;
use super::sources::Sources;
use crate::backend::{Backend, HostSlice, HostSliceMut, NullBackend, OpMeasure, ProgramId};
use crate::error::{Error, Result};
use crate::ir::{Op, Region, Rules};
use crate::plan::{OperandType, Plan, Slot, Space, Step, Target};
use crate::tensor::DType;
use std::sync::{Arc, Mutex, PoisonError};

/// Plans exactly as [`super::CudaBackend`] does, and computes nothing.
#[derive(Debug)]
pub struct PlanningBackend {
    null: NullBackend,
    choices: Choices,
    collected: Option<Collected>,
}

/// The kernels of all plans so far.
#[derive(Clone, Debug)]
pub struct Collected {
    sources: Arc<Sources>,
    wanted: Arc<Mutex<Wanted>>,
    /// Whether a tuner may choose every tile.
    tuned: bool,
}

impl Collected {
    /// Nothing yet; `tuned` when every way to compute a product is wanted, not the estimated one alone.
    pub fn new(sources: Arc<Sources>, tuned: bool) -> Self {
        Collected { sources, wanted: Arc::default(), tuned }
    }

    /// What was collected.
    pub fn take(&self) -> Wanted {
        std::mem::take(&mut *self.wanted.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(&self, calls: Vec<Call>) {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        want(&mut wanted, &self.sources, calls);
    }
}

/// Of all devices that are supported the one with the most ways to compute a product: an H200.
const RICHEST: ((u32, u32), u32) = ((9, 0), 132);

fn richest() -> DeviceInfo {
    let (capability, multiprocessors) = RICHEST;
    DeviceInfo { name: String::new(), capability, multiprocessors }
}

impl PlanningBackend {
    /// Plans for kernels that compute in `dtype`.
    pub fn new(dtype: DType) -> Self {
        PlanningBackend { null: NullBackend::new(dtype), choices: Choices::new(&richest()), collected: None }
    }

    /// The same for compute capability `capability`; adds to `collected` the kernels of every plan.
    pub fn collecting(dtype: DType, capability: (u32, u32), collected: Collected) -> Self {
        let device = DeviceInfo { name: String::new(), capability, multiprocessors: RICHEST.1 };
        let choices = Choices::new(&device);
        PlanningBackend { null: NullBackend::new(dtype), choices, collected: Some(collected) }
    }
}

impl Target for PlanningBackend {
    fn workspace(&self, op: &Op, inputs: &[OperandType<'_>], outputs: &[OperandType<'_>]) -> usize {
        Lower::workspace(op, inputs, outputs)
    }

    fn in_place(&self, op: &Op) -> &'static [usize] {
        op.facts().in_place
    }

    fn finishes_rows(&self, columns: usize) -> bool {
        self.choices.finishes_rows(columns, self.null.dtype())
    }
}

impl Backend for PlanningBackend {
    fn name(&self) -> String {
        format!("cuda ({}), planned without a device", self.null.dtype())
    }

    fn dtype(&self) -> DType {
        self.null.dtype()
    }

    /// Every op must have kernels that take its sizes.
    fn compile(&mut self, plan: Plan) -> Result<ProgramId> {
        let mut calls = Vec::new();
        for step in &plan.steps {
            calls.extend(launchable(step, &self.choices)?);
        }
        let products = self.choices.take_unmeasured();
        if let Some(collected) = &self.collected {
            let all = products.values().filter(|_| collected.tuned);
            calls.extend(all.flat_map(|(product, element)| product.calls(*element, &self.choices)));
            collected.add(calls);
        }
        self.null.compile(plan)
    }

    fn write(&mut self, region: Region, offset: usize, data: HostSlice<'_>) -> Result<()> {
        self.null.write(region, offset, data)
    }

    fn read(&self, region: Region, offset: usize, data: HostSliceMut<'_>) -> Result<()> {
        self.null.read(region, offset, data)
    }

    fn run(&mut self, program: ProgramId) -> Result<()> {
        self.null.run(program)
    }
}

/// Where memory is pretended to be: arena and regions begin where a driver's allocations may.
const BASE: u64 = 1 << 40;
/// What CUDA takes: blocks along the axes of a grid, and bytes of shared memory of the largest block.
const MOST_BLOCKS: [u32; 3] = [i32::MAX as u32, 65535, 65535];
const MOST_SHARED: u32 = 227 << 10;

/// The ops of `plan` in its order, as they would be launched on the device with the most ways to compute a product; nothing is
/// timed.
///
/// # Errors
/// [`Error::Device`] naming the path of a step that no kernel takes.
pub fn planned_ops(plan: &Plan) -> Result<Vec<OpMeasure>> {
    let choices = Choices::new(&richest());
    plan.steps
        .iter()
        .map(|step| Ok(op_measure(step, lowered(step, &choices)?.len(), Measured::default())))
        .collect()
}

/// The calls of a step on operands that are nowhere.
///
/// # Errors
/// An op that no kernel takes at its size.
pub(super) fn lowered(step: &Step, choices: &Choices) -> Result<Vec<Call>> {
    let address = |s: &Slot| if s.space == Space::Unused { 0 } else { BASE + s.offset as u64 };
    let at = |slots: &[Slot]| slots.iter().map(address).collect::<Vec<_>>();
    let places = [at(&step.inputs), at(&step.outputs)];
    lowered_at(step, &places, BASE + step.workspace.0 as u64, choices)
}

/// The calls of a step whose inputs and outputs lie at `places`.
///
/// # Errors
/// Those of [`lowered`].
pub(super) fn lowered_at(
    step: &Step,
    [inputs, outputs]: &[Vec<u64>; 2],
    scratch: u64,
    choices: &Choices,
) -> Result<Vec<Call>> {
    let inputs = with_shapes(&step.inputs, inputs);
    let outputs = with_shapes(&step.outputs, outputs);
    let operands = Operands { inputs: &inputs, outputs: &outputs, scratch, choices };
    let mut calls = step.op.lower(&operands).map_err(|why| refused(step, &why))?;
    calls.iter_mut().for_each(|call| call.bf16 = operands.element() == DType::Bf16);
    Ok(calls)
}

fn refused(step: &Step, why: &str) -> Error {
    Error::device("cuda", format!("{}: {} {why}", step.path, step.op.name()))
}

/// The calls of a step, all of which can be launched.
fn launchable(step: &Step, choices: &Choices) -> Result<Vec<Call>> {
    let calls = lowered(step, choices)?;
    for call in &calls {
        let blocks = call.grid.iter().zip(MOST_BLOCKS).all(|(n, most)| (1..=most).contains(n));
        if !blocks || call.shared > MOST_SHARED {
            let what = format!("{}: a grid of {:?} with {} bytes", call.kernel, call.grid, call.shared);
            return Err(refused(step, &format!("cannot be launched ({what}): use a smaller batch")));
        }
    }
    Ok(calls)
}
