//! Several processes that train one model: what the engine asks of the link between them.

use super::HostSliceMut;
use crate::error::Result;
use crate::tensor::DType;
use std::time::Duration;

/// What a rank is busy with. While one does what only it has to do, the others wait for it beyond the deadline of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Reading files, compiling, drawing initial values.
    Start,
    /// Training: every wait has the deadline of a step.
    Step,
    /// Probing, saving, drawing the report.
    Aside,
}

/// The processes ("ranks") of a run, each with a device of its own. Every rank calls the same methods in the same order.
///
/// # Errors
/// Each method fails within its deadline when another rank died, stands still or cannot be reached, and names it. The link is
/// of no use afterwards.
pub trait Collective: Send {
    /// This process, from 0.
    fn rank(&self) -> usize;

    /// How many there are, at least 1.
    fn world(&self) -> usize;

    /// How long a rank waits for the others within a step, and devices that sum themselves for each other's. Who keeps the others
    /// waiting for longer, by [`Phase::Start`] or [`Phase::Aside`], meets them here, as at a [`Collective::barrier`], before
    /// the next step.
    fn patience(&self) -> Duration {
        Duration::from_secs(600)
    }

    /// Sums `values` over all ranks, in place. All receive the same bits, the same ones from run to run; f32 values travel (and
    /// are rounded after each addition) as `wire` says, [`DType::F32`] or [`DType::Bf16`].
    fn all_reduce(&mut self, values: HostSliceMut<'_>, wire: DType) -> Result<()>;

    /// The bytes of every rank, by rank; they may differ in length.
    fn all_gather(&mut self, own: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// What `root` has, on all ranks: `bytes` of the others are replaced.
    fn broadcast(&mut self, root: usize, bytes: &mut Vec<u8>) -> Result<()>;

    /// Returns when all ranks came here.
    fn barrier(&mut self) -> Result<()> {
        self.all_gather(&[]).map(|_| ())
    }

    /// Tells the others what this rank does from here on.
    fn enter(&mut self, phase: Phase);

    /// Ends this rank's part in order; `error` tells the others why, where it ends early.
    fn leave(&mut self, error: Option<&str>);
}
