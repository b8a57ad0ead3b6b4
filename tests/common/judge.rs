//! Whether the results of a case are right.

use super::cases::{Case, Derivative, Expected};
use super::check::{Precision, Probe, compare, compare_gradients, growth};
use super::tensor::Tensor;

/// What the outputs of a case must be.
pub enum Judge<'a> {
    /// Values with their tolerances.
    Reference(Vec<(Tensor, Tensor)>),
    Derivative {
        of: &'a Derivative,
        probes: Vec<Probe>,
        /// Per output: relative, absolute.
        tolerances: Vec<(f64, f64)>,
    },
}

impl<'a> Judge<'a> {
    /// For results computed with `precision`.
    pub fn new(case: &'a Case, precision: Precision) -> Self {
        match &case.expected {
            Expected::Reference => Judge::Reference(case.reference(precision)),
            Expected::Derivative(of) => {
                let sums = 4.0 * precision.sums * growth(case.longest_sum());
                let tolerances = (0..of.wrt.len())
                    .map(|slot| {
                        let roundoff = sums + case.stored(slot, precision);
                        // Central differences are good to 1e-9 or so; f32 is held to its own roundoff.
                        (roundoff.max(1e-6), roundoff.max(1e-9) * of.magnitude())
                    })
                    .collect();
                Judge::Derivative { of, probes: of.probes(&case.name), tolerances }
            }
        }
    }

    /// Outputs that the op has.
    pub fn count(&self) -> usize {
        match self {
            Judge::Reference(want) => want.len(),
            Judge::Derivative { of, .. } => of.wrt.len(),
        }
    }

    /// Holds the first outputs against what they must be.
    pub fn outputs(&self, got: &[Vec<f64>]) -> Result<(), String> {
        match self {
            Judge::Reference(want) => {
                for (slot, (g, (w, tolerance))) in got.iter().zip(want).enumerate() {
                    compare(g, w, tolerance).map_err(|e| format!("output {slot}: {e}"))?;
                }
                Ok(())
            }
            Judge::Derivative { of, probes, tolerances } => {
                let mut got = got.to_vec();
                if let Some(plus) = &of.plus {
                    got[0].iter_mut().zip(&plus.data).for_each(|(g, p)| *g -= p);
                }
                compare_gradients(&got, probes, tolerances)
            }
        }
    }

    /// Holds two results against each other: two that are within a tolerance of the truth lie within twice of it. Gives the
    /// number of elements, and of those that are equal bit for bit.
    pub fn between(&self, a: &[Vec<f64>], b: &[Vec<f64>]) -> Result<[usize; 2], String> {
        if a.len() != b.len() {
            return Err(format!("{} outputs against {}", a.len(), b.len()));
        }
        let [mut count, mut equal] = [0, 0];
        for (slot, (a, b)) in a.iter().zip(b).enumerate() {
            if a.len() != b.len() {
                return Err(format!("output {slot}: {} elements against {}", a.len(), b.len()));
            }
            let largest = a.iter().fold(0.0f64, |m, v| m.max(v.abs()));
            let (mut off, mut first) = (0, String::new());
            for (i, (&a, &b)) in a.iter().zip(b).enumerate() {
                let tolerance = match self {
                    Judge::Reference(want) => want[slot].1.data[i],
                    Judge::Derivative { tolerances, .. } => tolerances[slot].0 * largest + tolerances[slot].1,
                };
                let same = a.to_bits() == b.to_bits();
                let within = same || (a - b).abs() <= 2.0 * tolerance;
                if !within {
                    if off < 4 {
                        first += &format!("; at {i} {a:e} against {b:e}, tolerance {tolerance:.1e}");
                    }
                    off += 1;
                }
                count += 1;
                equal += usize::from(same);
            }
            if off > 0 {
                return Err(format!("output {slot}: {off} of {} elements differ{first}", a.len()));
            }
        }
        Ok([count, equal])
    }
}
