//! One picture to its views: two global and several local ones.

use super::config::StepConfig;
use crate::data::augment::{AugmentConfig, Augmenter};
use crate::data::batch::{Batch, Values};
use crate::data::recipe::{Another, Part, Recipe, SampleKey};
use crate::data::rng::{Purpose, stream};
use crate::data::sample::Sample;
use crate::error::Result;
use crate::objectives::view_size::check_view_size;
use crate::tensor::{DType, TensorSpec};
use rand_distr::{Distribution, StandardNormal};

/// The sizes of the views and how they are augmented.
#[derive(Clone, Debug)]
pub(super) struct Crops {
    global_size: [usize; 2],
    local_size: [usize; 2],
    locals: usize,
    augment: AugmentConfig,
}

impl Crops {
    /// # Errors
    /// [`Error::Config`] naming a size or an augmentation that is out of range.
    pub fn new(cfg: &StepConfig, augment: AugmentConfig) -> Result<Self> {
        augment.check("augment")?;
        for (key, size) in [("global_size", cfg.global_size), ("local_size", cfg.local_size)] {
            check_view_size(key, size)?;
        }
        let StepConfig { global_size, local_size, locals, .. } = *cfg;
        Ok(Crops { global_size, local_size, locals, augment })
    }

    /// What a batch of `b` images holds: `global: [2, B, 3, H, W]`, of which view 0 is the anchor, and
    /// `local: [L, B, 3, h, w]`.
    pub fn specs(&self, b: usize) -> Vec<TensorSpec> {
        let views = |name, n, [h, w]: [usize; 2]| TensorSpec::new(name, DType::F32, 1, [n, b, 3, h, w]);
        vec![views("global", 2, self.global_size), views("local", self.locals, self.local_size)]
    }

    /// A batch of `b` images of normally distributed pixels.
    pub fn random_batch(&self, b: usize, seed: u64) -> Batch {
        let mut rng = stream(seed, 0, 0, Purpose::Views);
        let mut pixels = |spec: TensorSpec| {
            let values = (0..spec.shape.count()).map(|_| StandardNormal.sample(&mut rng)).collect();
            (spec, Values::F32(values))
        };
        let tensors = self.specs(b).into_iter().map(&mut pixels).collect();
        Batch { bucket: 0, tensors, names: vec!["random".into(); b] }
    }
}

impl Recipe for Crops {
    fn tensors(&self, _: usize, batch: usize) -> Vec<TensorSpec> {
        self.specs(batch)
    }

    fn paint(
        &self,
        painter: &mut Augmenter,
        _: usize,
        key: SampleKey,
        sample: &Sample,
        _: &mut Another<'_>,
    ) -> Result<Vec<Vec<Part>>> {
        let (cfg, rng) = (&self.augment, &mut key.stream(Purpose::Views));
        let mut view = |recipe, size| painter.view(cfg, recipe, &sample.image, size, rng).map(Part::Picture);
        let global = vec![view(cfg.anchor(), self.global_size)?, view(cfg.second(), self.global_size)?];
        let local = (0..self.locals).map(|_| view(cfg.local(), self.local_size));
        Ok(vec![global, local.collect::<Result<_>>()?])
    }
}
