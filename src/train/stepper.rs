//! From batches to updates: what every rank of a run does. What becomes of an update is the caller's matter.

use super::config::TrainConfig;
use super::engine::{Engine, Health, Losses, Ranks};
use crate::data::loader::Loader;
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::objectives::Objective;
use crate::step::StepPoint;
use crate::step::schedule::Schedule;
use std::sync::Arc;
use std::time::Instant;

/// The signal as which it counts that another rank was asked to stop.
const SIGTERM: i32 = 15;

/// One update, on all ranks together.
pub struct Updated {
    /// Mean over its micro steps.
    pub losses: Losses,
    pub health: Health,
    pub point: StepPoint,
    /// Of its images; only this rank's, unless the update was skipped.
    pub names: Vec<String>,
    pub images: usize,
    pub seconds: f64,
    /// Whether a rank was asked to stop.
    pub stop: bool,
    /// Seconds until each rank had computed its part; empty where there is one.
    pub busy: Vec<f64>,
    /// Seconds of sums over ranks that nothing hid.
    pub exposed: f64,
}

/// A micro step that the engine was fed for.
struct Fed {
    bucket: usize,
    names: Vec<String>,
}

/// An engine and the batches that it is fed with.
pub struct Stepper {
    pub engine: Engine,
    pub loader: Loader,
    objective: Arc<dyn Objective>,
    pub schedule: Schedule,
    ranks: Option<Ranks>,
    /// Of an update: on all ranks together, and on this one.
    micro_steps: u64,
    own_micro_steps: u64,
    /// Updates between two checks that the ranks' states are equal.
    check_every: u64,
    /// Updates between two probes, which write the engine's inputs, and between two checkpoints, each 0 for never: rank 0 makes
    /// them while the others wait.
    probe_every: u64,
    checkpoint_every: u64,
    /// Completed updates.
    pub step: u64,
    /// The state belongs to no step while an update is under way.
    pub in_update: bool,
    /// Training time of this process, and images of all.
    pub seconds: f64,
    pub images: u64,
    /// The next micro step, whose inputs are on their way, or why they are not.
    ahead: Option<Result<Fed>>,
}

impl Stepper {
    /// Behind `start` completed updates; `engine` has the state that they left, `loader` begins with the batch behind them.
    ///
    /// # Errors
    /// When the ranks cannot share an update alike.
    pub fn new(
        cfg: &TrainConfig,
        (engine, loader): (Engine, Loader),
        (objective, schedule): (Arc<dyn Objective>, Schedule),
        ranks: Option<Ranks>,
        start: u64,
    ) -> Result<Self> {
        let world = ranks.as_ref().map_or(1, Ranks::world);
        Ok(Stepper {
            engine,
            loader,
            objective,
            schedule,
            ranks,
            micro_steps: cfg.optim.accumulation(1)? as u64,
            own_micro_steps: cfg.optim.accumulation(world)? as u64,
            check_every: cfg.dist.check_every,
            probe_every: cfg.run.probe_every,
            checkpoint_every: cfg.run.checkpoint_every,
            step: start,
            in_update: false,
            seconds: 0.0,
            images: 0,
            ahead: None,
        })
    }

    /// Micro steps up to now, on all ranks together.
    pub fn micro_steps_done(&self) -> u64 {
        self.step * self.micro_steps
    }

    /// Waits for images that no earlier step had brought: that is no part of the step.
    ///
    /// # Errors
    /// Those of the link between the ranks.
    pub fn prepare(&mut self) -> Result<()> {
        if self.ahead.is_none() {
            self.ahead = Some(self.feed(self.step * self.own_micro_steps));
        }
        // Sums have a deadline that knows nothing of what a rank is busy with: who may have been kept waiting meets here.
        let due = |every: u64| every > 0 && self.step.is_multiple_of(every);
        let aside = due(self.probe_every) || due(self.checkpoint_every);
        match &self.ranks {
            Some(ranks) if aside => ranks.all_gather(&[]).map(|_| ()),
            _ => Ok(()),
        }
    }

    /// Makes the next update; a signal asks all ranks to stop behind it.
    ///
    /// # Errors
    /// Those of the images, the device, and the link between the ranks; ranks whose states differ.
    pub fn update(&mut self, interrupt: &Interrupt) -> Result<Updated> {
        let began = Instant::now();
        let (mut losses, mut count, mut names) = (Losses::default(), 0, Vec::new());
        let (mut bucket, mut stops) = (0, false);
        let (mut busy, mut exposed) = (Vec::new(), 0.0);
        for micro in 0..self.own_micro_steps {
            let index = self.step * self.own_micro_steps + micro;
            let last = micro + 1 == self.own_micro_steps;
            let fed = match self.ahead.take() {
                Some(fed) => fed?,
                None => self.feed(index)?,
            };
            bucket = fed.bucket;
            self.in_update = last;
            self.engine.start(bucket, last)?;
            if last {
                self.engine.start_update()?;
            }
            // The device is busy now: time to bring it the next images. What goes wrong here belongs to the next step.
            if self.looks_beyond(index) {
                self.ahead = Some(self.feed(index + 1));
            }
            let round = self.engine.all_losses(bucket, interrupt.requested(), began)?;
            stops |= round.stop;
            for one in &round.losses {
                losses = losses.with(one, count);
                count += 1;
            }
            (busy, exposed) = (round.busy, exposed + round.exposed);
            names.extend(fed.names);
        }
        if stops && !interrupt.requested() {
            // Asked of another rank, it counts here as well.
            interrupt.request(SIGTERM);
        }
        let health = self.engine.health(bucket)?;
        let images = names.len() * self.ranks.as_ref().map_or(1, Ranks::world);
        let seconds = began.elapsed().as_secs_f64();
        self.seconds += seconds;
        self.images += images as u64;
        let point = self.objective.scheduled(&self.schedule, self.step);
        self.step += 1;
        self.in_update = false;
        if !health.finite {
            names = self.all_names(names)?;
        }
        if self.check_every > 0 && self.step.is_multiple_of(self.check_every) {
            self.compare()?;
        }
        Ok(Updated { losses, health, point, names, images, seconds, stop: stops, busy, exposed })
    }

    /// The names of all ranks' images, which all ranks ask for together.
    fn all_names(&self, own: Vec<String>) -> Result<Vec<String>> {
        let Some(ranks) = &self.ranks else { return Ok(own) };
        let joined = own.join("\n");
        let all = ranks.all_gather(joined.as_bytes())?;
        let lines =
            |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).lines().map(str::to_owned).collect::<Vec<_>>();
        Ok(all.iter().flat_map(lines).collect())
    }

    /// Compares the states of all ranks, which equal inputs keep equal.
    ///
    /// # Errors
    /// [`Error::Distributed`] that names those that differ from rank 0.
    pub fn compare(&self) -> Result<()> {
        let Some(ranks) = self.ranks.as_ref().filter(|r| r.world() > 1) else { return Ok(()) };
        let all = ranks.all_gather(&self.engine.checksum()?.to_le_bytes())?;
        let differ: Vec<String> =
            (1..all.len()).filter(|&r| all[r] != all[0]).map(|r| r.to_string()).collect();
        if differ.is_empty() {
            return Ok(());
        }
        Err(Error::distributed(
            format!("rank {}", differ.join(", ")),
            format!(
                "parameters, moments or expert are not those of rank 0 after step {}: a device, its memory or the link \
                 between the ranks made a mistake. Go on from the last checkpoint with --resume; `saip-engine dist check` \
                 tries device and link",
                self.step
            ),
        ))
    }

    /// Whether the engine may be fed for the micro step behind `index`: it must be part of the run, and nothing else may
    /// write the engine's inputs before it.
    fn looks_beyond(&self, index: u64) -> bool {
        let next = (index + 1) / self.own_micro_steps;
        let probed = self.probe_every > 0 && next > self.step && next.is_multiple_of(self.probe_every);
        next < self.schedule.steps && !probed
    }

    /// Feeds the engine for micro step `index` of this rank.
    fn feed(&mut self, index: u64) -> Result<Fed> {
        let batch = self.loader.next()?;
        let (bucket, point) = (batch.bucket, self.point(index));
        if index == 0 {
            self.engine.set_up(bucket, &batch, &point)?;
        }
        self.engine.feed(bucket, &batch, &point)?;
        let names = batch.names.clone();
        self.loader.recycle(batch);
        Ok(Fed { bucket, names })
    }

    fn point(&self, index: u64) -> StepPoint {
        let (step, micro) = (index / self.own_micro_steps, index % self.own_micro_steps);
        StepPoint {
            micro_step: micro as usize,
            micro_steps: self.micro_steps as usize,
            ..self.objective.scheduled(&self.schedule, step)
        }
    }
}
