//! Linear layers, by the products of `kernels/gemm.cu`.

use super::driver::LibraryProduct;
use super::gemm::{
    backward_input, backward_input_norm, backward_input_norm_workspace, backward_weight, linear, linear_norm,
    weight_workspace,
};
use super::lower::{Lower, Lowered, Operand, Operands};
use crate::ir::{Epilogue, InputEpilogue, ops};
use crate::plan::OperandType;

/// Addresses and types of a product of the first two operands, if they are of one type; rows and width of the first, width of
/// the second.
fn bare(inputs: &[Operand<'_>], outputs: &[Operand<'_>]) -> Option<(LibraryProduct, [u32; 2], u32)> {
    let (a, b, y) = (inputs.first()?, inputs.get(1)?, outputs.first()?);
    let ((rows, width), (_, across)) = (a.rows_width().ok()?, b.rows_width().ok()?);
    let (element, stored) = (a.dtype, y.dtype);
    let bare = LibraryProduct { y: y.at, a: a.at, b: b.at, element, stored, ..LibraryProduct::default() };
    (a.dtype == b.dtype).then_some((bare, [rows, width], across))
}

impl Lower for ops::Linear {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        match self.epilogue {
            Epilogue::Norm { eps } => linear_norm(o, eps),
            other => linear(o, other),
        }
    }

    fn product(&self, inputs: &[Operand<'_>], outputs: &[Operand<'_>]) -> Option<LibraryProduct> {
        let (bare, [m, k], _) = bare(inputs, outputs)?;
        Some(LibraryProduct { m, n: u32::try_from(inputs.get(2)?.count()).ok()?, k, ..bare })
    }
}

impl Lower for ops::LinearBackwardInput {
    fn workspace(&self, inputs: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        match self.epilogue {
            InputEpilogue::Norm { .. } => {
                let (rows, width) = inputs[2].shape.as_matrix();
                let [parts, normal] = backward_input_norm_workspace(rows, width, inputs[2].dtype);
                parts + normal
            }
            _ => 0,
        }
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        match self.epilogue {
            InputEpilogue::Norm { residual } => backward_input_norm(o, residual),
            other => backward_input(o, other),
        }
    }

    fn product(&self, inputs: &[Operand<'_>], outputs: &[Operand<'_>]) -> Option<LibraryProduct> {
        let (bare, [m, k], _) = bare(inputs, outputs)?;
        let (_, n) = outputs[0].rows_width().ok()?;
        Some(LibraryProduct { m, n, k, b_trans: true, ..bare })
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

    fn product(&self, inputs: &[Operand<'_>], outputs: &[Operand<'_>]) -> Option<LibraryProduct> {
        let (bare, [k, m], n) = bare(inputs, outputs)?;
        Some(LibraryProduct { m, n, k, a_trans: true, b_trans: true, ..bare })
    }
}
