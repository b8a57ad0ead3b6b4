//! How the steps of a run are built.

use crate::backend::Backend;
use crate::step::StepOptions;

/// How the steps of a run are built.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EngineOptions {
    /// Of an update, on all ranks together.
    pub micro_steps: usize,
    /// Rate of stochastic depth in the student's last block.
    pub drop_path: f64,
    /// Compute activations again in the backward pass instead of keeping them.
    pub recompute: bool,
    pub seed: u64,
}

/// The same as the step asks for it.
pub(super) fn step_options(
    options: &EngineOptions,
    backend: &dyn Backend,
    stretch: Option<usize>,
) -> StepOptions {
    let EngineOptions { micro_steps, drop_path, .. } = *options;
    StepOptions { dtype: backend.dtype(), micro_steps, drop_path, stretch }
}
