//! From an op and its operands' addresses to kernel calls. No wildcard arms: a new op does not compile until it is here.

use super::kernel::Call;
use super::layer_norm::{self, LayerNormBackwardParams, LayerNormParams};
use super::layout::{self, Kept, Rows};
use super::optim::{self, AccumulateParams, AdamWParams};
use super::pointwise::{self, NormalizeParams};
use crate::backend::OperandType;
use crate::ir::Op;
use crate::tensor::Shape;

/// An operand on the device; the address is 0 for an output that is not stored.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    pub at: u64,
    pub shape: &'a Shape,
}

impl Operand<'_> {
    fn count(&self) -> u64 {
        self.shape.count() as u64
    }
}

/// Calls that compute an op, or why there are none.
pub type Lowered = Result<Vec<Call>, String>;

/// Calls for `op` on `inputs` and `outputs`, with scratch memory of [`workspace`] bytes at `scratch`.
pub fn lower(op: &Op, inputs: &[Operand<'_>], outputs: &[Operand<'_>], scratch: u64) -> Lowered {
    let one = |call: Call| Ok(vec![call]);
    let (y, n) = (outputs[0].at, outputs[0].count());
    match op {
        Op::Gelu => one(pointwise::unary("gelu_forward", y, inputs[0].at, n, 0.0)),
        Op::Scale { factor } => one(pointwise::unary("scale", y, inputs[0].at, n, *factor)),
        Op::Fill { value, .. } => one(pointwise::unary("fill", y, 0, n, *value)),
        Op::GeluBackward => one(pointwise::binary("gelu_backward", y, inputs[0].at, inputs[1].at, n)),
        Op::Add => one(pointwise::binary("add", y, inputs[0].at, inputs[1].at, n)),
        Op::L2Normalize { eps } => {
            let (rows, width) = rows_width(&inputs[0])?;
            let (norm, x, eps) = (outputs[1].at, inputs[0].at, *eps as f32);
            one(pointwise::normalize(
                "l2_normalize",
                &NormalizeParams { y, norm, x, unit: 0, rows, width, eps, unused: 0 },
            ))
        }
        Op::L2NormalizeBackward { eps } => {
            let (rows, width) = rows_width(&inputs[0])?;
            let (x, unit, norm, eps) = (inputs[0].at, inputs[1].at, inputs[2].at, *eps as f32);
            let params = NormalizeParams { y, norm, x, unit, rows, width, eps, unused: 0 };
            one(pointwise::normalize("l2_normalize_backward", &params))
        }
        Op::LayerNorm { eps } => {
            let (rows, width) = rows_width(&inputs[0])?;
            norm_width(width)?;
            let [x, gamma, beta] = [0, 1, 2].map(|i: usize| inputs[i].at);
            let (mean, rstd) = (outputs[1].at, outputs[2].at);
            let params = LayerNormParams { y, mean, rstd, x, gamma, beta, rows, eps: *eps as f32 };
            Ok(layer_norm::forward(&params, width as usize))
        }
        Op::LayerNormBackward { residual } => {
            let (rows, width) = rows_width(&inputs[0])?;
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
            let (_, width) = rows_width(&inputs[0])?;
            Ok(layout::select_rows(Rows { y, x: inputs[0].at, width }, runs))
        }
        Op::ScatterRows { runs, accumulate, .. } => {
            let (rows, width) = rows_width(&outputs[0])?;
            let base = accumulate.then(|| inputs[1].at);
            Ok(layout::scatter_rows(Rows { y, x: inputs[0].at, width }, runs, u64::from(rows), base))
        }
        Op::GatherTokens { tokens } => {
            let (_, width) = rows_width(&inputs[0])?;
            Ok(layout::gather_tokens(Rows { y, x: inputs[0].at, width }, kept(&inputs[1], *tokens)?))
        }
        Op::ScatterTokens { tokens } => {
            let (_, width) = rows_width(&inputs[0])?;
            Ok(layout::scatter_tokens(Rows { y, x: inputs[0].at, width }, kept(&inputs[1], *tokens)?))
        }
        Op::ScaleSegments { segments } => {
            let (_, width) = rows_width(&inputs[0])?;
            Ok(pointwise::scale_segments(y, inputs[0].at, inputs[1].at, width, segments))
        }
        Op::WeightedSum { weights } => {
            let x: Vec<u64> = inputs.iter().map(|x| x.at).collect();
            one(pointwise::weighted_sum(y, &x, weights)?)
        }
        Op::AddPositions => {
            let each = inputs[1].count();
            Ok(layout::add_positions(y, inputs[0].at, inputs[1].at, n / each.max(1), each))
        }
        Op::SumImages { .. } => Ok(layout::sum_images(y, inputs[0].at, inputs[0].count() / n.max(1), n)),
        Op::AccumulateGrads => {
            let [total, grads, scalars] = [0, 1, 2].map(|i: usize| inputs[i].at);
            Ok(optim::accumulate_grads(&AccumulateParams { total, grads, scalars, n }))
        }
        Op::GradHealth => {
            let [grads, loss, scalars] = [0, 1, 2].map(|i: usize| inputs[i].at);
            optim::grad_health(y, grads, inputs[0].count(), loss, scalars, scratch)
        }
        Op::AdamW { segments } => {
            let [params, grads, m, v, expert, scalars, health] =
                [0, 1, 2, 3, 4, 5, 6].map(|i: usize| inputs[i].at);
            let params = AdamWParams { params, m, v, expert, grads, scalars, health, pieces: 0 };
            Ok(optim::adamw(&params, segments))
        }
        Op::PatchRows { .. }
        | Op::EmbedTokens { .. }
        | Op::EmbedTokensBackward { .. }
        | Op::ResizePositions { .. }
        | Op::ResizePositionsBackward { .. }
        | Op::Linear { .. }
        | Op::LinearBackwardInput { .. }
        | Op::LinearBackwardWeight { .. }
        | Op::Attention { .. }
        | Op::AttentionBackward { .. }
        | Op::RestoreTokens
        | Op::RestoreTokensBackward
        | Op::Conv2d { .. }
        | Op::Conv2dBackwardInput { .. }
        | Op::Conv2dBackwardWeight { .. }
        | Op::DynamicConv { .. }
        | Op::DynamicConvBackward { .. }
        | Op::PrototypeCrossEntropy { .. }
        | Op::PrototypeCrossEntropyBackward { .. }
        | Op::ExpertStatistics
        | Op::CenterUpdate
        | Op::MaskedMse
        | Op::MaskedMseBackward
        | Op::BceWithLogits { .. }
        | Op::BceWithLogitsBackward { .. } => Err("has no kernel yet".to_owned()),
    }
}

/// Bytes of scratch memory that [`lower`]'s calls need.
pub fn workspace(op: &Op, inputs: &[OperandType<'_>]) -> usize {
    if let Op::LayerNormBackward { .. } = op {
        let (rows, width) = inputs[0].shape.as_matrix();
        return layer_norm::backward_workspace(rows, width);
    }
    if let Op::GradHealth = op {
        return optim::health_workspace(inputs[0].shape.count() as u64);
    }
    0
}

/// The index input `[B, k]` into images of `tokens` tokens.
fn kept(index: &Operand<'_>, tokens: usize) -> Result<Kept, String> {
    let (images, kept) = rows_width(index)?;
    let tokens = u32::try_from(tokens).map_err(|_| format!("takes at most {} tokens", u32::MAX))?;
    Ok(Kept { index: index.at, images: u64::from(images), kept, tokens })
}

fn rows_width(x: &Operand<'_>) -> Result<(u32, u32), String> {
    let (rows, width) = x.shape.as_matrix();
    match (u32::try_from(rows), u32::try_from(width)) {
        (Ok(rows), Ok(width)) => Ok((rows, width)),
        _ => Err(format!("takes at most {} rows and columns, not {}", u32::MAX, x.shape)),
    }
}

fn norm_width(width: u32) -> Result<(), String> {
    if layer_norm::WIDTHS.contains(&(width as usize)) {
        return Ok(());
    }
    Err(format!("takes rows of 1 to {} elements, not {width}", layer_norm::WIDTHS.end()))
}
