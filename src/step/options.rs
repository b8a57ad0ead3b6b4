//! How a step is built.

use crate::error::{Error, Result};
use crate::tensor::DType;

/// How a step is built.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepOptions {
    /// Type of inputs and activations; parameters, gradients, moments and state have its accumulator's type.
    pub dtype: DType,
    /// Micro steps whose gradients are averaged into one step, of all ranks together; the configuration's batch is that of a
    /// micro step.
    pub micro_steps: usize,
    /// Rate of stochastic depth in the student's last block; 0 switches it off.
    pub drop_path: f64,
    /// Where ranks sum their gradients: the least number of elements that they sum in one go. None: there is one rank.
    pub stretch: Option<usize>,
}

impl Default for StepOptions {
    fn default() -> Self {
        StepOptions { dtype: DType::F32, micro_steps: 1, drop_path: 0.0, stretch: None }
    }
}

impl StepOptions {
    /// Whether the update is a program of its own: something comes between the last gradient and it.
    pub(super) fn is_split(&self) -> bool {
        self.micro_steps > 1 || self.stretch.is_some()
    }

    /// # Errors
    /// [`Error::Usage`] for a type that is no float, no micro step, a rate that is none.
    pub(super) fn check(&self) -> Result<()> {
        if !self.dtype.is_float() {
            return Err(Error::usage(format!(
                "a step cannot be computed in {}; choose bf16, f32 or f64",
                self.dtype
            )));
        }
        if self.micro_steps == 0 {
            return Err(Error::usage("a step needs at least one micro step"));
        }
        if !(0.0..1.0).contains(&self.drop_path) {
            return Err(Error::usage(format!(
                "drop_path must be at least 0 and below 1, got {}",
                self.drop_path
            )));
        }
        Ok(())
    }
}
