//! What the ranks of a run do alike, and the loop of those that compute only: files, logs and pictures are rank 0's.

use crate::backend::{Backend, Phase};
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::objectives::{Objective, learns_classes};
use crate::train::checkpoint::Checkpoints;
use crate::train::config::TrainConfig;
use crate::train::engine::{Engine, EngineOptions, Ranks, Summing};
use crate::train::folder::{CHECKPOINTS, Outcome};
use crate::train::image_set::ImageSet;
use crate::train::objective::with_expert;
use crate::train::pretrained::Pretrained;
use crate::train::sources;
use crate::train::stepper::Stepper;
use std::path::Path;
use std::sync::Arc;

/// Refuses a number of ranks that cannot share an update alike.
pub(super) fn check(cfg: &TrainConfig, ranks: Option<&Ranks>) -> Result<()> {
    cfg.optim.accumulation(ranks.map_or(1, Ranks::world)).map(|_| ())
}

/// Refuses ranks that see other images than rank 0.
pub(super) fn same_images(images: &ImageSet, ranks: Option<&Ranks>) -> Result<()> {
    let Some(ranks) = ranks else { return Ok(()) };
    let own = serde_json::to_vec(images).map_err(|e| Error::invariant("comparing images", e.to_string()))?;
    let all = ranks.all_gather(&own)?;
    match all.iter().position(|other| *other != all[0]) {
        None => Ok(()),
        Some(rank) => {
            let told = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let message = format!(
                "its images are not those of rank 0 ({} there, {} here): `--data` must name the same images on every machine",
                told(&all[0]),
                told(&all[rank])
            );
            Err(Error::distributed(format!("rank {rank}"), message))
        }
    }
}

/// The step behind which rank 0 begins, on all ranks; None for a run without a checkpoint.
pub(super) fn begin_behind(step: Option<u64>, ranks: Option<&Ranks>) -> Result<Option<u64>> {
    let Some(ranks) = ranks else { return Ok(step) };
    let own = step.map(|s| s.to_le_bytes().to_vec()).unwrap_or_default();
    let told = ranks.from_first(own)?;
    Ok(<[u8; 8]>::try_from(told.as_slice()).ok().map(u64::from_le_bytes))
}

/// The engine of this rank.
pub(super) fn engine(
    cfg: &TrainConfig,
    backend: Box<dyn Backend>,
    objective: &Arc<dyn Objective>,
    ranks: Option<&Ranks>,
) -> Result<Engine> {
    let options = EngineOptions {
        micro_steps: cfg.optim.accumulation(1)?,
        drop_path: cfg.encoder.drop_path,
        recompute: cfg.run.recompute,
        seed: cfg.data.seed,
    };
    let summing = Summing { stretch: cfg.dist.stretch(), wire: cfg.dist.wire() };
    Engine::among(backend, Arc::clone(objective), options, ranks.map(|r| (r.clone(), summing)))
}

/// While it lives, the others wait for this rank as long as it takes.
pub(super) struct Aside(Option<Ranks>);

impl Drop for Aside {
    fn drop(&mut self) {
        if let Some(ranks) = &self.0 {
            ranks.enter(Phase::Step);
        }
    }
}

/// Tells the others that this rank does what only it has to.
pub(super) fn aside(ranks: Option<&Ranks>) -> Aside {
    if let Some(ranks) = ranks {
        ranks.enter(Phase::Aside);
    }
    Aside(ranks.cloned())
}

/// Trains as a rank other than 0, which tells it where the run stands.
pub(super) fn train(
    cfg: &TrainConfig,
    out: &Path,
    backend: Box<dyn Backend>,
    interrupt: &Interrupt,
    ranks: &Ranks,
) -> Result<Outcome> {
    let source = sources::training_source(cfg)?;
    let schedule = cfg.schedule(source.len())?;
    check(cfg, Some(ranks))?;
    same_images(&ImageSet::of(&*source, learns_classes(&cfg.objective)), Some(ranks))?;
    let begun = begin_behind(None, Some(ranks))?;
    let pretrained = match begun {
        Some(step) => {
            let loaded = Checkpoints::for_reading(out.join(CHECKPOINTS)).at(step)?;
            Pretrained::resumed(cfg, loaded.model())?
        }
        None => Pretrained::open(cfg)?,
    };
    let objective = with_expert(cfg, pretrained.expert.clone(), &[])?;
    let mut engine = engine(cfg, backend, &objective, Some(ranks))?;
    engine.initialise_from(&pretrained.initial)?;
    drop(pretrained);
    engine.share_state()?;
    let start = begun.unwrap_or(0);
    let loader = sources::loader(cfg, &source, objective.recipe()?, start, Some(ranks))?;
    let mut stepper = Stepper::new(cfg, (engine, loader), (objective, schedule), Some(ranks.clone()), start)?;
    let _answering = interrupt.answer();
    follow(cfg, &mut stepper, interrupt, ranks)
}

/// Makes every update with the others until rank 0 would stop.
fn follow(cfg: &TrainConfig, stepper: &mut Stepper, interrupt: &Interrupt, ranks: &Ranks) -> Result<Outcome> {
    ranks.enter(Phase::Step);
    let (mut bad, mut skipped, mut stop) = (0, 0, false);
    while stepper.step < stepper.schedule.steps && !stop {
        stepper.prepare()?;
        let updated = stepper.update(interrupt)?;
        stop = updated.stop;
        bad = if updated.health.finite { 0 } else { bad + 1 };
        skipped += u64::from(!updated.health.finite);
        if bad >= cfg.run.max_bad_steps {
            let message = format!("{bad} steps in a row were not finite: rank 0 says more");
            return Err(Error::Training(message));
        }
    }
    Ok(Outcome {
        steps: stepper.step,
        interrupted: interrupt.requested(),
        seconds: stepper.seconds,
        device: stepper.engine.backend().name(),
        images_per_second: if stepper.seconds > 0.0 { stepper.images as f64 / stepper.seconds } else { 0.0 },
        skipped_steps: skipped,
        warnings: Vec::new(),
    })
}
