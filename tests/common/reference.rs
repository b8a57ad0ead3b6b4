//! A naive f64 reference of every op that is not the derivative of another, written from the op's definition: plain
//! loops, nothing shared with the engine. Derivatives have no reference of their own; they are checked against central
//! differences of these functions.

mod dense;
mod layout;
mod losses;
mod maps;
mod mixup;
mod optim;

use dense::gelu;

use super::tensor::{Input, Tensor};
use saip_engine::ir::{Activation, Op, ops};

/// The op's outputs.
pub fn forward(op: &Op, x: &[Input]) -> Vec<Tensor> {
    match op {
        Op::PatchRows(ops::PatchRows { kept, .. }) => vec![layout::patch_rows(x, *kept)],
        Op::EmbedTokens(ops::EmbedTokens { layout }) => vec![layout::embed_tokens(x, layout)],
        Op::ResizePositions(ops::ResizePositions { prefix, from, to }) => {
            vec![layout::resize_positions(x[0].float(), *prefix, *from, *to)]
        }
        Op::ScaleSegments(ops::ScaleSegments { segments }) => {
            vec![layout::scale_segments(x[0].float(), x[1].float(), segments)]
        }
        Op::SelectRows(ops::SelectRows { runs }) => vec![layout::select_rows(x[0].float(), runs)],
        Op::ScatterRows(ops::ScatterRows { runs, rows, accumulate }) => {
            vec![layout::scatter_rows(x[0].float(), accumulate.then(|| x[1].float()), runs, *rows)]
        }
        Op::GatherTokens(ops::GatherTokens { tokens }) => vec![layout::gather_tokens(x, *tokens)],
        Op::ScatterTokens(ops::ScatterTokens { tokens }) => vec![layout::scatter_tokens(x, *tokens)],
        Op::RestoreTokens(_) => vec![layout::restore_tokens(x)],
        Op::AddPositions(_) => vec![layout::add_positions(x[0].float(), x[1].float())],
        Op::SumImages(ops::SumImages { tokens }) => vec![layout::sum_images(x[0].float(), *tokens)],
        Op::Linear(ops::Linear { epilogue }) => dense::epilogue(dense::linear(x), *epilogue, x),
        Op::Conv2d(ops::Conv2d { geometry, epilogue }) => {
            dense::epilogue(maps::conv2d(x, geometry), *epilogue, x)
        }
        Op::DepthwiseConv2d(ops::DepthwiseConv2d { geometry, residual }) => {
            let y = maps::depthwise_conv2d(x, geometry);
            vec![if *residual { dense::add(&y, x[3].float()) } else { y }]
        }
        Op::PixelRows(ops::PixelRows { masked, .. }) => vec![maps::pixel_rows(x, *masked)],
        Op::BatchNorm(ops::BatchNorm { eps, groups, then }) => {
            let mut y = maps::batch_norm(x, *eps, groups);
            y[0] = match then {
                None => y[0].clone(),
                Some(Activation::Gelu) => y[0].map(gelu),
                Some(Activation::Relu) => y[0].map(|v| v.max(0.0)),
                Some(Activation::Relu6) => y[0].map(maps::relu6),
            };
            y
        }
        Op::BatchNormInference(ops::BatchNormInference { eps }) => vec![maps::batch_norm_inference(x, *eps)],
        Op::RunningStatistics(ops::RunningStatistics { momentum, groups }) => {
            maps::running_statistics(x, *momentum, groups)
        }
        Op::Relu(_) => vec![x[0].float().map(|v| v.max(0.0))],
        Op::MaxPool2d(ops::MaxPool2d { geometry }) => vec![maps::max_pool2d(x[0].float(), geometry)],
        Op::Relu6(_) => vec![x[0].float().map(maps::relu6)],
        Op::Relu6Gate(_) => {
            let (a, b) = (x[0].float(), x[1].float());
            vec![Tensor::from_fn(a.shape.clone(), |i| maps::relu6(a.data[i]) * b.data[i])]
        }
        Op::GlobalAveragePool(ops::GlobalAveragePool { images }) => {
            vec![maps::global_average_pool(x[0].float(), images)]
        }
        Op::WindowAttention(ops::WindowAttention { heads, window, maps }) => {
            maps::window_attention(x, *heads, *window, maps)
        }
        Op::Gelu(_) => vec![x[0].float().map(gelu)],
        Op::Add(_) => vec![dense::add(x[0].float(), x[1].float())],
        Op::Scale(ops::Scale { factor }) => vec![x[0].float().map(|v| v * factor)],
        Op::Cast(_) => vec![x[0].float().clone()],
        Op::Fill(ops::Fill { shape, value, .. }) => vec![Tensor::from_fn(shape.clone(), |_| *value)],
        Op::LayerNorm(ops::LayerNorm { eps }) => dense::layer_norm(x, *eps),
        Op::Attention(ops::Attention { heads, layout, segments }) => {
            dense::attention(x, *heads, *layout, segments)
        }
        Op::DynamicConv(ops::DynamicConv { tokens }) => {
            vec![dense::dynamic_conv(x[0].float(), x[1].float(), *tokens)]
        }
        Op::ScaleRows(_) => vec![dense::scale_rows(x[0].float(), x[1].float())],
        Op::L2Normalize(ops::L2Normalize { eps }) => dense::l2_normalize(x[0].float(), *eps),
        Op::PrototypeCrossEntropy(ops::PrototypeCrossEntropy { batch }) => {
            losses::prototype_cross_entropy(x, *batch)
        }
        Op::ExpertStatistics(_) => vec![losses::expert_statistics(x)],
        Op::CenterUpdate(_) => vec![losses::center_update(x)],
        Op::MaskedMse(_) => vec![losses::masked_mse(x)],
        Op::BceWithLogits(ops::BceWithLogits { groups }) => {
            vec![losses::bce_with_logits(x[0].float(), x[1].float(), *groups)]
        }
        Op::MixImages(_) => vec![mixup::mix_images(x)],
        Op::SoftTargets(op) => vec![mixup::soft_targets(x, op)],
        Op::SoftCrossEntropy(_) => mixup::soft_cross_entropy(x[0].float(), x[1].float()),
        Op::WeightedSum(ops::WeightedSum { weights }) => {
            let sum = weights.iter().zip(x).map(|(w, l)| w * l.float().data[0]).sum();
            vec![Tensor::new([1], vec![sum])]
        }
        Op::AccumulateGrads(_) => vec![optim::accumulate_grads(x)],
        Op::GradHealth(_) => vec![optim::grad_health(x)],
        Op::AdamW(ops::AdamW { segments, copies }) => optim::adamw(x, segments, *copies),
        Op::ClipTensors(ops::ClipTensors { tensors }) => vec![optim::clip_tensors(x, tensors)],
        Op::EmbedTokensBackward(_)
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
            panic!("{} is checked against central differences of its forward op", op.name())
        }
    }
}
