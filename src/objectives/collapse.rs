//! Self-distillation that collapses while its loss looks well.

/// Measurements of the expert on one batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CollapseStats {
    /// Mean entropy of a sample's target distribution as a share of ln K: 1 when every one is uniform.
    pub sample_entropy: f64,
    /// Entropy of the batch's mean target distribution as a share of the most it can be beside rows as sharp as these:
    /// about 0 when all samples choose the same prototype, 1 when no two have a prototype in common.
    pub mean_entropy: f64,
    /// Spread of the image features: 1 when directions are spread evenly, 0 when all rows point the same way.
    pub spread: f64,
}

impl CollapseStats {
    /// From what the step computes on `rows` expert views over `prototypes`: mean entropy of the target distributions
    /// and entropy of their mean, both in nats, and the spread.
    pub fn new([sample, mean, spread]: [f64; 3], prototypes: usize, rows: usize) -> Self {
        let ln_k = (prototypes.max(2) as f64).ln();
        // The entropy of a mixture is at most the mean entropy of its parts and that of the choice among them.
        let most = ln_k.min(sample + (rows.max(1) as f64).ln());
        // Rounding may carry an entropy beyond its limits; NaN stays NaN.
        let share = |value: f64, most: f64| (value / most).clamp(0.0, 1.0);
        CollapseStats {
            sample_entropy: share(sample, ln_k),
            // A single sharp row is all that there can be.
            mean_entropy: if most <= 0.0 { 1.0 } else { share(mean, most) },
            spread: spread.clamp(0.0, 1.0),
        }
    }
}

/// The ways in which self-distillation fails while its loss looks well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collapse {
    /// All samples choose the same few prototypes.
    OnePrototype,
    /// The targets are uniform: the loss stays at ln K.
    Uniform,
    /// The features of all images point the same way.
    Features,
}

impl Collapse {
    fn advice(self) -> &'static str {
        match self {
            Collapse::OnePrototype => {
                "nearly all images choose the same prototype: the centering of the expert is too slow or the \
                 temperature too sharp. Lower `optim.center_momentum` (0.9), or raise `optim.teacher_temp` slightly"
            }
            Collapse::Uniform => {
                "the expert's targets are uniform, so the matching loss stays near ln(prototypes): lower \
                 `optim.teacher_temp` (0.04), raise `optim.base_lr` if it is small, or use fewer `csm.prototypes`"
            }
            Collapse::Features => {
                "the features of all images are nearly the same: lower `optim.base_lr`, lengthen the warm-up, raise \
                 `optim.ema_momentum`, and check that the images differ (no duplicates, decoding works)"
            }
        }
    }
}

/// When a collapse is told: the `run.alarm_*` keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    /// Smallest share of its maximum that the entropy of the mean target may have.
    pub low: f64,
    /// Largest share of ln K that the mean entropy of the targets may have.
    pub high: f64,
    /// Smallest spread of the features.
    pub spread: f64,
    /// Steps in a row before an alarm; 0 switches the alarms off.
    pub steps: u64,
}

/// Warns when a collapse lasts. Each kind warns once, and again only after it has gone in between.
#[derive(Clone, Debug)]
pub struct CollapseAlarm {
    thresholds: Thresholds,
    /// Observed steps in a row, per kind.
    lasted: [u64; 3],
}

impl CollapseAlarm {
    pub fn new(thresholds: Thresholds) -> Self {
        CollapseAlarm { thresholds, lasted: [0; 3] }
    }

    /// Notes the measurements of `step`, the last of `elapsed` steps since the previous measurement. Returns the
    /// alarms that go off now, each with the sentence for the user.
    pub fn observe(&mut self, step: u64, elapsed: u64, stats: &CollapseStats) -> Vec<(Collapse, String)> {
        if self.thresholds.steps == 0 {
            return Vec::new();
        }
        // Each comparison is false for NaN: steps that are not finite are the other guard's.
        let signs = [
            (
                Collapse::OnePrototype,
                stats.mean_entropy < self.thresholds.low,
                "entropy of the mean target",
                stats.mean_entropy,
            ),
            (
                Collapse::Uniform,
                stats.sample_entropy > self.thresholds.high,
                "mean entropy of the targets",
                stats.sample_entropy,
            ),
            (
                Collapse::Features,
                stats.spread < self.thresholds.spread,
                "spread of the features",
                stats.spread,
            ),
        ];
        let mut alarms = Vec::new();
        for ((kind, present, what, value), lasted) in signs.into_iter().zip(&mut self.lasted) {
            let before = *lasted;
            *lasted = if present { before.saturating_add(elapsed) } else { 0 };
            if before < self.thresholds.steps && *lasted >= self.thresholds.steps {
                let advice = kind.advice();
                let text = format!("step {step}: collapse for {lasted} steps ({what} {value:.4}): {advice}");
                alarms.push((kind, text));
            }
        }
        alarms
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;

    #[test]
    fn entropies_are_shares_of_the_most_they_can_be() {
        let ln = |n: f64| n.ln();
        // Sharp targets, all different: 6 rows can fill no more than 6 of 80 prototypes.
        let healthy = CollapseStats::new([0.0, ln(6.0), 0.7], 80, 6);
        assert_eq!(healthy.sample_entropy, 0.0);
        assert_relative_eq!(healthy.mean_entropy, 1.0, max_relative = 1e-12);
        assert_eq!(healthy.spread, 0.7);
        let uniform = CollapseStats::new([ln(4.0), ln(4.0), 1.0], 4, 64);
        assert_relative_eq!(uniform.sample_entropy, 1.0, max_relative = 1e-12);
        assert_relative_eq!(uniform.mean_entropy, 1.0, max_relative = 1e-12);
        // One row is its own mean, as spread as it can be.
        assert_eq!(CollapseStats::new([0.0, 0.0, 0.0], 80, 1).mean_entropy, 1.0);
        // All rows sharp and the same.
        assert_eq!(CollapseStats::new([0.0, 0.0, 0.0], 80, 6).mean_entropy, 0.0);
        let nan = CollapseStats::new([f64::NAN; 3], 80, 6);
        assert!(nan.sample_entropy.is_nan() && nan.mean_entropy.is_nan() && nan.spread.is_nan());
    }

    /// Few rows over many prototypes, blurred or sharp: a share of a maximum is a share.
    #[test]
    fn no_share_leaves_its_range() {
        let entropy = |p: &[f64]| -p.iter().filter(|p| **p > 0.0).map(|p| p * p.ln()).sum::<f64>();
        for (rows, k) in [(4, 64), (2, 65536), (64, 4), (6, 80)] {
            for temperature in [0.02, 0.3, 10.0] {
                let logit = |i: usize, j: usize| ((i * 31 + j * 17) % 23) as f64 / 23.0 / temperature;
                let row = |i: usize| -> Vec<f64> {
                    let e: Vec<f64> = (0..k).map(|j| logit(i, j).exp()).collect();
                    let sum: f64 = e.iter().sum();
                    e.iter().map(|e| e / sum).collect()
                };
                let all: Vec<Vec<f64>> = (0..rows).map(row).collect();
                let n = rows as f64;
                let sample = all.iter().map(|r| entropy(r)).sum::<f64>() / n;
                let mean: Vec<f64> = (0..k).map(|j| all.iter().map(|r| r[j]).sum::<f64>() / n).collect();
                let stats = CollapseStats::new([sample, entropy(&mean), 0.5], k, rows);
                for share in [stats.sample_entropy, stats.mean_entropy] {
                    assert!((0.0..=1.0).contains(&share), "{rows} rows, {k} prototypes: {stats:?}");
                }
            }
        }
    }

    #[test]
    fn alarms_need_patience_and_go_off_once() {
        let thresholds = Thresholds { low: 0.05, high: 0.95, spread: 0.05, steps: 20 };
        let mut alarm = CollapseAlarm::new(thresholds);
        let healthy = CollapseStats { sample_entropy: 0.1, mean_entropy: 0.9, spread: 0.8 };
        let one = CollapseStats { sample_entropy: 0.0, mean_entropy: 0.0, ..healthy };
        let uniform = CollapseStats { sample_entropy: 1.0, mean_entropy: 1.0, ..healthy };
        let flat = CollapseStats { spread: 0.0, ..healthy };
        for (bad, kind, key) in [
            (one, Collapse::OnePrototype, "optim.center_momentum"),
            (uniform, Collapse::Uniform, "optim.teacher_temp"),
            (flat, Collapse::Features, "optim.ema_momentum"),
        ] {
            for _ in 0..2 {
                assert!(alarm.observe(10, 10, &bad).is_empty());
                let alarms = alarm.observe(20, 10, &bad);
                assert_eq!(alarms.len(), 1);
                assert_eq!(alarms[0].0, kind);
                assert!(alarms[0].1.contains(key) && alarms[0].1.contains("step 20"), "{}", alarms[0].1);
                assert!(alarm.observe(30, 10, &bad).is_empty(), "only once");
                assert!(alarm.observe(40, 10, &healthy).is_empty());
            }
        }
        let nan = CollapseStats { sample_entropy: f64::NAN, mean_entropy: f64::NAN, spread: f64::NAN };
        assert!((0..10).all(|i| alarm.observe(i, 10, &nan).is_empty()));
        let mut off = CollapseAlarm::new(Thresholds { steps: 0, ..thresholds });
        assert!((0..100).all(|i| off.observe(i, 1, &one).is_empty()));
    }
}
