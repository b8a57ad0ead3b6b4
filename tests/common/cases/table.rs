//! The cases of ops with a reference of their own, and the table itself.

use super::{Case, derivatives, maps, mixup};
use crate::common::runner::NARROW as NARROW_TYPE;
use crate::common::tensor::{Gen, Input, Tensor, scalars, temperatures};
use saip_engine::ir::{
    AttentionLayout, Epilogue, Op, OpKind, ParamSegment, RowRun, Scalar, SegmentRun, Segments, TokenLayout,
    TokenView, ops,
};
use saip_engine::tensor::DType;

/// Every case of `kind`, at least one.
pub fn cases(kind: OpKind) -> Vec<Case> {
    match kind {
        OpKind::PatchRows => patch_rows(),
        OpKind::EmbedTokens => embed_tokens(),
        OpKind::EmbedTokensBackward => derivatives::embed_tokens(),
        OpKind::ResizePositions => resize_positions(),
        OpKind::ResizePositionsBackward => derivatives::resize_positions(),
        OpKind::Linear => linear(),
        OpKind::LinearBackwardInput => derivatives::linear_input(),
        OpKind::LinearBackwardWeight => derivatives::linear_weight(),
        OpKind::Gelu => gelu(),
        OpKind::GeluBackward => derivatives::gelu(),
        OpKind::Add => add(),
        OpKind::Scale => scale(),
        OpKind::Fill => fill(),
        OpKind::Cast => cast(),
        OpKind::ScaleSegments => scale_segments(),
        OpKind::LayerNorm => layer_norm(),
        OpKind::LayerNormBackward => derivatives::layer_norm(),
        OpKind::Attention => attention(),
        OpKind::AttentionBackward => derivatives::attention(),
        OpKind::SelectRows => select_rows(),
        OpKind::ScatterRows => scatter_rows(),
        OpKind::GatherTokens => gather_tokens(),
        OpKind::ScatterTokens => scatter_tokens(),
        OpKind::RestoreTokens => restore_tokens(),
        OpKind::RestoreTokensBackward => derivatives::restore_tokens(),
        OpKind::AddPositions => add_positions(),
        OpKind::SumImages => sum_images(),
        OpKind::Conv2d => maps::conv2d(),
        OpKind::Conv2dBackwardInput => maps::conv2d_input(),
        OpKind::Conv2dBackwardWeight => maps::conv2d_weight(),
        OpKind::DepthwiseConv2d => maps::depthwise_conv2d(),
        OpKind::DepthwiseConv2dBackwardInput => maps::depthwise_conv2d_input(),
        OpKind::DepthwiseConv2dBackwardWeight => maps::depthwise_conv2d_weight(),
        OpKind::PixelRows => maps::pixel_rows(),
        OpKind::BatchNorm => maps::batch_norm(),
        OpKind::BatchNormBackward => maps::batch_norm_backward(),
        OpKind::BatchNormInference => maps::batch_norm_inference(),
        OpKind::RunningStatistics => maps::running_statistics(),
        OpKind::Relu => maps::relu(),
        OpKind::ReluBackward => maps::relu_backward(),
        OpKind::MaxPool2d => maps::max_pool2d(),
        OpKind::MaxPool2dBackward => maps::max_pool2d_backward(),
        OpKind::Relu6 => maps::relu6(),
        OpKind::Relu6Backward => maps::relu6_backward(),
        OpKind::Relu6Gate => maps::relu6_gate(),
        OpKind::Relu6GateBackward => maps::relu6_gate_backward(),
        OpKind::GlobalAveragePool => maps::global_average_pool(),
        OpKind::GlobalAveragePoolBackward => maps::global_average_pool_backward(),
        OpKind::WindowAttention => maps::window_attention(),
        OpKind::WindowAttentionBackward => maps::window_attention_backward(),
        OpKind::DynamicConv => dynamic_conv(),
        OpKind::DynamicConvBackward => derivatives::dynamic_conv(),
        OpKind::ScaleRows => scale_rows(),
        OpKind::ScaleRowsBackward => derivatives::scale_rows(),
        OpKind::L2Normalize => l2_normalize(),
        OpKind::L2NormalizeBackward => derivatives::l2_normalize(),
        OpKind::PrototypeCrossEntropy => prototype_cross_entropy(),
        OpKind::PrototypeCrossEntropyBackward => derivatives::prototype_cross_entropy(),
        OpKind::ExpertStatistics => expert_statistics(),
        OpKind::CenterUpdate => center_update(),
        OpKind::MaskedMse => masked_mse(),
        OpKind::MaskedMseBackward => derivatives::masked_mse(),
        OpKind::BceWithLogits => bce_with_logits(),
        OpKind::BceWithLogitsBackward => derivatives::bce_with_logits(),
        OpKind::MixImages => mixup::mix_images(),
        OpKind::SoftTargets => mixup::soft_targets(),
        OpKind::SoftCrossEntropy => mixup::soft_cross_entropy(),
        OpKind::SoftCrossEntropyBackward => mixup::soft_cross_entropy_backward(),
        OpKind::WeightedSum => weighted_sum(),
        OpKind::AccumulateGrads => accumulate_grads(),
        OpKind::GradHealth => grad_health(),
        OpKind::AdamW => adamw(),
        OpKind::ClipTensors => clip_tensors(),
    }
}

/// A case whose operands come from a generator seeded by its name.
pub(super) fn case(name: String, op: impl Into<Op>, inputs: impl FnOnce(&mut Gen) -> Vec<Input>) -> Case {
    let op = op.into();
    let inputs = inputs(&mut Gen::new(&format!("{}/{name}", op.name())));
    Case::new(name, op, inputs)
}

fn cast() -> Vec<Case> {
    let shapes: [&[usize]; 3] = [&[1], &[3, 7], &[33, 64]];
    [NARROW_TYPE, NARROW_TYPE.accumulator()]
        .into_iter()
        .flat_map(|dtype| shapes.map(|shape| (dtype, shape)))
        .map(|(dtype, shape)| {
            case(format!("{shape:?} to {dtype}"), ops::Cast { dtype }, |g| vec![g.normal(shape)])
        })
        .collect()
}

fn patch_rows() -> Vec<Case> {
    // (B, H, W) per image, then (kept view, k).
    type Images<'a> = &'a [(usize, usize, usize)];
    let all: [(Images, Option<(usize, usize)>); 5] = [
        (&[(1, 16, 16)], None),
        (&[(2, 48, 32), (3, 16, 64)], None),
        (&[(2, 32, 48)], Some((0, 4))),
        (&[(1, 32, 16), (2, 48, 48), (1, 16, 48)], Some((1, 1))),
        (&[(2, 16, 32), (3, 80, 16)], Some((1, 5))),
    ];
    all.into_iter()
        .map(|(images, kept)| {
            let op = Op::from(ops::PatchRows { kept: kept.map(|k| k.0), dtype: DType::F64 });
            case(format!("{images:?} kept {kept:?}"), op, |g| {
                let mut x: Vec<Input> = images.iter().map(|&(b, h, w)| g.normal(&[b, 3, h, w])).collect();
                if let Some((view, k)) = kept {
                    let (b, h, w) = images[view];
                    x.push(g.index(b, k, h / 16 * (w / 16)));
                }
                x
            })
        })
        .collect()
}

/// Layouts with the size of the table behind a kept view, and the width.
pub(super) fn token_layouts() -> Vec<(TokenLayout, usize, usize)> {
    let layout = |views: &[(usize, usize)], positions, kept| TokenLayout {
        views: views.iter().map(|&(count, tokens)| TokenView { count, tokens }).collect(),
        positions,
        kept,
    };
    vec![
        (layout(&[(1, 1)], false, None), 0, 1),
        (layout(&[(1, 4)], true, None), 0, 3),
        (layout(&[(3, 2)], false, None), 0, 5),
        (layout(&[(2, 3), (4, 5), (1, 33)], true, None), 0, 7),
        (layout(&[(2, 3)], true, Some(0)), 8, 4),
        (layout(&[(2, 6), (3, 2)], true, Some(1)), 7, 6),
        (layout(&[(1, 2), (2, 4)], false, Some(1)), 4, 2),
        (layout(&[(2, 4), (2, 4)], true, Some(0)), 4, 12),
    ]
}

/// Operands of `embed_tokens` for a layout.
pub(super) fn token_operands(g: &mut Gen, layout: &TokenLayout, table: usize, d: usize) -> Vec<Input> {
    let mut x = vec![g.normal(&[layout.patch_rows(), d]), g.normal(&[1, 1, d])];
    if layout.positions {
        x.push(g.normal(&[1, d]));
        for (v, view) in layout.views.iter().enumerate() {
            let rows = if layout.kept == Some(v) { table } else { view.tokens };
            x.push(g.normal(&[rows, d]));
        }
    }
    if let Some(v) = layout.kept {
        x.push(g.index(layout.views[v].count, layout.views[v].tokens, table));
    }
    x
}

fn embed_tokens() -> Vec<Case> {
    token_layouts()
        .into_iter()
        .map(|(layout, table, d)| {
            let op = Op::from(ops::EmbedTokens { layout: layout.clone() });
            case(format!("{layout:?} D {d}"), op, |g| token_operands(g, &layout, table, d))
        })
        .collect()
}

/// (prefix, from, to, D): same size, up, down, both, non-square, one row.
pub(super) const GRIDS: [(usize, [usize; 2], [usize; 2], usize); 12] = [
    (0, [1, 1], [1, 1], 1),
    (1, [4, 2], [4, 2], 3),
    (1, [4, 2], [8, 4], 5),
    (0, [16, 8], [8, 4], 2),
    (1, [4, 3], [7, 2], 4),
    (1, [5, 7], [3, 11], 1),
    (0, [1, 6], [3, 4], 3),
    (1, [8, 4], [10, 5], 2),
    (0, [9, 2], [1, 1], 3),
    (0, [4, 2], [2, 1], 3),
    (1, [3, 3], [7, 1], 2),
    (1, [4, 2], [4, 1], 2),
];

fn resize_positions() -> Vec<Case> {
    GRIDS
        .into_iter()
        .map(|(prefix, from, to, d)| {
            let op = Op::from(ops::ResizePositions { prefix, from, to });
            case(format!("{prefix}+{from:?}->{to:?} D {d}"), op, |g| {
                vec![g.normal(&[1, prefix + from[0] * from[1], d])]
            })
        })
        .collect()
}

/// (M, K, N).
pub(super) const MATRICES: [(usize, usize, usize); 8] =
    [(1, 1, 1), (1, 5, 3), (7, 3, 4), (3, 16, 1), (33, 17, 9), (5, 64, 12), (130, 20, 33), (16, 48, 96)];

pub(super) const EPILOGUES: [Epilogue; 3] = [Epilogue::None, Epilogue::Gelu, Epilogue::Residual];

fn linear() -> Vec<Case> {
    let mut out = Vec::new();
    for epilogue in EPILOGUES {
        for (m, k, n) in MATRICES {
            out.push(case(format!("{epilogue:?} {m}x{k}->{n}"), ops::Linear { epilogue }, |g| {
                let mut x = vec![g.normal(&[m, k]), g.scaled(&[n, k], 0.5), g.normal(&[n])];
                if epilogue == Epilogue::Residual {
                    x.push(g.normal(&[m, n]));
                }
                x
            }));
        }
    }
    // Widths of rows that a tile holds, and others.
    for (m, k, n) in [(70, 24, 64), (130, 16, 128), (33, 72, 192), (140, 392, 192), (3, 5, 7), (9, 16, 40)] {
        let epilogue = Epilogue::Norm { eps: 1e-5 };
        out.push(case(format!("{epilogue:?} {m}x{k}->{n}"), ops::Linear { epilogue }, |g| {
            // Rows away from 0, as behind other layers.
            let r = g.tensor(&[m, n], |g| g.gauss() + 3.0).into();
            let w = g.scaled(&[n, k], 0.5);
            vec![g.normal(&[m, k]), w, g.normal(&[n]), r, g.uniform(&[n], 0.5, 1.5), g.normal(&[n])]
        }));
    }
    // A patch embedding: the weight has four dimensions.
    out.push(case("patch embedding".into(), ops::Linear { epilogue: Epilogue::None }, |g| {
        vec![g.normal(&[4, 768]), g.scaled(&[5, 3, 16, 16], 0.05), g.normal(&[5])]
    }));
    out
}

fn gelu() -> Vec<Case> {
    [[1, 1], [3, 5], [17, 33]]
        .into_iter()
        .map(|s| case(format!("{s:?}"), ops::Gelu, |g| vec![g.scaled(&s, 2.0)]))
        .chain([Case::new(
            "tails",
            ops::Gelu,
            vec![Tensor::new([8], vec![-40.0, -10.0, -6.0, -1e-6, 0.0, 1e-6, 6.0, 40.0]).into()],
        )])
        .collect()
}

fn add() -> Vec<Case> {
    [vec![1], vec![3, 5], vec![2, 7, 9], vec![129, 4]]
        .into_iter()
        .map(|s| case(format!("{s:?}"), ops::Add, |g| vec![g.normal(&s), g.normal(&s)]))
        .collect()
}

fn scale() -> Vec<Case> {
    [1.0, -0.5, 0.0, 2.75]
        .into_iter()
        .map(|factor| case(format!("{factor}"), ops::Scale { factor }, |g| vec![g.normal(&[1])]))
        .collect()
}

fn fill() -> Vec<Case> {
    [(vec![1], 1.0), (vec![3, 5], 0.0), (vec![2, 3, 17], -0.25)]
        .into_iter()
        .map(|(shape, value)| {
            case(format!("{shape:?} {value}"), ops::Fill { shape, value, dtype: DType::F64 }, |_| vec![])
        })
        .collect()
}

fn scale_segments() -> Vec<Case> {
    let all: [(&[(usize, usize)], usize); 4] =
        [(&[(1, 1)], 1), (&[(3, 4)], 5), (&[(2, 33), (5, 1), (1, 9)], 7), (&[(40, 1)], 3)];
    all.into_iter()
        .map(|(segments, d)| {
            let op = Op::from(ops::ScaleSegments { segments: segments.to_vec() });
            case(format!("{segments:?} D {d}"), op, |g| {
                let rows: usize = segments.iter().map(|s| s.0 * s.1).sum();
                let count: usize = segments.iter().map(|s| s.0).sum();
                let mut factors = g.uniform(&[count], 0.5, 1.5);
                factors.float_mut().data[count / 2] = 0.0;
                vec![g.normal(&[rows, d]), factors]
            })
        })
        .collect()
}

fn layer_norm() -> Vec<Case> {
    let small = [
        (1, 1, 1e-6),
        (1, 12, 1e-6),
        (5, 3, 1e-5),
        (33, 17, 1e-6),
        (129, 8, 1e-6),
        (4, 192, 1e-6),
        (3, 5, 0.5),
    ];
    // More packs than lanes, the last in part; the widest there is; more rows than all resident warps take at once.
    let wide = [(66, 800, 1e-6), (3, 1024, 1e-6), (12700, 2, 0.5)];
    small
        .into_iter()
        .chain(wide)
        .map(|(m, d, eps)| {
            case(format!("{m}x{d} eps {eps}"), ops::LayerNorm { eps }, |g| {
                // Rows away from 0: the variance must not be a difference of squares.
                let x = g.tensor(&[m, d], |g| g.gauss() + 3.0).into();
                vec![x, g.uniform(&[d], 0.5, 1.5), g.normal(&[d])]
            })
        })
        .collect()
}

fn attention() -> Vec<Case> {
    use AttentionLayout::{Packed, Separate};
    let run = |count, queries, keys| SegmentRun { count, queries, keys };
    let segments = |runs: &[SegmentRun], kv_groups| Segments { runs: runs.to_vec(), kv_groups };
    let all = [
        (1, 1, Packed, Segments::full([(1, 1)])),
        (1, 4, Packed, Segments::full([(2, 5)])),
        (3, 12, Packed, Segments::full([(2, 33), (3, 7)])),
        (2, 8, Packed, Segments::full([(1, 129)])),
        (2, 6, Packed, Segments::first_row([(3, 9), (1, 4)])),
        (1, 3, Packed, Segments::first_row([(2, 1), (1, 33)])),
        (2, 10, Packed, segments(&[run(2, 2, 5), run(1, 3, 3)], 1)),
        (3, 192, Packed, Segments::full([(1, 17)])),
        (1, 48, Packed, Segments::full([(2, 6), (1, 3)])),
        (3, 6, Separate, segments(&[run(2, 5, 7)], 1)),
        (1, 5, Separate, segments(&[run(1, 1, 64), run(2, 9, 1), run(1, 3, 2)], 1)),
        (2, 64, Separate, segments(&[run(2, 40, 35)], 1)),
        (2, 4, Separate, segments(&[run(4, 1, 9)], 2)),
        (3, 9, Separate, segments(&[run(4, 3, 17)], 2)),
        (1, 2, Separate, segments(&[run(3, 2, 3)], 3)),
        (2, 32, Separate, segments(&[run(2, 65, 33)], 2)),
        // Heads and lengths of several tiles on tensor cores.
        (1, 64, Packed, Segments::full([(1, 130)])),
        (1, 128, Separate, segments(&[run(1, 70, 66)], 1)),
        (2, 64, Separate, segments(&[run(4, 70, 40)], 2)),
        (1, 32, Packed, segments(&[run(1, 20, 70)], 1)),
        // Lengths of a decoder, classes of segments in one op, and segments too long for one block.
        (2, 64, Separate, segments(&[run(1, 200, 200)], 1)),
        (1, 64, Packed, segments(&[run(2, 33, 33), run(1, 1, 70), run(1, 0, 20), run(1, 17, 20)], 1)),
        (1, 64, Packed, segments(&[run(1, 40, 270)], 1)),
        (1, 32, Separate, segments(&[run(1, 270, 40)], 1)),
        // A multiple of 32 that they do not take.
        (1, 96, Packed, segments(&[run(1, 11, 35)], 1)),
    ];
    all.into_iter()
        .map(|(heads, d, layout, segments)| {
            let (q, k) = (segments.query_rows(), segments.key_rows());
            let name = format!("{layout:?} heads {heads} D {d} {segments:?}");
            case(name, ops::Attention { heads, layout, segments }, |g| match layout {
                Packed => vec![g.scaled(&[k, 3 * d], 1.2)],
                Separate => vec![g.scaled(&[q, d], 1.2), g.scaled(&[k, 2 * d], 1.2)],
            })
        })
        .collect()
}

/// (runs, rows, D).
fn row_runs() -> Vec<(Vec<RowRun>, usize, usize)> {
    let run = |start, len, stride, count| RowRun { start, len, stride, count };
    vec![
        (vec![run(0, 1, 1, 1)], 1, 1),
        (vec![run(0, 1, 5, 4)], 20, 3),
        (vec![run(1, 4, 5, 4)], 20, 7),
        (vec![run(2, 3, 3, 2), run(10, 1, 33, 3)], 90, 5),
        (vec![run(0, 2, 7, 1), run(4, 9, 9, 1)], 14, 17),
        (vec![run(0, 33, 33, 2)], 66, 2),
    ]
}

fn select_rows() -> Vec<Case> {
    row_runs()
        .into_iter()
        .map(|(runs, rows, d)| {
            let name = format!("{runs:?} of {rows}x{d}");
            case(name, ops::SelectRows { runs }, |g| vec![g.normal(&[rows, d])])
        })
        .collect()
}

fn scatter_rows() -> Vec<Case> {
    let mut out = Vec::new();
    for accumulate in [false, true] {
        for (runs, rows, d) in row_runs() {
            let taken: usize = runs.iter().map(RowRun::rows).sum();
            let name = format!("{runs:?} into {rows}x{d} accumulate {accumulate}");
            out.push(case(name, ops::ScatterRows { runs, rows, accumulate }, |g| {
                let mut x = vec![g.normal(&[taken, d])];
                if accumulate {
                    x.push(g.normal(&[rows, d]));
                }
                x
            }));
        }
    }
    out
}

/// (B, n, k, D).
pub(super) const TOKENS: [(usize, usize, usize, usize); 5] =
    [(1, 1, 1, 1), (2, 9, 4, 3), (3, 5, 5, 7), (1, 33, 1, 12), (4, 15, 3, 16)];

fn gather_tokens() -> Vec<Case> {
    TOKENS
        .into_iter()
        .map(|(b, n, k, d)| {
            case(format!("{b}x{n} {k} kept D {d}"), ops::GatherTokens { tokens: n }, |g| {
                vec![g.normal(&[b * n, d]), g.index(b, k, n)]
            })
        })
        .collect()
}

fn scatter_tokens() -> Vec<Case> {
    TOKENS
        .into_iter()
        .map(|(b, n, k, d)| {
            case(format!("{b}x{n} {k} kept D {d}"), ops::ScatterTokens { tokens: n }, |g| {
                vec![g.normal(&[b * k, d]), g.index(b, k, n)]
            })
        })
        .collect()
}

fn restore_tokens() -> Vec<Case> {
    TOKENS
        .into_iter()
        .map(|(b, n, k, d)| {
            case(format!("{b}x{n} {k} visible D {d}"), ops::RestoreTokens, |g| {
                vec![g.normal(&[b * k, d]), g.index(b, k, n), g.normal(&[1, 1, d]), g.normal(&[n, d])]
            })
        })
        .collect()
}

fn add_positions() -> Vec<Case> {
    TOKENS
        .into_iter()
        .map(|(b, n, _, d)| {
            case(format!("{b}x{n} D {d}"), ops::AddPositions, |g| {
                vec![g.normal(&[b * n, d]), g.normal(&[n, d])]
            })
        })
        .collect()
}

fn sum_images() -> Vec<Case> {
    [(1, 1, 1), (5, 3, 7), (130, 1, 1), (33, 2, 9)]
        .into_iter()
        .map(|(b, n, d)| {
            case(format!("{b}x{n} D {d}"), ops::SumImages { tokens: n }, |g| vec![g.normal(&[b * n, d])])
        })
        .collect()
}

fn dynamic_conv() -> Vec<Case> {
    // (groups, B, m, D)
    [(1, 1, 1, 1), (2, 3, 4, 5), (1, 2, 33, 16), (3, 1, 7, 3), (2, 2, 49, 8)]
        .into_iter()
        .map(|(groups, b, m, d)| {
            case(format!("{groups}x{b} m {m} D {d}"), ops::DynamicConv { tokens: m }, |g| {
                vec![g.normal(&[groups * b, d]), g.normal(&[b * m, d])]
            })
        })
        .collect()
}

fn scale_rows() -> Vec<Case> {
    // Rows of a learned length: the factors are a matrix of one column, or a vector.
    [(1, 1, 1), (3, 5, 2), (33, 16, 2), (130, 3, 1), (9, 70, 2)]
        .into_iter()
        .map(|(m, d, axes)| {
            case(format!("{m}x{d} factors of {axes} axes"), ops::ScaleRows, |g| {
                let factors = if axes == 2 { vec![m, 1] } else { vec![m] };
                vec![g.normal(&[m, d]), g.uniform(&factors, -0.5, 1.5)]
            })
        })
        .collect()
}

fn l2_normalize() -> Vec<Case> {
    // The large eps takes over for some rows of the last case.
    [(1, 1, 1e-12), (3, 5, 1e-12), (33, 16, 1e-12), (130, 3, 1e-12), (9, 4, 2.0)]
        .into_iter()
        .map(|(m, d, eps)| {
            case(format!("{m}x{d} eps {eps}"), ops::L2Normalize { eps }, |g| vec![g.normal(&[m, d])])
        })
        .collect()
}

fn prototype_cross_entropy() -> Vec<Case> {
    // (V, B, d, K, student and teacher temperature)
    [
        (2, 1, 1, 1, 0.1, 0.04),
        (2, 1, 3, 5, 0.1, 0.04),
        (3, 2, 8, 33, 0.1, 0.04),
        (7, 2, 16, 80, 0.1, 0.04),
        (4, 3, 12, 130, 0.5, 0.2),
        (2, 5, 4, 257, 0.1, 0.07),
        (3, 2, 8, 8200, 0.1, 0.07),
        (2, 66, 72, 70, 0.1, 0.04),
        (3, 1, 200, 70, 0.1, 0.04),
    ]
    .into_iter()
    .map(|(views, batch, d, k, student, teacher)| {
        let name = format!("V {views} B {batch} d {d} K {k} temperatures {student} {teacher}");
        case(name, ops::PrototypeCrossEntropy { batch }, |g| {
            vec![
                g.unit_rows(&[views * batch, d]),
                g.unit_rows(&[k, d]),
                g.unit_rows(&[2 * batch, d]),
                g.unit_rows(&[k, d]),
                g.scaled(&[1, k], 0.05),
                temperatures(student, teacher, 0.9),
            ]
        })
    })
    .chain([prototypes_of_any_length()])
    .collect()
}

/// A learned gain makes prototypes longer than 1, and logits larger than the reciprocal of the temperature.
fn prototypes_of_any_length() -> Case {
    let (views, batch, d, k) = (4, 2, 8, 130);
    case("prototypes of any length".into(), ops::PrototypeCrossEntropy { batch }, |g| {
        vec![
            g.unit_rows(&[views * batch, d]),
            g.scaled(&[k, d], 2.0),
            g.unit_rows(&[2 * batch, d]),
            g.scaled(&[k, d], 2.0),
            g.scaled(&[1, k], 0.05),
            temperatures(0.1, 0.04, 0.9),
        ]
    })
}

fn expert_statistics() -> Vec<Case> {
    // (B, d, K, D)
    [(1, 3, 5, 4), (2, 8, 33, 7), (3, 16, 130, 12), (5, 4, 257, 192), (2, 4, 8200, 8), (130, 8, 20, 4)]
        .into_iter()
        .map(|(batch, d, k, width)| {
            case(format!("B {batch} d {d} K {k} D {width}"), ops::ExpertStatistics, |g| {
                let (zt, wt, center) =
                    (g.unit_rows(&[2 * batch, d]), g.unit_rows(&[k, d]), g.scaled(&[1, k], 0.05));
                let block = temperatures(0.1, 0.04, 0.9);
                // The log-sum-exp as the loss leaves it behind; the student plays no part in it.
                let ce = Op::from(ops::PrototypeCrossEntropy { batch });
                let x = [zt.clone(), wt.clone(), zt, wt, center, block];
                let lse_t = crate::common::reference::forward(&ce, &x).swap_remove(2);
                let [_, _, zt, wt, center, block] = x;
                vec![zt, wt, center, block, lse_t.into(), g.scaled(&[2 * batch, width], 3.0)]
            })
        })
        .collect()
}

fn health(norm: f64, factor: f64, finite: f64) -> Input {
    Tensor::new([3], vec![norm, factor, finite]).into()
}

fn center_update() -> Vec<Case> {
    [(1, 3, 5, 1.0), (2, 8, 33, 1.0), (3, 16, 257, 1.0), (1, 3, 5, 0.0)]
        .into_iter()
        .map(|(batch, d, k, finite)| {
            case(format!("B {batch} d {d} K {k} finite {finite}"), ops::CenterUpdate, |g| {
                vec![
                    g.scaled(&[1, k], 0.1),
                    g.unit_rows(&[2 * batch, d]),
                    g.unit_rows(&[k, d]),
                    temperatures(0.1, 0.04, 0.75),
                    health(1.0, 1.0, finite),
                ]
            })
        })
        .collect()
}

fn masked_mse() -> Vec<Case> {
    // (B, H, W, hidden)
    [(1, 16, 16, 1), (2, 48, 32, 4), (3, 16, 80, 5), (1, 80, 48, 11)]
        .into_iter()
        .map(|(b, h, w, hidden)| {
            case(format!("{b}x{h}x{w} {hidden} hidden"), ops::MaskedMse, |g| {
                let mut image = g.normal(&[b, 3, h, w]);
                image.float_mut().data.iter_mut().for_each(|v| *v = f64::from((*v * 0.3 + 1.0) as f32));
                vec![g.normal(&[b * hidden, 768]), image, g.index(b, hidden, h / 16 * (w / 16))]
            })
        })
        .collect()
}

fn bce_with_logits() -> Vec<Case> {
    // (groups, B, m)
    [(1, 1, 1), (2, 3, 5), (2, 1, 196), (3, 2, 33)]
        .into_iter()
        .map(|(groups, b, m)| {
            case(format!("{groups}x{b} m {m}"), ops::BceWithLogits { groups }, |g| {
                vec![g.scaled(&[groups * b, m], 3.0), g.coin(&[groups * b, m], 0.3)]
            })
        })
        .chain([Case::new(
            "saturated",
            ops::BceWithLogits { groups: 1 },
            vec![
                Tensor::new([1, 4], vec![100.0, -100.0, 100.0, -100.0]).into(),
                Tensor::new([1, 4], vec![1.0, 0.0, 0.0, 1.0]).into(),
            ],
        )])
        .collect()
}

fn weighted_sum() -> Vec<Case> {
    [vec![1.0], vec![1.0, 0.5, 2.0], vec![0.0, -1.5]]
        .into_iter()
        .map(|weights| {
            let n = weights.len();
            case(format!("{weights:?}"), ops::WeightedSum { weights }, |g| {
                (0..n).map(|_| g.normal(&[1])).collect()
            })
        })
        .collect()
}

fn accumulate_grads() -> Vec<Case> {
    [(1, 0.0, 1.0), (300, 0.0, 0.25), (1037, 1.0, 0.5), (64, 3.0, 0.25)]
        .into_iter()
        .map(|(n, step, weight)| {
            case(format!("{n} step {step} weight {weight}"), ops::AccumulateGrads, |g| {
                let block = scalars(&[(Scalar::MicroStep, step), (Scalar::MicroWeight, weight)]);
                vec![g.normal(&[n]), g.normal(&[n]), block]
            })
        })
        .collect()
}

fn grad_health() -> Vec<Case> {
    // (P, clip norm, size of the gradients)
    [(1, 0.0, 1.0), (37, 0.5, 1.0), (5000, 100.0, 1e-3), (20000, 1.0, 1.0)]
        .into_iter()
        .map(|(n, clip, size)| {
            case(format!("{n} clip {clip} size {size}"), ops::GradHealth, |g| {
                vec![g.scaled(&[n], size), g.normal(&[1]), scalars(&[(Scalar::ClipNorm, clip)])]
            })
        })
        .collect()
}

fn clip_tensors() -> Vec<Case> {
    // (P, tensors, clip norm): none, some and all of them longer than it; gaps, and one of several partial sums.
    type Tensors<'a> = &'a [(usize, usize)];
    let all: [(usize, Tensors, f64); 5] = [
        (1, &[(0, 1)], 0.5),
        (200, &[(0, 64), (64, 3), (128, 70)], 0.0),
        (200, &[(0, 64), (64, 3), (128, 70)], 3.0),
        (300, &[(3, 100), (150, 0), (190, 100)], 1e-3),
        (70000, &[(0, 300), (320, 69000), (69500, 500)], 20.0),
    ];
    all.into_iter()
        .map(|(n, tensors, clip)| {
            let op = Op::from(ops::ClipTensors { tensors: tensors.to_vec() });
            case(format!("{n} {tensors:?} clip {clip}"), op, |g| {
                vec![g.normal(&[n]), scalars(&[(Scalar::TensorClipNorm, clip)])]
            })
        })
        .collect()
}

fn adamw() -> Vec<Case> {
    let segment = |start, len, decay, expert| ParamSegment { start, len, decay, late: false, expert };
    let late = |start, len, decay, expert| ParamSegment { late: true, ..segment(start, len, decay, expert) };
    let all: [(usize, usize, Vec<ParamSegment>); 5] = [
        // Without an expert.
        (30, 0, vec![segment(0, 7, true, None), segment(8, 22, false, None)]),
        (1, 1, vec![segment(0, 1, true, Some(0))]),
        (20, 9, vec![segment(0, 7, true, None), segment(7, 9, false, Some(0)), segment(16, 4, false, None)]),
        // A gap between segments stays as it is.
        (200, 150, vec![segment(0, 64, true, Some(64)), segment(128, 33, false, Some(0))]),
        (5000, 5000, vec![segment(0, 4096, true, Some(0)), segment(4096, 904, false, Some(4096))]),
    ];
    let mut out = Vec::new();
    for (params, expert, segments) in all {
        for (factor, finite, copies) in [(1.0, 1.0, false), (0.3, 1.0, true), (1.0, 0.0, true)] {
            let op = Op::from(ops::AdamW { segments: segments.clone(), copies });
            out.push(case(format!("{params} factor {factor} finite {finite} copies {copies}"), op, |g| {
                let mut x = vec![
                    g.normal(&[params]),
                    g.normal(&[params]),
                    g.scaled(&[params], 0.3),
                    g.uniform(&[params], 0.0, 1.0),
                    g.normal(&[expert]),
                    scalars(&[]),
                    health(1.0, f64::from(factor as f32), finite),
                ];
                if copies {
                    x.extend([g.normal(&[params]), g.normal(&[expert])]);
                }
                x
            }));
        }
    }
    // Parameters that begin late: held, then with a correction of their own.
    for corrections in [[0.0, 0.0], [0.1, 0.05]] {
        let segments = vec![
            late(0, 70, true, Some(10)),
            segment(128, 20, true, Some(100)),
            late(192, 5, false, None),
            late(200, 7, false, Some(0)),
        ];
        let op = Op::from(ops::AdamW { segments, copies: true });
        out.push(case(format!("late {corrections:?}"), op, |g| {
            let set = [(Scalar::LateCorrection1, corrections[0]), (Scalar::LateCorrection2, corrections[1])];
            vec![
                g.normal(&[256]),
                g.normal(&[256]),
                g.scaled(&[256], 0.3),
                g.uniform(&[256], 0.0, 1.0),
                g.normal(&[150]),
                scalars(&set),
                health(1.0, f64::from(0.3f32), 1.0),
                g.normal(&[256]),
                g.normal(&[150]),
            ]
        }));
    }
    // The first step: moments are 0.
    out.push(case(
        "first step".into(),
        ops::AdamW { segments: vec![segment(0, 9, true, None)], copies: false },
        |g| {
            vec![
                g.normal(&[9]),
                g.normal(&[9]),
                Tensor::zeros([9]).into(),
                Tensor::zeros([9]).into(),
                g.normal(&[1]),
                scalars(&[
                    (Scalar::BiasCorrection1, 0.1),
                    (Scalar::BiasCorrection2, 0.05),
                    (Scalar::AdamEps, 1e-8),
                ]),
                health(1.0, 1.0, 1.0),
            ]
        },
    ));
    out
}
