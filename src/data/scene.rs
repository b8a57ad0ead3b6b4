//! The multi-person scene: two persons pasted onto another picture, and where they are on the token grid.

use image::RgbImage;
use rand::RngExt;

use crate::data::augment::{AugmentConfig, Augmenter, CropBox, Recipe, uniform};
use crate::data::rng::StreamRng;
use crate::error::Result;
use crate::saip::config::PATCH;

/// Where an instance lies in the scene, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstanceBox {
    pub left: usize,
    pub top: usize,
    pub width: usize,
    pub height: usize,
}

impl InstanceBox {
    pub fn right(&self) -> usize {
        self.left + self.width
    }
    pub fn bottom(&self) -> usize {
        self.top + self.height
    }
    /// Pixels that both boxes cover.
    pub fn overlap(&self, other: &InstanceBox) -> usize {
        let w = self.right().min(other.right()).saturating_sub(self.left.max(other.left));
        let h = self.bottom().min(other.bottom()).saturating_sub(self.top.max(other.top));
        w * h
    }
}

/// A scene `[S, S]` and its two instances.
#[derive(Clone, Debug)]
pub struct Scene {
    pub picture: RgbImage,
    pub boxes: [InstanceBox; 2],
}

/// How often a random placement is tried before the instances are set side by side.
const PLACEMENTS: usize = 20;

/// Builds the scene: a square of `background`, covering `side` x `side` pixels, with its own flip, colours and (rarely)
/// blur; on it `instances` 0 and 1 at random sizes and places that do not overlap, their edges blended.
pub fn compose(
    cfg: &AugmentConfig,
    augmenter: &mut Augmenter,
    background: &RgbImage,
    instances: [&RgbImage; 2],
    side: usize,
    rng: &mut StreamRng,
) -> Result<Scene> {
    let short = background.width().min(background.height());
    let edge = ((f64::from(short) * uniform(rng, cfg.background_scale)).round() as u32).clamp(1, short);
    let left = rng.random_range(0..=background.width() - edge);
    let top = rng.random_range(0..=background.height() - edge);
    let crop = CropBox { left, top, width: edge, height: edge };
    let mut picture = augmenter.resampler.resize(background, crop, side, side)?;
    // The second view's recipe without solarisation: colours vary, blur is rare, so the background stays natural.
    let recipe = Recipe { solarize: 0.0, ..cfg.second() };
    augmenter.photometric(cfg, recipe, &mut picture, rng);

    let boxes = place(cfg, instances.map(|p| p.dimensions()), side, rng);
    for (instance, at) in instances.into_iter().zip(boxes) {
        let resized = augmenter.resampler.fit(instance, [at.height, at.width])?;
        paste(&mut picture, &resized, at, cfg.feather);
    }
    Ok(Scene { picture, boxes })
}

/// Random sizes (aspect kept) and places without overlap for two instances of the given `(width, height)`.
pub fn place(
    cfg: &AugmentConfig,
    sizes: [(u32, u32); 2],
    side: usize,
    rng: &mut StreamRng,
) -> [InstanceBox; 2] {
    let drawn = sizes.map(|(w, h)| {
        let aspect = f64::from(w) / f64::from(h);
        let height = uniform(rng, cfg.instance_height) * side as f64;
        // A wide instance is shrunk until it fits across.
        let height = height.min(side as f64 * cfg.instance_height[1] / aspect);
        [pixels(height, side), pixels(height * aspect, side)]
    });
    for _ in 0..PLACEMENTS {
        let boxes = drawn.map(|[height, width]| InstanceBox {
            left: rng.random_range(0..=side - width),
            top: rng.random_range(0..=side - height),
            width,
            height,
        });
        if boxes[0].overlap(&boxes[1]) == 0 {
            return boxes;
        }
    }
    side_by_side(drawn, side)
}

/// Instance 0 at the left edge, instance 1 at the right, shrunk together when they are too wide; centred vertically.
fn side_by_side(sizes: [[usize; 2]; 2], side: usize) -> [InstanceBox; 2] {
    let total = sizes[0][1] + sizes[1][1];
    let shrink = (side as f64 / total as f64).min(1.0);
    // Rounded down, so that both together never exceed the side.
    let shrunk = sizes.map(|s| s.map(|v| ((v as f64 * shrink) as usize).max(1)));
    let at =
        |[height, width]: [usize; 2], left| InstanceBox { left, top: (side - height) / 2, width, height };
    [at(shrunk[0], 0), at(shrunk[1], side - shrunk[1][1])]
}

fn pixels(length: f64, side: usize) -> usize {
    (length.round() as usize).clamp(1, side)
}

/// Alpha blend with a linear ramp over the outer `feather` fraction of the shorter side: a hard edge would let the
/// network find instances by their seam.
fn paste(scene: &mut RgbImage, instance: &RgbImage, at: InstanceBox, feather: f64) {
    let ramp = ((at.width.min(at.height) as f64 * feather).round() as usize).max(1);
    // Weight of a pixel `d` pixels from the nearest edge, in 256ths; never zero, so the box is where the person is.
    let weight = |d: usize| (256 * (d + 1).min(ramp + 1) / (ramp + 1)) as u32;
    let row = 3 * scene.width() as usize;
    let rows = scene.chunks_exact_mut(row).skip(at.top);
    for (y, (to, from)) in rows.zip(instance.as_raw().chunks_exact(3 * at.width)).enumerate() {
        let to = &mut to[3 * at.left..3 * at.right()];
        let dy = y.min(at.height - 1 - y);
        for (x, (to, from)) in to.chunks_exact_mut(3).zip(from.chunks_exact(3)).enumerate() {
            let alpha = weight(dy.min(x.min(at.width - 1 - x)));
            for (t, f) in to.iter_mut().zip(from) {
                *t = ((u32::from(*f) * alpha + u32::from(*t) * (256 - alpha) + 128) >> 8) as u8;
            }
        }
    }
}

/// Writes the box onto the token grid `[side / P, side / P]`: 1 where at least half of the token's area is inside, else
/// 0. An instance smaller than that marks the one token it covers most.
pub fn tokens_into(at: &InstanceBox, side: usize, out: &mut [f32]) {
    let grid = side / PATCH;
    let covered = |cell: usize| {
        let (left, top) = (cell % grid * PATCH, cell / grid * PATCH);
        at.overlap(&InstanceBox { left, top, width: PATCH, height: PATCH })
    };
    let (mut best, mut any) = ((0, 0), false);
    for (cell, value) in out.iter_mut().enumerate().take(grid * grid) {
        let area = covered(cell);
        let inside = 2 * area >= PATCH * PATCH;
        *value = f32::from(u8::from(inside));
        any |= inside;
        if area > best.0 {
            best = (area, cell);
        }
    }
    if !any && let Some(value) = out.get_mut(best.1) {
        *value = 1.0;
    }
}
