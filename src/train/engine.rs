//! The step on a backend: compiled once per shape bucket, fed with batches, its state read and written.

mod feed;
mod held;
mod memory;
mod options;
mod ranks;
mod results;
mod state;

pub use self::feed::write_checked;
use self::feed::{check_length, drop_path_factors, read_values};
use self::memory::with_remedy;
pub use self::options::EngineOptions;
use self::options::step_options;
use self::ranks::{Kept, Own, Shared, kept};
pub use self::ranks::{Ranks, Round, Summing};
pub use self::results::{Health, Losses};
use self::state::overlaid;
pub use self::state::{EngineState, Initial, NamedTensor};
use crate::backend::{Backend, HostSlice, HostSliceMut, OpKernel, OpMeasure, ProgramId};
use crate::data::batch::Batch;
use crate::error::{Error, Result};
use crate::ir::Region;
use crate::nn::{ParamRegistry, copy_shared, initialise};
use crate::objectives::Objective;
use crate::plan::{self, Plan};
use crate::step::{
    DROP_PATH, HEALTH, IoSlot, OWN_SCALARS, ROWS, Registries, SCALARS, STATISTICS, Step, StepPoint, TOTAL,
};
use std::sync::Arc;
use std::time::Instant;

struct Bucket {
    program: ProgramId,
    inputs: Vec<IoSlot>,
    outputs: Vec<IoSlot>,
    losses: Vec<String>,
    /// The block of each row of the input `drop_path`.
    branch_blocks: Vec<usize>,
    /// Which part of the running statistics it leaves in place; only where ranks share them.
    kept: Kept,
}

/// The training step of one run on one backend.
pub struct Engine {
    backend: Box<dyn Backend>,
    objective: Arc<dyn Objective>,
    options: EngineOptions,
    buckets: Vec<Bucket>,
    /// Gradient health and optimizer, when they are not part of the micro step.
    update: Option<(ProgramId, Vec<IoSlot>)>,
    registries: Registries,
    /// Parameters that begin late.
    late: Vec<String>,
    /// State that outlives a step and belongs into checkpoints.
    state: Vec<IoSlot>,
    plans: Vec<Plan>,
    /// Bytes of device memory that were free before anything was compiled.
    room: Option<u64>,
    /// Where it is one of several.
    shared: Option<Shared>,
}

impl Engine {
    /// Compiles the step of each of the objective's buckets. Parameters are zero until
    /// [`Engine::initialise`] or [`Engine::load`].
    ///
    /// # Errors
    /// Those of building, planning and compiling.
    pub fn new(
        backend: Box<dyn Backend>,
        objective: Arc<dyn Objective>,
        options: EngineOptions,
    ) -> Result<Self> {
        Self::among(backend, objective, options, None)
    }

    /// [`Engine::new`] for one of several ranks, which take micro steps in turn.
    ///
    /// # Errors
    /// Those of [`Engine::new`]; those of the link between the ranks.
    pub fn among(
        mut backend: Box<dyn Backend>,
        objective: Arc<dyn Objective>,
        options: EngineOptions,
        ranks: Option<(Ranks, Summing)>,
    ) -> Result<Self> {
        let opts = step_options(&options, &*backend, ranks.as_ref().map(|r| r.1.stretch));
        let (mut buckets, mut plans, mut update) = (Vec::new(), Vec::new(), None);
        let (mut layout, mut shared) = (None, None);
        let room = backend.free_memory();
        let afraid = |e, backend: &dyn Backend| with_remedy(e, room, &*objective, &options, backend);
        for bucket in 0..objective.buckets() {
            let built = objective.step(bucket, &opts)?;
            if let (Some((ranks, summing)), None) = (&ranks, &shared) {
                let device = backend.join(&mut **ranks.link(), &built.summed, summing.wire)?;
                shared = Some(Shared::new(ranks.clone(), summing.wire, device, built.summed.clone()));
            }
            let planned = plan::compile(built.graph, options.recompute, &*backend)?;
            plans.push(planned.clone());
            let r = &built.registries;
            let kept = match shared {
                Some(_) => kept(&planned, [r.student_buffers.len(), r.expert_buffers.len()]),
                None => Kept::default(),
            };
            let program = backend.compile(planned).map_err(|e| afraid(e, &*backend))?;
            if let (Some(graph), None) = (built.update, &update) {
                let planned = plan::compile(graph, false, &*backend)?;
                let program = backend.compile(planned).map_err(|e| afraid(e, &*backend))?;
                update = Some((program, built.outputs.clone()));
            }
            let Step { inputs, outputs, losses, branch_blocks, registries, late, mut state, .. } = built;
            // What micro steps average is used up by the update behind them.
            state.retain(|slot| !slot.name.ends_with(ROWS));
            buckets.push(Bucket { program, inputs, outputs, losses, branch_blocks, kept });
            layout = Some((registries, late, state));
        }
        let (registries, late, state) =
            layout.ok_or_else(|| Error::usage("a run needs at least one view geometry"))?;
        Ok(Engine {
            backend,
            objective,
            options,
            buckets,
            update,
            registries,
            late,
            state,
            plans,
            room,
            shared,
        })
    }

    pub fn backend(&mut self) -> &mut dyn Backend {
        &mut *self.backend
    }
    pub fn student(&self) -> &ParamRegistry {
        &self.registries.student
    }
    pub fn expert(&self) -> &ParamRegistry {
        &self.registries.expert
    }
    /// What is learned.
    pub fn objective(&self) -> &Arc<dyn Objective> {
        &self.objective
    }
    /// The plan of each bucket.
    pub fn plans(&self) -> &[Plan] {
        &self.plans
    }

    /// Draws initial parameters; the expert starts as a copy of the student, moments and center at 0, running statistics
    /// as those of a standard normal distribution.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn initialise(&mut self) -> Result<()> {
        self.initialise_from(&Initial::default())
    }

    /// The same with the values that `initial` has.
    ///
    /// # Errors
    /// [`Error::Invariant`] when one has another length; those of the backend.
    pub fn initialise_from(&mut self, initial: &Initial) -> Result<()> {
        for (own, others) in [(Region::Params, Region::Expert), (Region::Buffers, Region::ExpertBuffers)] {
            let (student, expert) = (self.registry(own), self.registry(others));
            let seed = self.options.seed;
            let values = overlaid(student, initialise(student, seed)?, &initial.student)?;
            let mut copied = initialise(expert, seed)?;
            copy_shared((student, &values), (expert, &mut copied), |_| true)?;
            let copied = overlaid(expert, copied, &initial.expert)?;
            for (region, values) in [(own, values), (others, copied)] {
                if self.has(region) {
                    self.write_state((region, 0), HostSlice::F32(&values))?;
                }
            }
        }
        let zero = vec![0.0; self.student().len()];
        self.backend.write(Region::Moment1, 0, HostSlice::F32(&zero))?;
        self.backend.write(Region::Moment2, 0, HostSlice::F32(&zero))?;
        for slot in &self.state {
            self.backend.write(slot.region, slot.offset, HostSlice::F32(&vec![0.0; slot.shape.count()]))?;
        }
        Ok(())
    }

    /// Runs one micro step (a whole step without accumulation) of bucket `bucket` on `batch`.
    ///
    /// # Errors
    /// When the batch does not have the bucket's sizes, or the backend fails.
    pub fn micro_step(&mut self, bucket: usize, batch: &Batch, point: &StepPoint) -> Result<Losses> {
        self.feed(bucket, batch, point)?;
        self.backend.run(self.buckets[bucket].program)?;
        self.losses(bucket)
    }

    /// Hands the inputs of the next micro step of bucket `bucket` to the device, which may still be busy with the one before.
    ///
    /// # Errors
    /// When the batch does not have the bucket's sizes, or the backend fails.
    pub fn feed(&mut self, bucket: usize, batch: &Batch, point: &StepPoint) -> Result<()> {
        self.feed_point(bucket, point)?;
        self.stage(bucket, batch)
            .map_err(|e| with_remedy(e, self.room, &*self.objective, &self.options, &*self.backend))
    }

    fn stage(&mut self, bucket: usize, batch: &Batch) -> Result<()> {
        let b = &self.buckets[bucket];
        for slot in &b.inputs {
            let mut stage = |data: HostSlice<'_>| {
                check_length(slot, &data)?;
                self.backend.stage(b.program, slot.region, slot.offset, data)
            };
            match slot.name.as_str() {
                SCALARS | OWN_SCALARS | DROP_PATH => {}
                name => stage(batch.tensor(name)?.1.host())?,
            }
        }
        Ok(())
    }

    /// The same with the images of the micro step before: only what changes with the step.
    ///
    /// # Errors
    /// Those of [`Engine::feed`].
    pub fn feed_point(&mut self, bucket: usize, point: &StepPoint) -> Result<()> {
        let place = self.place();
        let b = self
            .buckets
            .get(bucket)
            .ok_or_else(|| Error::usage(format!("there is no view geometry {bucket}")))?;
        for slot in &b.inputs {
            let mut stage = |data: HostSlice<'_>| {
                check_length(slot, &data)?;
                self.backend.stage(b.program, slot.region, slot.offset, data)
            };
            match slot.name.as_str() {
                SCALARS => stage(HostSlice::F64(&point.block()))?,
                OWN_SCALARS => stage(HostSlice::F64(&point.own))?,
                DROP_PATH => {
                    let images = slot.shape.as_matrix().1;
                    let factors = drop_path_factors(&self.options, point, place, &b.branch_blocks, images);
                    stage(HostSlice::F32(&factors))?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// This rank among how many.
    fn place(&self) -> (usize, usize) {
        self.shared.as_ref().map_or((0, 1), |s| (s.ranks.rank(), s.ranks.world()))
    }

    /// Starts the micro step that bucket `bucket` was fed for; [`Engine::losses`] waits for it. Behind the `last` one of an
    /// update the ranks sum their gradients.
    ///
    /// # Errors
    /// Those of the backend; those of the link between the ranks.
    pub fn start(&mut self, bucket: usize, last: bool) -> Result<()> {
        let Bucket { program, kept, .. } = &self.buckets[bucket];
        let Some(shared) = &mut self.shared else { return self.backend.run(*program) };
        shared.before(&*self.backend, kept)?;
        match (last, shared.device) {
            (false, _) => self.backend.run(*program),
            (true, true) => self.backend.run_reduced(*program),
            (true, false) => {
                self.backend.run(*program)?;
                shared.sum(&mut *self.backend)
            }
        }
    }

    /// What the micro step that was started last, in bucket `bucket`, has to say on every rank. A signal asks all to `stop`;
    /// `began` is when this rank's work did.
    ///
    /// # Errors
    /// Those of the backend; those of the link between the ranks.
    pub fn all_losses(&mut self, bucket: usize, stop: bool, began: Instant) -> Result<Round> {
        let losses = self.losses(bucket)?;
        let kept = &self.buckets[bucket].kept;
        match &mut self.shared {
            Some(shared) => shared.gather(&mut *self.backend, kept, &Own { losses: &losses, stop, began }),
            None => Ok(Round { losses: vec![losses], stop, busy: Vec::new(), exposed: 0.0 }),
        }
    }

    /// Starts the optimizer's part of a step with accumulation; without, it is part of the micro step.
    /// [`Engine::health`] waits for it.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn start_update(&mut self) -> Result<()> {
        match &self.update {
            Some((program, _)) => self.backend.run(*program),
            None => Ok(()),
        }
    }

    /// Gives state that depends on the first batch its first value, as [`Objective::setup`] says; everything else stays as
    /// it is.
    ///
    /// # Errors
    /// Those of [`Engine::micro_step`].
    pub fn set_up(&mut self, bucket: usize, batch: &Batch, first: &StepPoint) -> Result<()> {
        let Some((name, alone)) = self.objective.setup(first) else { return Ok(()) };
        let before = self.state()?;
        self.micro_step(bucket, batch, &alone)?;
        self.update(bucket)?;
        let Some(slot) = self.state.iter().find(|s| s.name == name).cloned() else {
            return self.load_state(&before);
        };
        let mut values = vec![0.0; slot.shape.count()];
        self.backend.read(slot.region, slot.offset, HostSliceMut::F32(&mut values))?;
        self.load_state(&before)?;
        self.backend.write(slot.region, slot.offset, HostSlice::F32(&values))?;
        self.share_state()
    }

    /// The optimizer's part of a step with accumulation; without, only reads what the step left.
    pub fn update(&mut self, bucket: usize) -> Result<Health> {
        self.start_update()?;
        self.health(bucket)
    }

    /// What the last update found, in the last of whose micro steps bucket `bucket` ran.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn health(&self, bucket: usize) -> Result<Health> {
        let outputs = match &self.update {
            Some((_, outputs)) => outputs,
            None => &self.buckets[bucket].outputs,
        };
        let health = read_values(&*self.backend, outputs, HEALTH)?;
        let [grad_norm, clip_factor, finite] = health
            .and_then(|values| values.try_into().ok())
            .ok_or_else(|| Error::invariant("the step", "it reports no health"))?;
        Ok(Health { grad_norm, clip_factor, finite: finite == 1.0 })
    }

    /// The losses of the micro step that was started last, in bucket `bucket`.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn losses(&self, bucket: usize) -> Result<Losses> {
        let Bucket { outputs, losses, .. } = &self.buckets[bucket];
        let values = |name: &str| read_values(&*self.backend, outputs, name);
        let scalar = |name: &str| Ok::<_, Error>(values(name)?.and_then(|v| v.first().copied()));
        let mut parts = Vec::with_capacity(losses.len());
        for name in losses {
            parts.extend(scalar(name)?.map(|x| (name.clone(), x)));
        }
        let statistics = values(STATISTICS)?.unwrap_or_default();
        Ok(Losses { total: scalar(TOTAL)?.unwrap_or(0.0), parts, statistics })
    }

    /// Measures every op of bucket `bucket` after a step on `batch`. The state is spoilt afterwards.
    ///
    /// # Errors
    /// Those of [`Engine::micro_step`] and of [`Backend::measure`].
    pub fn measure(
        &mut self,
        bucket: usize,
        batch: &Batch,
        point: &StepPoint,
        repeats: usize,
    ) -> Result<Vec<OpMeasure>> {
        self.micro_step(bucket, batch, point)?;
        self.backend.measure(self.buckets[bucket].program, repeats)
    }

    /// The kernels of every op of bucket `bucket`, in the order of [`Engine::measure`].
    ///
    /// # Errors
    /// Those of [`Backend::kernels`].
    pub fn kernels(&mut self, bucket: usize) -> Result<Vec<Vec<OpKernel>>> {
        self.backend.kernels(self.buckets[bucket].program)
    }

    /// Bytes of the device's memory that the planned steps need together.
    pub fn planned_bytes(&self) -> u64 {
        self.backend.footprint(&self.plans)
    }

    /// The largest plan: its arena is the run's.
    pub fn largest_plan(&self) -> Option<&Plan> {
        self.plans.iter().max_by_key(|p| p.arena_bytes)
    }
}

#[cfg(test)]
mod tests;
