//! Whether the results of a case are right.

use super::cases::{Case, Derivative, Expected};
use super::check::{Probe, compare, compare_gradients, growth};
use super::tensor::Tensor;

/// What the outputs of a case must be.
pub enum Judge<'a> {
    /// Values with their tolerances.
    Reference(Vec<(Tensor, Tensor)>),
    Derivative {
        of: &'a Derivative,
        probes: Vec<Probe>,
        relative: f64,
        absolute: f64,
    },
}

impl<'a> Judge<'a> {
    /// For results computed with roundoff `eps`.
    pub fn new(case: &'a Case, eps: f64) -> Self {
        match &case.expected {
            Expected::Reference => Judge::Reference(case.reference(eps)),
            Expected::Derivative(of) => {
                // Central differences are good to 1e-9 or so; f32 is held to its own roundoff.
                let roundoff = 4.0 * eps * growth(case.longest_sum());
                let (relative, absolute) = (roundoff.max(1e-6), roundoff.max(1e-9) * of.magnitude());
                Judge::Derivative { of, probes: of.probes(&case.name), relative, absolute }
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
            Judge::Derivative { of, probes, relative, absolute } => {
                let mut got = got.to_vec();
                if let Some(plus) = &of.plus {
                    got[0].iter_mut().zip(&plus.data).for_each(|(g, p)| *g -= p);
                }
                compare_gradients(&got, probes, *relative, *absolute)
            }
        }
    }
}
