//! What supervised training is told: the configuration of a step, and the section of a run's.

use crate::error::{Error, Result};
use crate::keys::{MAX_COUNT, Range, section};
use crate::models::EncoderConfig;
use serde::Deserialize;

/// One step. Sizes are `[height, width]` in pixels.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepConfig {
    pub batch: usize,
    pub global_size: [usize; 2],
    /// At least 2.
    pub classes: usize,
    /// Share of a label that goes to all classes alike.
    pub smoothing: f64,
    pub lr: f64,
    pub weight_decay: f64,
    pub betas: [f64; 2],
    pub adam_eps: f64,
    /// Largest norm of the whole gradient; None switches clipping off.
    #[serde(default)]
    pub clip_norm: Option<f64>,
    pub encoder: EncoderConfig,
}

impl StepConfig {
    /// # Errors
    /// [`Error::Config`] naming a key that is out of range.
    pub fn validate(&self) -> Result<()> {
        if self.batch == 0 {
            return Err(Error::config("batch", "must be at least 1"));
        }
        if self.classes < 2 {
            let message = format!("{} is too few: there is nothing to tell apart below 2", self.classes);
            return Err(Error::config("supervised.classes", message));
        }
        if i32::try_from(self.classes).is_err() {
            return Err(Error::config("supervised.classes", format!("{} are too many", self.classes)));
        }
        share("supervised.smoothing", self.smoothing)
    }
}

/// How the images of a batch are mixed with those of its reverse.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mixing {
    /// Both parameters of the Beta distribution of mixup's share; 0: never.
    pub mixup: f64,
    /// The same of cutmix.
    pub cutmix: f64,
    /// How often a batch is cut where both are on.
    pub switch: f64,
}

section! {
    /// What supervised training has beside what objectives share; the defaults are DeiT's.
    pub struct SupervisedSection {
        /// Number of classes; none: those of the images.
        pub classes: Option<usize> = None, Range::Whole(2, MAX_COUNT);
        /// Share of a label that goes to all classes alike.
        pub smoothing: f64 = 0.1, Range::BelowOne;
        /// Parameter of the Beta distribution of mixup's share; 0: no mixup.
        pub mixup: f64 = 0.8, Range::OffOr(SHAPES);
        /// The same of cutmix.
        pub cutmix: f64 = 1.0, Range::OffOr(SHAPES);
        /// How often a batch is cut where both are on.
        pub switch: f64 = 0.5, Range::UpTo(1.0);
    }
}

/// What the recipe has otherwise than SAIP's among the keys that both use: taken when a configuration changes to it.
pub const RECIPE: &str = "
[optim]
betas = [0.9, 0.999]
weight_decay = 0.05
weight_decay_end = \"none\"
clip_norm = 0.0
";

/// Parameters of a Beta distribution that can be drawn from without rounding to nothing.
const SHAPES: [f64; 2] = [0.001, 1000.0];

impl SupervisedSection {
    pub fn mixing(&self) -> Mixing {
        Mixing { mixup: self.mixup, cutmix: self.cutmix, switch: self.switch }
    }
}

fn share(key: &str, value: f64) -> Result<()> {
    if (0.0..1.0).contains(&value) {
        return Ok(());
    }
    Err(Error::config(key, format!("{value} must be 0 or more and less than 1; 0.1 is usual")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_range_is_named() {
        SupervisedSection::default().check("supervised").unwrap();
        let usual = SupervisedSection::default;
        for (key, section) in [
            ("smoothing", SupervisedSection { smoothing: 1.0, ..usual() }),
            ("smoothing", SupervisedSection { smoothing: f64::NAN, ..usual() }),
            ("mixup", SupervisedSection { mixup: -0.1, ..usual() }),
            ("mixup", SupervisedSection { mixup: 1e-9, ..usual() }),
            ("cutmix", SupervisedSection { cutmix: f64::INFINITY, ..usual() }),
            ("switch", SupervisedSection { switch: 1.5, ..usual() }),
            ("classes", SupervisedSection { classes: Some(1), ..usual() }),
        ] {
            let e = section.check("supervised").unwrap_err().to_string();
            assert!(e.contains(&format!("supervised.{key}")), "{e}");
        }
        SupervisedSection { mixup: 0.0, cutmix: 0.0, classes: Some(2), ..usual() }
            .check("supervised")
            .unwrap();
    }
}
