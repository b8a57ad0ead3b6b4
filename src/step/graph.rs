//! A step as it is handed to a device.

use super::io::IoSlot;
use crate::ir::{Graph, Region};
use crate::nn::ParamRegistry;

/// Input of the optimizer's scalar block, by [`Scalar`](crate::ir::Scalar).
pub const SCALARS: &str = "scalars";
/// Input of the objective's own scalars.
pub const OWN_SCALARS: &str = "own_scalars";
/// Input of stochastic depth: `[branches, images of the student's stream]`, factors of the residual branches.
pub const DROP_PATH: &str = "drop_path";
/// Output: what is minimised, `[1]`.
pub const TOTAL: &str = "total";
/// Output: norm of the whole gradient before it is clipped, factor by which all of it is clipped, 1 where loss and gradient are finite, `[3]`.
pub const HEALTH: &str = "health";
/// Outputs whose names begin with this: what is derived beside losses and gradients, checked where a reference records it.
pub const TARGET: &str = "target.";
/// Names of state that micro steps average and an update uses up end with this.
pub const ROWS: &str = "_rows";
/// Output: what the objective's monitor watches.
pub const STATISTICS: &str = "statistics";

/// Parameters and running statistics of student and expert, in the order in which they lie in their regions.
#[derive(Clone, Debug, Default)]
pub struct Registries {
    pub student: ParamRegistry,
    pub expert: ParamRegistry,
    /// Running statistics; without entries where an encoder has none.
    pub student_buffers: ParamRegistry,
    pub expert_buffers: ParamRegistry,
}

/// One step.
///
/// Without accumulation `graph` is the whole step. With it, `graph` is one micro step, which adds its gradients (and its
/// share of the carried state) to the step's, and `update` is what follows the last one; `MicroStep` in the scalar block
/// tells micro steps apart.
#[derive(Clone, Debug)]
pub struct Step {
    pub graph: Graph,
    pub update: Option<Graph>,
    pub registries: Registries,
    /// The block of the student's encoder that each row of [`DROP_PATH`] belongs to.
    pub branch_blocks: Vec<usize>,
    /// [`SCALARS`], [`OWN_SCALARS`], [`DROP_PATH`] where they are read, and the objective's tensors by their names. What
    /// nothing reads is absent.
    pub inputs: Vec<IoSlot>,
    /// The losses by their names, [`TOTAL`], [`HEALTH`], and [`STATISTICS`] and [`TARGET`]s where the objective has them.
    pub outputs: Vec<IoSlot>,
    /// Names of the losses, in the order in which they are added up.
    pub losses: Vec<String>,
    /// Parameters that begin late: while [`StepPoint::late_t`](super::StepPoint) is 0 they are held.
    pub late: Vec<String>,
    /// What is carried from step to step besides parameters and moments; with accumulation also what the micro steps
    /// average, under names that end with [`ROWS`], which need not be saved.
    pub state: Vec<IoSlot>,
    /// What ranks sum between the last micro step and the update: `(region, first element, elements)`, in the order in which
    /// the micro step is done with it. Empty where there is one rank.
    pub summed: Vec<(Region, usize, usize)>,
}

impl Step {
    pub fn input(&self, name: &str) -> Option<&IoSlot> {
        self.inputs.iter().find(|s| s.name == name)
    }

    pub fn output(&self, name: &str) -> Option<&IoSlot> {
        self.outputs.iter().find(|s| s.name == name)
    }
}
