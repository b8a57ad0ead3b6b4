//! What changes from step to step: learning rate, weight decay and the expert's momentum. Pure functions of the
//! step, so that a resumed run continues exactly where it stopped.

use std::f64::consts::PI;

/// The schedules of one run. A step is one update of the parameters (after gradient accumulation), counted from 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// Updates of the whole run.
    pub steps: u64,
    /// Updates of one pass over the images, at least 1.
    pub steps_per_epoch: u64,
    /// Updates of the linear warm-up; less than `steps`.
    pub warmup_steps: u64,
    /// Learning rate at the end of the warm-up.
    pub peak_lr: f64,
    /// Learning rate at the end of the run.
    pub min_lr: f64,
    pub weight_decay: f64,
    /// Weight decay at the end of the run; equal to `weight_decay` for a constant one.
    pub weight_decay_end: f64,
    /// Momentum of the expert at step 0; 1 at the end of the run.
    pub ema_momentum: f64,
}

impl Schedule {
    /// Learning rate of `step`: see [`warmup_cosine`].
    pub fn lr_at(&self, step: u64) -> f64 {
        warmup_cosine(step, self.steps, self.warmup_steps, self.peak_lr, self.min_lr)
    }

    /// The pass over the images that `step` belongs to, from 0.
    pub fn epoch_at(&self, step: u64) -> u64 {
        step / self.steps_per_epoch.max(1)
    }

    /// Weight decay of `step`: cosine from `weight_decay` to `weight_decay_end` over all steps.
    pub fn weight_decay_at(&self, step: u64) -> f64 {
        cosine(step, self.steps, self.weight_decay, self.weight_decay_end)
    }

    /// EMA momentum of the expert at `step`: cosine from its start to 1 over all steps.
    pub fn ema_momentum_at(&self, step: u64) -> f64 {
        cosine(step, self.steps, self.ema_momentum, 1.0)
    }
}

/// The batch that base learning rates are stated for.
pub const REFERENCE_BATCH: f64 = 256.0;

/// Linear scaling rule: `base_lr` is per 256 images.
pub fn scaled_lr(base_lr: f64, effective_batch: usize) -> f64 {
    base_lr * effective_batch as f64 / REFERENCE_BATCH
}

/// `from` at step 0, `to` at step `steps` and beyond, along half a cosine wave.
pub fn cosine(step: u64, steps: u64, from: f64, to: f64) -> f64 {
    // Exact end points: the wave's rounding must not turn a constant into almost a constant.
    if step >= steps || from == to {
        return to;
    }
    if step == 0 {
        return from;
    }
    let wave = 0.5 * (1.0 + libm::cos(PI * (step as f64 / steps as f64)));
    to + (from - to) * wave
}

/// Linear to `peak` over `warmup` steps, then half a cosine wave down to `min` over the rest.
///
/// The first step has `peak / warmup`, not 0, which would waste it; step `warmup - 1` has `peak`, and so has step
/// `warmup`, where the cosine starts.
pub fn warmup_cosine(step: u64, steps: u64, warmup: u64, peak: f64, min: f64) -> f64 {
    if step < warmup {
        return peak * ((step + 1) as f64 / warmup as f64);
    }
    cosine(step - warmup, steps.saturating_sub(warmup), peak, min)
}

/// Linear from 0 to `peak` over `warmup` steps, both ends included, then half a cosine wave down to `min`, which begins at
/// `peak` once more (DINO's `utils.cosine_scheduler`).
pub fn rise_cosine(step: u64, steps: u64, warmup: u64, peak: f64, min: f64) -> f64 {
    if step < warmup {
        return peak * step as f64 / warmup.saturating_sub(1).max(1) as f64;
    }
    cosine(step - warmup, steps.saturating_sub(warmup), peak, min)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn paper() -> Schedule {
        Schedule {
            steps: 3000,
            steps_per_epoch: 100,
            warmup_steps: 100,
            peak_lr: 2e-3,
            min_lr: 1e-6,
            weight_decay: 0.05,
            weight_decay_end: 0.05,
            ema_momentum: 0.996,
        }
    }

    #[test]
    fn known_points() {
        let s = paper();
        assert_eq!(s.lr_at(0), 2e-3 / 100.0);
        assert_eq!(s.lr_at(99), 2e-3);
        assert_eq!(s.lr_at(100), 2e-3);
        approx::assert_relative_eq!(s.lr_at(100 + 1450), (2e-3 + 1e-6) / 2.0, max_relative = 1e-12);
        assert_eq!(s.lr_at(3000), 1e-6);
        assert_eq!(s.lr_at(u64::MAX), 1e-6);
        assert_eq!(s.ema_momentum_at(0), 0.996);
        approx::assert_relative_eq!(s.ema_momentum_at(1500), 0.998, max_relative = 1e-12);
        assert_eq!(s.ema_momentum_at(3000), 1.0);
        // A quarter of the way: 1 - 0.004 * (1 + cos(pi / 4)) / 2
        approx::assert_relative_eq!(s.ema_momentum_at(750), 0.996_585_786_437_627, max_relative = 1e-12);
        assert!((0..3000).all(|i| s.weight_decay_at(i) == 0.05));
        assert_eq!(scaled_lr(2.5e-4, 2048), 2e-3);
        assert_eq!(warmup_cosine(0, 10, 0, 1.0, 0.0), 1.0);
    }

    #[test]
    fn a_rise_contains_both_of_its_ends() {
        let lr: Vec<f64> = (0..20).map(|i| rise_cosine(i, 20, 5, 1e-3, 1e-6)).collect();
        assert_eq!([lr[0], lr[2], lr[4], lr[5]], [0.0, 1e-3 * 2.0 / 4.0, 1e-3, 1e-3]);
        assert!(lr[5..].windows(2).all(|w| w[1] < w[0]) && lr[19] > 1e-6, "{lr:?}");
        assert_eq!(rise_cosine(20, 20, 5, 1e-3, 1e-6), 1e-6);
        // A rise of one step is at 0, none begins at the peak.
        assert_eq!([rise_cosine(0, 3, 1, 1.0, 0.0), rise_cosine(0, 3, 0, 1.0, 0.0)], [0.0, 1.0]);
        assert_eq!([0, 99, 100, 2999].map(|i| paper().epoch_at(i)), [0, 0, 1, 29]);
    }

    proptest! {
        #[test]
        fn lr_rises_then_falls_and_stays_in_range(
            steps in 1u64..5000, share in 0.0f64..1.0, peak in 1e-6f64..1.0, ratio in 0.0f64..1.0
        ) {
            let warmup = ((steps as f64 * share) as u64).min(steps - 1);
            let min = peak * ratio;
            let lr = |i| warmup_cosine(i, steps, warmup, peak, min);
            for i in 0..steps {
                let (a, b) = (lr(i), lr(i + 1));
                prop_assert!(a > 0.0 && a <= peak * (1.0 + 1e-12));
                if i + 1 < warmup { prop_assert!(b > a) } else { prop_assert!(b <= a * (1.0 + 1e-12)) }
                if i >= warmup { prop_assert!(a >= min * (1.0 - 1e-12)) }
            }
            prop_assert_eq!(lr(steps), min);
        }

        #[test]
        fn momentum_rises_from_its_start_to_one(steps in 1u64..5000, start in 0.0f64..=1.0) {
            let s = Schedule { steps, ema_momentum: start, ..paper() };
            prop_assert_eq!(s.ema_momentum_at(0), start);
            prop_assert_eq!(s.ema_momentum_at(steps), 1.0);
            for i in 0..steps {
                let (a, b) = (s.ema_momentum_at(i), s.ema_momentum_at(i + 1));
                prop_assert!((start..=1.0).contains(&a) && b >= a);
            }
        }
    }
}
