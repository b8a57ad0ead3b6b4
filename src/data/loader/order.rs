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

/// Walks the epochs batch by batch, keeping the current epoch's order.
#[derive(Debug)]
pub struct Order {
    seed: u64,
    /// Samples of an epoch: the pictures, or a whole batch when there are fewer pictures than that.
    samples: usize,
    batch: usize,
    current: Option<(u64, Vec<u32>)>,
}

impl Order {
    /// `batch` is positive.
    pub fn new(seed: u64, samples: usize, batch: usize) -> Self {
        Order { seed, samples: samples.max(batch), batch, current: None }
    }

    /// Complete batches in one epoch; what remains of the samples is dropped.
    pub fn batches_per_epoch(&self) -> u64 {
        (self.samples / self.batch) as u64
    }

    /// The epoch of batch `number` of the run and its samples.
    pub fn samples(&mut self, number: u64) -> (u64, Vec<u32>) {
        let per_epoch = self.batches_per_epoch();
        let (epoch, within) = (number / per_epoch, (number % per_epoch) as usize);
        if self.current.as_ref().is_none_or(|(e, _)| *e != epoch) {
            self.current = Some((epoch, epoch_order(self.seed, epoch, self.samples)));
        }
        let order = self.current.as_ref().map_or(&[][..], |(_, order)| order);
        let start = within * self.batch;
        (epoch, order[start..start + self.batch].to_vec())
    }
}
