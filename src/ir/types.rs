//! Element types of operands. A step computes in one type; sums, statistics, losses and everything that training
//! carries along have its accumulator's type.

use super::op::{Op, OpKind};
use crate::tensor::DType;

/// Which of the two types an operand has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The type that the op computes in: activations, their gradients, weight matrices.
    Element,
    /// Its accumulator's type.
    Wide,
}

use Role::{Element, Wide};

/// Role of input `i` of `op`, if it is no index.
pub fn input_role(op: &Op, i: usize) -> Role {
    match op.kind() {
        OpKind::Linear | OpKind::Conv2d | OpKind::DepthwiseConv2d | OpKind::WindowAttention => either(i == 2),
        OpKind::BatchNorm | OpKind::BatchNormInference => either(i > 0),
        OpKind::BatchNormBackward => either(i > 1),
        OpKind::WindowAttentionBackward => either(i == 2 || i == 5),
        OpKind::PixelRows | OpKind::RunningStatistics => Wide,
        OpKind::LayerNorm | OpKind::ScaleSegments | OpKind::AddPositions => either(i > 0),
        OpKind::LayerNormBackward => either((2..5).contains(&i)),
        OpKind::AttentionBackward | OpKind::L2NormalizeBackward => either(i == 2),
        OpKind::EmbedTokens | OpKind::RestoreTokens | OpKind::MaskedMse => either(i > 0),
        OpKind::MaskedMseBackward => either(i != 1),
        OpKind::DynamicConvBackward => either(i == 0),
        OpKind::PrototypeCrossEntropy => either(i > 3),
        OpKind::PrototypeCrossEntropyBackward => either(!(1..5).contains(&i)),
        OpKind::ExpertStatistics => either((2..5).contains(&i)),
        OpKind::CenterUpdate => either(!(1..3).contains(&i)),
        OpKind::PatchRows
        | OpKind::ResizePositions
        | OpKind::ResizePositionsBackward
        | OpKind::BceWithLogits
        | OpKind::BceWithLogitsBackward
        | OpKind::WeightedSum
        | OpKind::AccumulateGrads
        | OpKind::GradHealth => Wide,
        OpKind::AdamW => either(i < 7),
        OpKind::EmbedTokensBackward
        | OpKind::LinearBackwardInput
        | OpKind::LinearBackwardWeight
        | OpKind::Gelu
        | OpKind::GeluBackward
        | OpKind::Add
        | OpKind::Scale
        | OpKind::Fill
        | OpKind::Cast
        | OpKind::Attention
        | OpKind::SelectRows
        | OpKind::ScatterRows
        | OpKind::GatherTokens
        | OpKind::ScatterTokens
        | OpKind::RestoreTokensBackward
        | OpKind::SumImages
        | OpKind::Conv2dBackwardInput
        | OpKind::Conv2dBackwardWeight
        | OpKind::DepthwiseConv2dBackwardInput
        | OpKind::DepthwiseConv2dBackwardWeight
        | OpKind::Relu6
        | OpKind::Relu6Backward
        | OpKind::Relu6Gate
        | OpKind::Relu6GateBackward
        | OpKind::GlobalAveragePool
        | OpKind::GlobalAveragePoolBackward
        | OpKind::DynamicConv
        | OpKind::L2Normalize => Element,
    }
}

/// Role of output `slot` of `op`; types that the op itself names are not told here.
pub fn output_role(op: &Op, slot: usize) -> Role {
    match op.kind() {
        OpKind::LayerNorm
        | OpKind::LayerNormBackward
        | OpKind::BatchNorm
        | OpKind::BatchNormBackward
        | OpKind::WindowAttention
        | OpKind::Attention
        | OpKind::L2Normalize
        | OpKind::EmbedTokensBackward
        | OpKind::RestoreTokensBackward
        | OpKind::PrototypeCrossEntropyBackward => either(slot > 0),
        // The padded position's row is an activation like the others.
        OpKind::WindowAttentionBackward => either(slot == 2),
        OpKind::LinearBackwardWeight
        | OpKind::Conv2dBackwardWeight
        | OpKind::DepthwiseConv2dBackwardWeight
        | OpKind::RunningStatistics
        | OpKind::SumImages
        | OpKind::ResizePositions
        | OpKind::ResizePositionsBackward
        | OpKind::DynamicConv
        | OpKind::PrototypeCrossEntropy
        | OpKind::ExpertStatistics
        | OpKind::CenterUpdate
        | OpKind::MaskedMse
        | OpKind::BceWithLogits
        | OpKind::BceWithLogitsBackward
        | OpKind::WeightedSum
        | OpKind::AccumulateGrads
        | OpKind::GradHealth => Wide,
        OpKind::AdamW => either(slot < 4),
        OpKind::PatchRows
        | OpKind::EmbedTokens
        | OpKind::Linear
        | OpKind::LinearBackwardInput
        | OpKind::Gelu
        | OpKind::GeluBackward
        | OpKind::Add
        | OpKind::Scale
        | OpKind::Fill
        | OpKind::Cast
        | OpKind::ScaleSegments
        | OpKind::AttentionBackward
        | OpKind::SelectRows
        | OpKind::ScatterRows
        | OpKind::GatherTokens
        | OpKind::ScatterTokens
        | OpKind::RestoreTokens
        | OpKind::AddPositions
        | OpKind::Conv2d
        | OpKind::Conv2dBackwardInput
        | OpKind::DepthwiseConv2d
        | OpKind::DepthwiseConv2dBackwardInput
        | OpKind::PixelRows
        | OpKind::BatchNormInference
        | OpKind::Relu6
        | OpKind::Relu6Backward
        | OpKind::Relu6Gate
        | OpKind::Relu6GateBackward
        | OpKind::GlobalAveragePool
        | OpKind::GlobalAveragePoolBackward
        | OpKind::DynamicConvBackward
        | OpKind::L2NormalizeBackward
        | OpKind::MaskedMseBackward => Element,
    }
}

fn either(wide: bool) -> Role {
    if wide { Wide } else { Element }
}

/// The type that the op itself names for its output.
pub(crate) fn named_type(op: &Op) -> Option<DType> {
    match op {
        Op::PatchRows { dtype, .. }
        | Op::PixelRows { dtype, .. }
        | Op::Fill { dtype, .. }
        | Op::Cast { dtype } => Some(*dtype),
        _ => None,
    }
}

/// The type that `op` computes in, from the types of its float inputs; or which input has the wrong type, and what it
/// should be.
///
/// A normalised prototype's gradient arrives as a sum: `L2NormalizeBackward` takes its first operand in either type and
/// answers in the same.
pub(crate) fn element_type(
    op: &Op,
    inputs: impl Iterator<Item = (usize, DType)> + Clone,
) -> Result<Option<DType>, (usize, DType)> {
    let free = |i: usize| i == 0 && matches!(op, Op::L2NormalizeBackward { .. });
    let element =
        inputs.clone().find(|(i, _)| !free(*i) && input_role(op, *i) == Element).map(|(_, dtype)| dtype);
    let wide = element.or_else(|| inputs.clone().next().map(|(_, t)| t)).map(DType::accumulator);
    for (i, dtype) in inputs {
        let Some(wide) = wide else { break };
        let want = match input_role(op, i) {
            Element => element.unwrap_or(wide),
            Wide => wide,
        };
        if dtype != want && !(free(i) && dtype == wide) {
            return Err((i, want));
        }
    }
    Ok(element.or(wide))
}
