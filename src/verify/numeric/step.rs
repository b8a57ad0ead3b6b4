//! The whole step: the gradient of the total loss with respect to every parameter.

use super::compare::{Backends, Check, Subject, bound, compare, norm, normal, numbers};
use crate::backend::{Backend, HostSlice, HostSliceMut, ProgramId};
use crate::data::batch::Batch;
use crate::data::views::random_batch;
use crate::error::{Error, Result};
use crate::ir::{self, Region};
use crate::objectives::saip::config::StepConfig;
use crate::objectives::saip::{IoSlot, StepGraph, StepOptions, StepPoint, build_step, scalar_block};
use crate::plan::{eliminate_dead, plan};
use crate::train::engine::{Engine, EngineOptions, hidden_positions, view, write_checked};
use std::collections::HashMap;

/// How far parameters are moved away from their initial values, among which there are zeros and ones.
const SPREAD: f64 = 0.05;

/// Every parameter's gradient along two directions.
///
/// # Errors
/// Those of building the step and of the devices.
pub fn check(cfg: &StepConfig, backends: Backends<'_>) -> Result<Vec<Check>> {
    let batch = random_batch(&cfg.geometry(), cfg.batch, 0);
    let options = EngineOptions { micro_steps: 1, drop_path: 0.0, recompute: false, seed: 0 };
    let mut engine = Engine::new((backends.device)()?, std::slice::from_ref(cfg), options)?;
    engine.initialise()?;
    let state = moved(&mut engine)?;
    let loss = engine.micro_step(0, &batch, &StepPoint::constant(cfg, 1))?.total;
    let gradients = engine.read_region(Region::Grads)?;
    let all = norm(&gradients.iter().map(|g| norm(&g.2)).collect::<Vec<_>>());

    let options = |dtype| StepOptions { dtype, ..StepOptions::default() };
    let bound = bound(&build_step(cfg, &options(engine.backend().dtype()))?.graph, engine.backend().dtype());
    let mut forward = Forward::new(cfg, &batch, &state, backends)?;
    let exact = forward.loss()?;
    let mut checks = vec![Check {
        of: "step".into(),
        with_respect_to: "(the loss itself)".into(),
        gradient: loss,
        difference: exact,
        error: (loss - exact).abs() / exact.abs().max(f64::MIN_POSITIVE),
        bound,
    }];
    for (name, _, gradient) in &gradients {
        let subject = Subject { of: "step", with_respect_to: name, all, bound };
        let at = state.get(&format!("student.{name}")).cloned().unwrap_or_default();
        let at: Vec<f64> = at.into_iter().map(f64::from).collect();
        let offset = forward.offset(name)?;
        checks.extend(compare(&subject, &at, gradient, |x| {
            forward.write(offset, x)?;
            forward.loss()
        })?);
        forward.write(offset, &at)?;
    }
    Ok(checks)
}

/// Moves student, expert and center away from where they start; gives all of the state by name.
fn moved(engine: &mut Engine) -> Result<HashMap<String, Vec<f32>>> {
    let state = engine.state()?;
    let mut values: HashMap<String, Vec<f32>> = HashMap::new();
    for (name, _, at) in state.iter() {
        let moves = !name.starts_with("moment") && !name.contains(".running_");
        let noise = normal(&mut numbers(name), at.len());
        let shift = |(x, n): (&f32, f64)| if moves { x + (SPREAD * n) as f32 } else { *x };
        values.insert(name.to_owned(), at.iter().zip(noise).map(shift).collect());
    }
    engine.load(|name, out| {
        let from = values.get(name).filter(|v| v.len() == out.len());
        out.copy_from_slice(from.ok_or_else(|| Error::invariant("the state", format!("`{name}` is lost")))?);
        Ok(())
    })?;
    Ok(values)
}

/// The forward pass alone, in f64.
struct Forward {
    backend: Box<dyn Backend>,
    program: ProgramId,
    total: IoSlot,
    built: StepGraph,
}

impl Forward {
    fn new(
        cfg: &StepConfig,
        batch: &Batch,
        state: &HashMap<String, Vec<f32>>,
        backends: Backends<'_>,
    ) -> Result<Self> {
        let mut backend = (backends.reference)()?;
        let mut built = build_step(cfg, &StepOptions { dtype: backend.dtype(), ..StepOptions::default() })?;
        let lost = || Error::invariant("the step", "it has no total loss");
        let total = built.output("total").cloned().ok_or_else(lost)?;
        // What nothing reads is no longer computed.
        for value in built.graph.values.iter_mut().filter(|v| v.producer.is_some()) {
            value.binding = value.binding.filter(|b| *b == total.binding());
        }
        eliminate_dead(&mut built.graph);
        ir::verify(&built.graph, "cutting out the forward pass")?;
        let program = backend.compile(plan(&built.graph, &*backend)?)?;
        let mut forward = Forward { backend, program, total, built };
        forward.fill(cfg, batch, state)?;
        Ok(forward)
    }

    fn fill(&mut self, cfg: &StepConfig, batch: &Batch, state: &HashMap<String, Vec<f32>>) -> Result<()> {
        let backend = &mut *self.backend;
        for slot in &self.built.inputs {
            match slot.name.as_str() {
                "scalars" => {
                    let block = scalar_block(cfg, &StepPoint::constant(cfg, 1));
                    write_checked(backend, slot, HostSlice::F64(&block))?;
                }
                "hidden" => write_checked(backend, slot, HostSlice::I32(&hidden_positions(batch)))?,
                name => write_checked(backend, slot, view(batch, name)?)?,
            }
        }
        let lost = |name: &str| Error::invariant("the state", format!("`{name}` is lost"));
        let b = &self.built;
        for (registry, region, prefix) in [
            (&b.student, Region::Params, "student."),
            (&b.expert, Region::Expert, "expert."),
            (&b.student_buffers, Region::Buffers, "student."),
            (&b.expert_buffers, Region::ExpertBuffers, "expert."),
        ] {
            for p in registry {
                let name = format!("{prefix}{}", p.name);
                let values = state.get(&name).ok_or_else(|| lost(&name))?;
                backend.write(region, p.offset, HostSlice::F32(values))?;
            }
        }
        for slot in &b.state {
            let name = format!("state.{}", slot.name);
            let values = state.get(&name).ok_or_else(|| lost(&name))?;
            write_checked(backend, slot, HostSlice::F32(values))?;
        }
        Ok(())
    }

    /// Where a parameter lies.
    fn offset(&self, name: &str) -> Result<usize> {
        let found = self.built.student.get(name).map(|p| p.offset);
        found.ok_or_else(|| Error::invariant("the step", format!("it has no parameter `{name}`")))
    }

    fn write(&mut self, offset: usize, values: &[f64]) -> Result<()> {
        self.backend.write(Region::Params, offset, HostSlice::F64(values))
    }

    fn loss(&mut self) -> Result<f64> {
        self.backend.run(self.program)?;
        let mut loss = [0.0];
        self.backend.read(self.total.region, self.total.offset, HostSliceMut::F64(&mut loss))?;
        Ok(loss[0])
    }
}
