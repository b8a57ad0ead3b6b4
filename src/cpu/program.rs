//! The CPU backend: owns the regions and the arena, resolves plans to addresses, runs them step by step.

use super::buffers::{Arg, Io, Memory};
use super::real::Real;
use super::{host_memory, kernel};
use crate::backend::{Backend, HostSlice, HostSliceMut, ProgramId};
use crate::error::{Error, Result};
use crate::ir::{Op, Region, Rules};
use crate::plan::{OperandType, Plan, RegionSize, Slot, Space, Step, Target};
use crate::tensor::{DType, Shape};
use crate::units::human_bytes;
use std::collections::BTreeMap;

/// Executes plans on CPU threads in f32 or f64.
pub struct CpuBackend<T> {
    pool: rayon::ThreadPool,
    regions: BTreeMap<Region, RegionMemory>,
    arena: Memory,
    /// Bytes of the machine's memory that were free before anything was compiled, and all of them.
    room: Option<[u64; 2]>,
    programs: Vec<Program>,
    _type: std::marker::PhantomData<T>,
}

struct RegionMemory {
    memory: Memory,
    dtype: DType,
    elements: usize,
}

/// A compiled plan: its steps, and their operands as addresses.
struct Program {
    plan: Plan,
    resolved: Vec<Resolved>,
}

struct Resolved {
    inputs: Vec<Arg>,
    outputs: Vec<Arg>,
    workspace: Arg,
}

impl<T: Real> CpuBackend<T> {
    /// A backend with its own pool of `threads` threads; 0 takes one per core.
    ///
    /// # Errors
    /// [`Error::Device`] when the threads cannot be started.
    pub fn new(threads: usize) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("saip-cpu-{i}"))
            .build()
            .map_err(|e| Error::device("cpu", format!("cannot start {threads} threads: {e}")))?;
        Ok(CpuBackend {
            pool,
            regions: BTreeMap::new(),
            arena: Memory::default(),
            room: host_memory::free_and_total(),
            programs: Vec::new(),
            _type: std::marker::PhantomData,
        })
    }

    /// The plan compiled as `program`.
    pub fn plan(&self, program: ProgramId) -> Option<&Plan> {
        self.programs.get(program.0).map(|p| &p.plan)
    }

    /// Fills the arena with a byte pattern that reads as NaN, so that a check sees what nobody wrote.
    pub fn poison_arena(&mut self) {
        self.arena.fill(0xff);
    }

    /// Makes room for what `plan` needs; contents of regions are kept. Without the memory everything stays as it is, because
    /// earlier programs hold addresses.
    fn grow(&mut self, plan: &Plan) -> Result<()> {
        for size in &plan.regions {
            if size.dtype != T::DTYPE && size.dtype != DType::I32 {
                let message =
                    format!("computes in {}, the plan's {} is {}", T::DTYPE, size.region.name(), size.dtype);
                return Err(Error::device("cpu", message));
            }
        }
        self.refuse_beyond_room(plan)?;
        let mut larger = Vec::with_capacity(plan.regions.len());
        for size in &plan.regions {
            let have = self.regions.get(&size.region).map_or(0, |r| r.elements);
            larger.push(if have < size.elements { Some(allocate(size.bytes())?) } else { None });
        }
        if self.arena.len() < plan.arena_bytes {
            self.arena = allocate(plan.arena_bytes)?;
        }
        for (size, memory) in plan.regions.iter().zip(larger) {
            let have = self.regions.entry(size.region).or_insert_with(|| RegionMemory {
                memory: Memory::default(),
                dtype: size.dtype,
                elements: 0,
            });
            if let Some(memory) = memory {
                have.memory.move_to(memory);
                have.elements = size.elements;
            }
        }
        Ok(())
    }

    /// Refuses a plan with which the programs need more than was free before the first: the system would promise the memory
    /// all the same, and end the process when it is used.
    fn refuse_beyond_room(&self, plan: &Plan) -> Result<()> {
        let Some([free, total]) = self.room else { return Ok(()) };
        let grown = |size: &RegionSize| match self.regions.get(&size.region) {
            Some(have) => size.bytes().saturating_sub(have.memory.len()),
            None => size.bytes(),
        };
        let held = self.regions.values().map(|r| r.memory.len());
        let needed = held.chain(plan.regions.iter().map(grown));
        let needed = needed.fold(self.arena.len().max(plan.arena_bytes), usize::saturating_add) as u64;
        if needed > free { Err(Error::memory("cpu", needed, [free, total])) } else { Ok(()) }
    }

    fn resolve(&self, step: &Step) -> Result<Resolved> {
        let arg = |slot: &Slot| -> Result<Arg> {
            let bytes = slot.shape.count() * slot.dtype.bytes();
            let memory = match slot.space {
                Space::Unused => return Ok(Arg::empty(slot.dtype)),
                Space::Arena => &self.arena,
                Space::Region(r) => &self.region(r)?.memory,
            };
            memory.arg(slot.offset, bytes, slot.shape.clone(), slot.dtype).ok_or_else(|| {
                Error::invariant("compile", format!("{}: an operand leaves its memory", step.path))
            })
        };
        let (offset, bytes) = step.workspace;
        let scratch = Slot {
            space: if bytes == 0 { Space::Unused } else { Space::Arena },
            offset,
            shape: Shape::from([bytes / T::DTYPE.bytes()]),
            dtype: T::DTYPE,
        };
        Ok(Resolved {
            inputs: step.inputs.iter().map(arg).collect::<Result<_>>()?,
            outputs: step.outputs.iter().map(arg).collect::<Result<_>>()?,
            workspace: arg(&scratch)?,
        })
    }

    fn region(&self, region: Region) -> Result<&RegionMemory> {
        self.regions
            .get(&region)
            .ok_or_else(|| Error::device("cpu", format!("no program uses the region {}", region.name())))
    }

    fn range(&self, region: Region, offset: usize, len: usize) -> Result<(std::ops::Range<usize>, DType)> {
        let have = self.region(region)?;
        match offset.checked_add(len) {
            Some(end) if end <= have.elements => {
                let size = have.dtype.bytes();
                Ok((offset * size..end * size, have.dtype))
            }
            _ => Err(Error::device(
                "cpu",
                format!("elements {offset}..+{len} lie outside {} of {}", region.name(), have.elements),
            )),
        }
    }
}

impl<T: Real> Target for CpuBackend<T> {
    fn workspace(&self, op: &Op, inputs: &[OperandType<'_>], outputs: &[OperandType<'_>]) -> usize {
        let inputs: Vec<&Shape> = inputs.iter().map(|o| o.shape).collect();
        let outputs: Vec<&Shape> = outputs.iter().map(|o| o.shape).collect();
        kernel::workspace::<T>(op, &inputs, &outputs, self.pool.current_num_threads())
    }

    fn in_place(&self, op: &Op) -> &'static [usize] {
        op.facts().in_place
    }
}

impl<T: Real> Backend for CpuBackend<T> {
    fn name(&self) -> String {
        format!("cpu ({} threads, {})", self.pool.current_num_threads(), T::DTYPE)
    }

    fn dtype(&self) -> DType {
        T::DTYPE
    }

    fn compile(&mut self, plan: Plan) -> Result<ProgramId> {
        self.grow(&plan)?;
        self.programs.push(Program { plan, resolved: Vec::new() });
        // Growing may have moved memory under earlier programs.
        let resolved = self
            .programs
            .iter()
            .map(|p| p.plan.steps.iter().map(|s| self.resolve(s)).collect::<Result<Vec<_>>>())
            .collect::<Result<Vec<_>>>()?;
        for (program, resolved) in self.programs.iter_mut().zip(resolved) {
            program.resolved = resolved;
        }
        Ok(ProgramId(self.programs.len() - 1))
    }

    fn free_memory(&self) -> Option<u64> {
        host_memory::free_and_total().map(|[free, _]| free)
    }

    fn write(&mut self, region: Region, offset: usize, data: HostSlice<'_>) -> Result<()> {
        let (range, dtype) = self.range(region, offset, data.len())?;
        let Some(have) = self.regions.get_mut(&region) else { return Ok(()) };
        match (data, dtype) {
            (HostSlice::I32(x), DType::I32) => have.memory.slice_mut::<i32>(range).copy_from_slice(x),
            (HostSlice::F32(x), DType::F32 | DType::F64) => {
                have.memory.slice_mut::<T>(range).iter_mut().zip(x).for_each(|(d, s)| *d = T::from_f32(*s));
            }
            (HostSlice::F64(x), DType::F32 | DType::F64) => {
                have.memory.slice_mut::<T>(range).iter_mut().zip(x).for_each(|(d, s)| *d = T::from_f64(*s));
            }
            _ => return Err(type_mismatch(region, dtype)),
        }
        Ok(())
    }

    fn read(&self, region: Region, offset: usize, data: HostSliceMut<'_>) -> Result<()> {
        let len = match &data {
            HostSliceMut::F32(x) => x.len(),
            HostSliceMut::F64(x) => x.len(),
            HostSliceMut::I32(x) => x.len(),
        };
        let (range, dtype) = self.range(region, offset, len)?;
        let memory = &self.region(region)?.memory;
        match (data, dtype) {
            (HostSliceMut::I32(x), DType::I32) => x.copy_from_slice(memory.slice::<i32>(range)),
            (HostSliceMut::F32(x), DType::F32 | DType::F64) => {
                x.iter_mut().zip(memory.slice::<T>(range)).for_each(|(d, s)| *d = s.to_f32());
            }
            (HostSliceMut::F64(x), DType::F32 | DType::F64) => {
                x.iter_mut().zip(memory.slice::<T>(range)).for_each(|(d, s)| *d = s.to_f64());
            }
            _ => return Err(type_mismatch(region, dtype)),
        }
        Ok(())
    }

    fn run(&mut self, program: ProgramId) -> Result<()> {
        let Some(Program { plan, resolved }) = self.programs.get(program.0) else {
            return Err(Error::device("cpu", format!("program {} was never compiled", program.0)));
        };
        self.pool.install(|| {
            for (step, at) in plan.steps.iter().zip(resolved) {
                // SAFETY: the addresses point into regions and arena, owned by `self`, which `run` borrows exclusively;
                // the plan lets operands of one step overlap only where an output takes an input's place.
                let mut io = unsafe { Io::<T>::new(&step.op, &at.inputs, &at.outputs, &at.workspace) };
                kernel::execute(&mut io);
            }
        });
        Ok(())
    }
}

fn allocate(bytes: usize) -> Result<Memory> {
    Memory::zeroed(bytes).ok_or_else(|| {
        let asked = human_bytes(bytes as u64);
        let remedy = "use a smaller batch, or raise the limit of the process (ulimit -v)";
        Error::device("cpu", format!("cannot allocate {asked}: {remedy}"))
    })
}

fn type_mismatch(region: Region, dtype: DType) -> Error {
    Error::device(
        "cpu",
        format!("region {} holds {dtype}, the host's data is of another kind", region.name()),
    )
}
