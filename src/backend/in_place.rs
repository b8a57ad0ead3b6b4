//! Which ops can work in place. No wildcard arms: a new op does not compile until it is here.

use crate::ir::{Epilogue, Op};

/// Inputs that may share memory with output 0 where an op reads each of their elements only to write the same
/// element. AccumulateGrads, CenterUpdate,
/// RunningStatistics and AdamW, which update their operands in place by definition, are not listed.
pub fn in_place(op: &Op) -> &'static [usize] {
    match op {
        Op::Add => &[0, 1],
        Op::Relu6Gate => &[0, 1],
        Op::Gelu
        | Op::GeluBackward
        | Op::Relu6
        | Op::Relu6Backward
        | Op::Scale { .. }
        | Op::ScaleSegments { .. }
        | Op::AddPositions
        | Op::L2NormalizeBackward { .. } => &[0],
        Op::MaskedMseBackward | Op::BceWithLogitsBackward { .. } => &[1],
        Op::Linear { epilogue } | Op::Conv2d { epilogue, .. } => match epilogue {
            Epilogue::Residual => &[3],
            Epilogue::None | Epilogue::Gelu => &[],
        },
        Op::LayerNormBackward { residual } => {
            if *residual {
                &[5]
            } else {
                &[]
            }
        }
        Op::ScatterRows { accumulate, .. } => {
            if *accumulate {
                &[1]
            } else {
                &[]
            }
        }
        Op::PatchRows { .. }
        | Op::EmbedTokens { .. }
        | Op::EmbedTokensBackward { .. }
        | Op::ResizePositions { .. }
        | Op::ResizePositionsBackward { .. }
        | Op::LinearBackwardInput { .. }
        | Op::LinearBackwardWeight { .. }
        | Op::Fill { .. }
        | Op::Cast { .. }
        | Op::LayerNorm { .. }
        | Op::Attention { .. }
        | Op::AttentionBackward { .. }
        | Op::SelectRows { .. }
        | Op::GatherTokens { .. }
        | Op::ScatterTokens { .. }
        | Op::RestoreTokens
        | Op::RestoreTokensBackward
        | Op::SumImages { .. }
        | Op::Conv2dBackwardInput { .. }
        | Op::Conv2dBackwardWeight { .. }
        | Op::DepthwiseConv2d { .. }
        | Op::DepthwiseConv2dBackwardInput { .. }
        | Op::DepthwiseConv2dBackwardWeight { .. }
        | Op::PixelRows { .. }
        | Op::BatchNorm { .. }
        | Op::BatchNormBackward { .. }
        | Op::BatchNormInference { .. }
        | Op::RunningStatistics { .. }
        | Op::Relu6GateBackward
        | Op::GlobalAveragePool { .. }
        | Op::GlobalAveragePoolBackward { .. }
        | Op::WindowAttention { .. }
        | Op::WindowAttentionBackward { .. }
        | Op::DynamicConv { .. }
        | Op::DynamicConvBackward { .. }
        | Op::L2Normalize { .. }
        | Op::PrototypeCrossEntropy { .. }
        | Op::PrototypeCrossEntropyBackward { .. }
        | Op::ExpertStatistics
        | Op::CenterUpdate
        | Op::MaskedMse
        | Op::BceWithLogits { .. }
        | Op::WeightedSum { .. }
        | Op::AccumulateGrads
        | Op::GradHealth
        | Op::AdamW { .. } => &[],
    }
}
