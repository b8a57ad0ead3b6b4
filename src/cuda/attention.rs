//! Attention inside segments of a token stream.

use super::kernel::Given;
use super::lower::{Lowered, Operands};
use crate::backend::OperandType;
use crate::ir::{AttentionLayout, Op, Segments};

pub fn forward(_o: &Operands<'_>, _heads: usize, _layout: AttentionLayout, _segments: &Segments) -> Lowered {
    Err("has no kernel yet".to_owned())
}

pub fn backward(_o: &Operands<'_>, _heads: usize, _layout: AttentionLayout, _segments: &Segments) -> Lowered {
    Err("has no kernel yet".to_owned())
}

pub fn workspace(_op: &Op, _inputs: &[OperandType<'_>], _outputs: &[OperandType<'_>]) -> usize {
    0
}

/// Constants with which the recipes compile the kernels.
pub fn variants() -> Vec<Given> {
    vec![Vec::new()]
}
