//! Supervised training as an objective.

use super::config::{Mixing, StepConfig, SupervisedSection};
use super::model::{IMAGE, Model, images};
use super::recipe::Classified;
use super::step::build_step;
use crate::data::augment::AugmentConfig;
use crate::data::batch::Batch;
use crate::data::recipe::Recipe;
use crate::error::Result;
use crate::ir::Graph;
use crate::models::EncoderConfig;
use crate::objectives::attention::{attention, inspect_images};
use crate::objectives::{Inspect, Monitor, Objective, Outputs};
use crate::report::Pictures;
use crate::step::{Slots, Step, StepOptions, StepPoint};
use crate::tensor::DType;
use std::sync::Arc;

/// Classification with soft targets.
#[derive(Clone, Debug)]
pub struct Supervised {
    cfg: StepConfig,
    recipe: Classified,
}

impl Supervised {
    /// A run's objective.
    ///
    /// # Errors
    /// [`Error::Config`] naming a key that is out of range.
    pub fn new(cfg: StepConfig, augment: AugmentConfig, mixing: Mixing) -> Result<Self> {
        let recipe = Classified::new(&cfg, augment, mixing)?;
        Model::new(&cfg)?;
        Ok(Supervised { cfg, recipe })
    }

    /// One step with the configuration's constants.
    ///
    /// # Errors
    /// Those of [`Supervised::new`].
    pub fn of(cfg: StepConfig) -> Result<Self> {
        Supervised::new(cfg, AugmentConfig::default(), SupervisedSection::default().mixing())
    }
}

impl Objective for Supervised {
    fn batch(&self) -> usize {
        self.cfg.batch
    }

    fn with_batch(&self, batch: usize) -> Box<dyn Objective> {
        Box::new(Supervised { cfg: StepConfig { batch, ..self.cfg.clone() }, ..self.clone() })
    }

    fn step(&self, bucket: usize, opts: &StepOptions) -> Result<Step> {
        self.check_bucket(bucket)?;
        build_step(&self.cfg, opts)
    }

    fn encoder_calls(&self) -> Result<[u64; 2]> {
        Ok([1, 0])
    }

    fn encoder(&self) -> &EncoderConfig {
        &self.cfg.encoder
    }

    fn recipe(&self) -> Result<Arc<dyn Recipe>> {
        Ok(Arc::new(self.recipe.clone()))
    }

    fn random_batch(&self, _: usize, seed: u64) -> Batch {
        self.recipe.random_batch(self.cfg.batch, seed)
    }

    fn complete(&self, batch: &mut Batch) -> Result<()> {
        self.recipe.check(batch)
    }

    fn point(&self, t: u64) -> StepPoint {
        let cfg = &self.cfg;
        StepPoint {
            t,
            learning_rate: cfg.lr,
            weight_decay: cfg.weight_decay,
            // There is no expert.
            momentum: 1.0,
            betas: cfg.betas,
            adam_eps: cfg.adam_eps,
            clip_norm: cfg.clip_norm,
            tensor_clip_norm: None,
            late_t: t,
            micro_step: 0,
            micro_steps: 1,
            own: Vec::new(),
        }
    }

    fn setup(&self, _: &StepPoint) -> Option<(&'static str, StepPoint)> {
        None
    }

    fn health(&self, _: &[f64]) -> Vec<(&'static str, f64)> {
        Vec::new()
    }

    fn monitor(&self) -> Box<dyn Monitor> {
        Box::new(Nothing)
    }

    fn inspect(&self, dtype: DType) -> Result<Inspect> {
        let model = Model::new(&self.cfg)?;
        let unmixed = |graph: &mut Graph, inputs: &mut Slots, types| images(&self.cfg, types, graph, inputs);
        inspect_images(&*model.encoder, model.registries()?, dtype, unmixed)
    }

    fn draw(&self, batch: &Batch, outputs: &mut Outputs<'_>) -> Result<Pictures> {
        let mut pictures = Pictures::default();
        if let Some(qkv) = outputs("qkv")? {
            let (cfg, images) = (&self.cfg, batch.f32s(IMAGE)?);
            pictures.attention = attention(&cfg.encoder, images, cfg.global_size, cfg.batch, &qkv)?;
        }
        Ok(pictures)
    }
}

/// A loss that is lowered by labels tells by itself when training goes wrong.
struct Nothing;

impl Monitor for Nothing {
    fn observe(&mut self, _: u64, _: &[f64]) -> Vec<String> {
        Vec::new()
    }
}
