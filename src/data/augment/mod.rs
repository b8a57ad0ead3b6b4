//! Random augmentation of one picture, after torchvision and DINO: RandomResizedCrop, horizontal flip, colour jitter,
//! grayscale, Gaussian blur, solarisation. Pictures are 8-bit RGB before and after, as in PIL pipelines; in between all
//! photometric steps share one f32 working copy in planes, so nothing is rounded twice and every loop vectorises.

pub mod blur;
pub mod color;
mod config;
pub mod crop;
pub mod normalize;
#[cfg(test)]
mod tests;

use image::RgbImage;

use crate::data::rng::StreamRng;
use crate::error::Result;
pub use blur::Blur;
pub use color::Planes;
pub use config::{AugmentConfig, Recipe, chance, uniform};
pub use crop::{CropBox, Resampler, random_resized_crop};

/// One thread's augmentation state: scratch memory that is reused from picture to picture.
#[derive(Default)]
pub struct Augmenter {
    pub resampler: Resampler,
    planes: Planes,
    blur: Blur,
}

impl Augmenter {
    pub fn new() -> Self {
        Self::default()
    }

    /// One random view of `src`, `[height, width]` pixels: crop, flip, photometric steps.
    pub fn view(
        &mut self,
        cfg: &AugmentConfig,
        recipe: Recipe,
        src: &RgbImage,
        [height, width]: [usize; 2],
        rng: &mut StreamRng,
    ) -> Result<RgbImage> {
        let aspect = width as f64 / height as f64;
        let ratio = [cfg.ratio[0] * aspect, cfg.ratio[1] * aspect];
        let crop = random_resized_crop(src.width(), src.height(), recipe.scale, ratio, rng);
        let mut out = self.resampler.resize(src, crop, width, height)?;
        self.photometric(cfg, recipe, &mut out, rng);
        Ok(out)
    }

    /// Flip, colour jitter, grayscale, blur and solarisation, in DINO's order.
    pub fn photometric(
        &mut self,
        cfg: &AugmentConfig,
        recipe: Recipe,
        out: &mut RgbImage,
        rng: &mut StreamRng,
    ) {
        // All coins are tossed first: many views need no floating-point pass at all.
        let flip = chance(rng, cfg.flip);
        let jitter = chance(rng, cfg.color_jitter).then(|| color::Jitter::draw(cfg, rng));
        let gray = chance(rng, cfg.grayscale);
        let sigma = chance(rng, recipe.blur).then(|| uniform(rng, cfg.blur_radius));
        let solarize = chance(rng, recipe.solarize);

        if flip {
            image::imageops::flip_horizontal_in_place(out);
        }
        if jitter.is_none() && !gray && sigma.is_none() && !solarize {
            return;
        }
        self.planes.load(out);
        if let Some(jitter) = jitter {
            jitter.apply(&mut self.planes);
        }
        if gray {
            color::grayscale(&mut self.planes);
        }
        if let Some(sigma) = sigma {
            self.blur.apply(&mut self.planes, sigma as f32);
        }
        if solarize {
            color::solarize(&mut self.planes);
        }
        self.planes.store(out);
    }
}
