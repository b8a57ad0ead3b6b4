//! From an op and its operands' addresses to kernel calls. No wildcard arms: a new op does not compile until it is here.

use super::kernel::Call;
use super::layer_norm::{self, LayerNormBackwardParams, LayerNormParams};
use super::layout::{self, Kept, Rows};
use super::optim::{self, AccumulateParams, AdamWParams};
use super::pointwise::{self, GateParams, NormalizeParams};
use super::tiles::Choices;
use super::{
    attention, batch_norm, conv, dense_loss, depthwise_conv, embed, gemm, pool, prototype_ce,
    window_attention,
};
use crate::backend::OperandType;
use crate::ir::Op;
use crate::tensor::{DType, Shape};

/// An operand on the device; the address is 0 for an output that is not stored.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    pub at: u64,
    pub shape: &'a Shape,
    pub dtype: DType,
}

impl Operand<'_> {
    pub fn count(&self) -> u64 {
        self.shape.count() as u64
    }

    /// Rows and width as a matrix.
    ///
    /// # Errors
    /// More of either than kernels count.
    pub fn rows_width(&self) -> Result<(u32, u32), String> {
        let (rows, width) = self.shape.as_matrix();
        match (u32::try_from(rows), u32::try_from(width)) {
            (Ok(rows), Ok(width)) => Ok((rows, width)),
            _ => Err(format!("takes at most {} rows and columns, not {}", u32::MAX, self.shape)),
        }
    }
}

/// Where an op finds and leaves everything.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a> {
    pub inputs: &'a [Operand<'a>],
    pub outputs: &'a [Operand<'a>],
    /// Memory of [`workspace`] bytes, aligned to 256.
    pub scratch: u64,
    pub choices: &'a Choices,
}

impl Operands<'_> {
    /// The kernels' `T`: bf16 if any operand is, else f32.
    pub fn element(&self) -> DType {
        let bf16 = self.inputs.iter().chain(self.outputs).any(|o| o.dtype == DType::Bf16);
        if bf16 { DType::Bf16 } else { DType::F32 }
    }
}

/// Calls that compute an op, or why there are none.
pub type Lowered = Result<Vec<Call>, String>;

/// Calls for `op`; [`Call::bf16`] is the caller's to set.
pub fn lower(op: &Op, o: &Operands<'_>) -> Lowered {
    let Operands { inputs, outputs, scratch, .. } = *o;
    let one = |call: Call| Ok(vec![call]);
    let (y, n, element) = (outputs[0].at, outputs[0].count(), o.element());
    match op {
        Op::Gelu => one(pointwise::unary("gelu_forward", y, inputs[0].at, n, 0.0, element)),
        Op::Scale { factor } => one(pointwise::unary("scale", y, inputs[0].at, n, *factor, element)),
        Op::Fill { value, .. } => one(pointwise::unary("fill", y, 0, n, *value, element)),
        Op::Cast { .. } => one(pointwise::cast(y, inputs[0].at, n, inputs[0].dtype, outputs[0].dtype)),
        Op::GeluBackward => {
            one(pointwise::binary("gelu_backward", y, inputs[0].at, inputs[1].at, n, element))
        }
        Op::Relu6 => one(pointwise::unary("relu6", y, inputs[0].at, n, 0.0, element)),
        Op::Relu6Backward => {
            one(pointwise::binary("relu6_backward", y, inputs[0].at, inputs[1].at, n, element))
        }
        Op::Relu6Gate => one(pointwise::binary("relu6_gate", y, inputs[0].at, inputs[1].at, n, element)),
        Op::Relu6GateBackward => {
            let [dy, a, b] = [0, 1, 2].map(|i: usize| inputs[i].at);
            let params = GateParams { da: y, db: outputs[1].at, dy, a, b, n };
            one(pointwise::relu6_gate_backward(&params, element))
        }
        Op::GlobalAveragePool { images } => pool::forward(o, images),
        Op::GlobalAveragePoolBackward { images } => pool::backward(o, images),
        Op::BatchNorm { eps, groups } => batch_norm::forward(o, groups, *eps),
        Op::BatchNormBackward { eps, groups } => batch_norm::backward(o, groups, *eps),
        Op::BatchNormInference { eps } => batch_norm::inference(o, *eps),
        Op::RunningStatistics { momentum, groups } => batch_norm::running_statistics(o, groups, *momentum),
        Op::WindowAttention { heads, window, maps } => window_attention::forward(o, *heads, *window, maps),
        Op::WindowAttentionBackward { heads, window, maps } => {
            window_attention::backward(o, *heads, *window, maps)
        }
        Op::Add => one(pointwise::binary("add", y, inputs[0].at, inputs[1].at, n, element)),
        Op::L2Normalize { eps } => {
            let (rows, width) = inputs[0].rows_width()?;
            let (norm, x, eps) = (outputs[1].at, inputs[0].at, *eps as f32);
            one(pointwise::normalize(
                "l2_normalize",
                &NormalizeParams { y, norm, x, unit: 0, rows, width, eps, unused: 0 },
            ))
        }
        Op::L2NormalizeBackward { eps } => {
            let (rows, width) = inputs[0].rows_width()?;
            let (x, unit, norm, eps) = (inputs[0].at, inputs[1].at, inputs[2].at, *eps as f32);
            let params = NormalizeParams { y, norm, x, unit, rows, width, eps, unused: 0 };
            let wide = inputs[0].dtype == DType::F32;
            let kernel = if wide { "l2_normalize_backward_wide" } else { "l2_normalize_backward" };
            one(pointwise::normalize(kernel, &params))
        }
        Op::LayerNorm { eps } => {
            let (rows, width) = inputs[0].rows_width()?;
            norm_width(width)?;
            let [x, gamma, beta] = [0, 1, 2].map(|i: usize| inputs[i].at);
            let (mean, rstd) = (outputs[1].at, outputs[2].at);
            let params = LayerNormParams { y, mean, rstd, x, gamma, beta, rows, eps: *eps as f32 };
            Ok(layer_norm::forward(&params, width as usize))
        }
        Op::LayerNormBackward { residual } => {
            let (rows, width) = inputs[0].rows_width()?;
            norm_width(width)?;
            let [dy, x, gamma, mean, rstd] = [0, 1, 2, 3, 4].map(|i: usize| inputs[i].at);
            let residual = if *residual { inputs[5].at } else { 0 };
            let params = LayerNormBackwardParams {
                dx: y,
                partial: scratch,
                dy,
                x,
                gamma,
                mean,
                rstd,
                residual,
                rows,
                unused: 0,
            };
            Ok(layer_norm::backward(&params, outputs[1].at, outputs[2].at, width as usize))
        }
        Op::SelectRows { runs } => {
            let (_, width) = inputs[0].rows_width()?;
            Ok(layout::select_rows(Rows { y, x: inputs[0].at, width, element }, runs))
        }
        Op::ScatterRows { runs, accumulate, .. } => {
            let (rows, width) = outputs[0].rows_width()?;
            let base = accumulate.then(|| inputs[1].at);
            Ok(layout::scatter_rows(Rows { y, x: inputs[0].at, width, element }, runs, u64::from(rows), base))
        }
        Op::GatherTokens { tokens } => {
            let (_, width) = inputs[0].rows_width()?;
            Ok(layout::gather_tokens(Rows { y, x: inputs[0].at, width, element }, kept(&inputs[1], *tokens)?))
        }
        Op::ScatterTokens { tokens } => {
            let (_, width) = inputs[0].rows_width()?;
            Ok(layout::scatter_tokens(
                Rows { y, x: inputs[0].at, width, element },
                kept(&inputs[1], *tokens)?,
            ))
        }
        Op::ScaleSegments { segments } => {
            let (_, width) = inputs[0].rows_width()?;
            Ok(pointwise::scale_segments(y, inputs[0].at, inputs[1].at, width, segments))
        }
        Op::WeightedSum { weights } => {
            let x: Vec<u64> = inputs.iter().map(|x| x.at).collect();
            one(pointwise::weighted_sum(y, &x, weights)?)
        }
        Op::AddPositions => {
            let each = inputs[1].count();
            Ok(layout::add_positions(y, inputs[0].at, inputs[1].at, n / each.max(1), each, element))
        }
        Op::SumImages { .. } => embed::sum_images(o),
        Op::AccumulateGrads => {
            let [total, grads, scalars] = [0, 1, 2].map(|i: usize| inputs[i].at);
            Ok(optim::accumulate_grads(&AccumulateParams { total, grads, scalars, n }))
        }
        Op::GradHealth => {
            let [grads, loss, scalars] = [0, 1, 2].map(|i: usize| inputs[i].at);
            optim::grad_health(y, grads, inputs[0].count(), loss, scalars, scratch)
        }
        Op::AdamW { segments, copies } => {
            let [params, grads, m, v, expert, scalars, health] =
                [0, 1, 2, 3, 4, 5, 6].map(|i: usize| inputs[i].at);
            let [weights, expert_weights] =
                if *copies { [7, 8].map(|i: usize| inputs[i].at) } else { [0, 0] };
            let params = AdamWParams {
                params,
                m,
                v,
                expert,
                weights,
                expert_weights,
                grads,
                scalars,
                health,
                pieces: 0,
            };
            Ok(optim::adamw(&params, segments))
        }
        Op::PatchRows { kept, .. } => embed::patch_rows(o, *kept),
        Op::EmbedTokens { layout } => embed::embed_tokens(o, layout),
        Op::EmbedTokensBackward { layout, tables } => embed::embed_tokens_backward(o, layout, tables),
        Op::ResizePositions { prefix, from, to } => embed::resize_positions(o, *prefix, *from, *to),
        Op::ResizePositionsBackward { prefix, from, to } => {
            embed::resize_positions_backward(o, *prefix, *from, *to)
        }
        Op::RestoreTokens => embed::restore_tokens(o),
        Op::RestoreTokensBackward => embed::restore_tokens_backward(o),
        Op::Linear { epilogue } => gemm::linear(o, *epilogue),
        Op::LinearBackwardInput { gelu } => gemm::backward_input(o, *gelu),
        Op::LinearBackwardWeight { .. } => gemm::backward_weight(o),
        Op::Conv2d { geometry, epilogue } => conv::forward(o, geometry, *epilogue),
        Op::Conv2dBackwardInput { geometry, gelu } => conv::backward_input(o, geometry, *gelu),
        Op::Conv2dBackwardWeight { geometry } => conv::backward_weight(o, geometry),
        Op::Attention { heads, layout, segments } => attention::forward(o, *heads, *layout, segments),
        Op::AttentionBackward { heads, layout, segments } => {
            attention::backward(o, *heads, *layout, segments)
        }
        Op::DynamicConv { tokens } => dense_loss::dynamic_conv(o, *tokens),
        Op::DynamicConvBackward { tokens } => dense_loss::dynamic_conv_backward(o, *tokens),
        Op::MaskedMse => dense_loss::masked_mse(o),
        Op::MaskedMseBackward => dense_loss::masked_mse_backward(o),
        Op::BceWithLogits { groups } => dense_loss::bce_with_logits(o, *groups),
        Op::BceWithLogitsBackward { groups } => dense_loss::bce_with_logits_backward(o, *groups),
        Op::PrototypeCrossEntropy { batch } => prototype_ce::forward(o, *batch),
        Op::PrototypeCrossEntropyBackward { batch } => prototype_ce::backward(o, *batch),
        Op::ExpertStatistics => prototype_ce::expert_statistics(o),
        Op::CenterUpdate => prototype_ce::center_update(o),
        Op::PixelRows { masked, .. } => embed::pixel_rows(o, *masked),
        Op::DepthwiseConv2d { geometry } => depthwise_conv::forward(o, geometry),
        Op::DepthwiseConv2dBackwardInput { geometry } => depthwise_conv::backward_input(o, geometry),
        Op::DepthwiseConv2dBackwardWeight { geometry } => depthwise_conv::backward_weight(o, geometry),
    }
}

/// Bytes of scratch memory that [`lower`]'s calls need.
pub fn workspace(op: &Op, inputs: &[OperandType<'_>], outputs: &[OperandType<'_>]) -> usize {
    match op {
        Op::LayerNormBackward { .. } => {
            let (rows, width) = inputs[0].shape.as_matrix();
            layer_norm::backward_workspace(rows, width)
        }
        Op::GradHealth => optim::health_workspace(inputs[0].shape.count() as u64),
        Op::EmbedTokens { .. }
        | Op::EmbedTokensBackward { .. }
        | Op::RestoreTokensBackward
        | Op::PatchRows { .. }
        | Op::PixelRows { .. }
        | Op::ResizePositions { .. }
        | Op::ResizePositionsBackward { .. }
        | Op::RestoreTokens
        | Op::SumImages { .. } => embed::workspace(op, inputs, outputs),
        Op::Linear { .. } | Op::LinearBackwardInput { .. } | Op::LinearBackwardWeight { .. } => {
            gemm::workspace(op, inputs, outputs)
        }
        Op::DepthwiseConv2d { .. }
        | Op::DepthwiseConv2dBackwardInput { .. }
        | Op::DepthwiseConv2dBackwardWeight { .. } => depthwise_conv::workspace(op, inputs),
        Op::Conv2d { .. } | Op::Conv2dBackwardInput { .. } | Op::Conv2dBackwardWeight { .. } => {
            conv::workspace(op, inputs, outputs)
        }
        Op::BatchNorm { .. } | Op::BatchNormBackward { .. } => batch_norm::workspace(op, inputs, outputs),
        Op::WindowAttentionBackward { heads, window, maps } => {
            window_attention::backward_workspace(*heads, *window, maps, inputs[0].shape.as_matrix().1)
        }
        Op::Attention { .. } | Op::AttentionBackward { .. } => attention::workspace(op, inputs, outputs),
        Op::DynamicConv { .. }
        | Op::DynamicConvBackward { .. }
        | Op::MaskedMse
        | Op::MaskedMseBackward
        | Op::BceWithLogits { .. }
        | Op::BceWithLogitsBackward { .. } => dense_loss::workspace(op, inputs, outputs),
        Op::PrototypeCrossEntropy { .. }
        | Op::PrototypeCrossEntropyBackward { .. }
        | Op::ExpertStatistics
        | Op::CenterUpdate => prototype_ce::workspace(op, inputs, outputs),
        Op::Gelu
        | Op::GeluBackward
        | Op::Add
        | Op::Scale { .. }
        | Op::Fill { .. }
        | Op::Cast { .. }
        | Op::ScaleSegments { .. }
        | Op::LayerNorm { .. }
        | Op::SelectRows { .. }
        | Op::ScatterRows { .. }
        | Op::GatherTokens { .. }
        | Op::ScatterTokens { .. }
        | Op::AddPositions
        | Op::L2Normalize { .. }
        | Op::L2NormalizeBackward { .. }
        | Op::WeightedSum { .. }
        | Op::AccumulateGrads
        | Op::BatchNormInference { .. }
        | Op::RunningStatistics { .. }
        | Op::Relu6
        | Op::Relu6Backward
        | Op::Relu6Gate
        | Op::Relu6GateBackward
        | Op::GlobalAveragePool { .. }
        | Op::GlobalAveragePoolBackward { .. }
        | Op::WindowAttention { .. }
        | Op::AdamW { .. } => 0,
    }
}

/// The index input `[B, k]` into images of `tokens` tokens.
fn kept(index: &Operand<'_>, tokens: usize) -> Result<Kept, String> {
    let (images, kept) = index.rows_width()?;
    let tokens = u32::try_from(tokens).map_err(|_| format!("takes at most {} tokens", u32::MAX))?;
    Ok(Kept { index: index.at, images: u64::from(images), kept, tokens })
}

fn norm_width(width: u32) -> Result<(), String> {
    if layer_norm::WIDTHS.contains(&(width as usize)) {
        return Ok(());
    }
    Err(format!("takes rows of 1 to {} elements, not {width}", layer_norm::WIDTHS.end()))
}
