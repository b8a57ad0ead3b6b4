//! What an objective is to the rest of the engine.

use crate::data::batch::Batch;
use crate::data::recipe::Recipe;
use crate::error::{Error, Result};
use crate::ir::Graph;
use crate::models::EncoderConfig;
use crate::report::Pictures;
use crate::step::schedule::Schedule;
use crate::step::{IoSlot, Registries, Step, StepOptions, StepPoint};
use crate::tensor::DType;
use std::sync::Arc;

/// What is learned from a batch. A step is compiled for each of its buckets, which differ in shapes only.
pub trait Objective: Send + Sync {
    /// Images per micro step.
    fn batch(&self) -> usize;

    /// The same with another number of images.
    fn with_batch(&self, batch: usize) -> Box<dyn Objective>;

    /// The same in one bucket, at a scale that `--scale` gives; where nothing has a scale, the same.
    ///
    /// # Errors
    /// For a scale at which no step can be built.
    fn at_scale(&self, _scale: f64) -> Result<Box<dyn Objective>> {
        Ok(self.with_batch(self.batch()))
    }

    /// The same with one bucket alone.
    ///
    /// # Errors
    /// When there is no such bucket.
    fn only(&self, bucket: usize) -> Result<Box<dyn Objective>> {
        self.check_bucket(bucket)?;
        Ok(self.with_batch(self.batch()))
    }

    /// How many sets of shapes there are, at least one.
    fn buckets(&self) -> usize {
        1
    }

    /// # Errors
    /// [`Error::Usage`] when there is no such bucket.
    fn check_bucket(&self, bucket: usize) -> Result<()> {
        match bucket < self.buckets() {
            true => Ok(()),
            false => Err(Error::usage(format!("there is no view geometry {bucket}"))),
        }
    }

    /// The step of a bucket.
    ///
    /// # Errors
    /// For a configuration that is out of range, and impossible options.
    fn step(&self, bucket: usize, opts: &StepOptions) -> Result<Step>;

    /// How often a micro step gives the student's encoder, and the expert's, images that are normalised by statistics of their own:
    /// what PyTorch's batch normalisation counts.
    ///
    /// # Errors
    /// Those of [`Objective::step`].
    fn encoder_calls(&self) -> Result<[u64; 2]>;

    /// The encoder that is trained.
    fn encoder(&self) -> &EncoderConfig;

    /// How batches are made.
    ///
    /// # Errors
    /// For sizes that are out of range.
    fn recipe(&self) -> Result<Arc<dyn Recipe>>;

    /// A batch of random numbers of the shapes of a bucket.
    fn random_batch(&self, bucket: usize, seed: u64) -> Batch;

    /// Fills in what a batch derives from others of its tensors, and checks what cannot be.
    ///
    /// # Errors
    /// When a value is out of range, naming its tensor.
    fn complete(&self, batch: &mut Batch) -> Result<()>;

    /// Step `t` with the configuration's constants, without accumulation.
    fn point(&self, t: u64) -> StepPoint;

    /// The step that completes `step` updates (from 0) and one more, in a run of `schedule`, without accumulation.
    fn scheduled(&self, schedule: &Schedule, step: u64) -> StepPoint {
        StepPoint {
            learning_rate: schedule.lr_at(step),
            weight_decay: schedule.weight_decay_at(step),
            momentum: schedule.ema_momentum_at(step),
            ..self.point(step + 1)
        }
    }

    /// What is derived beside losses and gradients: checked where a reference records it, under `target.*`.
    fn targets(&self) -> Vec<Target> {
        Vec::new()
    }

    /// State that begins with what one step at the given point makes of the first batch, everything else being put back:
    /// its name and the point. None where nothing is to be set up.
    fn setup(&self, first: &StepPoint) -> Option<(&'static str, StepPoint)>;

    /// What the step's statistics say, each under the name with which it is logged.
    fn health(&self, statistics: &[f64]) -> Vec<(&'static str, f64)>;

    /// Watches the statistics of a run.
    fn monitor(&self) -> Box<dyn Monitor>;

    /// The forward pass in evaluation mode, with what pictures are made of.
    ///
    /// # Errors
    /// Those of [`Objective::step`].
    fn inspect(&self, dtype: DType) -> Result<Inspect>;

    /// Draws what [`Objective::inspect`]'s graph made of `batch`; `outputs` reads one of its outputs.
    ///
    /// # Errors
    /// When reading fails, or a picture cannot be made.
    fn draw(&self, batch: &Batch, outputs: &mut Outputs<'_>) -> Result<Pictures>;
}

/// Name, shape and values.
pub type Target = (String, Vec<usize>, Vec<f64>);

/// Reads an output by its name; None where there is no such output.
pub type Outputs<'a> = dyn FnMut(&str) -> Result<Option<Vec<f32>>> + 'a;

/// Notices that training goes wrong although its loss looks well.
pub trait Monitor: Send {
    /// Notes the statistics of `step`; gives a sentence for each alarm that goes off now.
    fn observe(&mut self, step: u64, statistics: &[f64]) -> Vec<String>;
}

/// A forward pass in evaluation mode. Parameters lie where the step of the same configuration has them.
#[derive(Clone, Debug)]
pub struct Inspect {
    pub graph: Graph,
    pub registries: Registries,
    /// Named as the step's inputs; absent where nothing reads them.
    pub inputs: Vec<IoSlot>,
    pub outputs: Vec<IoSlot>,
}
