//! How far a correct computation may be from the reference: `growth(longest sum) * eps * magnitude`, where magnitude is
//! the sum of the absolute values of the terms where the op is a sum of products, and the size of the largest
//! intermediate elsewhere.

use crate::common::check::{Precision, growth};
use crate::common::reference::forward;
use crate::common::tensor::{Input, Tensor};
use saip_engine::ir::{AttentionLayout, Epilogue, InputEpilogue, Op, Role, Rules, ops};

/// Number of terms in the longest sum inside the op.
pub fn longest_sum(op: &Op, x: &[Input]) -> usize {
    let rows = |i: usize| x[i].shape().iter().rev().skip(1).product::<usize>();
    let cols = |i: usize| *x[i].shape().last().unwrap_or(&1);
    let count = |i: usize| x[i].shape().iter().product::<usize>();
    match op {
        Op::PatchRows(_)
        | Op::EmbedTokens(_)
        | Op::Gelu(_)
        | Op::GeluBackward(_)
        | Op::PixelRows(_)
        | Op::Relu(_)
        | Op::ReluBackward(_)
        | Op::MaxPool2d(_)
        | Op::Relu6(_)
        | Op::Relu6Backward(_)
        | Op::Relu6Gate(_)
        | Op::Relu6GateBackward(_)
        | Op::BatchNormInference(_)
        | Op::GlobalAveragePoolBackward(_)
        | Op::Add(_)
        | Op::Scale(_)
        | Op::Fill(_)
        | Op::Cast(_)
        | Op::ScaleSegments(_)
        | Op::ScaleRows(_)
        | Op::SelectRows(_)
        | Op::ScatterRows(_)
        | Op::GatherTokens(_)
        | Op::ScatterTokens(_)
        | Op::RestoreTokens(_)
        | Op::AddPositions(_)
        | Op::MaskedMseBackward(_)
        | Op::BceWithLogitsBackward(_)
        | Op::MixImages(_)
        | Op::SoftTargets(_)
        | Op::AccumulateGrads(_)
        | Op::AdamW(_) => 1,
        Op::EmbedTokensBackward(_) | Op::RestoreTokensBackward(_) | Op::SumImages(_) => rows(0),
        Op::ResizePositions(ops::ResizePositions { from, .. }) => from[0] * from[1],
        Op::ResizePositionsBackward(ops::ResizePositionsBackward { to, .. }) => to[0] * to[1],
        Op::Linear(ops::Linear { epilogue: Epilogue::Norm { .. } }) => cols(0).max(count(2)),
        Op::Linear(_) | Op::L2Normalize(_) | Op::L2NormalizeBackward(_) | Op::ScaleRowsBackward(_) => cols(0),
        Op::DynamicConv(_) => cols(0),
        Op::SoftCrossEntropyBackward(_) => cols(1),
        Op::LinearBackwardInput(ops::LinearBackwardInput { epilogue: InputEpilogue::Norm { .. } }) => {
            cols(0).max(rows(0)).max(cols(2))
        }
        Op::LinearBackwardInput(_) => cols(0),
        Op::LinearBackwardWeight(_) | Op::Conv2dBackwardWeight(_) | Op::DepthwiseConv2dBackwardWeight(_) => {
            rows(0)
        }
        Op::DepthwiseConv2d(ops::DepthwiseConv2d { geometry, .. })
        | Op::DepthwiseConv2dBackwardInput(ops::DepthwiseConv2dBackwardInput { geometry, .. }) => {
            geometry.kernel * geometry.kernel
        }
        Op::MaxPool2dBackward(ops::MaxPool2dBackward { geometry }) => geometry.kernel * geometry.kernel,
        Op::BatchNorm(ops::BatchNorm { groups, .. })
        | Op::BatchNormBackward(ops::BatchNormBackward { groups, .. }) => groups.iter().sum(),
        Op::RunningStatistics(ops::RunningStatistics { groups, .. }) => groups.len(),
        Op::GlobalAveragePool(ops::GlobalAveragePool { images }) => {
            images.iter().map(|i| i.1).max().unwrap_or(1)
        }
        Op::WindowAttention(ops::WindowAttention { heads, window, .. }) => {
            (window * window).max(cols(0) / 3 / heads)
        }
        Op::WindowAttentionBackward(ops::WindowAttentionBackward { heads, window, .. }) => {
            (window * window).max(cols(0) / heads).max(rows(0))
        }
        Op::LayerNorm(_) => cols(0),
        Op::LayerNormBackward(_) => rows(0).max(cols(0)),
        Op::Attention(ops::Attention { heads, layout, segments }) => {
            let d = if *layout == AttentionLayout::Packed { cols(0) / 3 } else { cols(0) };
            segments.largest().1.max(d / heads)
        }
        Op::AttentionBackward(ops::AttentionBackward { heads, segments, .. }) => {
            segments.largest().0.max(segments.largest().1).max(cols(0) / heads) * segments.kv_groups
        }
        Op::Conv2d(_) => count(1) / x[1].shape()[0],
        Op::Conv2dBackwardInput(ops::Conv2dBackwardInput { geometry, .. }) => {
            cols(0) * geometry.kernel * geometry.kernel
        }
        Op::DynamicConvBackward(_) => rows(0).max(cols(0)),
        Op::PrototypeCrossEntropy(_) => rows(0) * rows(1) + cols(0),
        Op::PrototypeCrossEntropyBackward(_) => rows(1) * rows(2) + cols(1),
        Op::ExpertStatistics(_) => rows(0) * rows(1) + cols(0) + count(5),
        Op::CenterUpdate(_) => rows(1) + cols(1),
        Op::MaskedMse(_)
        | Op::BceWithLogits(_)
        | Op::SoftCrossEntropy(_)
        | Op::GradHealth(_)
        | Op::ClipTensors(_) => count(0),
        Op::WeightedSum(ops::WeightedSum { weights }) => weights.len(),
    }
}

fn absolute(x: &[Input]) -> Vec<Input> {
    x.iter()
        .map(|i| match i {
            Input::Float(t) => t.map(f64::abs).into(),
            Input::Index { .. } => i.clone(),
        })
        .collect()
}

/// Per output, the magnitude that roundoff is relative to.
fn magnitudes(op: &Op, x: &[Input], outputs: &[Tensor]) -> Vec<Tensor> {
    // Of the largest element of each output, at least `floor`.
    let largest =
        |floor: f64| -> Vec<Tensor> { outputs.iter().map(|o| o.map(|_| o.max_abs().max(floor))).collect() };
    let temperature = |i: usize, s: ops::Temperature| x[i].float().data[s as usize];
    match op {
        // Values are moved, not computed.
        Op::PatchRows(_)
        | Op::PixelRows(_)
        | Op::Relu(_)
        | Op::MaxPool2d(_)
        | Op::Relu6(_)
        | Op::Fill(_)
        | Op::Cast(_)
        | Op::SelectRows(_)
        | Op::ScatterRows(ops::ScatterRows { accumulate: false, .. })
        | Op::GatherTokens(_)
        | Op::ScatterTokens(_) => outputs.iter().map(|o| o.map(|_| 0.0)).collect(),
        // Sums of products: the same op on absolute values.
        Op::EmbedTokens(_)
        | Op::Add(_)
        | Op::ScaleSegments(_)
        | Op::ScaleRows(_)
        | Op::ScatterRows(ops::ScatterRows { accumulate: true, .. })
        | Op::RestoreTokens(_)
        | Op::AddPositions(_)
        | Op::SumImages(_)
        | Op::DynamicConv(_)
        | Op::DepthwiseConv2d(_)
        | Op::Relu6Gate(_)
        | Op::GlobalAveragePool(_)
        | Op::RunningStatistics(_)
        | Op::AccumulateGrads(_)
        | Op::CenterUpdate(_)
        | Op::Linear(ops::Linear { epilogue: Epilogue::None | Epilogue::Residual })
        | Op::Conv2d(ops::Conv2d { epilogue: Epilogue::None | Epilogue::Residual, .. }) => {
            forward(op, &absolute(x))
        }
        Op::Scale(_) | Op::ClipTensors(_) => vec![outputs[0].map(f64::abs)],
        // |gelu'| < 1.13.
        Op::Linear(ops::Linear { epilogue: Epilogue::Gelu })
        | Op::Conv2d(ops::Conv2d { epilogue: Epilogue::Gelu, .. }) => {
            let y = forward(op, &absolute(x)).swap_remove(1);
            vec![y.map(|v| 1.13 * v), y]
        }
        // A sum with a residual, and its normalisation.
        Op::Linear(ops::Linear { epilogue: Epilogue::Norm { eps } }) => {
            let residual = ops::Linear { epilogue: Epilogue::Residual };
            let y = forward(&residual.into(), &absolute(&x[..4])).swap_remove(0);
            // Roundoff of y is that of its terms.
            let mut all = magnitudes(
                &ops::LayerNorm { eps: *eps }.into(),
                &[y.clone().into(), x[4].clone(), x[5].clone()],
                &outputs[1..],
            );
            all.insert(0, y);
            all
        }
        Op::WeightedSum(ops::WeightedSum { weights }) => {
            let sum = weights.iter().zip(x).map(|(w, l)| (w * l.float().data[0]).abs()).sum();
            vec![Tensor::new([1], vec![sum])]
        }
        // The weights of a resampled row sum to 1 and their absolute values to less than 2.
        Op::ResizePositions(_) => vec![outputs[0].map(|_| 2.0 * x[0].float().max_abs())],
        Op::Gelu(_) => vec![x[0].float().map(f64::abs)],
        // Errors of x - mean are relative to |x| and enlarged by rstd.
        Op::LayerNorm(_) => {
            let (rstd, size) = (&outputs[2], x[0].float().max_abs());
            let gamma = x[1].float().max_abs();
            let d = x[0].float().cols();
            let y = Tensor::from_fn(outputs[0].shape.clone(), |i| {
                (size * rstd.data[i / d] * gamma).max(outputs[0].data[i].abs()) + x[2].float().max_abs()
            });
            let relative = rstd.map(|r| r * (1.0 + (size * r).powi(2) * 1e-2));
            vec![y, outputs[1].map(|_| size), relative]
        }
        // As layer normalisation, by columns; groups have statistics of their own.
        Op::BatchNorm(ops::BatchNorm { eps, groups, .. }) => {
            let (size, c) = (x[0].float().max_abs(), x[0].float().cols());
            let rstd = outputs[2].map(|v| 1.0 / (v + eps).sqrt());
            let group = groups.iter().enumerate().flat_map(|(g, &rows)| std::iter::repeat_n(g, rows));
            let group: Vec<usize> = group.collect();
            let (gamma, beta) = (x[1].float().max_abs(), x[2].float().max_abs());
            let y = Tensor::from_fn(outputs[0].shape.clone(), |i| {
                let r = rstd.data[group[i / c] * c + i % c];
                (size * r * gamma).max(outputs[0].data[i].abs()) * (1.0 + (size * r).powi(2) * 1e-2) + beta
            });
            vec![y, outputs[1].map(|_| size), outputs[2].map(|v| v + size * size * 1e-2)]
        }
        Op::BatchNormInference(ops::BatchNormInference { eps }) => {
            let least = x[4].float().data.iter().fold(f64::INFINITY, |m, &v| m.min(v));
            let spread = (x[0].float().max_abs() + x[3].float().max_abs()) / (least + eps).sqrt();
            let size = spread * x[1].float().max_abs() + x[2].float().max_abs();
            vec![outputs[0].map(|_| size)]
        }
        // The error of an exponent is relative to the largest score.
        Op::Attention(_) | Op::WindowAttention(_) => {
            let scores = 1.0 + outputs[1].max_abs();
            let of = if matches!(op, Op::Attention(_)) { x } else { &x[..2] };
            let values = of.iter().fold(0.0f64, |m, t| m.max(t.float().max_abs()));
            vec![outputs[0].map(|_| values * scores), outputs[1].map(|_| scores)]
        }
        Op::L2Normalize(_) => vec![outputs[0].map(f64::abs), outputs[1].clone()],
        Op::PrototypeCrossEntropy(_) => {
            let (s, t) =
                (temperature(5, ops::Temperature::Student), temperature(5, ops::Temperature::Teacher));
            vec![
                outputs[0].map(|v| (v + 1.0 / s) * (1.0 + 1.0 / t)),
                outputs[1].map(|v| v.abs() + 1.0 / s),
                outputs[2].map(|v| v.abs() + 1.0 / t),
            ]
        }
        Op::ExpertStatistics(_) => {
            let t = temperature(3, ops::Temperature::Teacher);
            vec![outputs[0].map(|v| (v.abs() + 1.0) / t)]
        }
        // Of a blend, that of the two together; of a logarithm of exponentials, that of the largest logit.
        Op::MixImages(_) | Op::SoftTargets(_) => largest(1.0),
        Op::SoftCrossEntropy(_) => {
            let most = x[0].float().max_abs() + outputs[1].max_abs() + 1.0;
            outputs.iter().map(|o| o.map(|_| most)).collect()
        }
        Op::MaskedMse(_) | Op::BceWithLogits(_) | Op::GradHealth(_) => {
            // Every output has its own size here.
            outputs.iter().map(|o| o.map(|v| v.abs().max(1e-3))).collect()
        }
        Op::AdamW(_) => largest(1.0),
        Op::Conv2d(ops::Conv2d { epilogue: Epilogue::Norm { .. }, .. })
        | Op::EmbedTokensBackward(_)
        | Op::ResizePositionsBackward(_)
        | Op::LinearBackwardInput(_)
        | Op::LinearBackwardWeight(_)
        | Op::GeluBackward(_)
        | Op::LayerNormBackward(_)
        | Op::AttentionBackward(_)
        | Op::RestoreTokensBackward(_)
        | Op::Conv2dBackwardInput(_)
        | Op::Conv2dBackwardWeight(_)
        | Op::DepthwiseConv2dBackwardInput(_)
        | Op::DepthwiseConv2dBackwardWeight(_)
        | Op::BatchNormBackward(_)
        | Op::ReluBackward(_)
        | Op::MaxPool2dBackward(_)
        | Op::Relu6Backward(_)
        | Op::Relu6GateBackward(_)
        | Op::GlobalAveragePoolBackward(_)
        | Op::WindowAttentionBackward(_)
        | Op::DynamicConvBackward(_)
        | Op::L2NormalizeBackward(_)
        | Op::ScaleRowsBackward(_)
        | Op::PrototypeCrossEntropyBackward(_)
        | Op::MaskedMseBackward(_)
        | Op::BceWithLogitsBackward(_)
        | Op::SoftCrossEntropyBackward(_) => {
            panic!("{} has no reference of its own", op.name())
        }
    }
}

/// Output `slot` is stored in the narrow type, or summed from factors that were rounded to it.
fn narrow(op: &Op, slot: usize) -> bool {
    // With a normalisation behind a layer: of what the layer stores.
    let rounded_factors = matches!(
        op,
        Op::PrototypeCrossEntropy(_)
            | Op::PrototypeCrossEntropyBackward(_)
            | Op::Linear(ops::Linear { epilogue: Epilogue::Norm { .. } })
            | Op::LinearBackwardInput(ops::LinearBackwardInput { epilogue: InputEpilogue::Norm { .. } })
    );
    rounded_factors || op.facts().output_role(slot) == Role::Element
}

/// Of gradients: per output, the part of the error that storing in the narrow type makes.
pub fn stored(op: &Op, slot: usize, precision: Precision) -> f64 {
    if narrow(op, slot) { precision.stored } else { 0.0 }
}

pub fn tolerances(op: &Op, x: &[Input], outputs: &[Tensor], precision: Precision) -> Vec<Tensor> {
    let sums = precision.sums * growth(longest_sum(op, x));
    // Values that are only moved have magnitude 0 and are held to equality: they are representable.
    let each = magnitudes(op, x, outputs).into_iter().enumerate();
    each.map(|(slot, m)| m.map(|v| v * (sums + stored(op, slot, precision)))).collect()
}
