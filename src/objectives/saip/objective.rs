//! SAIP as an objective.

use super::config::StepConfig;
use super::geometry::patches;
use super::inspect::build_inspect;
use super::pictures::{reconstructions, scenes};
use super::recipe::{ViewPlanner, complete_positions, random_batch};
use super::step::{build_step, streams};
use crate::data::augment::AugmentConfig;
use crate::data::batch::Batch;
use crate::data::recipe::Recipe;
use crate::error::{Error, Result};
use crate::models::EncoderConfig;
use crate::objectives::attention::attention;
use crate::objectives::self_distillation::{self, Targets, first_center};
use crate::objectives::{Inspect, Monitor, Objective, Outputs, Thresholds};
use crate::report::Pictures;
use crate::step::{BETAS, Step, StepOptions, StepPoint};
use crate::tensor::DType;
use std::sync::Arc;

/// Matching, reconstruction and search across scales.
#[derive(Clone, Debug)]
pub struct Saip {
    /// The step at scale 1.
    pub base: StepConfig,
    planner: ViewPlanner,
    thresholds: Thresholds,
    betas: [f64; 2],
}

impl Saip {
    /// One bucket for each of `scales` that gives sizes of its own; with no scales `base`'s own sizes are all there are.
    ///
    /// # Errors
    /// [`Error::Config`] naming a size or an augmentation that is out of range.
    pub fn new(
        base: StepConfig,
        scales: &[f64],
        augment: AugmentConfig,
        thresholds: Thresholds,
    ) -> Result<Self> {
        let planner = ViewPlanner::new(&base.geometry(), base.mask_ratio, scales, augment)?;
        Ok(Saip { base, planner, thresholds, betas: BETAS })
    }

    /// One step with `base`'s own sizes.
    ///
    /// # Errors
    /// Those of [`Saip::new`].
    pub fn of(base: StepConfig) -> Result<Self> {
        let thresholds = Thresholds { low: 0.0, high: 1.0, spread: 0.0, steps: 0 };
        Self::new(base, &[], AugmentConfig::default(), thresholds)
    }

    /// The step of a bucket.
    fn config(&self, bucket: usize) -> Result<StepConfig> {
        let geometry = self.planner.geometries().get(bucket);
        let g = geometry.ok_or_else(|| Error::usage(format!("there is no view geometry {bucket}")))?;
        let (rescaled_size, masked_size) = (g.rescaled_size, g.masked_size);
        Ok(StepConfig { rescaled_size, masked_size, ..self.base.clone() })
    }

    /// The same with other decay rates of the moments than the paper's.
    pub fn with_betas(self, betas: [f64; 2]) -> Self {
        Saip { betas, ..self }
    }

    /// What the expert's targets are measured by.
    fn targets_of_expert(&self) -> Targets {
        Targets { prototypes: self.base.csm.prototypes, rows: 2 * self.base.batch }
    }
}

impl Objective for Saip {
    fn batch(&self) -> usize {
        self.base.batch
    }

    fn with_batch(&self, batch: usize) -> Box<dyn Objective> {
        Box::new(Saip { base: StepConfig { batch, ..self.base.clone() }, ..self.clone() })
    }

    fn at_scale(&self, scale: f64) -> Result<Box<dyn Objective>> {
        // A single step may be tried at a larger scale than a run has.
        if !(scale > 0.0 && scale <= 16.0) {
            return Err(Error::usage(format!("--scale {scale}: it must be above 0 and at most 16")));
        }
        let base = self.base.at_scale(scale);
        let all = patches(base.masked_size);
        if !(1..all).contains(&base.visible_patches()) {
            return Err(Error::usage(format!(
                "--scale {scale} leaves {} of {all} patches of the masked view visible, but at least 1 must be visible and \
                 1 hidden: take a larger --scale, or --set views.mask_ratio=0.5",
                base.visible_patches()
            )));
        }
        let planner = self.planner.fixed(&base.geometry())?;
        Ok(Box::new(Saip { base, planner, ..self.clone() }))
    }

    fn only(&self, bucket: usize) -> Result<Box<dyn Objective>> {
        let base = self.config(bucket)?;
        let planner = self.planner.fixed(&base.geometry())?;
        Ok(Box::new(Saip { base, planner, ..self.clone() }))
    }

    fn buckets(&self) -> usize {
        self.planner.geometries().len()
    }

    fn step(&self, bucket: usize, opts: &StepOptions) -> Result<Step> {
        build_step(&self.config(bucket)?, opts)
    }

    fn encoder_calls(&self) -> Result<[u64; 2]> {
        streams(&self.config(0)?)
    }

    fn encoder(&self) -> &EncoderConfig {
        &self.base.encoder
    }

    fn recipe(&self) -> Result<Arc<dyn Recipe>> {
        Ok(Arc::new(self.planner.clone()))
    }

    fn random_batch(&self, bucket: usize, seed: u64) -> Batch {
        let geometries = self.planner.geometries();
        let batch = random_batch(&geometries[bucket.min(geometries.len() - 1)], self.base.batch, seed);
        Batch { bucket, ..batch }
    }

    fn complete(&self, batch: &mut Batch) -> Result<()> {
        complete_positions(batch)
    }

    fn point(&self, t: u64) -> StepPoint {
        let cfg = &self.base;
        let own = self_distillation::temperatures(cfg.student_temp, cfg.teacher_temp, cfg.center_momentum);
        StepPoint {
            t,
            learning_rate: cfg.lr,
            weight_decay: cfg.weight_decay,
            momentum: cfg.momentum,
            betas: self.betas,
            adam_eps: cfg.adam_eps,
            clip_norm: cfg.clip_norm,
            tensor_clip_norm: None,
            late_t: t,
            micro_step: 0,
            micro_steps: 1,
            own,
        }
    }

    fn setup(&self, first: &StepPoint) -> Option<(&'static str, StepPoint)> {
        first_center(first).filter(|_| self.base.loss_weights[0] > 0.0)
    }

    fn health(&self, statistics: &[f64]) -> Vec<(&'static str, f64)> {
        self.targets_of_expert().health(statistics)
    }

    fn monitor(&self) -> Box<dyn Monitor> {
        self.targets_of_expert().monitor(self.thresholds)
    }

    fn inspect(&self, dtype: DType) -> Result<Inspect> {
        build_inspect(&self.config(0)?, dtype)
    }

    fn draw(&self, batch: &Batch, outputs: &mut Outputs<'_>) -> Result<Pictures> {
        let (cfg, mut pictures) = (self.config(batch.bucket)?, Pictures::default());
        if let Some(values) = outputs("reconstruction")? {
            pictures.reconstructions = reconstructions(&cfg, batch, &values)?;
        }
        if let Some(logits) = outputs("search")? {
            pictures.scenes = scenes(&cfg, batch, &logits)?;
        }
        if let Some(qkv) = outputs("qkv")? {
            let anchors = batch.f32s("global")?;
            pictures.attention = attention(&cfg.encoder, anchors, cfg.global_size, cfg.batch, &qkv)?;
        }
        Ok(pictures)
    }
}
