//! Losses over tokens, and the predicted kernel in front of one.

use super::kernel::Given;
use super::lower::{Lowered, Operands};
use crate::backend::OperandType;
use crate::ir::Op;

pub fn dynamic_conv(_o: &Operands<'_>, _tokens: usize) -> Lowered {
    Err("has no kernel yet".to_owned())
}

pub fn dynamic_conv_backward(_o: &Operands<'_>, _tokens: usize) -> Lowered {
    Err("has no kernel yet".to_owned())
}

pub fn masked_mse(_o: &Operands<'_>) -> Lowered {
    Err("has no kernel yet".to_owned())
}

pub fn masked_mse_backward(_o: &Operands<'_>) -> Lowered {
    Err("has no kernel yet".to_owned())
}

pub fn bce_with_logits(_o: &Operands<'_>, _groups: usize) -> Lowered {
    Err("has no kernel yet".to_owned())
}

pub fn bce_with_logits_backward(_o: &Operands<'_>, _groups: usize) -> Lowered {
    Err("has no kernel yet".to_owned())
}

pub fn workspace(_op: &Op, _inputs: &[OperandType<'_>], _outputs: &[OperandType<'_>]) -> usize {
    0
}

/// Constants with which the recipes compile the kernels.
pub fn variants() -> Vec<Given> {
    vec![Vec::new()]
}
