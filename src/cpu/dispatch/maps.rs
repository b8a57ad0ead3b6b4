//! Ops on feature maps.

use crate::ir::{FeatureMap, Op};
use crate::tensor::Shape;

use super::super::buffers::Io;
use super::super::real::Real;
use super::super::{batch_norm, conv, depthwise_conv, layout, window_attention};
use super::{cols, finish, images};

/// Elements of scratch memory.
pub(super) fn workspace(op: &Op, inputs: &[&Shape], outputs: &[&Shape], threads: usize) -> usize {
    let channels = |i: usize| cols(inputs[i]);
    match op {
        Op::Conv2d { geometry, .. } => conv::workspace(geometry, channels(0), inputs[1].dims()[0]),
        Op::Conv2dBackwardInput { geometry, .. } => {
            conv::backward_input_workspace(geometry, channels(0), inputs[1].dims()[1])
        }
        Op::Conv2dBackwardWeight { geometry } => conv::workspace(geometry, channels(1), channels(0)),
        Op::DepthwiseConv2d { geometry } | Op::DepthwiseConv2dBackwardInput { geometry } => {
            depthwise_conv::workspace(geometry, channels(0))
        }
        Op::DepthwiseConv2dBackwardWeight { geometry } => {
            depthwise_conv::backward_weight_workspace(geometry, channels(0))
        }
        Op::BatchNorm { groups, .. } => batch_norm::workspace(groups, channels(0)),
        Op::BatchNormBackward { groups, .. } => batch_norm::backward_workspace(groups, channels(0)),
        Op::BatchNormInference { .. } => channels(0),
        Op::WindowAttention { heads, window, maps } => {
            attention(*heads, *window, maps, cols(outputs[0])).workspace(threads)
        }
        Op::WindowAttentionBackward { heads, window, maps } => {
            attention(*heads, *window, maps, channels(0)).backward_workspace(threads)
        }
        _ => 0,
    }
}

fn attention(
    heads: usize,
    window: usize,
    maps: &[FeatureMap],
    width: usize,
) -> window_attention::Geometry<'_> {
    window_attention::Geometry { heads, width, window, maps }
}

fn attention_inputs<'a, T: Real>(io: &Io<'a, T>, first: usize) -> window_attention::Inputs<'a, T> {
    let [qkv, pad, biases] = [0, 1, 2].map(|i| io.input(first + i));
    window_attention::Inputs { qkv, pad, biases }
}

/// Computes the outputs of an op on feature maps.
pub(super) fn execute<T: Real>(io: &mut Io<'_, T>) {
    match io.op() {
        Op::Conv2d { geometry, epilogue } => {
            let (y, finish, workspace) = (io.output(0), finish(io, *epilogue), io.workspace());
            conv::conv2d(y, finish, io.input(0), io.input(1), io.input(2), geometry, workspace);
        }
        Op::Conv2dBackwardInput { geometry, gelu } => {
            let (dx, workspace, pre) = (io.output(0), io.workspace(), gelu.then(|| io.input(2)));
            let size = [cols(io.input_shape(0)), cols(io.output_shape(0))];
            conv::conv2d_backward_input(dx, io.input(0), io.input(1), pre, geometry, size, workspace);
        }
        Op::Conv2dBackwardWeight { geometry } => {
            let (dw, db, workspace) = (io.output(0), io.output(1), io.workspace());
            conv::conv2d_backward_weight(dw, db, io.input(0), io.input(1), geometry, workspace);
        }
        Op::DepthwiseConv2d { geometry } => {
            let (y, workspace) = (io.output(0), io.workspace());
            let (x, w, bias) = (io.input(0), io.input(1), io.input(2));
            depthwise_conv::depthwise_conv2d(y, x, w, bias, geometry, workspace);
        }
        Op::DepthwiseConv2dBackwardInput { geometry } => {
            let (dx, workspace) = (io.output(0), io.workspace());
            let (dy, w) = (io.input(0), io.input(1));
            depthwise_conv::depthwise_conv2d_backward_input(dx, dy, w, geometry, workspace);
        }
        Op::DepthwiseConv2dBackwardWeight { geometry } => {
            let (dw, db, workspace) = (io.output(0), io.output(1), io.workspace());
            let (dy, x) = (io.input(0), io.input(1));
            depthwise_conv::depthwise_conv2d_backward_weight(dw, db, dy, x, geometry, workspace);
        }
        Op::PixelRows { masked, .. } => pixel_rows(io, *masked),
        Op::BatchNorm { eps, groups } => {
            let (outputs, workspace) = ([0, 1, 2].map(|o| io.output(o)), io.workspace());
            batch_norm::batch_norm(outputs, [0, 1, 2].map(|i| io.input(i)), groups, *eps, workspace);
        }
        Op::BatchNormBackward { eps, groups } => {
            let (outputs, workspace) = ([0, 1, 2].map(|o| io.output(o)), io.workspace());
            let inputs = [0, 1, 2, 3, 4].map(|i| io.input(i));
            batch_norm::batch_norm_backward(outputs, inputs, groups, *eps, workspace);
        }
        Op::BatchNormInference { eps } => {
            let (y, workspace) = (io.output(0), io.workspace());
            batch_norm::batch_norm_inference(y, [0, 1, 2, 3, 4].map(|i| io.input(i)), *eps, workspace);
        }
        Op::RunningStatistics { momentum, groups } => {
            let [mean, var] = [0, 1].map(|o| io.output(o));
            batch_norm::running_statistics(mean, var, io.input(2), io.input(3), groups, *momentum);
        }
        Op::GlobalAveragePool { images } => {
            let (y, c) = (io.output(0), cols(io.input_shape(0)));
            layout::global_average_pool(y, io.input(0), images, c);
        }
        Op::GlobalAveragePoolBackward { images } => {
            let (dx, c) = (io.output(0), cols(io.input_shape(0)));
            layout::global_average_pool_backward(dx, io.input(0), images, c);
        }
        Op::WindowAttention { heads, window, maps } => {
            let g = attention(*heads, *window, maps, cols(io.output_shape(0)));
            let (o, lse, workspace) = (io.output(0), io.output(1), io.workspace());
            window_attention::window_attention(o, lse, attention_inputs(io, 0), &g, workspace);
        }
        Op::WindowAttentionBackward { heads, window, maps } => {
            let g = attention(*heads, *window, maps, cols(io.input_shape(0)));
            let (outputs, workspace) = ([0, 1, 2].map(|o| io.output(o)), io.workspace());
            let saved = window_attention::Saved { grad: io.input(0), o: io.input(1), lse: io.input(2) };
            window_attention::window_attention_backward(
                outputs,
                saved,
                attention_inputs(io, 3),
                &g,
                workspace,
            );
        }
        other => unreachable!("{} is no op on feature maps", other.name()),
    }
}

fn pixel_rows<T: Real>(io: &mut Io<'_, T>, masked: Option<usize>) {
    let mut rows = io.output(0);
    let count = io.input_count() - usize::from(masked.is_some());
    for i in 0..count {
        let of = images(io.input_shape(i));
        let (part, rest) = rows.split_at_mut(of.count * of.height * of.width * 3);
        rows = rest;
        layout::pixel_rows(part, io.input(i), of, (masked == Some(i)).then(|| io.index(count)));
    }
}
