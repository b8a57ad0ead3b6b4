//! The whole step: the gradient of the total loss with respect to every parameter.

use super::compare::{Backends, Check, Subject, bound, compare, norm, normal, numbers};
use crate::backend::{Backend, HostSlice, HostSliceMut, ProgramId};
use crate::data::batch::Batch;
use crate::error::{Error, Result};
use crate::ir::{self, Region};
use crate::objectives::Objective;
use crate::plan::{eliminate_dead, plan};
use crate::step::{IoSlot, OWN_SCALARS, SCALARS, Step, StepOptions, StepPoint, TOTAL};
use crate::train::engine::{Engine, EngineOptions, write_checked};
use std::collections::HashMap;
use std::sync::Arc;

/// How far parameters are moved away from their initial values, among which there are zeros and ones.
const SPREAD: f64 = 0.05;

/// Every parameter's gradient along two directions.
///
/// # Errors
/// Those of building the step and of the devices.
pub fn check(objective: &Arc<dyn Objective>, backends: Backends<'_>) -> Result<Vec<Check>> {
    let batch = objective.random_batch(0, 0);
    let options = EngineOptions { micro_steps: 1, drop_path: 0.0, recompute: false, seed: 0 };
    let mut engine = Engine::new((backends.device)()?, Arc::clone(objective), options)?;
    engine.initialise()?;
    let state = moved(&mut engine)?;
    // The gradients as they are, not cut to a length.
    let point = StepPoint { tensor_clip_norm: None, ..objective.point(1) };
    let loss = engine.micro_step(0, &batch, &point)?.total;
    let gradients = engine.read_region(Region::Grads)?;
    let all = norm(&gradients.iter().map(|g| norm(&g.2)).collect::<Vec<_>>());

    let options = |dtype| StepOptions { dtype, ..StepOptions::default() };
    let bound =
        bound(&objective.step(0, &options(engine.backend().dtype()))?.graph, engine.backend().dtype());
    let mut forward = Forward::new(objective, &batch, &state, backends)?;
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
    built: Step,
}

impl Forward {
    fn new(
        objective: &Arc<dyn Objective>,
        batch: &Batch,
        state: &HashMap<String, Vec<f32>>,
        backends: Backends<'_>,
    ) -> Result<Self> {
        let mut backend = (backends.reference)()?;
        let mut built =
            objective.step(0, &StepOptions { dtype: backend.dtype(), ..StepOptions::default() })?;
        let lost = || Error::invariant("the step", "it has no total loss");
        let total = built.output(TOTAL).cloned().ok_or_else(lost)?;
        // What nothing reads is no longer computed.
        for value in built.graph.values.iter_mut().filter(|v| v.producer.is_some()) {
            value.binding = value.binding.filter(|b| *b == total.binding());
        }
        eliminate_dead(&mut built.graph);
        ir::verify(&built.graph, "cutting out the forward pass")?;
        let program = backend.compile(plan(&built.graph, &*backend)?)?;
        let mut forward = Forward { backend, program, total, built };
        forward.fill(objective, batch, state)?;
        Ok(forward)
    }

    fn fill(
        &mut self,
        objective: &Arc<dyn Objective>,
        batch: &Batch,
        state: &HashMap<String, Vec<f32>>,
    ) -> Result<()> {
        let backend = &mut *self.backend;
        for slot in &self.built.inputs {
            match slot.name.as_str() {
                SCALARS => write_checked(backend, slot, HostSlice::F64(&objective.point(1).block()))?,
                OWN_SCALARS => write_checked(backend, slot, HostSlice::F64(&objective.point(1).own))?,
                name => write_checked(backend, slot, batch.tensor(name)?.1.host())?,
            }
        }
        let lost = |name: &str| Error::invariant("the state", format!("`{name}` is lost"));
        let (b, r) = (&self.built, &self.built.registries);
        for (registry, region, prefix) in [
            (&r.student, Region::Params, "student."),
            (&r.expert, Region::Expert, "expert."),
            (&r.student_buffers, Region::Buffers, "student."),
            (&r.expert_buffers, Region::ExpertBuffers, "expert."),
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
        let found = self.built.registries.student.get(name).map(|p| p.offset);
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
