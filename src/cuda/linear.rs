//! Linear layers, by the products of `kernels/gemm.cu`.

use super::gemm::{backward_input, backward_weight, linear, weight_workspace};
use super::lower::{Lower, Lowered, Operands};
use crate::ir::ops;
use crate::plan::OperandType;

impl Lower for ops::Linear {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        linear(o, self.epilogue)
    }
}

impl Lower for ops::LinearBackwardInput {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        backward_input(o, self.gelu)
    }
}

impl Lower for ops::LinearBackwardWeight {
    fn workspace(&self, inputs: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        let ((k, m), (_, n)) = (inputs[0].shape.as_matrix(), inputs[1].shape.as_matrix());
        // What does not fit is refused when it is lowered.
        weight_workspace(m as u32, n as u32, k as u32)
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        backward_weight(o)
    }
}
