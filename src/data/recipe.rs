//! What becomes of a picture in a batch.

use crate::data::augment::Augmenter;
use crate::data::rng::{Purpose, StreamRng, stream};
use crate::data::sample::Sample;
use crate::error::Result;
use crate::tensor::TensorSpec;
use image::RgbImage;

/// Identifies one picture's random numbers: the run's seed, the epoch, and the picture's number within it; and by the batch what all
/// pictures of one have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleKey {
    pub seed: u64,
    pub epoch: u64,
    pub sample: u64,
    /// The batch, counted from 0 over the whole run.
    pub batch: u64,
}

impl SampleKey {
    pub fn stream(&self, purpose: Purpose) -> StreamRng {
        stream(self.seed, self.epoch, self.sample, purpose)
    }

    /// The same stream for all pictures of the batch.
    pub fn batch_stream(&self, purpose: Purpose) -> StreamRng {
        stream(self.seed, 0, self.batch, purpose)
    }
}

/// One view of one image, for one tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// Becomes normalised pixels `[3, H, W]`.
    Picture(RgbImage),
    Values(Vec<f32>),
    Indices(Vec<i32>),
}

/// Another picture of the source, chosen with the given random numbers.
pub type Another<'a> = dyn FnMut(&mut StreamRng) -> Result<RgbImage> + 'a;

/// Makes the tensors of a batch out of pictures. What it makes depends on its arguments alone.
pub trait Recipe: Send + Sync {
    /// How many sets of shapes there are: one compiled step each.
    fn buckets(&self) -> usize {
        1
    }

    /// Which of them step `step` has.
    fn bucket(&self, _seed: u64, _step: u64) -> usize {
        0
    }

    /// The tensors of a batch of `batch` images.
    fn tensors(&self, bucket: usize, batch: usize) -> Vec<TensorSpec>;

    /// For every tensor its views of `sample`.
    ///
    /// # Errors
    /// When another picture cannot be had, or a size is out of range.
    fn paint(
        &self,
        painter: &mut Augmenter,
        bucket: usize,
        key: SampleKey,
        sample: &Sample,
        another: &mut Another<'_>,
    ) -> Result<Vec<Vec<Part>>>;
}
