//! What to do when a step does not fit the device's memory: plans tell without a device which batch does.

use super::options::{EngineOptions, step_options};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::objectives::Objective;
use crate::plan;

/// What is left for modules, recorded steps and libraries, bytes.
const RESERVE: u64 = 512 << 20;

/// `error`, and if it is a lack of memory with the largest batches that fit `room` bytes, the free memory before anything
/// was compiled.
pub fn with_remedy(
    error: Error,
    room: Option<u64>,
    objective: &dyn Objective,
    options: &EngineOptions,
    backend: &dyn Backend,
) -> Error {
    let (Error::Memory { device, asked, free, total, .. }, Some(room)) = (&error, room) else { return error };
    let fits = |recompute| {
        let options = EngineOptions { recompute, ..*options };
        largest_batch(room.saturating_sub(RESERVE), objective, &options, backend).ok().flatten()
    };
    let batch = objective.batch();
    let found = (fits(false), fits(true));
    let remedy = match found {
        (None, None) => {
            format!("not even one image fits beside the parameters, instead of a batch of {batch}")
        }
        (Some(plain), Some(again)) if options.recompute => {
            format!("the largest batch that fits is {} ({plain} without --recompute)", plain.max(again))
        }
        (Some(plain), again) => {
            let again = again.unwrap_or(plain).max(plain);
            format!("the largest batch that fits is {plain}, with --recompute {again}")
        }
        (None, Some(again)) => format!("the largest batch that fits is {again}, with --recompute"),
    };
    Error::Memory { device: device.clone(), asked: *asked, free: *free, total: *total, remedy }
}

/// The largest batch, up to the objective's own, whose steps need at most `room` bytes; None when one image needs more.
fn largest_batch(
    room: u64,
    objective: &dyn Objective,
    options: &EngineOptions,
    backend: &dyn Backend,
) -> Result<Option<usize>> {
    let fits = |batch| Ok::<_, Error>(bytes(batch, objective, options, backend)? <= room);
    let most = objective.batch();
    if most == 0 || !fits(1)? {
        return Ok(None);
    }
    // `low` fits; what is above `high` does not.
    let (mut low, mut high) = (1, most);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(middle)? {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    Ok(Some(low))
}

/// Bytes that the objective's steps need with another batch.
fn bytes(
    batch: usize,
    objective: &dyn Objective,
    options: &EngineOptions,
    backend: &dyn Backend,
) -> Result<u64> {
    let objective = objective.with_batch(batch);
    let mut plans = Vec::with_capacity(objective.buckets() + 1);
    for bucket in 0..objective.buckets() {
        let built = objective.step(bucket, &step_options(options, backend, None))?;
        plans.push(plan::compile(built.graph, options.recompute, backend)?);
        if let (Some(update), 1) = (built.update, plans.len()) {
            plans.push(plan::compile(update, false, backend)?);
        }
    }
    Ok(backend.footprint(&plans))
}
