//! How much work an op is.

use super::op::Op;
use crate::tensor::Shape;

/// Floating-point operations of an op's matrix products (a multiplication and an addition are two), from the shapes of
/// its operands; 0 for ops without one.
pub fn matrix_flops(op: &Op, inputs: &[&Shape], outputs: &[&Shape]) -> u64 {
    let rows = |i: usize| inputs[i].as_matrix().0;
    let width = |i: usize| inputs[i].as_matrix().1;
    let count = |i: usize| inputs[i].count();
    let products = match op {
        Op::Linear { .. } | Op::LinearBackwardInput { .. } => rows(0) * count(1),
        Op::LinearBackwardWeight { weight } => rows(0) * weight.iter().product::<usize>(),
        Op::Conv2d { geometry, .. } | Op::Conv2dBackwardInput { geometry, .. } => {
            geometry.output_rows() * count(1)
        }
        Op::DepthwiseConv2d { geometry } | Op::DepthwiseConv2dBackwardInput { geometry } => {
            geometry.output_rows() * count(1)
        }
        Op::Conv2dBackwardWeight { geometry } | Op::DepthwiseConv2dBackwardWeight { geometry } => {
            geometry.output_rows() * outputs[0].count()
        }
        Op::WindowAttention { window, .. } => 2 * outputs[0].count() * window * window,
        Op::WindowAttentionBackward { window, .. } => 4 * count(0) * window * window,
        Op::Attention { segments, .. } => 2 * segments.pairs() * outputs[0].as_matrix().1,
        Op::AttentionBackward { segments, .. } => 4 * segments.pairs() * width(0),
        Op::DynamicConv { tokens } => count(0) * tokens,
        Op::DynamicConvBackward { tokens } => 2 * count(1) * tokens,
        // Logits of both sides, the expert's mean prototype; backward the logits again, dz and dw.
        Op::PrototypeCrossEntropy { .. } => (rows(0) + 2 * rows(2)) * count(1),
        Op::PrototypeCrossEntropyBackward { .. } => (3 * rows(1) + 2 * rows(3)) * count(2),
        _ => 0,
    };
    2 * products as u64
}
