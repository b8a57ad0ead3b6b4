//! Separable Gaussian blur.

use crate::data::augment::color::Planes;

/// Scratch memory of the blur.
#[derive(Default)]
pub struct Blur {
    kernel: Vec<f32>,
    padded: Vec<f32>,
    rows: Vec<f32>,
}

/// `exp(-x^2 / 2 sigma^2)` on `-r..=r` with `r = ceil(3 sigma)`, normalised to sum 1.
pub fn gaussian_kernel(sigma: f32, kernel: &mut Vec<f32>) {
    let radius = (3.0 * sigma).ceil().max(1.0) as i32;
    kernel.clear();
    kernel.extend((-radius..=radius).map(|x| libm::expf(-0.5 * (x as f32 / sigma).powi(2))));
    let sum: f32 = kernel.iter().sum();
    kernel.iter_mut().for_each(|k| *k /= sum);
}

impl Blur {
    /// Blurs with standard deviation `sigma` pixels; borders are continued by their last pixel, as PIL does. (PIL
    /// approximates the Gaussian by three box filters; this is the Gaussian itself, cut at three deviations.)
    pub fn apply(&mut self, planes: &mut Planes, sigma: f32) {
        // Below this the outer taps vanish in 8 bits.
        if sigma < 0.15 || planes.data.is_empty() {
            return;
        }
        gaussian_kernel(sigma, &mut self.kernel);
        let (width, height) = (planes.width, planes.height);
        for channel in planes.channels_mut() {
            self.horizontal(channel, width);
            self.vertical(channel, width, height);
        }
    }

    fn horizontal(&mut self, channel: &[f32], width: usize) {
        let radius = self.kernel.len() / 2;
        self.rows.resize(channel.len(), 0.0);
        self.padded.resize(width + 2 * radius, 0.0);
        for (row, out) in channel.chunks_exact(width).zip(self.rows.chunks_exact_mut(width)) {
            self.padded[..radius].fill(row[0]);
            self.padded[radius..radius + width].copy_from_slice(row);
            self.padded[radius + width..].fill(row[width - 1]);
            accumulate(out, self.kernel.iter().enumerate().map(|(t, &k)| (k, &self.padded[t..t + width])));
        }
    }

    fn vertical(&mut self, channel: &mut [f32], width: usize, height: usize) {
        let radius = self.kernel.len() / 2;
        for (y, out) in channel.chunks_exact_mut(width).enumerate() {
            let taps = self.kernel.iter().enumerate().map(|(t, &k)| {
                let from = (y + t).saturating_sub(radius).min(height - 1);
                (k, &self.rows[from * width..(from + 1) * width])
            });
            accumulate(out, taps);
        }
    }
}

/// `out = sum of k * row`. The tap is the outer loop: the inner one then runs over contiguous pixels.
fn accumulate<'a>(out: &mut [f32], taps: impl Iterator<Item = (f32, &'a [f32])>) {
    out.fill(0.0);
    for (k, row) in taps {
        for (o, v) in out.iter_mut().zip(row) {
            *o += k * v;
        }
    }
}
