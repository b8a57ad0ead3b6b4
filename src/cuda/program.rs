//! The CUDA backend: owns the regions and the arena on the device, turns plans into prepared launches, runs them.

use super::choices::Choices;
use super::compiler::{Compiler, Wanted};
use super::driver::{Driver, GraphId, Sum, Work};
use super::host::{type_mismatch, with_bytes};
use super::kernel::Call;
use super::launch::{prepare, want};
use super::lower::{Lower, Operand, Operands};
use super::nccl::{Nccl, NcclChoice};
use super::stretch::Joined;
use super::tune::Tuner;
use crate::backend::{
    Backend, Ceilings, Collective, HostSlice, HostSliceMut, OpKernel, OpMeasure, ProgramId, footprint,
};
use crate::error::{Error, Result};
use crate::ir::{Op, Region, Rules};
use crate::plan::{OperandType, Plan, Slot, Space, Step, Target};
use crate::tensor::DType;
use half::bf16;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What moves between host and device at a time, bytes.
const PART: usize = 4 << 20;

/// Executes plans on a device in f32 or bf16. Gives the device's memory back when it is dropped: a driver's context may
/// outlive it.
pub struct CudaBackend<D: Driver> {
    pub(super) driver: D,
    pub(super) compiler: Compiler,
    pub(super) dtype: DType,
    pub(super) choices: Choices,
    tuner: Option<Tuner>,
    regions: BTreeMap<Region, RegionMemory>,
    arena: Memory,
    pub(super) programs: Vec<Program>,
    /// Where staged inputs lie until their program starts: a second buffer for each region that has such.
    landing: BTreeMap<Region, Memory>,
    staged: Vec<Staged>,
    /// What sums with other devices; None for what the environment says.
    pub(super) nccl: Option<NcclChoice>,
    pub(super) joined: Option<Joined>,
}

/// Bytes on their way into a region.
struct Staged {
    program: ProgramId,
    to: u64,
    from: u64,
    bytes: usize,
}

/// A stretch of device memory.
#[derive(Clone, Copy, Debug, Default)]
struct Memory {
    at: u64,
    bytes: usize,
}

struct RegionMemory {
    memory: Memory,
    dtype: DType,
    elements: usize,
}

pub(super) struct Program {
    pub plan: Plan,
    /// What is started, in order: our own kernels today, or a library's products where they are chosen.
    pub work: Vec<Work>,
    /// Where the work of each step of the plan ends.
    pub ends: Vec<usize>,
    graph: Option<GraphId>,
    /// Addresses of constant tables.
    pub tables: Vec<u64>,
    /// What follows where the results are summed over all ranks.
    pub sums: Option<Vec<Sum>>,
}

impl<D: Driver> CudaBackend<D> {
    /// A backend on `driver` that computes in `dtype`; `compiler` makes kernels for its device.
    ///
    /// # Errors
    /// A type other than bf16 and f32.
    pub fn new(driver: D, compiler: Compiler, dtype: DType) -> Result<Self> {
        if !matches!(dtype, DType::Bf16 | DType::F32) {
            return Err(Error::device("cuda", format!("computes in bf16 or f32, not in {dtype}")));
        }
        let (arena, choices) = (Memory::default(), Choices::new(driver.info()));
        let regions = BTreeMap::new();
        Ok(CudaBackend {
            driver,
            compiler,
            dtype,
            choices,
            tuner: None,
            regions,
            arena,
            programs: Vec::new(),
            landing: BTreeMap::new(),
            staged: Vec::new(),
            nccl: None,
            joined: None,
        })
    }

    /// Chooses tiles by `choices` from now on.
    pub fn with_choices(mut self, choices: Choices) -> Self {
        self.choices = choices;
        self
    }

    /// Measures which tiles are the fastest, from now on.
    pub fn with_tuner(mut self, tuner: Tuner) -> Self {
        self.tuner = Some(tuner);
        self
    }

    /// Sums with other devices by `nccl`, whatever the environment says.
    pub fn with_nccl(mut self, nccl: Arc<Nccl>) -> Self {
        self.nccl = Some(NcclChoice::Named(nccl));
        self
    }

    pub fn driver(&mut self) -> &mut D {
        &mut self.driver
    }

    /// Fills the arena with a byte pattern that reads as NaN, so that a check sees what nobody wrote.
    ///
    /// # Errors
    /// Those of the driver.
    pub fn poison_arena(&mut self) -> Result<()> {
        self.driver.upload(self.arena.at, &vec![0xff; self.arena.bytes])
    }

    /// Memory of `bytes` that begins with the contents of `old`; zeros follow.
    fn grown(&mut self, old: Memory, bytes: usize) -> Result<Memory> {
        let at = self.driver.allocate(bytes)?;
        // In parts: a batch of inputs is most of a gigabyte.
        let mut part = vec![0; PART.min(bytes)];
        let moved = (0..bytes).step_by(PART).try_for_each(|from| {
            let part = &mut part[..PART.min(bytes - from)];
            let kept = old.bytes.saturating_sub(from).min(part.len());
            if kept > 0 {
                self.driver.download(old.at + from as u64, &mut part[..kept])?;
            }
            part[kept..].fill(0);
            self.driver.upload(at + from as u64, part)
        });
        if let Err(e) = moved {
            // The region stays where it was.
            let _ = self.driver.free(at);
            return Err(e);
        }
        Ok(Memory { at, bytes })
    }

    /// Makes room for what `plan` needs; contents of regions are kept.
    fn grow(&mut self, plan: &Plan) -> Result<()> {
        for size in &plan.regions {
            if !matches!(size.dtype, DType::Bf16 | DType::F32 | DType::I32) {
                let message = format!("the plan's {} is {}", size.region.name(), size.dtype);
                return Err(Error::device("cuda", message));
            }
            // A region may have no elements: it is there all the same, and takes no memory.
            let none = RegionMemory { memory: Memory::default(), dtype: size.dtype, elements: 0 };
            let old = self.regions.entry(size.region).or_insert(none).memory;
            if old.bytes < size.bytes() {
                let memory = self.grown(old, size.bytes())?;
                let region = RegionMemory { memory, dtype: size.dtype, elements: size.elements };
                self.regions.insert(size.region, region);
                self.give_back(old)?;
            }
        }
        if self.arena.bytes < plan.arena_bytes {
            // First the old one, as there may not be room for both.
            let old = std::mem::take(&mut self.arena);
            self.give_back(old)?;
            self.arena = Memory { at: self.driver.allocate(plan.arena_bytes)?, bytes: plan.arena_bytes };
        }
        Ok(())
    }

    fn give_back(&mut self, memory: Memory) -> Result<()> {
        if memory.bytes == 0 { Ok(()) } else { self.driver.free(memory.at) }
    }

    /// Work and graph of a program, where the memory lies now.
    fn prepare_program(&mut self, program: &mut Program) -> Result<()> {
        self.clear(program)?;
        let last_uses = self.last_uses(&program.plan);
        for (i, step) in program.plan.steps.iter().enumerate() {
            program.work.extend(self.work(step, &mut program.tables)?);
            program.work.extend(self.signals(&last_uses, i)?);
            program.ends.push(program.work.len());
        }
        program.sums = self.sums(&last_uses, &mut program.tables)?;
        program.graph = Some(self.driver.record(&program.work)?);
        Ok(())
    }

    /// Drops a program's work with what it has on the device.
    fn clear(&mut self, program: &mut Program) -> Result<()> {
        program.work.clear();
        program.ends.clear();
        program.sums = None;
        if let Some(graph) = program.graph.take() {
            self.driver.forget(graph)?;
        }
        while let Some(table) = program.tables.pop() {
            self.driver.free(table)?;
        }
        Ok(())
    }

    /// Drops all programs, whatever the driver says.
    fn clear_all(&mut self) {
        for mut program in std::mem::take(&mut self.programs) {
            // Each try drops at least one thing.
            while self.clear(&mut program).is_err() {}
        }
    }

    fn address(&self, slot: &Slot, path: &str) -> Result<u64> {
        let memory = match slot.space {
            Space::Unused => return Ok(0),
            Space::Arena => self.arena,
            Space::Region(region) => self.region(region)?.memory,
        };
        let bytes = slot.shape.count() * slot.dtype.bytes();
        match slot.offset.checked_add(bytes) {
            Some(end) if end <= memory.bytes => Ok(memory.at + slot.offset as u64),
            _ => Err(Error::invariant("compile", format!("{path}: an operand leaves its memory"))),
        }
    }

    /// Operands of a step, where the plan put them.
    pub(super) fn operands<'a>(&self, step: &'a Step) -> Result<[Vec<Operand<'a>>; 2]> {
        let at =
            |slots: &[Slot]| slots.iter().map(|s| self.address(s, &step.path)).collect::<Result<Vec<_>>>();
        let (inputs, outputs) = (at(&step.inputs)?, at(&step.outputs)?);
        Ok([with_shapes(&step.inputs, &inputs), with_shapes(&step.outputs, &outputs)])
    }

    /// The kernel calls of a step.
    pub(super) fn calls(&self, step: &Step) -> Result<Vec<Call>> {
        let [inputs, outputs] = self.operands(step)?;
        let scratch = self.arena.at + step.workspace.0 as u64;
        let refused = |why: String| Error::device("cuda", format!("{}: {} {why}", step.path, step.op.name()));
        let choices = &self.choices;
        let operands = Operands { inputs: &inputs, outputs: &outputs, scratch, choices };
        let bf16 = operands.element() == DType::Bf16;
        let mut calls = step.op.lower(&operands).map_err(refused)?;
        calls.iter_mut().for_each(|call| call.bf16 = bf16);
        Ok(calls)
    }

    fn work(&mut self, step: &Step, tables: &mut Vec<u64>) -> Result<Vec<Work>> {
        let calls = self.calls(step)?.into_iter();
        calls.map(|call| prepare(&mut self.driver, &self.compiler, call, tables)).collect()
    }

    /// Compiles what `plan` needs, and measures its products whose fastest way is not known.
    fn tune(&mut self, plan: &Plan) -> Result<()> {
        // This asks for every product; what is found changes the next answers.
        let mut calls = Vec::new();
        for step in &plan.steps {
            calls.extend(self.calls(step)?);
        }
        if let Some(tuner) = &self.tuner {
            calls.extend(tuner.candidates(&self.choices));
        }
        let mut wanted = Wanted::new();
        want(&mut wanted, self.compiler.sources(), calls);
        self.compiler.prepare(&wanted, self.driver.image_kind())?;
        self.tune_asked()
    }

    /// Measures the products that were asked for and whose fastest way is not known.
    pub(super) fn tune_asked(&mut self) -> Result<()> {
        match &mut self.tuner {
            Some(tuner) => tuner.tune(&mut self.driver, &self.compiler, &mut self.choices),
            None => Ok(()),
        }
    }

    fn download_halves(&self, at: u64, len: usize) -> Result<Vec<bf16>> {
        let mut values = vec![bf16::ZERO; len];
        self.driver.download(at, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    fn region(&self, region: Region) -> Result<&RegionMemory> {
        self.regions
            .get(&region)
            .ok_or_else(|| Error::device("cuda", format!("no program uses the region {}", region.name())))
    }

    /// Whether a region has memory for `end` elements.
    pub(super) fn has(&self, region: Region, end: usize) -> bool {
        self.regions.get(&region).is_some_and(|r| end <= r.elements)
    }

    /// Address and type of `len` elements of a region.
    pub(super) fn range(&self, region: Region, offset: usize, len: usize) -> Result<(u64, DType)> {
        let have = self.region(region)?;
        match offset.checked_add(len) {
            Some(end) if end <= have.elements => {
                Ok((have.memory.at + (offset * have.dtype.bytes()) as u64, have.dtype))
            }
            _ => Err(Error::device(
                "cuda",
                format!("elements {offset}..+{len} lie outside {} of {}", region.name(), have.elements),
            )),
        }
    }
}

impl<D: Driver> Drop for CudaBackend<D> {
    fn drop(&mut self) {
        // An error cannot be acted on, and must not keep the rest from being given back. Graphs go before what they signal, and
        // a sum that other ranks never join before everything that would wait for it.
        for graph in self.programs.iter_mut().filter_map(|p| p.graph.take()) {
            let _ = self.driver.forget(graph);
        }
        self.driver.disconnect();
        let _ = self.driver.finish();
        self.clear_all();
        let regions = std::mem::take(&mut self.regions).into_values().map(|r| r.memory);
        let landing = std::mem::take(&mut self.landing).into_values();
        if let Some(copy) = self.joined.take().and_then(|j| j.copy) {
            let _ = self.driver.free(copy);
        }
        for memory in regions.chain(landing).chain([std::mem::take(&mut self.arena)]) {
            let _ = self.give_back(memory);
        }
    }
}

pub(super) fn with_shapes<'a>(slots: &'a [Slot], at: &[u64]) -> Vec<Operand<'a>> {
    slots.iter().zip(at).map(|(slot, &at)| Operand { at, shape: &slot.shape, dtype: slot.dtype }).collect()
}

impl<D: Driver> Target for CudaBackend<D> {
    fn workspace(&self, op: &Op, inputs: &[OperandType<'_>], outputs: &[OperandType<'_>]) -> usize {
        Lower::workspace(op, inputs, outputs)
    }

    fn in_place(&self, op: &Op) -> &'static [usize] {
        op.facts().in_place
    }

    fn finishes_rows(&self, columns: usize) -> bool {
        self.choices.finishes_rows(columns, self.dtype)
    }
}

impl<D: Driver> Backend for CudaBackend<D> {
    fn name(&self) -> String {
        format!("{} ({})", self.driver.info().name, self.dtype)
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn compile(&mut self, plan: Plan) -> Result<ProgramId> {
        // Regions may move: what is staged knows their old places, and must have arrived before landing buffers move, too.
        self.driver.join()?;
        self.staged.clear();
        self.grow(&plan)?;
        self.tune(&plan)?;
        self.programs.push(Program {
            plan,
            work: Vec::new(),
            ends: Vec::new(),
            graph: None,
            tables: Vec::new(),
            sums: None,
        });
        // Growing may have moved memory under earlier programs.
        let mut programs = std::mem::take(&mut self.programs);
        let prepared = programs.iter_mut().try_for_each(|program| self.prepare_program(program));
        self.programs = programs;
        if prepared.is_err() {
            // None is kept half prepared.
            self.clear_all();
        }
        prepared.map(|()| ProgramId(self.programs.len() - 1))
    }

    fn free_memory(&self) -> Option<u64> {
        self.driver.memory().ok().map(|[free, _]| free)
    }

    /// With the landing buffer of the inputs.
    fn footprint(&self, plans: &[Plan]) -> u64 {
        let inputs = plans.iter().flat_map(|plan| &plan.regions).filter(|r| r.region == Region::Inputs);
        footprint(plans) + inputs.map(|r| r.bytes() as u64).max().unwrap_or(0)
    }

    fn write(&mut self, region: Region, offset: usize, data: HostSlice<'_>) -> Result<()> {
        let (at, dtype) = self.range(region, offset, data.len())?;
        with_bytes(region, dtype, data, |bytes| self.driver.upload(at, bytes))
    }

    /// A CUDA graph has fixed addresses, so inputs cannot go to buffers in turn. They are copied beside the running program
    /// into a landing buffer; the next program begins by moving them into place on the device: at batch 256 of the full
    /// recipe 0.8 GB, which an H200 (4.3 TB/s) reads and writes in 0.4 ms.
    fn stage(
        &mut self,
        program: ProgramId,
        region: Region,
        offset: usize,
        data: HostSlice<'_>,
    ) -> Result<()> {
        let (to, dtype) = self.range(region, offset, data.len())?;
        let home = self.region(region)?.memory;
        let landing = match self.landing.get(&region).filter(|l| l.bytes >= home.bytes) {
            Some(landing) => *landing,
            None => {
                let landing = Memory { at: self.driver.allocate(home.bytes)?, bytes: home.bytes };
                if let Some(old) = self.landing.insert(region, landing) {
                    self.driver.free(old.at)?;
                }
                landing
            }
        };
        let from = landing.at + (to - home.at);
        let bytes = data.len() * dtype.bytes();
        // What was staged for this place before is out of date, whether or not this succeeds.
        self.staged.retain(|s| s.from + s.bytes as u64 <= from || from + bytes as u64 <= s.from);
        with_bytes(region, dtype, data, |bytes| self.driver.stage(from, bytes))?;
        self.staged.push(Staged { program, to, from, bytes });
        Ok(())
    }

    fn read(&self, region: Region, offset: usize, data: HostSliceMut<'_>) -> Result<()> {
        let len = match &data {
            HostSliceMut::F32(x) => x.len(),
            HostSliceMut::F64(x) => x.len(),
            HostSliceMut::I32(x) => x.len(),
        };
        let (at, dtype) = self.range(region, offset, len)?;
        match (data, dtype) {
            (HostSliceMut::I32(x), DType::I32) => self.driver.download(at, bytemuck::cast_slice_mut(x)),
            (HostSliceMut::F32(x), DType::F32) => self.driver.download(at, bytemuck::cast_slice_mut(x)),
            (HostSliceMut::F64(x), DType::F32) => {
                let mut values = vec![0.0f32; len];
                self.driver.download(at, bytemuck::cast_slice_mut(&mut values))?;
                x.iter_mut().zip(values).for_each(|(x, v)| *x = f64::from(v));
                Ok(())
            }
            (HostSliceMut::F32(x), DType::Bf16) => {
                let values = self.download_halves(at, len)?;
                x.iter_mut().zip(values).for_each(|(x, v)| *x = v.to_f32());
                Ok(())
            }
            (HostSliceMut::F64(x), DType::Bf16) => {
                let values = self.download_halves(at, len)?;
                x.iter_mut().zip(values).for_each(|(x, v)| *x = v.to_f64());
                Ok(())
            }
            _ => Err(type_mismatch(region, dtype)),
        }
    }

    fn run(&mut self, program: ProgramId) -> Result<()> {
        let Some(graph) = self.programs.get(program.0).and_then(|p| p.graph) else {
            return Err(Error::device("cuda", format!("program {} was never compiled", program.0)));
        };
        let (now, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.staged).into_iter().partition(|s| s.program == program);
        self.staged = later;
        if !now.is_empty() {
            let moved = self
                .driver
                .join()
                .and_then(|()| now.iter().try_for_each(|s| self.driver.copy(s.to, s.from, s.bytes)));
            if let Err(e) = moved {
                // Nothing runs on half of its inputs: whoever tries again moves all of them.
                self.staged.extend(now);
                return Err(e);
            }
        }
        self.driver.replay(graph)
    }

    fn join(
        &mut self,
        group: &mut dyn Collective,
        stretches: &[(Region, usize, usize)],
        wire: DType,
    ) -> Result<bool> {
        self.join_group(group, stretches, wire)
    }

    fn run_reduced(&mut self, program: ProgramId) -> Result<()> {
        if self.joined.is_none() {
            let message = format!("{} has joined no other device", self.name());
            return Err(Error::invariant("reducing gradients", message));
        }
        self.run(program)?;
        self.hand_over(program)
    }

    fn measure(&mut self, program: ProgramId, repeats: usize) -> Result<Vec<OpMeasure>> {
        self.measure_ops(program, repeats)
    }

    fn kernels(&mut self, program: ProgramId) -> Result<Vec<Vec<OpKernel>>> {
        self.op_kernels(program)
    }

    fn ceilings(&mut self, repeats: usize) -> Result<Option<Ceilings>> {
        self.measure_ceilings(repeats)
    }
}
