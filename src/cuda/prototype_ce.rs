//! The prototype cross-entropy and what else reads the expert's distributions.

use super::kernel::Given;
use super::lower::{Lowered, Operands};
use crate::backend::OperandType;
use crate::ir::Op;

pub fn forward(_o: &Operands<'_>, _batch: usize) -> Lowered {
    Err("has no kernel yet".to_owned())
}

pub fn backward(_o: &Operands<'_>, _batch: usize) -> Lowered {
    Err("has no kernel yet".to_owned())
}

pub fn expert_statistics(_o: &Operands<'_>) -> Lowered {
    Err("has no kernel yet".to_owned())
}

pub fn center_update(_o: &Operands<'_>) -> Lowered {
    Err("has no kernel yet".to_owned())
}

pub fn workspace(_op: &Op, _inputs: &[OperandType<'_>], _outputs: &[OperandType<'_>]) -> usize {
    0
}

/// Constants with which the recipes compile the kernels.
pub fn variants() -> Vec<Given> {
    vec![Vec::new()]
}
