//! How views are augmented.

use crate::data::rng::StreamRng;
use crate::error::{Error, Result};
use rand::RngExt;
use serde::{Deserialize, Serialize};

/// Strength and frequency of every augmentation. The photometric defaults are DINO's. Crop scales keep DINO's rule that
/// local crops end where global ones begin, with the border raised from 0.4 to 0.5: the images are already cropped to
/// one person, and person pretraining (SOLIDER: 0.8 to 1.0) keeps global views nearly whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AugmentConfig {
    /// Area of a global crop, as a fraction of the picture's.
    pub global_scale: [f64; 2],
    /// Area of a plain local crop.
    pub local_scale: [f64; 2],
    /// Area of the rescaled local crop, which is also pasted into the scene: larger, so that it can be recognised there.
    pub rescaled_scale: [f64; 2],
    /// Aspect (width / height) of a crop relative to the aspect of the view it becomes.
    pub ratio: [f64; 2],
    pub flip: f64,
    /// Probability of the colour jitter as a whole.
    pub color_jitter: f64,
    /// Factor in `[1 - x, 1 + x]`.
    pub brightness: f64,
    /// Factor in `[1 - x, 1 + x]`.
    pub contrast: f64,
    /// Factor in `[1 - x, 1 + x]`.
    pub saturation: f64,
    /// Shift in `[-x, x]` turns of the hue circle.
    pub hue: f64,
    pub grayscale: f64,
    /// Probability of the blur for the anchor view, global view 1, and local views.
    pub blur: [f64; 3],
    /// Standard deviation of the blur in pixels (PIL's "radius").
    pub blur_radius: [f64; 2],
    /// Probability of solarisation, global view 1 only.
    pub solarize: f64,
    /// Side of the square cut from the scene's background, as a fraction of its shorter side.
    pub background_scale: [f64; 2],
    /// Height of a pasted instance as a fraction of the scene's side.
    pub instance_height: [f64; 2],
    /// Width of the blended edge of a pasted instance, as a fraction of its shorter side.
    pub feather: f64,
}

impl Default for AugmentConfig {
    fn default() -> Self {
        AugmentConfig {
            global_scale: [0.5, 1.0],
            local_scale: [0.05, 0.5],
            rescaled_scale: [0.2, 0.8],
            ratio: [3.0 / 4.0, 4.0 / 3.0],
            flip: 0.5,
            color_jitter: 0.8,
            brightness: 0.4,
            contrast: 0.4,
            saturation: 0.2,
            hue: 0.1,
            grayscale: 0.2,
            blur: [1.0, 0.1, 0.5],
            blur_radius: [0.1, 2.0],
            solarize: 0.2,
            background_scale: [0.6, 1.0],
            instance_height: [0.35, 0.75],
            feather: 0.06,
        }
    }
}

impl AugmentConfig {
    /// Checks every field's range; the error names the field.
    pub fn validate(&self) -> Result<()> {
        let fail = |key: &str, message: String| Err(Error::config(format!("augment.{key}"), message));
        let ranges = [
            ("global_scale", self.global_scale, 1.0),
            ("local_scale", self.local_scale, 1.0),
            ("rescaled_scale", self.rescaled_scale, 1.0),
            ("ratio", self.ratio, 100.0),
            ("blur_radius", self.blur_radius, 64.0),
            ("background_scale", self.background_scale, 1.0),
            ("instance_height", self.instance_height, 1.0),
        ];
        for (key, [low, high], most) in ranges {
            // Negated comparisons, so that NaN is refused too.
            if !(low > 0.0 && low <= high && high <= most) {
                return fail(key, format!("[{low}, {high}] is not a range within (0, {most}]"));
            }
        }
        let fractions = [
            ("flip", self.flip),
            ("color_jitter", self.color_jitter),
            ("brightness", self.brightness),
            ("contrast", self.contrast),
            ("saturation", self.saturation),
            ("grayscale", self.grayscale),
            ("blur", self.blur[0]),
            ("blur", self.blur[1]),
            ("blur", self.blur[2]),
            ("solarize", self.solarize),
        ];
        for (key, value) in fractions {
            if !(0.0..=1.0).contains(&value) {
                return fail(key, format!("{value} is not within [0, 1]"));
            }
        }
        for (key, value) in [("hue", self.hue), ("feather", self.feather)] {
            if !(0.0..=0.5).contains(&value) {
                return fail(key, format!("{value} is not within [0, 0.5]"));
            }
        }
        Ok(())
    }
}

/// The parts of a recipe in which the views differ.
#[derive(Clone, Copy, Debug)]
pub struct Recipe {
    pub scale: [f64; 2],
    pub blur: f64,
    pub solarize: f64,
}

impl AugmentConfig {
    /// Global view 0, the anchor.
    pub fn anchor(&self) -> Recipe {
        Recipe { scale: self.global_scale, blur: self.blur[0], solarize: 0.0 }
    }
    /// Global view 1.
    pub fn second(&self) -> Recipe {
        Recipe { scale: self.global_scale, blur: self.blur[1], solarize: self.solarize }
    }
    pub fn local(&self) -> Recipe {
        Recipe { scale: self.local_scale, blur: self.blur[2], solarize: 0.0 }
    }
    pub fn rescaled(&self) -> Recipe {
        Recipe { scale: self.rescaled_scale, blur: self.blur[2], solarize: 0.0 }
    }
}

/// Uniform in `[low, high]`.
pub fn uniform(rng: &mut StreamRng, [low, high]: [f64; 2]) -> f64 {
    low + (high - low) * rng.random::<f64>()
}

/// True with probability `p`.
pub fn chance(rng: &mut StreamRng, p: f64) -> bool {
    rng.random::<f64>() < p
}
