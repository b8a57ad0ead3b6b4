//! Photometric augmentation on f32 planes with values in [0, 1]. Every operation clamps its result to that range, as
//! torchvision's functional transforms do.

use image::RgbImage;
use rand::RngExt;

use crate::data::augment::config::{AugmentConfig, uniform};
use crate::data::rng::StreamRng;

/// ITU-R 601 luma weights, as PIL's `convert("L")`.
const LUMA: [f32; 3] = [0.299, 0.587, 0.114];

/// A picture as three planes `[3, height, width]`, values in [0, 1].
#[derive(Clone, Debug, Default)]
pub struct Planes {
    pub width: usize,
    pub height: usize,
    pub data: Vec<f32>,
}

impl Planes {
    /// Takes the pixels of `picture`, reusing this buffer.
    pub fn load(&mut self, picture: &RgbImage) {
        self.width = picture.width() as usize;
        self.height = picture.height() as usize;
        self.data.resize(3 * self.width * self.height, 0.0);
        let [r, g, b] = self.channels_mut();
        let planes = r.iter_mut().zip(g).zip(b);
        for (((r, g), b), px) in planes.zip(picture.as_raw().chunks_exact(3)) {
            *r = f32::from(px[0]) * (1.0 / 255.0);
            *g = f32::from(px[1]) * (1.0 / 255.0);
            *b = f32::from(px[2]) * (1.0 / 255.0);
        }
    }

    /// Writes the pixels back, rounded to the nearest of 256 levels. `picture` has the size that was loaded.
    pub fn store(&self, picture: &mut RgbImage) {
        let n = self.width * self.height;
        let (r, rest) = self.data.split_at(n);
        let (g, b) = rest.split_at(n);
        // The cast saturates and truncates, hence the half.
        let level = |v: f32| (v * 255.0 + 0.5) as u8;
        for (px, ((r, g), b)) in picture.chunks_exact_mut(3).zip(r.iter().zip(g).zip(b)) {
            px[0] = level(*r);
            px[1] = level(*g);
            px[2] = level(*b);
        }
    }

    /// The red, green and blue plane.
    pub fn channels_mut(&mut self) -> [&mut [f32]; 3] {
        let n = self.width * self.height;
        let (r, rest) = self.data.split_at_mut(n);
        let (g, b) = rest.split_at_mut(n);
        [r, g, b]
    }
}

/// One draw of torchvision's `ColorJitter`: four adjustments in random order.
#[derive(Clone, Copy, Debug)]
pub struct Jitter {
    pub order: [u8; 4],
    pub brightness: f32,
    pub contrast: f32,
    pub saturation: f32,
    /// In turns.
    pub hue: f32,
}

impl Jitter {
    pub fn draw(cfg: &AugmentConfig, rng: &mut StreamRng) -> Self {
        let mut order = [0, 1, 2, 3];
        for i in (1..order.len()).rev() {
            order.swap(i, rng.random_range(0..=i as u32) as usize);
        }
        let mut factor = |x: f64| uniform(rng, [1.0 - x, 1.0 + x]) as f32;
        let (brightness, contrast, saturation) =
            (factor(cfg.brightness), factor(cfg.contrast), factor(cfg.saturation));
        Jitter { order, brightness, contrast, saturation, hue: uniform(rng, [-cfg.hue, cfg.hue]) as f32 }
    }

    pub fn apply(&self, planes: &mut Planes) {
        for step in self.order {
            match step {
                0 => brightness(planes, self.brightness),
                1 => contrast(planes, self.contrast),
                2 => saturation(planes, self.saturation),
                _ => hue(planes, self.hue),
            }
        }
    }
}

pub fn brightness(planes: &mut Planes, factor: f32) {
    for v in &mut planes.data {
        *v = (*v * factor).clamp(0.0, 1.0);
    }
}

/// Moves every value away from (or towards) the mean luma of the picture.
pub fn contrast(planes: &mut Planes, factor: f32) {
    let pixels = (planes.width * planes.height) as f64;
    // The mean luma is the luma of the channel means. Rows are summed in eight fixed lanes, then in f64: exact enough
    // for any size, and the same on every machine.
    let width = planes.width.max(1);
    let mean: f64 = planes
        .channels_mut()
        .iter()
        .zip(LUMA)
        .map(|(c, weight)| c.chunks(width).map(row_sum).sum::<f64>() / pixels * f64::from(weight))
        .sum();
    let shift = (1.0 - factor) * mean as f32;
    for v in &mut planes.data {
        *v = (*v * factor + shift).clamp(0.0, 1.0);
    }
}

fn row_sum(row: &[f32]) -> f64 {
    let mut lanes = [0.0f32; 8];
    let chunks = row.chunks_exact(8);
    let rest: f64 = chunks.remainder().iter().map(|&v| f64::from(v)).sum();
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane += v;
        }
    }
    lanes.iter().map(|&v| f64::from(v)).sum::<f64>() + rest
}

/// Moves every pixel away from (or towards) its own luma.
pub fn saturation(planes: &mut Planes, factor: f32) {
    let [r, g, b] = planes.channels_mut();
    for ((r, g), b) in r.iter_mut().zip(g).zip(b) {
        let grey = (1.0 - factor) * (LUMA[0] * *r + LUMA[1] * *g + LUMA[2] * *b);
        *r = (*r * factor + grey).clamp(0.0, 1.0);
        *g = (*g * factor + grey).clamp(0.0, 1.0);
        *b = (*b * factor + grey).clamp(0.0, 1.0);
    }
}

/// Shifts the hue by `turns` (of the HSV colour circle), keeping value and chroma. Free of branches and of rounding
/// functions, so that it vectorises on the x86-64 baseline.
pub fn hue(planes: &mut Planes, turns: f32) {
    let shift = 6.0 * turns;
    let [r, g, b] = planes.channels_mut();
    for ((r, g), b) in r.iter_mut().zip(g).zip(b) {
        let (red, green, blue) = (*r, *g, *b);
        let max = red.max(green).max(blue);
        let chroma = max - red.min(green).min(blue);
        // Grey has no hue: any value gives it back.
        let scale = 1.0 / if chroma > 0.0 { chroma } else { 1.0 };
        let from_blue = (red - green) * scale + 4.0;
        let from_green = (blue - red) * scale + 2.0;
        let from_red = (green - blue) * scale;
        let sextant = if max == green { from_green } else { from_blue };
        let sextant = if max == red { from_red } else { sextant };
        // In [-1, 5] before the shift; one wrap each way brings |shift| <= 3 back to [0, 6].
        let h = sextant + shift;
        let h = if h < 0.0 { h + 6.0 } else { h };
        let h = if h >= 6.0 { h - 6.0 } else { h };
        let channel = |n: f32| {
            let k = n + h;
            let k = if k >= 6.0 { k - 6.0 } else { k };
            max - chroma * k.min(4.0 - k).clamp(0.0, 1.0)
        };
        *r = channel(5.0);
        *g = channel(3.0);
        *b = channel(1.0);
    }
}

/// Replaces every channel by the luma.
pub fn grayscale(planes: &mut Planes) {
    let [r, g, b] = planes.channels_mut();
    for ((r, g), b) in r.iter_mut().zip(g).zip(b) {
        let grey = LUMA[0] * *r + LUMA[1] * *g + LUMA[2] * *b;
        (*r, *g, *b) = (grey, grey, grey);
    }
}

/// Inverts the values of the upper half of the range (PIL's `ImageOps.solarize` with its default threshold of 128).
pub fn solarize(planes: &mut Planes) {
    for v in &mut planes.data {
        *v = if *v < 0.5 { *v } else { 1.0 - *v };
    }
}
