//! What optics, sensor and white balance do to a picture.

use super::dice::Dice;
use image::RgbImage;
use tiny_skia::Pixmap;

/// A camera's rendering of colours and detail, with the small changes of one image.
#[derive(Clone, Copy, Debug)]
pub struct Film {
    /// White balance, red green blue.
    pub gain: [f32; 3],
    pub brightness: f32,
    pub contrast: f32,
    pub gamma: f32,
    pub saturation: f32,
    /// Weight of the neighbours in the 3-tap blur, 0 (sharp) to 1/3 (box).
    pub blur: f32,
    pub blur_passes: usize,
    /// Standard deviation of the sensor noise, 8-bit steps.
    pub noise: f32,
}

impl Film {
    /// Develops the canvas into a picture.
    pub fn develop(&self, pixmap: &Pixmap, dice: &mut Dice) -> RgbImage {
        let (width, height) = (pixmap.width(), pixmap.height());
        let tables = self.tables();
        let mut rgb = Vec::with_capacity(width as usize * height as usize * 3);
        let keep = (256.0 * self.saturation) as i32;
        for pixel in pixmap.data().chunks_exact(4) {
            let (r, g, b) = (i32::from(pixel[0]), i32::from(pixel[1]), i32::from(pixel[2]));
            let grey = (77 * r + 150 * g + 29 * b) >> 8;
            for (channel, table) in [r, g, b].into_iter().zip(&tables) {
                let value = grey + (((channel - grey) * keep) >> 8);
                rgb.push(table[value.clamp(0, 255) as usize]);
            }
        }
        for _ in 0..self.blur_passes {
            blur(&mut rgb, width as usize, height as usize, self.blur);
        }
        self.add_noise(&mut rgb, dice);
        RgbImage::from_raw(width, height, rgb).unwrap_or_default()
    }

    fn tables(&self) -> [[u8; 256]; 3] {
        self.gain.map(|gain| {
            std::array::from_fn(|level| {
                let v = level as f32 / 255.0 * gain * self.brightness;
                let v = (v.max(0.0).powf(self.gamma) - 0.45) * self.contrast + 0.45;
                (v.clamp(0.0, 1.0) * 255.0 + 0.5) as u8
            })
        })
    }

    /// Noise that is cheap enough for every pixel: two bytes of a xorshift word summed.
    fn add_noise(&self, rgb: &mut [u8], dice: &mut Dice) {
        // Standard deviation of the sum of two uniform bytes is 104.5.
        let scale = (self.noise / 104.5 * 65536.0) as i32;
        let mut state = u64::from(dice.bits()) << 32 | u64::from(dice.bits()) | 1;
        let mut chunks = rgb.chunks_exact_mut(4);
        for four in &mut chunks {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let bytes = state.to_le_bytes();
            for (i, value) in four.iter_mut().enumerate() {
                let sum = i32::from(bytes[2 * i]) + i32::from(bytes[2 * i + 1]) - 255;
                *value = (i32::from(*value) + ((sum * scale + 32768) >> 16)).clamp(0, 255) as u8;
            }
        }
    }
}

/// One separable 3-tap blur in place; `weight` for each neighbour.
pub fn blur(rgb: &mut [u8], width: usize, height: usize, weight: f32) {
    let side = (weight.clamp(0.0, 0.34) * 256.0) as u32;
    if side == 0 || width < 3 || height < 3 {
        return;
    }
    let middle = 256 - 2 * side;
    let stride = width * 3;
    let mix = |a: u8, b: u8, c: u8| {
        ((u32::from(a) * side + u32::from(b) * middle + u32::from(c) * side + 128) >> 8) as u8
    };
    let mut line = vec![0u8; stride];
    for row in rgb.chunks_exact_mut(stride) {
        line.copy_from_slice(row);
        for i in 3..stride - 3 {
            row[i] = mix(line[i - 3], line[i], line[i + 3]);
        }
    }
    let mut above = rgb[..stride].to_vec();
    for y in 1..height - 1 {
        let (head, tail) = rgb.split_at_mut((y + 1) * stride);
        let row = &mut head[y * stride..];
        line.copy_from_slice(row);
        for i in 0..stride {
            row[i] = mix(above[i], line[i], tail[i]);
        }
        std::mem::swap(&mut above, &mut line);
    }
}
