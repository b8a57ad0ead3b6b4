//! The training loop.

mod keep;
mod rank;

use super::checkpoint::Checkpoints;
use super::config::{ProbeFeatures, TrainConfig};
use super::engine::{Losses, Ranks};
use super::folder::{Outcome, RunFolder};
use super::guard::{FiniteGuard, Verdict};
use super::image_set::ImageSet;
use super::metrics;
use super::objective::with_expert;
use super::pretrained::Pretrained;
use super::probe::{Probe, ProbeResult};
use super::progress::{Progress, StepReport};
use super::record::{
    EXPOSED, PROBE_MAP, PROBE_OWN_CAMERA, PROBE_RANK1, Recorder, SLOWEST, SPREAD, reference_tag,
};
use super::resume::{self, Resume};
use super::stepper::{Stepper, Updated};
use super::{sources, summary};
use crate::backend::{Backend, Phase};
use crate::data::left_out::Teller;
use crate::data::source::ImageSource;
use crate::error::{Error, Result};
use crate::interrupt::{Answering, Interrupt};
use crate::metrics::reference::Reference;
use crate::objectives::{Monitor, Objective, learns_classes};
use crate::report::Baseline;
use std::path::Path;
use std::sync::Arc;

/// Trains as `cfg` says into the folder `out`; with `resume` goes on from one of its checkpoints. Of several `ranks` each calls
/// this: rank 0 writes the folder, of which the others read the checkpoint that a resumed run goes on from.
///
/// # Errors
/// Everything that can go wrong, each named with its remedy; a rank that died, stands still, has other images, or failed.
/// Checkpoints already written stay intact.
pub fn train(
    cfg: &TrainConfig,
    out: &Path,
    resume: Option<&Resume>,
    backend: Box<dyn Backend>,
    interrupt: &Interrupt,
    ranks: Option<Ranks>,
) -> Result<Outcome> {
    let outcome = match &ranks {
        Some(r) if r.rank() > 0 => rank::train(cfg, out, backend, interrupt, r),
        _ => lead(cfg, out, resume, backend, interrupt, ranks.clone()),
    };
    if let Some(ranks) = &ranks {
        ranks.leave(outcome.as_ref().err().map(ToString::to_string).as_deref());
    }
    outcome
}

fn lead(
    cfg: &TrainConfig,
    out: &Path,
    resume: Option<&Resume>,
    backend: Box<dyn Backend>,
    interrupt: &Interrupt,
    ranks: Option<Ranks>,
) -> Result<Outcome> {
    // Everything that can be refused is refused before the folder is touched.
    let source = sources::training_source(cfg)?;
    let schedule = cfg.schedule(source.len())?;
    let probe_set = sources::probe_set(cfg)?;
    with_expert(cfg, None, &[])?.recipe()?;
    rank::check(cfg, ranks.as_ref())?;
    let images = ImageSet::of(&*source, learns_classes(&cfg.objective));
    rank::same_images(&images, ranks.as_ref())?;
    let fresh = if resume.is_some() { None } else { Some(Pretrained::open(cfg)?) };
    let mut folder = if resume.is_some() { RunFolder::open(out)? } else { RunFolder::create(out, cfg)? };
    let checkpoints = Checkpoints::open(folder.checkpoints(), cfg.run.keep_checkpoints)?;
    let loaded = match resume {
        Some(Resume { step: Some(step), .. }) => Some(checkpoints.at(*step)?),
        Some(_) => checkpoints.latest()?,
        None => None,
    };
    let pretrained = match (fresh, &loaded) {
        (Some(pretrained), _) => pretrained,
        (None, Some(loaded)) => Pretrained::resumed(cfg, loaded.model())?,
        // The run was stopped before its first checkpoint.
        (None, None) => Pretrained::open(cfg)?,
    };
    let objective = with_expert(cfg, pretrained.expert.clone(), &[])?;
    let mut warnings = folder.warnings.clone();
    if let Some(resume) = resume {
        let settings = cfg.check_resumable(&TrainConfig::load(&folder.config())?)?;
        if let Some(loaded) = &loaded {
            warnings.extend(resume::compare(resume, &loaded.state, &images, backend.dtype(), &settings)?);
        }
        folder.write_config(cfg)?;
    }
    rank::begin_behind(loaded.as_ref().map(|l| l.state.step), ranks.as_ref())?;
    let mut engine = rank::engine(cfg, backend, &objective, ranks.as_ref())?;
    let (start, counters) = resume::restore(&mut engine, loaded, &pretrained.initial, &mut warnings)?;
    engine.share_state()?;
    if resume.is_some_and(|r| r.step.is_some()) {
        checkpoints.go_back_to(start)?;
    }
    let resume = resume.is_some();
    let loader = sources::loader(cfg, &source, objective.recipe()?, start, ranks.as_ref())?;
    // Ranks stop together, between two updates.
    let loader = if ranks.is_some() { loader } else { loader.stopped_by(interrupt) };
    let probe = match probe_set {
        Some(set) => Some(Probe::new(&mut engine, cfg, set)?),
        None => None,
    };
    // The device has all its memory: what goes wrong from here on can be resumed.
    folder.begin();
    let recorder = Recorder::open(&folder, resume.then_some(start))?;
    let (probed, baselines) = if resume { earlier_probes(&folder.metrics())? } else { Default::default() };
    let skipped = counters.get("skipped_steps").copied().unwrap_or(0);
    let guard = FiniteGuard::new(folder.skipped_steps(), cfg.run.max_bad_steps, skipped);
    let progress = Progress::new(schedule.steps, start, cfg.run.log_every);
    let parts = (engine, loader);
    let stepper = Stepper::new(cfg, parts, (Arc::clone(&objective), schedule), ranks.clone(), start)?;
    let mut run = Run {
        progress,
        monitor: objective.monitor(),
        cfg,
        skipped: folder.skipped_images(),
        folder,
        checkpoints,
        stepper,
        ranks,
        probe,
        recorder,
        guard,
        objective,
        saved: None,
        stopping: false,
        warnings,
        source,
        trained_on: images,
        probed,
        baselines,
    };
    run.announce(resume, start, &pretrained.reports);
    drop(pretrained);
    // Up to here there was nothing to save: a signal ended the process.
    let outcome = run.go(start, interrupt, interrupt.answer());
    run.progress.finish();
    outcome
}

/// The last step whose probe is in the log, and what probes are compared with.
fn earlier_probes(log: &Path) -> Result<(Option<u64>, Vec<Baseline>)> {
    let records = metrics::read(log)?;
    let probes = records.iter().filter(|r| r.contains_key(PROBE_MAP));
    let last = probes.filter_map(|r| r.get("step")?.as_u64()).max();
    Ok((last, summary::baselines(&records, PROBE_MAP)))
}

struct Run<'a> {
    cfg: &'a TrainConfig,
    folder: RunFolder,
    checkpoints: Checkpoints,
    stepper: Stepper,
    ranks: Option<Ranks>,
    probe: Option<Probe>,
    recorder: Recorder,
    guard: FiniteGuard,
    monitor: Box<dyn Monitor>,
    progress: Progress,
    objective: Arc<dyn Objective>,
    /// The last step that this process saved.
    saved: Option<u64>,
    /// Whether a signal asked a rank to stop.
    stopping: bool,
    warnings: Vec<String>,
    source: Arc<dyn ImageSource>,
    /// What is left out of the training images, and of the probe's.
    skipped: [Teller; 2],
    trained_on: ImageSet,
    /// The last step whose probe is in the log; a resumed run finds it there.
    probed: Option<u64>,
    /// What the probe's mean average precision is compared with, as far as it is known.
    baselines: Vec<Baseline>,
}

impl Run<'_> {
    fn announce(&mut self, resume: bool, start: u64, reports: &[String]) {
        let parameters = self.stepper.engine.student().parameter_count();
        let arena = self.stepper.engine.largest_plan().map_or(0, |p| p.arena_bytes as u64);
        let ranks = self.ranks.as_ref().map(|r| format!("{} ranks, each ", r.world())).unwrap_or_default();
        let mut lines = vec![format!(
            "{ranks}{}: {} parameters, {} view geometries, activations {}, run folder {}",
            self.stepper.engine.backend().name(),
            crate::units::human_count(parameters as u64),
            self.objective.buckets(),
            crate::units::human_bytes(arena),
            self.folder.path().display(),
        )];
        if resume {
            lines.push(format!("resumed after step {start}"));
        }
        lines.extend(reports.iter().cloned());
        lines.extend(self.stepper.loader.notes().iter().cloned());
        lines.extend(self.warnings.iter().map(|w| format!("warning: {w}")));
        lines.iter().for_each(|l| self.progress.println(l));
    }

    fn go(&mut self, start: u64, interrupt: &Interrupt, answering: Answering) -> Result<Outcome> {
        self.list_skipped_images()?;
        let mut last_probe = None;
        match self.steps(start, interrupt, &mut last_probe) {
            // The state is that of the last completed step.
            Ok(()) | Err(Error::Interrupted) => {}
            Err(e) => {
                self.rescue(start, &e);
                return Err(e);
            }
        }
        if self.stepper.step > start || start == 0 {
            self.save()?;
        }
        let complete = self.stepper.step == self.stepper.schedule.steps;
        if complete
            && self.probe.is_some()
            && last_probe.as_ref().is_none_or(|(s, _)| *s != self.stepper.step)
        {
            last_probe = match self.probe(interrupt) {
                Err(Error::Interrupted) => last_probe,
                result => Some((self.stepper.step, result?)),
            };
        }
        let interrupted = interrupt.requested();
        // Everything is saved: from here on a signal ends the process.
        drop(answering);
        self.list_skipped_images()?;
        let outcome = Outcome {
            steps: self.stepper.step,
            interrupted,
            seconds: self.stepper.seconds,
            device: self.stepper.engine.backend().name(),
            images_per_second: if self.stepper.seconds > 0.0 {
                self.stepper.images as f64 / self.stepper.seconds
            } else {
                0.0
            },
            skipped_steps: self.guard.total(),
            warnings: self.warnings.clone(),
        };
        self.folder.write_outcome(&outcome)?;
        let last = last_probe.as_ref().map(|(_, result)| result);
        let inputs = summary::Inputs {
            cfg: self.cfg,
            title: self.folder.path().display().to_string(),
            records: metrics::read(&self.folder.metrics())?,
            outcome: &outcome,
        };
        let shown = summary::Shown {
            probe: self.probe.as_ref().zip(last),
            source: Arc::clone(&self.source),
            objective: &*self.objective,
        };
        // Who stops a run does not wait for pictures.
        let shown = (!interrupted).then_some(&shown);
        let drawn = summary::draw(shown, &mut self.stepper.engine)?;
        summary::write(&self.folder.report(), &inputs, Some(&drawn))?;
        Ok(outcome)
    }

    /// All steps that are left, with the checkpoints and probes that are due in between, or those up to a signal.
    fn steps(
        &mut self,
        start: u64,
        interrupt: &Interrupt,
        last_probe: &mut Option<(u64, ProbeResult)>,
    ) -> Result<()> {
        // At the start, and where the process died after a checkpoint and before the probe that was due with it.
        if self.probe.is_some()
            && self.probed != Some(start)
            && start.is_multiple_of(self.cfg.run.probe_every.max(1))
        {
            *last_probe = Some((start, self.probe(interrupt)?));
        }
        if let Some(ranks) = &self.ranks {
            ranks.enter(Phase::Step);
        }
        // Ranks stop together: each has to make an update to hear of it.
        let stop = |run: &Self| if run.ranks.is_some() { run.stopping } else { interrupt.requested() };
        while self.stepper.step < self.stepper.schedule.steps && !stop(self) {
            self.stepper.prepare()?;
            self.progress.resume_clock();
            self.one_step(interrupt)?;
            let due = |every: u64| every > 0 && self.stepper.step.is_multiple_of(every);
            let (checkpoint, probe) = (due(self.cfg.run.checkpoint_every), due(self.cfg.run.probe_every));
            // Skipped steps changed nothing: what they would save takes the place of a checkpoint that is known to be good.
            if checkpoint && self.stepper.step < self.stepper.schedule.steps && self.guard.in_a_row() == 0 {
                self.save()?;
            }
            if probe && self.probe.is_some() {
                *last_probe = Some((self.stepper.step, self.probe(interrupt)?));
            }
        }
        Ok(())
    }

    /// Saves what was learned up to an error of the world around: images that cannot be read any more, a full disk. After one
    /// of the device, or of the training itself, the state is not worth it.
    fn rescue(&mut self, start: u64, error: &Error) {
        let around = matches!(error, Error::Usage(_) | Error::Io { .. } | Error::File { .. });
        if !around
            || self.stepper.in_update
            || self.stepper.step == start
            || self.saved == Some(self.stepper.step)
        {
            return;
        }
        match self.save_state() {
            Ok(()) => self.progress.println(&format!(
                "step {} is saved: mend what follows, then go on with --resume",
                self.stepper.step
            )),
            Err(e) => {
                self.progress.println(&format!("warning: step {} could not be saved: {e}", self.stepper.step))
            }
        }
    }

    /// One update, from the batches to the log.
    fn one_step(&mut self, interrupt: &Interrupt) -> Result<()> {
        let updated = self.stepper.update(interrupt)?;
        let Updated { losses, health, point, names, images, .. } = &updated;
        self.stopping = updated.stop;
        let step = self.stepper.step;
        let verdict = self.guard.observe(step, health.finite, names)?;
        if let Verdict::Lost { in_a_row } = verdict {
            let (saved, first) = (self.checkpoints.steps()?, step + 1 - in_a_row);
            let remedy = resume::way_back(self.cfg, self.folder.path(), &saved, first);
            return Err(self.guard.lost(step, &remedy));
        }
        if let Verdict::Skip { in_a_row } = verdict {
            self.progress.println(&format!(
                "step {step} skipped: loss or gradient is not finite ({in_a_row} in a row); its images are listed in {}",
                self.folder.skipped_steps().display()
            ));
        }
        self.watch(losses);
        let mut shown = vec![("loss", losses.total)];
        shown.extend(losses.parts.iter().map(|(name, value)| (name.as_str(), *value)));
        self.progress.step(&StepReport { step, images: *images, losses: &shown, lr: point.learning_rate });
        // The first step is where every curve starts.
        let ends = step == 1 || step == self.stepper.schedule.steps;
        if ends || step.is_multiple_of(self.cfg.run.log_every.max(1)) {
            self.log(&updated)?;
        }
        Ok(())
    }

    /// What the objective has to say of the step.
    fn watch(&mut self, losses: &Losses) {
        for message in self.monitor.observe(self.stepper.step, &losses.statistics) {
            self.progress.println(&format!("warning: {message}"));
            self.warnings.push(format!("step {}: {message}", self.stepper.step));
        }
    }

    fn log(&mut self, updated: &Updated) -> Result<()> {
        let Updated { losses, health, point, images, seconds, busy, exposed, .. } = updated;
        let mut values: Vec<(String, f64)> = vec![("loss/total".into(), losses.total)];
        values.extend(losses.parts.iter().map(|(name, v)| (format!("loss/{name}"), *v)));
        values.push(("schedule/lr".into(), point.learning_rate));
        values.push(("schedule/ema_momentum".into(), point.momentum));
        values.push(("health/grad_norm".into(), health.grad_norm));
        let health = self.objective.health(&losses.statistics);
        values.extend(health.into_iter().map(|(name, value)| (format!("health/{name}"), value)));
        values.push(("speed/images_per_second".into(), *images as f64 / seconds.max(1e-9)));
        let by_time = |a: &(usize, &f64), b: &(usize, &f64)| a.1.total_cmp(b.1);
        let (fast, slow) = (busy.iter().enumerate().min_by(by_time), busy.iter().enumerate().max_by(by_time));
        if let (Some(fast), Some(slow), true) = (fast, slow, busy.len() > 1) {
            values.push((EXPOSED.0.into(), 1e3 * exposed));
            values.push((SPREAD.0.into(), 1e3 * (slow.1 - fast.1)));
            values.push((SLOWEST.0.into(), slow.0 as f64));
        }
        self.recorder.record(self.stepper.step, &values)
    }

    fn probe(&mut self, interrupt: &Interrupt) -> Result<ProbeResult> {
        let _aside = rank::aside(self.ranks.as_ref());
        let Some(probe) = &self.probe else { return Err(Error::invariant("the loop", "there is no probe")) };
        let result = probe.run(&mut self.stepper.engine, interrupt)?;
        let known = Reference::ALL.iter().all(|r| self.baselines.iter().any(|b| b.label == r.name()));
        let references = if known { Vec::new() } else { probe.references()? };
        let news = self.skipped[1].news(result.images, &result.left_out)?;
        self.tell(news);
        let m = result.metrics;
        let mut values: Vec<(String, f64)> =
            [(PROBE_MAP, m.map), (PROBE_RANK1, m.rank1), (PROBE_OWN_CAMERA, m.own_camera)]
                .map(|(tag, value)| (tag.to_owned(), value))
                .to_vec();
        let own = values.len();
        for (reference, line) in references {
            values.push((reference_tag(reference, PROBE_MAP), line.map));
            values.push((reference_tag(reference, PROBE_RANK1), line.rank1));
            self.baselines.push(Baseline { label: reference.name().to_owned(), value: line.map });
        }
        // A run that begins with the weights of a file has no untrained encoder at step 0.
        let name = |b: &Baseline| match self.cfg.encoder.init {
            Some(_) if b.label == summary::STEP_ZERO => "step 0".to_owned(),
            _ => b.label.clone(),
        };
        let known: Vec<String> =
            self.baselines.iter().map(|b| format!("{} {:.2} %", name(b), 100.0 * b.value)).collect();
        self.progress.println(&format!(
            "probe at step {}{}: mAP {:.2} %, rank-1 {:.2} %, own camera nearest {:.0} % (by lot {:.0} %; \
             {} queries; mAP of {})",
            self.stepper.step,
            match self.cfg.run.probe_features {
                ProbeFeatures::Image => "",
                ProbeFeatures::Stripes => ", stripes",
                ProbeFeatures::Relative => ", relative stripes",
            },
            100.0 * m.map,
            100.0 * m.rank1,
            100.0 * m.own_camera,
            100.0 * m.own_camera_chance,
            m.valid_queries,
            known.join(", ")
        ));
        if self.stepper.step == 0 && self.probed.is_none() {
            let label = summary::STEP_ZERO.to_owned();
            self.baselines.insert(0, Baseline { label, value: m.map });
        }
        if self.probed != Some(self.stepper.step) || values.len() > own {
            self.recorder.record(self.stepper.step, &values)?;
            self.probed = Some(self.stepper.step);
        }
        Ok(result)
    }
}
