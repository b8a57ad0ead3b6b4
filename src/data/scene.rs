//! The multi-person scene: two persons pasted onto another picture, and where they are on the token grid.

use image::RgbImage;
use rand::RngExt;

use crate::data::augment::{AugmentConfig, Augmenter, CropBox, Recipe, uniform};
use crate::data::rng::StreamRng;
use crate::error::Result;
use crate::ir::PATCH;

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

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;
    use crate::data::rng::{Purpose, stream};

    fn rng(i: u64) -> StreamRng {
        stream(1, 0, i, Purpose::Scene)
    }

    fn flat(w: u32, h: u32, colour: [u8; 3]) -> RgbImage {
        RgbImage::from_pixel(w, h, Rgb(colour))
    }

    #[test]
    fn instances_stay_inside_and_apart() {
        let cfg = AugmentConfig::default();
        // Persons, squares, wide pictures and mixtures: the fallback has to serve those that rarely fit by chance.
        let shapes =
            [[(128, 256), (80, 160)], [(64, 64), (64, 64)], [(300, 100), (300, 100)], [(16, 400), (400, 16)]];
        for sizes in shapes {
            for side in [32, 64, 224] {
                for i in 0..300 {
                    let [a, b] = place(&cfg, sizes, side, &mut rng(i));
                    assert_eq!(a.overlap(&b), 0, "{sizes:?} {side}: {a:?} {b:?}");
                    for at in [a, b] {
                        assert!(
                            at.width > 0 && at.height > 0 && at.right() <= side && at.bottom() <= side,
                            "{at:?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn sizes_follow_the_config_and_keep_the_aspect() {
        let cfg = AugmentConfig::default();
        let mut heights = Vec::new();
        for i in 0..500 {
            for at in place(&cfg, [(128, 256), (80, 160)], 224, &mut rng(i)) {
                assert!(at.width.abs_diff(at.height / 2) <= 1, "{at:?}");
                heights.push(at.height);
            }
        }
        assert!(heights.iter().all(|h| (78..=168).contains(h)));
        assert!(heights.iter().any(|&h| h < 95) && heights.iter().any(|&h| h > 150));
    }

    #[test]
    fn side_by_side_shrinks_only_when_needed() {
        let boxes = side_by_side([[100, 50], [80, 40]], 100);
        assert_eq!(boxes[0], InstanceBox { left: 0, top: 0, width: 50, height: 100 });
        assert_eq!(boxes[1], InstanceBox { left: 60, top: 10, width: 40, height: 80 });
        let boxes = side_by_side([[60, 100], [60, 100]], 100);
        assert_eq!(boxes.map(|b| [b.width, b.height]), [[50, 30]; 2]);
        assert_eq!(boxes[0].overlap(&boxes[1]), 0);
    }

    #[test]
    fn tokens_are_those_mostly_inside() {
        let mut seen_partial = false;
        for i in 0..200 {
            let at = place(&AugmentConfig::default(), [(128, 256), (80, 160)], 224, &mut rng(i))[0];
            let mut got = vec![7.0; 14 * 14];
            tokens_into(&at, 224, &mut got);
            for (cell, value) in got.iter().enumerate() {
                let (ty, tx) = (cell / 14, cell % 14);
                let inside = (0..256usize).filter(|p| {
                    let (y, x) = (ty * 16 + p / 16, tx * 16 + p % 16);
                    (at.left..at.right()).contains(&x) && (at.top..at.bottom()).contains(&y)
                });
                let inside = inside.count();
                seen_partial |= inside > 0 && inside < 128;
                assert_eq!(
                    *value,
                    if inside >= 128 { 1.0 } else { 0.0 },
                    "token {cell} of {at:?}: {inside} pixels"
                );
            }
        }
        assert!(seen_partial);
    }

    #[test]
    fn a_tiny_instance_still_has_its_token() {
        let mut got = vec![0.0; 16];
        tokens_into(&InstanceBox { left: 30, top: 45, width: 5, height: 4 }, 64, &mut got);
        // Columns 30..35 lie mostly in token column 2 (32..48), rows 45..49 mostly in token row 2 (32..48).
        let want: Vec<f32> = (0..16).map(|i| if i == 10 { 1.0 } else { 0.0 }).collect();
        assert_eq!(got, want);
    }

    #[test]
    fn pasted_pixels_are_where_the_boxes_say() {
        // Photometric changes off: colours then tell background and instances apart.
        let cfg = AugmentConfig { color_jitter: 0.0, grayscale: 0.0, blur: [0.0; 3], ..Default::default() };
        let (red, green) = (flat(128, 256, [200, 0, 0]), flat(80, 160, [0, 200, 0]));
        for i in 0..20 {
            let behind = flat(90, 70, [0, 0, 200]);
            let scene =
                compose(&cfg, &mut Augmenter::new(), &behind, [&red, &green], 224, &mut rng(i)).unwrap();
            assert_eq!(scene.picture.dimensions(), (224, 224));
            for (x, y, px) in scene.picture.enumerate_pixels() {
                let (x, y) = (x as usize, y as usize);
                let inside =
                    |b: &InstanceBox| (b.left..b.right()).contains(&x) && (b.top..b.bottom()).contains(&y);
                for (c, b) in scene.boxes.iter().enumerate() {
                    assert_eq!(px.0[c] > 0, inside(b), "channel {c} at {x},{y} of {b:?}");
                }
                let core = |b: &InstanceBox| {
                    let ramp = 12;
                    x >= b.left + ramp && x + ramp < b.right() && y >= b.top + ramp && y + ramp < b.bottom()
                };
                if core(&scene.boxes[0]) {
                    assert_eq!(px.0, [200, 0, 0], "the middle is opaque");
                }
            }
        }
    }

    #[test]
    fn edges_are_blended() {
        let mut scene = flat(64, 64, [0, 0, 0]);
        let at = InstanceBox { left: 10, top: 10, width: 30, height: 40 };
        paste(&mut scene, &flat(30, 40, [240, 240, 240]), at, 0.1);
        let row: Vec<u8> = (9..16).map(|x| scene.get_pixel(x, 30).0[0]).collect();
        assert_eq!(row, [0, 60, 120, 180, 240, 240, 240]);
    }
}
