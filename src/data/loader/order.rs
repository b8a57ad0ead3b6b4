//! Which picture stands where: the shuffled order of each epoch.

use rand::RngExt;

use crate::data::rng::{Purpose, stream};

/// Random permutation of `0..n` for one epoch (Fisher-Yates on the epoch's own stream).
pub fn epoch_order(seed: u64, epoch: u64, n: usize) -> Vec<u32> {
    let rng = &mut stream(seed, epoch, 0, Purpose::Shuffle);
    let mut order: Vec<u32> = (0..n as u32).collect();
    for i in (1..n).rev() {
        order.swap(i, rng.random_range(0..=i as u64) as usize);
    }
    order
}

/// Walks the epochs step by step, keeping the current epoch's order.
#[derive(Debug)]
pub struct Order {
    seed: u64,
    /// Samples of an epoch: the pictures, or a whole batch when there are fewer pictures than that.
    samples: usize,
    /// Samples of one step on all ranks together.
    per_step: usize,
    current: Option<(u64, Vec<u32>)>,
}

impl Order {
    /// `per_step` is positive; `samples` at least that.
    pub fn new(seed: u64, samples: usize, per_step: usize) -> Self {
        Order { seed, samples: samples.max(per_step), per_step, current: None }
    }

    /// Complete steps in one epoch; what remains of the samples is dropped.
    pub fn steps_per_epoch(&self) -> u64 {
        (self.samples / self.per_step) as u64
    }

    /// The epoch of `step` and the samples `from..from + count` of that step.
    pub fn samples(&mut self, step: u64, from: usize, count: usize) -> (u64, Vec<u32>) {
        let per_epoch = self.steps_per_epoch();
        let (epoch, within) = (step / per_epoch, (step % per_epoch) as usize);
        if self.current.as_ref().is_none_or(|(e, _)| *e != epoch) {
            self.current = Some((epoch, epoch_order(self.seed, epoch, self.samples)));
        }
        let order = self.current.as_ref().map_or(&[][..], |(_, order)| order);
        let start = within * self.per_step + from;
        (epoch, order[start..start + count].to_vec())
    }
}
