//! Pixels to token streams: patches, positions, mask tokens.

use super::kernel::Given;
use super::lower::{Lowered, Operands};
use crate::backend::OperandType;
use crate::ir::{Op, TokenLayout};

pub fn patch_rows(_o: &Operands<'_>, _kept: Option<usize>) -> Lowered {
    Err("has no kernel yet".to_owned())
}

pub fn embed_tokens(_o: &Operands<'_>, _layout: &TokenLayout) -> Lowered {
    Err("has no kernel yet".to_owned())
}

pub fn embed_tokens_backward(_o: &Operands<'_>, _layout: &TokenLayout, _tables: &[usize]) -> Lowered {
    Err("has no kernel yet".to_owned())
}

pub fn resize_positions(_o: &Operands<'_>, _prefix: usize, _from: [usize; 2], _to: [usize; 2]) -> Lowered {
    Err("has no kernel yet".to_owned())
}

pub fn resize_positions_backward(
    _o: &Operands<'_>,
    _prefix: usize,
    _from: [usize; 2],
    _to: [usize; 2],
) -> Lowered {
    Err("has no kernel yet".to_owned())
}

pub fn restore_tokens(_o: &Operands<'_>) -> Lowered {
    Err("has no kernel yet".to_owned())
}

pub fn restore_tokens_backward(_o: &Operands<'_>) -> Lowered {
    Err("has no kernel yet".to_owned())
}

pub fn workspace(_op: &Op, _inputs: &[OperandType<'_>], _outputs: &[OperandType<'_>]) -> usize {
    0
}

/// Constants with which the recipes compile the kernels.
pub fn variants() -> Vec<Given> {
    vec![Vec::new()]
}
