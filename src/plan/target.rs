//! All that the planner asks of a device.

use crate::ir::Op;
use crate::tensor::{DType, Shape};

/// Shape and type of an operand, for sizing workspaces.
#[derive(Clone, Copy, Debug)]
pub struct OperandType<'a> {
    pub shape: &'a Shape,
    pub dtype: DType,
}

/// A device that plans are made for.
pub trait Target {
    /// Scratch bytes that an op needs while it runs; the planner reserves them in the arena.
    fn workspace(&self, op: &Op, inputs: &[OperandType<'_>], outputs: &[OperandType<'_>]) -> usize;

    /// Inputs whose memory the op may reuse for its first output when they are not needed afterwards.
    fn in_place(&self, op: &Op) -> &'static [usize];

    /// Whether its products of `columns` columns do what follows a whole row before they store it: layer normalisation behind a
    /// layer, and its gradient behind the gradient of a layer's input, are then fused with them.
    fn finishes_rows(&self, _columns: usize) -> bool {
        false
    }
}
