//! Random draws for the generator, on top of the crate's counter-based streams.

use crate::data::rng::{Purpose, StreamRng, stream};
use rand::Rng;

/// What a draw is about; each is an independent family of streams (the `epoch` slot of [`stream`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Domain {
    /// One stream an identity: body, hair, clothes.
    Identity = 0,
    /// One stream a camera: viewpoint, colours, scene.
    Camera = 1,
    /// One stream an image: pose, crop, occlusion, noise.
    Image = 2,
    /// One stream for each group of identities that dress in similar colours.
    Outfit = 3,
}

/// A stream of random draws.
pub struct Dice(StreamRng);

impl Dice {
    pub fn new(seed: u64, domain: Domain, sample: u64) -> Self {
        Dice(stream(seed, domain as u64, sample, Purpose::Synth))
    }

    /// Uniform in `[0, 1)`.
    pub fn unit(&mut self) -> f32 {
        (self.0.next_u32() >> 8) as f32 / (1 << 24) as f32
    }

    /// Uniform in `[low, high)`.
    pub fn range(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit()
    }

    pub fn chance(&mut self, probability: f32) -> bool {
        self.unit() < probability
    }

    /// Uniform in `0..n`; 0 when `n` is 0.
    pub fn index(&mut self, n: usize) -> usize {
        ((u64::from(self.0.next_u32()) * n as u64) >> 32) as usize
    }

    /// Roughly normal with unit variance, bounded to ±3.46 (sum of four uniforms): bounded tails keep bodies sane.
    pub fn normal(&mut self) -> f32 {
        let sum = self.unit() + self.unit() + self.unit() + self.unit();
        (sum - 2.0) * 3f32.sqrt()
    }

    /// An index drawn in proportion to `weights`.
    pub fn weighted(&mut self, weights: &[f32]) -> usize {
        let mut left = self.unit() * weights.iter().sum::<f32>();
        for (index, weight) in weights.iter().enumerate() {
            left -= weight;
            if left < 0.0 {
                return index;
            }
        }
        weights.len().saturating_sub(1)
    }

    /// An option drawn in proportion to the weight beside it. `options` must not be empty.
    pub fn pick<T: Copy>(&mut self, options: &[(T, f32)]) -> T {
        let mut left = self.unit() * options.iter().map(|option| option.1).sum::<f32>();
        for (value, weight) in options {
            left -= weight;
            if left < 0.0 {
                return *value;
            }
        }
        options[options.len() - 1].0
    }

    pub fn bits(&mut self) -> u32 {
        self.0.next_u32()
    }
}
