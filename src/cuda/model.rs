//! What every launch of a plan asks of a device, found without one: a few blocks of each run on the interpreter at full
//! size, the compiler tells the rest.

use super::choices::Choices;
use super::compiler::{Compiler, Stages};
use super::driver::{DeviceInfo, Measured};
use super::kernel::{Call, Given};
use super::measure::op_measure;
use super::occupancy::Architecture;
use super::planning::lowered_at;
use super::sass;
use super::vm::VmDriver;
use crate::backend::{OpKernel, OpMeasure};
use crate::error::{Error, Result};
use crate::plan::{LaunchWork, Machine, Plan, Slot, Space, Step};
use rayon::prelude::*;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

/// Blocks of a launch that run; of those whose blocks are all resident at once, and share the work alike, one.
const SAMPLED: u64 = 3;

/// An op of a plan.
#[derive(Clone, Debug)]
pub struct ModelledOp {
    /// Nothing of it is timed.
    pub op: OpMeasure,
    pub launches: Vec<ModelledLaunch>,
}

/// A launch of an op.
#[derive(Clone, Debug)]
pub struct ModelledLaunch {
    pub kernel: OpKernel,
    pub work: LaunchWork,
}

/// Machine code of a file of kernels.
#[derive(Clone, Debug)]
pub struct Image {
    /// File in `kernels/`.
    pub file: &'static str,
    /// Constants that it was compiled with.
    pub given: Given,
    pub bf16: bool,
    pub cubin: Vec<u8>,
}

/// A plan's ops, and the machine code of their kernels, each text once.
#[derive(Clone, Debug)]
pub struct Modelled {
    pub ops: Vec<ModelledOp>,
    pub images: Vec<Image>,
}

/// What a launch depends on, its addresses being the same for equal steps.
type Key = (super::kernel::Variant, &'static str, [u32; 3], u32, Vec<u8>);

/// All ops of `plan` on `machine`, whose kernels `compiler` makes.
///
/// # Errors
/// Those of lowering and of the compiler; a kernel that fails on zeros.
pub fn modelled(plan: &Plan, machine: &Machine, compiler: &Compiler) -> Result<Modelled> {
    let limits = super::occupancy::architecture(machine.capability).ok_or_else(|| {
        Error::invariant("modelling a step", format!("{} has no known limits", machine.name))
    })?;
    let device = DeviceInfo {
        name: machine.name.to_owned(),
        capability: machine.capability,
        multiprocessors: machine.multiprocessors,
    };
    let choices = Choices::new(&device);
    let steps: Vec<(Places, Vec<Call>)> =
        plan.steps.iter().map(|step| placed(step, &choices)).collect::<Result<_>>()?;
    let mut firsts: HashMap<Vec<Key>, usize> = HashMap::new();
    let mut variants: BTreeMap<String, &Call> = BTreeMap::new();
    for (i, (_, calls)) in steps.iter().enumerate() {
        if let Entry::Vacant(new) = firsts.entry(calls.iter().map(key).collect()) {
            new.insert(i);
            variants.extend(calls.iter().map(|call| (call.source(compiler.sources()), call)));
        }
    }
    let texts: Vec<(String, &Call)> = variants.into_iter().collect();
    let compiled = |(source, call): &(String, &Call)| {
        compiler.stages(call.family.file(), source).map(|stages| (source.clone(), stages))
    };
    let stages: HashMap<String, Stages> = texts.par_iter().map(compiled).collect::<Result<_>>()?;
    let mut unique: Vec<usize> = firsts.values().copied().collect();
    unique.sort_unstable();
    let sample = |i: &usize| {
        let (places, calls) = &steps[*i];
        let sampler = Sampler { machine, limits, compiler, stages: &stages, device: &device };
        sampler.step(&plan.steps[*i], places, calls).map(|launches| (*i, launches))
    };
    let sampled: HashMap<usize, Vec<ModelledLaunch>> =
        unique.par_iter().map(sample).collect::<Result<_>>()?;
    let op = |(step, (_, calls)): (&Step, &(Places, Vec<Call>))| {
        let first = firsts[&calls.iter().map(key).collect::<Vec<_>>()];
        ModelledOp {
            op: op_measure(step, calls.len(), Measured::default()),
            launches: sampled[&first].clone(),
        }
    };
    let image = |(source, call): &(String, &Call)| Image {
        file: call.family.file(),
        given: call.given.clone(),
        bf16: call.bf16,
        cubin: stages[source].cubin.clone(),
    };
    Ok(Modelled {
        ops: plan.steps.iter().zip(&steps).map(op).collect(),
        images: texts.iter().map(image).collect(),
    })
}

fn key(call: &Call) -> Key {
    (call.variant(), call.kernel, call.grid, call.shared, call.params.clone())
}

/// Where a step's operands lie: one after the other, the same for equal steps.
struct Places {
    bytes: u64,
}

/// First address that the interpreter hands out.
const BASE: u64 = 0x10_0000_0000;

fn placed(step: &Step, choices: &Choices) -> Result<(Places, Vec<Call>)> {
    let mut end = BASE;
    let mut place = |slot: &Slot| {
        let at = end;
        if slot.space == Space::Unused {
            return 0;
        }
        end += ((slot.shape.count() * slot.dtype.bytes()) as u64).next_multiple_of(256);
        at
    };
    let places =
        [step.inputs.iter().map(&mut place).collect(), step.outputs.iter().map(&mut place).collect()];
    let calls = lowered_at(step, &places, end, choices)?;
    Ok((Places { bytes: end - BASE + step.workspace.1 as u64 }, calls))
}

struct Sampler<'a> {
    machine: &'a Machine,
    limits: &'a Architecture,
    compiler: &'a Compiler,
    stages: &'a HashMap<String, Stages>,
    device: &'a DeviceInfo,
}

impl Sampler<'_> {
    fn step(&self, step: &Step, places: &Places, calls: &[Call]) -> Result<Vec<ModelledLaunch>> {
        let mut driver = VmDriver::sampling(self.device.clone(), self.machine.latencies());
        driver.pretend(BASE, places.bytes)?;
        let mut launches = Vec::with_capacity(calls.len());
        for call in calls {
            launches.push(self.launch(&mut driver, call)?);
        }
        let moved: f64 = launches.iter().map(|l| l.work.blocks * l.work.bytes).sum();
        // Every operand crosses the device memory once, what is left for the next launch of the op twice.
        let least = op_measure(step, calls.len(), Measured::default()).least_bytes;
        let memory = least as f64 + 2.0 * step.workspace.1 as f64;
        for l in &mut launches {
            l.work.memory = memory.min(moved) * l.work.blocks * l.work.bytes / moved.max(1.0);
        }
        Ok(launches)
    }

    fn launch(&self, driver: &mut VmDriver, call: &Call) -> Result<ModelledLaunch> {
        let source = call.source(self.compiler.sources());
        let lost = || Error::device("cuda", format!("{}: the compiler does not tell of it", call.kernel));
        let stages = self.stages.get(&source).ok_or_else(lost)?;
        let facts = stages.kernels.iter().find(|k| k.name == call.kernel).ok_or_else(lost)?;
        let threads = call.block.iter().product();
        let shared = call.shared + facts.shared;
        let resident = self.limits.resident_blocks(threads, facts.registers, shared);
        let kernel = OpKernel {
            name: call.kernel,
            registers: facts.registers,
            spills: facts.spills,
            shared,
            threads,
            blocks: call.grid.iter().map(|g| u64::from(*g)).product(),
            resident_blocks: resident,
            occupancy: Some(self.limits.occupancy(threads, resident)),
        };
        let at_once = u64::from(self.machine.multiprocessors) * u64::from(resident);
        let sampled = if kernel.blocks <= at_once { 1 } else { SAMPLED };
        let report = driver.sample(&stages.ptx, call, sampled)?;
        let c = &report.counts;
        let each = |n: u64| n as f64 / report.ran.max(1) as f64;
        let text = sass::instructions(&stages.cubin, call.kernel).ok_or_else(lost)?;
        let ratio = text as f64 / report.text.max(1) as f64;
        let work = LaunchWork {
            blocks: kernel.blocks as f64,
            resident,
            issued: each(c.issued) * ratio,
            integer: each(c.class(ptx_vm::Class::Integer)),
            special: each(c.class(ptx_vm::Class::Special)),
            shared: each(c.shared_wavefronts),
            sync_flops: each(c.mma_flops - c.warpgroup_flops),
            warpgroup_flops: each(c.warpgroup_flops),
            bytes: 32.0 * each(c.global_sectors.saturating_sub(c.near_sectors)),
            cycles: each(c.cycles),
            memory: 0.0,
        };
        Ok(ModelledLaunch { kernel, work })
    }
}
