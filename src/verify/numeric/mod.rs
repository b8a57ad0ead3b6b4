//! Gradients against central differences along random directions: of the whole step, and of its ops one by one.
//!
//! The differences are taken of the loss as the reference computes it, in f64; the gradients are the device's, in its own
//! precision. So a device is held against the forward pass of another, whatever it computes in.

mod compare;
mod ops;
mod step;

pub use compare::{Backends, Check, Open};
pub use ops::op_names;

use crate::error::Result;
use crate::objectives::Objective;
use crate::train::config::{EncoderSection, TrainConfig};
use crate::train::objective::objective;
use std::sync::Arc;

/// The step of `preset` with everything that costs time made small: widths, depths, views, batch. What it is made of stays.
///
/// # Errors
/// [`Error::Usage`] when there is no such preset.
pub fn shrunk(preset: &str) -> Result<Arc<dyn Objective>> {
    let small = [
        "views.global_size=[64,32]",
        "views.local_size=[32,32]",
        "views.scene_size=64",
        "views.locals=2",
        "csm.hidden=16",
        "csm.bottleneck=8",
        "csm.prototypes=24",
        "csr.dim=16",
        "csr.depth=2",
        "csr.heads=2",
        "css.dim=16",
        "css.depth=1",
        "css.heads=2",
        "css.convs=2",
        "optim.batch=2",
        "optim.effective_batch=2",
    ];
    let sets: Vec<String> = small.iter().map(|s| (*s).to_owned()).collect();
    let cfg = TrainConfig::resolve(Some(preset), None, &sets)?;
    let encoder = cfg.encoder.architecture.encoder().small(cfg.views.global_size);
    let cfg = TrainConfig { encoder: EncoderSection { architecture: encoder, ..cfg.encoder.clone() }, ..cfg };
    Ok(Arc::from(objective(&cfg)?.at_scale(1.5)?))
}

/// Checks the objective's step and its ops, or with `op` the ops of that name alone; worst first. `tolerance` replaces all bounds.
///
/// # Errors
/// An op that the step does not have, or that has no gradient in it; those of the devices.
pub fn check(
    objective: &Arc<dyn Objective>,
    op: Option<&str>,
    tolerance: Option<f64>,
    backends: Backends<'_>,
) -> Result<Vec<Check>> {
    let mut checks = ops::check(objective, op, backends)?;
    if op.is_none() {
        checks.extend(step::check(objective, backends)?);
    }
    if let Some(tolerance) = tolerance {
        checks.iter_mut().for_each(|c| c.bound = tolerance);
    }
    checks.sort_by(|a, b| {
        let key = |c: &Check| (c.of.clone(), c.with_respect_to.clone());
        b.excess().total_cmp(&a.excess()).then_with(|| key(a).cmp(&key(b)))
    });
    Ok(checks)
}

#[cfg(test)]
mod tests;
