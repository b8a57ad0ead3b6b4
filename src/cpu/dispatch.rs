//! From an op and its operands to the function that computes it. No wildcard arms: a new op does not compile until it
//! is here.

mod maps;

use crate::ir::{AttentionLayout, Epilogue, Op, Segments, TokenLayout};
use crate::tensor::Shape;

use super::buffers::Io;
use super::layout::{Images, ViewTokens};
use super::linear::Finish;
use super::real::Real;
use super::{
    attention, conv, dense_loss, layer_norm, layout, linear, optim, pointwise, positions, prototype_ce,
};

/// Bytes of scratch memory that [`execute`] needs for `op` on up to `threads` threads.
pub fn workspace<T: Real>(op: &Op, inputs: &[&Shape], outputs: &[&Shape], threads: usize) -> usize {
    let rows_cols = |i: usize| inputs[i].as_matrix();
    let elements = match op {
        Op::LayerNormBackward { .. } => {
            let (m, d) = rows_cols(0);
            layer_norm::backward_workspace(m, d)
        }
        Op::Attention { heads, layout, segments } => {
            attention_geometry(*heads, *layout, segments, outputs[0]).workspace(threads)
        }
        Op::AttentionBackward { heads, layout, segments } => {
            attention_geometry(*heads, *layout, segments, inputs[0]).backward_workspace(threads)
        }
        Op::ResizePositions { from, to, .. } | Op::ResizePositionsBackward { from, to, .. } => {
            positions::workspace(*from, *to, rows_cols(0).1)
        }
        Op::Conv2d { .. }
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
        | Op::GlobalAveragePool { .. }
        | Op::GlobalAveragePoolBackward { .. }
        | Op::WindowAttention { .. }
        | Op::WindowAttentionBackward { .. } => maps::workspace(op, inputs, outputs, threads),
        Op::PrototypeCrossEntropy { .. } => extent(inputs[0], inputs[1], inputs[2]).workspace(threads),
        Op::PrototypeCrossEntropyBackward { .. } => {
            extent(inputs[1], inputs[2], inputs[3]).backward_workspace(threads)
        }
        Op::ExpertStatistics => {
            let e = extent(inputs[0], inputs[1], inputs[0]);
            prototype_ce::statistics_workspace(&e, rows_cols(5).1, threads)
        }
        Op::CenterUpdate => rows_cols(1).1,
        Op::MaskedMse => dense_loss::mse_workspace(inputs[2].count()),
        Op::BceWithLogits { .. } => dense_loss::bce_workspace(inputs[0].count()),
        Op::GradHealth => optim::health_workspace::<T>(inputs[0].count()),
        Op::PatchRows { .. }
        | Op::EmbedTokens { .. }
        | Op::EmbedTokensBackward { .. }
        | Op::Linear { .. }
        | Op::LinearBackwardInput { .. }
        | Op::LinearBackwardWeight { .. }
        | Op::Gelu
        | Op::GeluBackward
        | Op::Relu6
        | Op::Relu6Backward
        | Op::Relu6Gate
        | Op::Relu6GateBackward
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
        | Op::RestoreTokens
        | Op::RestoreTokensBackward
        | Op::AddPositions
        | Op::SumImages { .. }
        | Op::DynamicConv { .. }
        | Op::DynamicConvBackward { .. }
        | Op::L2Normalize { .. }
        | Op::L2NormalizeBackward { .. }
        | Op::MaskedMseBackward
        | Op::BceWithLogitsBackward { .. }
        | Op::WeightedSum { .. }
        | Op::AccumulateGrads
        | Op::AdamW { .. } => 0,
    };
    elements * size_of::<T>()
}

fn attention_geometry<'a>(
    heads: usize,
    layout: AttentionLayout,
    segments: &'a Segments,
    o: &Shape,
) -> attention::Geometry<'a> {
    attention::Geometry { heads, width: o.as_matrix().1, layout, segments }
}

fn extent(z: &Shape, w: &Shape, zt: &Shape) -> prototype_ce::Extent {
    let (prototypes, width) = w.as_matrix();
    prototype_ce::Extent { rows: z.as_matrix().0, expert_rows: zt.as_matrix().0, prototypes, width }
}

/// Computes the outputs of `io` from its inputs. Allocates nothing beyond one packing buffer per thread, the first time
/// that thread multiplies. Shapes have passed inference; operands that do not fit their shapes panic.
pub fn execute<T: Real>(io: &mut Io<'_, T>) {
    match io.op() {
        Op::PatchRows { kept, .. } => patch_rows(io, *kept),
        Op::EmbedTokens { layout } => embed_tokens(io, layout),
        Op::EmbedTokensBackward { layout, .. } => embed_tokens_backward(io, layout),
        Op::ResizePositions { prefix, from, to } => {
            let d = cols(io.input_shape(0));
            let (y, workspace, table) = (io.output(0), io.workspace(), &io.input(0)[prefix * d..]);
            positions::resize_positions(y, table, *from, *to, d, workspace);
        }
        Op::ResizePositionsBackward { prefix, from, to } => {
            let d = cols(io.input_shape(0));
            let (y, workspace) = (io.output(0), io.workspace());
            let (head, table) = y.split_at_mut(prefix * d);
            head.fill(T::ZERO);
            positions::resize_positions_backward(table, io.input(0), *from, *to, d, workspace);
        }
        Op::Linear { epilogue } => {
            let (n, k) = io.input_shape(1).as_weight();
            let (y, finish) = (io.output(0), finish(io, *epilogue));
            let size = [rows(io.input_shape(0)), n, k];
            linear::linear(y, finish, io.input(0), io.input(1), io.input(2), size);
        }
        Op::LinearBackwardInput { gelu } => {
            let (n, k) = io.input_shape(1).as_weight();
            let (dx, pre) = (io.output(0), gelu.then(|| io.input(2)));
            let size = [rows(io.input_shape(0)), n, k];
            linear::linear_backward_input(dx, io.input(0), io.input(1), pre, size);
        }
        Op::LinearBackwardWeight { .. } => {
            let ((m, n), k) = (io.input_shape(0).as_matrix(), cols(io.input_shape(1)));
            let (dw, db) = (io.output(0), io.output(1));
            linear::linear_backward_weight(dw, db, io.input(0), io.input(1), [m, n, k]);
        }
        Op::Gelu => pointwise::gelu(io.output(0), io.operand(0)),
        Op::GeluBackward => pointwise::gelu_backward(io.output(0), io.operand(0), io.input(1)),
        Op::Relu6 => pointwise::relu6(io.output(0), io.operand(0)),
        Op::Relu6Backward => pointwise::relu6_backward(io.output(0), io.operand(0), io.input(1)),
        Op::Relu6Gate => pointwise::relu6_gate(io.output(0), io.operand(0), io.operand(1)),
        Op::Relu6GateBackward => {
            let (da, db) = (io.output(0), io.output(1));
            pointwise::relu6_gate_backward(da, db, io.input(0), io.input(1), io.input(2));
        }
        Op::Add => pointwise::add(io.output(0), io.operand(0), io.operand(1)),
        Op::Scale { factor } => pointwise::scale(io.output(0), io.operand(0), *factor),
        Op::Fill { value, .. } => pointwise::fill(io.output(0), *value),
        Op::Cast { .. } => io.output(0).copy_from_slice(io.input(0)),
        Op::ScaleSegments { segments } => {
            let d = cols(io.input_shape(0));
            pointwise::scale_segments(io.output(0), io.operand(0), io.input(1), segments, d);
        }
        Op::LayerNorm { eps } => {
            let (y, mean, rstd) = (io.output(0), io.output(1), io.output(2));
            layer_norm::layer_norm(y, mean, rstd, io.input(0), io.input(1), io.input(2), *eps);
        }
        Op::LayerNormBackward { residual } => layer_norm_backward(io, *residual),
        Op::Attention { heads, layout, segments } => {
            let g = attention_geometry(*heads, *layout, segments, io.output_shape(0));
            let (o, lse, workspace) = (io.output(0), io.output(1), io.workspace());
            attention::attention(o, lse, attention_inputs(io, 0, *layout), &g, workspace);
        }
        Op::AttentionBackward { heads, layout, segments } => {
            let g = attention_geometry(*heads, *layout, segments, io.input_shape(0));
            attention_backward(io, &g);
        }
        Op::SelectRows { runs } => {
            let d = cols(io.input_shape(0));
            layout::select_rows(io.output(0), io.input(0), runs, d);
        }
        Op::ScatterRows { runs, accumulate, .. } => {
            let d = cols(io.input_shape(0));
            let base = accumulate.then(|| io.operand(1));
            layout::scatter_rows(io.output(0), io.input(0), base, runs, d);
        }
        Op::GatherTokens { tokens } => {
            let (k, d) = (cols(io.input_shape(1)), cols(io.input_shape(0)));
            layout::gather_tokens(io.output(0), io.input(0), io.index(1), [k, *tokens], d);
        }
        Op::ScatterTokens { tokens } => {
            let (k, d) = (cols(io.input_shape(1)), cols(io.input_shape(0)));
            layout::scatter_tokens(io.output(0), io.input(0), io.index(1), [k, *tokens], d);
        }
        Op::RestoreTokens => {
            let size = [cols(io.input_shape(1)), rows(io.input_shape(3))];
            let (y, mask, pos) = (io.output(0), io.input(2), io.input(3));
            layout::restore_tokens(y, io.input(0), io.index(1), mask, pos, size);
        }
        Op::RestoreTokensBackward => {
            let (k, n, d) = (cols(io.input_shape(1)), rows(io.output_shape(2)), cols(io.input_shape(0)));
            let (dvisible, dmask, dpos) = (io.output(0), io.output(1), io.output(2));
            let (dy, keep) = (io.input(0), io.index(1));
            layout::gather_tokens(dvisible, dy, keep, [k, n], d);
            layout::restore_mask_backward(dmask, dy, keep, [k, n]);
            layout::sum_images(dpos, dy);
        }
        Op::AddPositions => {
            let d = cols(io.input_shape(0));
            layout::add_positions(io.output(0), io.operand(0), io.input(1), d);
        }
        Op::SumImages { .. } => layout::sum_images(io.output(0), io.input(0)),
        Op::Conv2d { .. }
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
        | Op::GlobalAveragePool { .. }
        | Op::GlobalAveragePoolBackward { .. }
        | Op::WindowAttention { .. }
        | Op::WindowAttentionBackward { .. } => maps::execute(io),
        Op::DynamicConv { tokens } => {
            let s = dynamic_conv(io, 0, *tokens);
            conv::dynamic_conv(io.output(0), io.input(0), io.input(1), s);
        }
        Op::DynamicConvBackward { tokens } => {
            let s = dynamic_conv(io, 1, *tokens);
            let (dk, df) = (io.output(0), io.output(1));
            conv::dynamic_conv_backward(dk, df, io.input(0), io.input(1), io.input(2), s);
        }
        Op::L2Normalize { eps } => {
            let (y, norm, d) = (io.output(0), io.output(1), cols(io.input_shape(0)));
            pointwise::l2_normalize(y, norm, io.input(0), d, *eps);
        }
        Op::L2NormalizeBackward { eps } => {
            let (dx, d) = (io.output(0), cols(io.input_shape(0)));
            pointwise::l2_normalize_backward(dx, io.operand(0), io.input(1), io.input(2), d, *eps);
        }
        Op::PrototypeCrossEntropy { .. } => {
            let (loss, lse, lse_t) = (io.output(0), io.output(1), io.output(2));
            let workspace = io.workspace();
            prototype_ce::cross_entropy(loss, lse, lse_t, &prototypes(io, 0), workspace);
        }
        Op::PrototypeCrossEntropyBackward { .. } => {
            let (dz, dw, workspace) = (io.output(0), io.output(1), io.workspace());
            let (dloss, lse) = (io.input(0)[0], [io.input(7), io.input(8)]);
            prototype_ce::cross_entropy_backward(dz, dw, dloss, &prototypes(io, 1), lse, workspace);
        }
        Op::ExpertStatistics => expert_statistics(io),
        Op::CenterUpdate => {
            let (center, workspace, rows) = (io.output(0), io.workspace(), rows(io.input_shape(1)));
            let (zt, wt, scalars, health) = (io.input(1), io.input(2), io.input(3), io.input(4));
            prototype_ce::center_update(center, zt, wt, scalars, health, rows, workspace);
        }
        Op::MaskedMse => {
            let (loss, workspace) = (io.output(0), io.workspace());
            dense_loss::masked_mse(loss, io.input(0), hidden(io, 1), workspace);
        }
        Op::MaskedMseBackward => {
            let (dpred, dloss) = (io.output(0), io.input(0)[0]);
            dense_loss::masked_mse_backward(dpred, dloss, io.operand(1), hidden(io, 2));
        }
        Op::BceWithLogits { groups } => {
            let (loss, workspace) = (io.output(0), io.workspace());
            dense_loss::bce_with_logits(loss, io.input(0), io.input(1), *groups, workspace);
        }
        Op::BceWithLogitsBackward { groups } => {
            let (d, dloss) = (io.output(0), io.input(0)[0]);
            dense_loss::bce_with_logits_backward(d, dloss, io.operand(1), io.input(2), *groups);
        }
        Op::WeightedSum { weights } => {
            let sum = io.output(0);
            dense_loss::weighted_sum(sum, (0..io.input_count()).map(|i| io.input(i)), weights);
        }
        Op::AccumulateGrads => optim::accumulate_grads(io.output(0), io.input(1), io.input(2)),
        Op::GradHealth => {
            let (health, workspace) = (io.output(0), io.workspace());
            optim::grad_health(health, io.input(0), io.input(1), io.input(2), workspace);
        }
        Op::AdamW { segments, copies } => {
            let (params, m, v, expert) = (io.output(0), io.output(1), io.output(2), io.output(3));
            let state = optim::State { params: &mut *params, m, v, expert: &mut *expert };
            optim::adamw(state, io.input(1), io.input(5), io.input(6), segments);
            if *copies {
                let [weights, expert_weights] = [4, 5].map(|i| io.output(i));
                optim::copy_segments((weights, params), (expert_weights, expert), io.input(6), segments);
            }
        }
    }
}

fn rows(shape: &Shape) -> usize {
    shape.as_matrix().0
}

fn cols(shape: &Shape) -> usize {
    shape.as_matrix().1
}

fn images(shape: &Shape) -> Images {
    match *shape.dims() {
        [count, _, height, width] => Images { count, height, width },
        _ => Images { count: 0, height: 0, width: 0 },
    }
}

fn finish<'a, T: Real>(io: &mut Io<'a, T>, epilogue: Epilogue) -> Finish<'a, T> {
    match epilogue {
        Epilogue::None => Finish::None,
        Epilogue::Gelu => match io.output(1) {
            // Nothing reads the value before GELU.
            [] => Finish::GeluOnly,
            pre => Finish::Gelu(pre),
        },
        Epilogue::Residual => Finish::Residual(io.operand(3)),
    }
}

fn patch_rows<T: Real>(io: &mut Io<'_, T>, kept: Option<usize>) {
    let mut rows = io.output(0);
    let count = io.input_count() - usize::from(kept.is_some());
    for i in 0..count {
        let of = images(io.input_shape(i));
        let keep = (kept == Some(i)).then(|| io.index(count));
        let n = keep.map_or(of.count * of.patches(), <[i32]>::len);
        let width = cols(io.output_shape(0));
        let (part, rest) = rows.split_at_mut(n * width);
        rows = rest;
        layout::patch_rows(part, io.input(i), of, keep);
    }
}

/// The index input behind the others of an embedding op.
fn embed_keep<'a, T: Real>(io: &Io<'a, T>, layout: &TokenLayout, view: usize) -> Option<&'a [i32]> {
    (layout.kept == Some(view)).then(|| io.index(io.input_count() - 1))
}

fn embed_tokens<T: Real>(io: &mut Io<'_, T>, layout: &TokenLayout) {
    let (mut stream, mut patches) = (io.output(0), io.input(0));
    let d = cols(io.input_shape(0));
    for (v, view) in layout.views.iter().enumerate() {
        let (part, rest) = stream.split_at_mut(view.count * (view.tokens + 1) * d);
        let (rows, others) = patches.split_at(view.count * view.tokens * d);
        (stream, patches) = (rest, others);
        let positions = layout.positions.then(|| (io.input(2), io.input(3 + v)));
        let keep = embed_keep(io, layout, v);
        let tokens = ViewTokens { rows, token: io.input(1), positions, keep, tokens: view.tokens };
        layout::embed_view(part, &tokens, d);
    }
}

fn embed_tokens_backward<T: Real>(io: &mut Io<'_, T>, layout: &TokenLayout) {
    let (dy, d) = (io.input(0), cols(io.input_shape(0)));
    layout::embed_rows_backward(io.output(0), dy, layout, d);
    layout::embed_token_backward(io.output(1), dy, layout, d);
    let mut start = 0;
    for (v, view) in layout.views.iter().enumerate().filter(|_| layout.positions) {
        let end = start + view.count * (view.tokens + 1) * d;
        let keep = embed_keep(io, layout, v);
        let size = [view.count, view.tokens];
        layout::embed_positions_backward(io.output(2 + v), &dy[start..end], keep, size, d);
        start = end;
    }
}

fn layer_norm_backward<T: Real>(io: &mut Io<'_, T>, residual: bool) {
    let (dx, dgamma, dbeta, workspace) = (io.output(0), io.output(1), io.output(2), io.workspace());
    let op = layer_norm::Backward {
        dy: io.input(0),
        x: io.input(1),
        gamma: io.input(2),
        mean: io.input(3),
        rstd: io.input(4),
        residual: residual.then(|| io.operand(5)),
    };
    layer_norm::layer_norm_backward(dx, dgamma, dbeta, &op, workspace);
}

fn attention_inputs<'a, T: Real>(
    io: &Io<'a, T>,
    first: usize,
    layout: AttentionLayout,
) -> attention::Inputs<'a, T> {
    let last = match layout {
        AttentionLayout::Packed => first,
        AttentionLayout::Separate => first + 1,
    };
    attention::Inputs { q: io.input(first), kv: io.input(last) }
}

fn attention_backward<T: Real>(io: &mut Io<'_, T>, g: &attention::Geometry<'_>) {
    let (first, workspace) = (io.output(0), io.workspace());
    let (dq, dkv) = match g.layout {
        AttentionLayout::Packed => (None, first),
        AttentionLayout::Separate => (Some(first), io.output(1)),
    };
    let saved = attention::Saved { grad: io.input(0), o: io.input(1), lse: io.input(2) };
    attention::attention_backward(dq, dkv, saved, attention_inputs(io, 3, g.layout), g, workspace);
}

fn dynamic_conv<T: Real>(io: &Io<'_, T>, first: usize, tokens: usize) -> conv::DynamicConv {
    let (rows, width) = io.input_shape(first).as_matrix();
    let images = io.input_shape(first + 1).as_matrix().0 / tokens;
    conv::DynamicConv { rows, images, tokens, width }
}

fn prototypes<'a, T: Real>(io: &Io<'a, T>, first: usize) -> prototype_ce::Prototypes<'a, T> {
    let at = |i: usize| io.input(first + i);
    let shape = extent(io.input_shape(first), io.input_shape(first + 1), io.input_shape(first + 2));
    prototype_ce::Prototypes {
        z: at(0),
        w: at(1),
        zt: at(2),
        wt: at(3),
        center: at(4),
        scalars: at(5),
        shape,
    }
}

fn expert_statistics<T: Real>(io: &mut Io<'_, T>) {
    let (y, workspace) = (io.output(0), io.workspace());
    let (zt, wt) = (io.input(0), io.input(1));
    let op = prototype_ce::Prototypes {
        z: &[],
        w: &[],
        zt,
        wt,
        center: io.input(2),
        scalars: io.input(3),
        shape: extent(io.input_shape(0), io.input_shape(1), io.input_shape(0)),
    };
    prototype_ce::expert_statistics(y, &op, io.input(4), io.input(5), workspace);
}

/// Hidden patches whose image is input `first` and whose positions are the next one.
fn hidden<'a, T: Real>(io: &Io<'a, T>, first: usize) -> dense_loss::Hidden<'a, T> {
    dense_loss::Hidden {
        image: io.input(first),
        of: images(io.input_shape(first)),
        hidden: io.index(first + 1),
    }
}
