//! Runs a graph on a backend with every source and result at a known place, guard values between them.

use super::tensor::{Input, Tensor};
use saip_engine::Result;
use saip_engine::backend::{Backend, HostSlice, HostSliceMut, OpMeasure, ProgramId};
use saip_engine::cpu::{CpuBackend, Real};
use saip_engine::ir::{self, Binding, Graph, Op, Region, Role, RowRun, Rules, ValueId, ops};
use saip_engine::plan;
use saip_engine::tensor::{DType, Shape};
use std::collections::BTreeMap;

/// Elements between two tensors of a region, and behind the last.
const GUARD: usize = 64;
/// Representable in every type.
const GUARD_VALUE: f64 = -12288.0;
const GUARD_INDEX: i32 = 0x5a5a_5a5a;

/// In a case: the op casts to the narrower of the bench's two types.
pub const NARROW: DType = DType::Bf16;

/// Regions of this file that hold bf16, since a region holds one type.
const NARROW_HOMES: [Region; 3] = [Region::Weights, Region::ExpertWeights, Region::MicroGrads];

/// Where values of `dtype` that belong in `region` are kept.
fn home(region: Region, dtype: DType) -> Region {
    match (region, dtype) {
        (Region::Inputs, DType::Bf16) => Region::Weights,
        (Region::State, DType::Bf16) => Region::ExpertWeights,
        (Region::Outputs, DType::Bf16) => Region::MicroGrads,
        _ => region,
    }
}

/// A graph under construction whose sources and results get their places here.
pub struct Bench {
    pub graph: Graph,
    dtype: DType,
    ends: BTreeMap<Region, usize>,
    sources: Vec<(ValueId, Input)>,
    results: Vec<ValueId>,
}

impl Bench {
    pub fn new(dtype: DType) -> Self {
        Bench { graph: Graph::new(), dtype, ends: BTreeMap::new(), sources: vec![], results: vec![] }
    }

    fn place(&mut self, region: Region, elements: usize) -> Binding {
        let end = self.ends.entry(region).or_insert(0);
        let offset = *end;
        *end = (offset + elements).next_multiple_of(64) + GUARD;
        Binding { region, offset }
    }

    /// A source with its contents, in `region`, of the type that `role` stands for.
    pub fn source_in(&mut self, region: Region, input: &Input, role: Role) -> ValueId {
        let dtype = match (input, role) {
            (Input::Index { .. }, _) => DType::I32,
            (Input::Float(_), Role::Element) => self.dtype,
            (Input::Float(_), Role::Wide) => self.dtype.accumulator(),
        };
        let region = home(region, dtype);
        let binding = self.place(region, input.shape().iter().product());
        let name = format!("operand {}", self.sources.len());
        let id = self.graph.source(name, Shape::from(input.shape()), dtype, binding);
        self.sources.push((id, input.clone()));
        id
    }

    /// A source with its contents, of the type that the bench computes in.
    pub fn source(&mut self, input: &Input) -> ValueId {
        self.source_with(input, Role::Element)
    }

    fn source_with(&mut self, input: &Input, role: Role) -> ValueId {
        let region = if matches!(input, Input::Index { .. }) { Region::Indices } else { Region::Inputs };
        self.source_in(region, input, role)
    }

    /// The op with the element type of this bench.
    pub fn push(&mut self, op: &Op, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let op = match op {
            Op::Fill(ops::Fill { shape, value, .. }) => {
                ops::Fill { shape: shape.clone(), value: *value, dtype: self.dtype }.into()
            }
            Op::PatchRows(ops::PatchRows { kept, .. }) => {
                ops::PatchRows { kept: *kept, dtype: self.dtype }.into()
            }
            Op::PixelRows(ops::PixelRows { masked, .. }) => {
                ops::PixelRows { masked: *masked, dtype: self.dtype }.into()
            }
            Op::Cast(ops::Cast { dtype: NARROW }) => ops::Cast { dtype: self.dtype }.into(),
            Op::Cast(_) => ops::Cast { dtype: self.dtype.accumulator() }.into(),
            other => other.clone(),
        };
        let path = format!("test.{}", op.name());
        self.graph.push(path, op, inputs)
    }

    /// Makes `value` readable after a run.
    pub fn result(&mut self, value: ValueId) {
        if self.graph.value(value).binding.is_none() {
            let region = home(Region::Outputs, self.graph.value(value).dtype);
            let binding = self.place(region, self.graph.shape(value).count());
            self.graph.bind(value, binding);
            self.results.push(value);
        }
    }

    /// Makes `value` overwrite the source `over`.
    pub fn result_in_place(&mut self, value: ValueId, over: ValueId) {
        if let Some(binding) = self.graph.value(over).binding {
            self.graph.bind(value, binding);
        }
    }

    /// Plans and compiles; `poison` spoils memory that nothing may rely on.
    pub fn compile<B: Backend>(mut self, mut backend: B, poison: fn(&mut B)) -> Result<Runner<B>> {
        // A source that no node reads keeps room for the guard behind the last tensor of each region.
        for (region, end) in self.ends.clone() {
            let dtype = match region {
                Region::Indices => DType::I32,
                region if NARROW_HOMES.contains(&region) => self.dtype,
                _ => self.dtype.accumulator(),
            };
            let binding = Binding { region, offset: end - GUARD };
            self.graph.source(format!("guard of {}", region.name()), [GUARD], dtype, binding);
        }
        ir::verify(&self.graph, "test")?;
        let plan = plan::plan(&self.graph, &backend)?;
        let program = backend.compile(plan)?;
        let Bench { graph, ends, sources, results, .. } = self;
        let mut runner = Runner { backend, poison, program, graph, ends, results };
        runner.fill_guards()?;
        for (id, input) in &sources {
            runner.set(*id, input)?;
        }
        Ok(runner)
    }
}

/// A compiled [`Bench`].
pub struct Runner<B> {
    backend: B,
    poison: fn(&mut B),
    program: ProgramId,
    graph: Graph,
    ends: BTreeMap<Region, usize>,
    results: Vec<ValueId>,
}

impl<B: Backend> Runner<B> {
    fn fill_guards(&mut self) -> Result<()> {
        for (&region, &end) in &self.ends {
            if region == Region::Indices {
                self.backend.write(region, 0, HostSlice::I32(&vec![GUARD_INDEX; end]))?;
            } else {
                self.backend.write(region, 0, HostSlice::F64(&vec![GUARD_VALUE; end]))?;
            }
        }
        Ok(())
    }

    fn place(&self, id: ValueId) -> (Region, usize, usize) {
        let v = self.graph.value(id);
        let binding = v.binding.expect("only bound values are read and written");
        (binding.region, binding.offset, v.shape.count())
    }

    pub fn set(&mut self, id: ValueId, input: &Input) -> Result<()> {
        let (region, offset, _) = self.place(id);
        match input {
            Input::Float(t) => self.backend.write(region, offset, HostSlice::F64(&t.data)),
            Input::Index { data, .. } => self.backend.write(region, offset, HostSlice::I32(data)),
        }
    }

    /// Measures every op once.
    pub fn measure(&mut self) -> Result<Vec<OpMeasure>> {
        self.backend.measure(self.program, 1)
    }

    /// Poisons results and scratch memory with NaN, then runs.
    pub fn run(&mut self) -> Result<()> {
        for id in self.results.clone() {
            let (region, offset, n) = self.place(id);
            self.backend.write(region, offset, HostSlice::F64(&vec![f64::NAN; n]))?;
        }
        (self.poison)(&mut self.backend);
        self.backend.run(self.program)
    }

    pub fn get(&self, id: ValueId) -> Result<Vec<f64>> {
        let (region, offset, n) = self.place(id);
        let mut data = vec![0.0; n];
        self.backend.read(region, offset, HostSliceMut::F64(&mut data))?;
        Ok(data)
    }

    /// Whether everything outside the tensors is as it was.
    pub fn check_guards(&self) -> Result<(), String> {
        for (&region, &end) in &self.ends {
            let mut inside = vec![false; end];
            for v in &self.graph.values {
                if let Some(b) = v.binding.filter(|b| b.region == region && b.offset + GUARD != end) {
                    inside[b.offset..b.offset + v.shape.count()].fill(true);
                }
            }
            let spoilt = if region == Region::Indices {
                let mut data = vec![0; end];
                self.backend.read(region, 0, HostSliceMut::I32(&mut data)).map_err(|e| e.to_string())?;
                (0..end).find(|&i| !inside[i] && data[i] != GUARD_INDEX)
            } else {
                let mut data = vec![0.0; end];
                self.backend.read(region, 0, HostSliceMut::F64(&mut data)).map_err(|e| e.to_string())?;
                (0..end).find(|&i| !inside[i] && data[i] != GUARD_VALUE)
            };
            if let Some(i) = spoilt {
                return Err(format!("wrote outside its tensors: {} element {i}", region.name()));
            }
        }
        Ok(())
    }
}

/// Where [`run_op`] keeps the operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Everything in regions, guarded.
    Regions,
    /// Matrices pass through the arena on their way in and out, so that the planner may give an output the place of an
    /// input, and what nothing reads is not stored.
    Arena,
}

/// Runs one op on operands in their own regions. Fails as well when the op wrote outside its outputs or into operands
/// that it does not update.
pub fn run_op<B: Backend>(
    op: &Op,
    inputs: &[Input],
    in_place: &[(usize, usize)],
    placement: Placement,
    backend: B,
    poison: fn(&mut B),
) -> Result<Vec<Vec<f64>>, String> {
    let text = |e: saip_engine::Error| e.to_string();
    let mut bench = Bench::new(backend.dtype());
    let updated = |i: usize| in_place.iter().any(|p| p.0 == i);
    let sources: Vec<ValueId> = inputs
        .iter()
        .enumerate()
        .map(|(i, x)| {
            let role = if let Op::Cast(ops::Cast { dtype: NARROW }) = op {
                Role::Wide
            } else {
                op.facts().input_role(i)
            };
            if updated(i) { bench.source_in(Region::State, x, role) } else { bench.source_with(x, role) }
        })
        .collect();
    let arena = placement == Placement::Arena;
    let operands = sources
        .iter()
        .enumerate()
        .map(|(i, &id)| if arena && !updated(i) { copied(&mut bench, id) } else { Ok(id) })
        .collect::<Result<Vec<_>>>()
        .map_err(text)?;
    let mut outputs = bench.push(op, &operands).map_err(text)?;
    if arena && in_place.is_empty() {
        outputs.truncate(1);
        outputs[0] = copied(&mut bench, outputs[0]).map_err(text)?;
    }
    for (slot, &id) in outputs.iter().enumerate() {
        match in_place.iter().find(|p| p.1 == slot) {
            Some(&(input, _)) => bench.result_in_place(id, sources[input]),
            None => bench.result(id),
        }
    }
    let mut runner = bench.compile(backend, poison).map_err(text)?;
    let before: Vec<Vec<f64>> = read_floats(&runner, &sources, inputs)?;
    runner.run().map_err(text)?;
    runner.check_guards()?;
    let after = read_floats(&runner, &sources, inputs)?;
    for i in (0..inputs.len()).filter(|&i| !updated(i)) {
        if before[i].iter().zip(&after[i]).any(|(a, b)| a.to_bits() != b.to_bits()) {
            return Err(format!("operand {i} was overwritten"));
        }
    }
    outputs.iter().map(|&o| runner.get(o).map_err(text)).collect()
}

/// A float matrix copied into the arena; anything else stays.
fn copied(bench: &mut Bench, id: ValueId) -> Result<ValueId> {
    let v = bench.graph.value(id);
    let &[rows, _] = v.shape.dims() else { return Ok(id) };
    if v.dtype == DType::I32 {
        return Ok(id);
    }
    let all = RowRun { start: 0, len: rows, stride: rows, count: 1 };
    Ok(bench.push(&ops::SelectRows { runs: vec![all] }.into(), &[id])?[0])
}

/// Contents of float sources; indices count as empty.
fn read_floats<B: Backend>(
    runner: &Runner<B>,
    sources: &[ValueId],
    inputs: &[Input],
) -> Result<Vec<Vec<f64>>, String> {
    sources
        .iter()
        .zip(inputs)
        .map(|(&id, x)| match x {
            Input::Float(_) => runner.get(id).map_err(|e| e.to_string()),
            Input::Index { .. } => Ok(vec![]),
        })
        .collect()
}

/// [`run_op`] on the CPU. A panic of a kernel becomes an error.
pub fn run_on_cpu<T: Real>(
    op: &Op,
    inputs: &[Input],
    in_place: &[(usize, usize)],
    placement: Placement,
    threads: usize,
) -> Result<Vec<Vec<f64>>, String> {
    let run = || {
        let backend = CpuBackend::<T>::new(threads).map_err(|e| e.to_string())?;
        run_op(op, inputs, in_place, placement, backend, CpuBackend::poison_arena)
    };
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
        Ok(result) => result,
        Err(panic) => {
            let message = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            Err(format!("panicked: {}", message.unwrap_or_default()))
        }
    }
}

/// A tensor as a source of one element.
pub fn constant(value: f64) -> Input {
    Tensor::new([1], vec![value]).into()
}
