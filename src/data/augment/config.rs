//! How views are augmented.

use crate::data::rng::StreamRng;
use crate::keys::{Range, section};
use rand::RngExt;

section! {
    /// Strength and frequency of every augmentation. The photometric defaults are DINO's. Crop scales keep DINO's rule that
    /// local crops end where global ones begin, with the border raised from 0.4 to 0.5: the images are already cropped to
    /// one person, and person pretraining (SOLIDER: 0.8 to 1.0) keeps global views nearly whole.
    pub struct AugmentConfig {
        /// Area of a global crop, as a share of the image's.
        pub global_scale: [f64; 2] = [0.5, 1.0], Range::Spread(1.0);
        /// Area of a plain local crop.
        pub local_scale: [f64; 2] = [0.05, 0.5], Range::Spread(1.0);
        /// Area of the rescaled local crop, also pasted into the scene: larger, to be recognised there.
        pub rescaled_scale: [f64; 2] = [0.2, 0.8], Range::Spread(1.0);
        /// Aspect (width / height) of a crop relative to its view's.
        pub ratio: [f64; 2] = [3.0 / 4.0, 4.0 / 3.0], Range::Spread(100.0);
        /// Probability of a horizontal flip.
        pub flip: f64 = 0.5, Range::UpTo(1.0);
        /// Probability of the colour jitter as a whole.
        pub color_jitter: f64 = 0.8, Range::UpTo(1.0);
        /// Jitter: factor in [1 - x, 1 + x].
        pub brightness: f64 = 0.4, Range::UpTo(1.0);
        /// Jitter: factor in [1 - x, 1 + x].
        pub contrast: f64 = 0.4, Range::UpTo(1.0);
        /// Jitter: factor in [1 - x, 1 + x].
        pub saturation: f64 = 0.2, Range::UpTo(1.0);
        /// Jitter: shift in [-x, x] turns of the hue circle.
        pub hue: f64 = 0.1, Range::UpTo(0.5);
        /// Probability of grayscale.
        pub grayscale: f64 = 0.2, Range::UpTo(1.0);
        /// Probability of a blur: anchor, second global view, local views.
        pub blur: [f64; 3] = [1.0, 0.1, 0.5], Range::UpTo(1.0);
        /// Standard deviation of the blur in pixels (PIL's "radius").
        pub blur_radius: [f64; 2] = [0.1, 2.0], Range::Spread(64.0);
        /// Probability of solarisation, second global view only.
        pub solarize: f64 = 0.2, Range::UpTo(1.0);
        /// Edge of the scene's background, as a share of its image's shorter side.
        pub background_scale: [f64; 2] = [0.6, 1.0], Range::Spread(1.0);
        /// Height of a pasted person, as a share of the scene's.
        pub instance_height: [f64; 2] = [0.35, 0.75], Range::Spread(1.0);
        /// Blended edge of a pasted person, as a share of its shorter side.
        pub feather: f64 = 0.06, Range::UpTo(0.5);
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
