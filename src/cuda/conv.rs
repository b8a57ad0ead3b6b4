//! Dense convolutions with stride 1 as implicit matrix products.

use super::kernel::Given;
use super::lower::{Lowered, Operands};
use crate::backend::OperandType;
use crate::ir::{ConvGeometry, Epilogue, Op};

pub fn forward(_o: &Operands<'_>, _geometry: &ConvGeometry, _epilogue: Epilogue) -> Lowered {
    Err("has no kernel yet".to_owned())
}

pub fn backward_input(_o: &Operands<'_>, _geometry: &ConvGeometry, _gelu: bool) -> Lowered {
    Err("has no kernel yet".to_owned())
}

pub fn backward_weight(_o: &Operands<'_>, _geometry: &ConvGeometry) -> Lowered {
    Err("has no kernel yet".to_owned())
}

pub fn workspace(_op: &Op, _inputs: &[OperandType<'_>], _outputs: &[OperandType<'_>]) -> usize {
    0
}

/// Constants with which the recipes compile the kernels.
pub fn variants() -> Vec<Given> {
    vec![Vec::new()]
}
