//! Matrix products: linear layers and their gradients.

use super::kernel::Given;
use super::lower::{Lowered, Operands};
use crate::backend::OperandType;
use crate::ir::{Epilogue, Op};

pub fn linear(_o: &Operands<'_>, _epilogue: Epilogue) -> Lowered {
    Err("has no kernel yet".to_owned())
}

pub fn backward_input(_o: &Operands<'_>, _gelu: bool) -> Lowered {
    Err("has no kernel yet".to_owned())
}

pub fn backward_weight(_o: &Operands<'_>) -> Lowered {
    Err("has no kernel yet".to_owned())
}

pub fn workspace(_op: &Op, _inputs: &[OperandType<'_>], _outputs: &[OperandType<'_>]) -> usize {
    0
}

/// Constants with which the recipes compile the kernels.
pub fn variants() -> Vec<Given> {
    vec![Vec::new()]
}
