//! What goes into a step and what comes out of it, between a batch and the regions.

use super::options::EngineOptions;
use crate::backend::{Backend, HostSlice, HostSliceMut};
use crate::data::rng::{Purpose, stream};
use crate::error::{Error, Result};
use crate::step::{IoSlot, StepPoint};
use rand::RngExt;

/// The values of an output slot; None when the step has no such output.
pub(super) fn read_values(backend: &dyn Backend, outputs: &[IoSlot], name: &str) -> Result<Option<Vec<f64>>> {
    let Some(slot) = outputs.iter().find(|s| s.name == name) else { return Ok(None) };
    let mut values = vec![0.0; slot.shape.count()];
    backend.read(slot.region, slot.offset, HostSliceMut::F64(&mut values))?;
    Ok(Some(values))
}

/// Writes `data` to `slot`, which must be as long.
pub fn write_checked(backend: &mut dyn Backend, slot: &IoSlot, data: HostSlice<'_>) -> Result<()> {
    check_length(slot, &data)?;
    backend.write(slot.region, slot.offset, data)
}

/// `data` must be as long as `slot`.
pub(super) fn check_length(slot: &IoSlot, data: &HostSlice<'_>) -> Result<()> {
    if data.len() == slot.shape.count() {
        return Ok(());
    }
    let message = format!("`{}` must be {}, got {} values", slot.name, slot.shape, data.len());
    Err(Error::shape("batch", "write", message))
}

/// `[branches, segments]`: 0 where the branch is skipped, else `1 / (1 - p)`; `p` rises linearly from 0 in the first block
/// to the full rate in the last (timm's rule). `blocks` names the block of every branch.
pub(super) fn drop_path_factors(
    options: &EngineOptions,
    point: &StepPoint,
    (rank, world): (usize, usize),
    blocks: &[usize],
    segments: usize,
) -> Vec<f32> {
    let last = blocks.last().copied().unwrap_or(0).max(1) as f64;
    let micro = point.t * point.micro_steps as u64 + (point.micro_step * world + rank) as u64;
    let mut factors = Vec::with_capacity(blocks.len() * segments);
    for (branch, &block) in blocks.iter().enumerate() {
        let p = options.drop_path * block as f64 / last;
        let mut rng = stream(options.seed, micro, branch as u64, Purpose::DropPath);
        factors.extend(
            (0..segments).map(|_| if rng.random::<f64>() < p { 0.0 } else { (1.0 / (1.0 - p)) as f32 }),
        );
    }
    factors
}
