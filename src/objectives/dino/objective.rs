//! DINO as an objective.

use super::config::{ClipBy, Curves, DinoSection, StepConfig, TeacherTemp};
use super::model::{Model, Views};
use super::recipe::Crops;
use super::step::build_step;
use crate::data::augment::AugmentConfig;
use crate::data::batch::Batch;
use crate::data::recipe::Recipe;
use crate::error::{Error, Result};
use crate::ir::Graph;
use crate::ir::ops::Temperature;
use crate::models::EncoderConfig;
use crate::objectives::attention::{attention, inspect_images};
use crate::objectives::self_distillation::{Targets, first_center, temperatures};
use crate::objectives::{Inspect, Monitor, Objective, Outputs, Target, Thresholds};
use crate::report::Pictures;
use crate::step::schedule::{Schedule, rise_cosine};
use crate::step::{Slots, Step, StepOptions, StepPoint};
use crate::tensor::DType;
use std::sync::Arc;

/// Self-distillation without labels.
#[derive(Clone, Debug)]
pub struct Dino {
    cfg: StepConfig,
    crops: Crops,
    thresholds: Thresholds,
    /// Whether a ViT has the norm of its tapped block: whoever reads patch tokens of a run expects it.
    tapped: bool,
    teacher_temp: TeacherTemp,
    /// Epochs at the beginning in which the last layer is held.
    freeze_epochs: u64,
}

impl Dino {
    /// A run's objective.
    ///
    /// # Errors
    /// [`Error::Config`] naming a key that is out of range.
    pub fn new(
        cfg: StepConfig,
        section: &DinoSection,
        augment: AugmentConfig,
        thresholds: Thresholds,
    ) -> Result<Self> {
        let teacher_temp = TeacherTemp {
            start: section.teacher_temp_start,
            end: cfg.teacher_temp,
            epochs: section.teacher_temp_epochs,
        };
        let crops = Crops::new(&cfg, augment)?;
        Model::new(&cfg, true)?;
        Ok(Dino { cfg, crops, thresholds, tapped: true, teacher_temp, freeze_epochs: section.freeze_epochs })
    }

    /// One step with the configuration's constants; `tapped` says whether a ViT has the norm of its tapped block.
    ///
    /// # Errors
    /// Those of [`Dino::new`]; a schedule that is none of DINO's.
    pub fn of(cfg: StepConfig, tapped: bool) -> Result<Self> {
        let (start, end, epochs) = match &cfg.schedule {
            Some(curves) if curves.momentum[1] != 1.0 => {
                return Err(Error::config("schedule.momentum", "must end at 1"));
            }
            Some(curves) => curves.teacher_temp,
            None => (cfg.teacher_temp, cfg.teacher_temp, 0),
        };
        let thresholds = Thresholds { low: 0.0, high: 1.0, spread: 0.0, steps: 0 };
        let dino = Dino::new(cfg, &DinoSection::default(), AugmentConfig::default(), thresholds)?;
        Ok(Dino { tapped, teacher_temp: TeacherTemp { start, end, epochs }, ..dino })
    }

    fn expert(&self) -> Targets {
        Targets { prototypes: self.cfg.csm.prototypes, rows: 2 * self.cfg.batch }
    }

    /// Of the step that completes `step` updates and one more: the number of those in which the last layer moves.
    fn late_t(&self, schedule: &Schedule, step: u64) -> u64 {
        (step + 1).saturating_sub(self.freeze_epochs.saturating_mul(schedule.steps_per_epoch.max(1)))
    }
}

impl Objective for Dino {
    fn batch(&self) -> usize {
        self.cfg.batch
    }

    fn with_batch(&self, batch: usize) -> Box<dyn Objective> {
        Box::new(Dino { cfg: StepConfig { batch, ..self.cfg.clone() }, ..self.clone() })
    }

    fn step(&self, bucket: usize, opts: &StepOptions) -> Result<Step> {
        self.check_bucket(bucket)?;
        build_step(&self.cfg, self.tapped, opts)
    }

    fn encoder_calls(&self) -> Result<[u64; 2]> {
        Ok([if self.cfg.locals > 0 { 2 } else { 1 }, 1])
    }

    fn encoder(&self) -> &EncoderConfig {
        &self.cfg.encoder
    }

    fn recipe(&self) -> Result<Arc<dyn Recipe>> {
        Ok(Arc::new(self.crops.clone()))
    }

    fn random_batch(&self, _: usize, seed: u64) -> Batch {
        self.crops.random_batch(self.cfg.batch, seed)
    }

    fn complete(&self, _: &mut Batch) -> Result<()> {
        Ok(())
    }

    fn point(&self, t: u64) -> StepPoint {
        let cfg = &self.cfg;
        let clip = |by| cfg.clip.filter(|c| c.0 == by).map(|c| c.1);
        StepPoint {
            t,
            learning_rate: cfg.lr,
            weight_decay: cfg.weight_decay,
            momentum: cfg.momentum,
            betas: cfg.betas,
            adam_eps: cfg.adam_eps,
            clip_norm: clip(ClipBy::Global),
            tensor_clip_norm: clip(ClipBy::Each),
            late_t: if cfg.freeze_last_layer { 0 } else { t },
            micro_step: 0,
            micro_steps: 1,
            own: temperatures(cfg.student_temp, cfg.teacher_temp, cfg.center_momentum),
        }
    }

    /// The learning rate rises from 0, and the expert's temperature changes with the epoch.
    fn scheduled(&self, schedule: &Schedule, step: u64) -> StepPoint {
        let Schedule { steps, warmup_steps, peak_lr, min_lr, .. } = *schedule;
        let teacher = self.teacher_temp.at(schedule.epoch_at(step));
        StepPoint {
            learning_rate: rise_cosine(step, steps, warmup_steps, peak_lr, min_lr),
            weight_decay: schedule.weight_decay_at(step),
            momentum: schedule.ema_momentum_at(step),
            late_t: self.late_t(schedule, step),
            own: temperatures(self.cfg.student_temp, teacher, self.cfg.center_momentum),
            ..self.point(step + 1)
        }
    }

    /// The schedules that the reference records, step by step, the temperature epoch by epoch.
    fn targets(&self) -> Vec<Target> {
        let Some(curves) = &self.cfg.schedule else { return Vec::new() };
        let schedule = whole_run(curves);
        let points: Vec<StepPoint> = (0..schedule.steps).map(|i| self.scheduled(&schedule, i)).collect();
        let epochs = points.iter().step_by(schedule.steps_per_epoch.max(1) as usize);
        let temps: Vec<f64> = epochs.map(|p| p.own[Temperature::Teacher as usize]).collect();
        let steps = |value: fn(&StepPoint) -> f64| points.iter().map(value).collect::<Vec<f64>>();
        [
            ("dino_lr", steps(|p| p.learning_rate)),
            ("weight_decay", steps(|p| p.weight_decay)),
            ("momentum", steps(|p| p.momentum)),
            ("teacher_temp", temps),
        ]
        .map(|(name, values)| (format!("schedule.{name}"), vec![values.len()], values))
        .into()
    }

    fn setup(&self, first: &StepPoint) -> Option<(&'static str, StepPoint)> {
        first_center(first)
    }

    fn health(&self, statistics: &[f64]) -> Vec<(&'static str, f64)> {
        self.expert().health(statistics)
    }

    fn monitor(&self) -> Box<dyn Monitor> {
        self.expert().monitor(self.thresholds)
    }

    fn inspect(&self, dtype: DType) -> Result<Inspect> {
        let (cfg, model) = (&self.cfg, Model::new(&self.cfg, self.tapped)?);
        // The anchors: of the two global views the first.
        let anchors = |graph: &mut Graph, inputs: &mut Slots, types| {
            Views { cfg, types }.global(graph, inputs, cfg.batch)
        };
        inspect_images(&*model.encoder, model.registries()?, dtype, anchors)
    }

    fn draw(&self, batch: &Batch, outputs: &mut Outputs<'_>) -> Result<Pictures> {
        let mut pictures = Pictures::default();
        if let Some(qkv) = outputs("qkv")? {
            let (cfg, anchors) = (&self.cfg, batch.f32s("global")?);
            pictures.attention = attention(&cfg.encoder, anchors, cfg.global_size, cfg.batch, &qkv)?;
        }
        Ok(pictures)
    }
}

/// The schedule of a run as the reference describes it.
fn whole_run(curves: &Curves) -> Schedule {
    let Curves { epochs, steps_per_epoch, warmup_epochs, lr, min_lr, weight_decay, momentum, .. } = *curves;
    Schedule {
        steps: epochs.saturating_mul(steps_per_epoch),
        steps_per_epoch,
        warmup_steps: warmup_epochs.saturating_mul(steps_per_epoch),
        peak_lr: lr,
        min_lr,
        weight_decay: weight_decay[0],
        weight_decay_end: weight_decay[1],
        ema_momentum: momentum[0],
    }
}
