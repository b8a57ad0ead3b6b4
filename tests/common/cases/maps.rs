//! The cases of ops on feature maps.

use super::derivatives::{behind_gelu, case as backward, derivative, dy};
use super::table::{EPILOGUES, case};
use super::{Case, Derivative, Expected};
use crate::common::reference::forward;
use crate::common::tensor::{Gen, Input, Tensor};
use saip_engine::ir::{Activation, ConvGeometry, Epilogue, FeatureMap, Op, OpKind, ops};
use saip_engine::tensor::DType;

fn map(count: usize, height: usize, width: usize) -> FeatureMap {
    FeatureMap { count, height, width }
}

/// Geometries of dense convolutions with channels in and out. The first six are those of the decoders.
fn convs() -> Vec<(ConvGeometry, usize, usize)> {
    let same = ConvGeometry::same;
    let strided = |maps: &[FeatureMap], kernel, stride| ConvGeometry { maps: maps.to_vec(), kernel, stride };
    vec![
        (same(1, 1, 1, 1), 1, 1),
        (same(2, 3, 4, 1), 5, 3),
        (same(1, 1, 1, 3), 2, 3),
        (same(2, 4, 3, 3), 3, 5),
        (same(1, 5, 2, 5), 1, 2),
        (same(1, 7, 9, 3), 16, 8),
        (strided(&[map(2, 3, 2), map(1, 4, 5)], 3, 1), 2, 3),
        (strided(&[map(1, 6, 4)], 3, 2), 3, 4),
        (strided(&[map(2, 5, 3), map(1, 8, 6), map(3, 1, 1)], 3, 2), 2, 5),
        (strided(&[map(1, 9, 7)], 5, 3), 2, 2),
        (strided(&[map(2, 4, 4)], 1, 2), 3, 2),
        // Whole accesses of channels; stored alone; several tiles, and classes of positions that some maps lack.
        (strided(&[map(2, 12, 10), map(3, 1, 2), map(1, 9, 7)], 3, 2), 16, 24),
        (strided(&[map(2, 10, 12), map(1, 7, 16)], 3, 2), 3, 32),
        // What tensor copies see as windows, also those of the weight's gradient: they are of 64 channels.
        (same(2, 3, 5, 3), 64, 8),
        (strided(&[map(2, 3, 5), map(1, 3, 5), map(1, 4, 2)], 3, 1), 8, 16),
    ]
}

fn describe(g: &ConvGeometry) -> String {
    let maps: Vec<String> = g.maps.iter().map(|m| format!("{}x{}x{}", m.count, m.height, m.width)).collect();
    format!("{} k {} s {}", maps.join("+"), g.kernel, g.stride)
}

pub fn conv2d() -> Vec<Case> {
    let mut out = Vec::new();
    for epilogue in EPILOGUES {
        for (geometry, c, o) in convs() {
            let name = format!("{epilogue:?} {} {c}->{o}", describe(&geometry));
            let (k, rows, written) = (geometry.kernel, geometry.rows(), geometry.output_rows());
            out.push(case(name, ops::Conv2d { geometry, epilogue }, |g| {
                let mut x = vec![g.normal(&[rows, c]), g.scaled(&[o, c, k, k], 0.3), g.normal(&[o])];
                if epilogue == Epilogue::Residual {
                    x.push(g.normal(&[written, o]));
                }
                x
            }));
        }
    }
    out
}

/// A convolution's name, geometry and operands.
fn conv_operands(prefix: &str) -> Vec<(String, ConvGeometry, Vec<Input>)> {
    convs()
        .into_iter()
        .map(|(geometry, c, o)| {
            let name = format!("{} {c}->{o}", describe(&geometry));
            let mut g = Gen::new(&format!("{prefix}/{name}"));
            let w = g.scaled(&[o, c, geometry.kernel, geometry.kernel], 0.3);
            let x = vec![g.normal(&[geometry.rows(), c]), w, g.normal(&[o])];
            (name, geometry, x)
        })
        .collect()
}

pub fn conv2d_input() -> Vec<Case> {
    let mut out = Vec::new();
    for gelu in [false, true] {
        for (name, geometry, at) in conv_operands("conv2d_backward_input") {
            let name = format!("{name} gelu {gelu}");
            let mut g = Gen::new(&name);
            let (x, w) = (at[0].clone(), at[1].clone());
            let conv = Op::from(ops::Conv2d { geometry: geometry.clone(), epilogue: Epilogue::None });
            let mut of = derivative(&mut g, conv.clone(), at, &[0]);
            let mut inputs = vec![dy(&of), w];
            if gelu {
                of.forward = behind_gelu(conv);
                inputs.push(x);
            }
            out.push(backward(name, ops::Conv2dBackwardInput { geometry, gelu }, inputs, of));
        }
    }
    out
}

pub fn conv2d_weight() -> Vec<Case> {
    conv_operands("conv2d_backward_weight")
        .into_iter()
        .map(|(name, geometry, at)| {
            let mut g = Gen::new(&name);
            let x = at[0].clone();
            let conv = Op::from(ops::Conv2d { geometry: geometry.clone(), epilogue: Epilogue::None });
            let of = derivative(&mut g, conv, at, &[1, 2]);
            backward(name, ops::Conv2dBackwardWeight { geometry }, vec![dy(&of), x], of)
        })
        .collect()
}

/// Channels in whole warps, in whole accesses, and in parts of both; windows wider than the map, strips of many images and
/// parts of strips, several of them to a warp; sizes that no stride divides.
pub fn depthwise_conv2d() -> Vec<Case> {
    let all: [(&[FeatureMap], usize, usize, usize); 12] = [
        (&[map(1, 1, 1)], 1, 1, 1),
        (&[map(2, 4, 3)], 3, 1, 5),
        (&[map(1, 3, 15)], 3, 1, 41),
        (&[map(1, 5, 4)], 7, 1, 8),
        (&[map(1, 9, 13), map(2, 2, 2)], 7, 1, 32),
        (&[map(2, 6, 4)], 3, 2, 9),
        (&[map(1, 7, 5), map(3, 2, 3)], 3, 2, 107),
        (&[map(2, 8, 11)], 7, 2, 3),
        (&[map(70, 2, 1)], 3, 1, 2),
        (&[map(3, 2, 9), map(1, 11, 6)], 3, 1, 40),
        (&[map(1, 5, 17), map(5, 3, 9)], 3, 2, 16),
        (&[map(2, 3, 6)], 7, 1, 72),
    ];
    all.into_iter()
        .enumerate()
        .map(|(i, (maps, kernel, stride, c))| {
            let geometry = ConvGeometry { maps: maps.to_vec(), kernel, stride };
            // Of each second one.
            let residual = i % 2 == 1;
            let name = format!("{} C {c} residual {residual}", describe(&geometry));
            let (rows, written) = (geometry.rows(), geometry.output_rows());
            case(name, ops::DepthwiseConv2d { geometry, residual }, |g| {
                let mut x =
                    vec![g.normal(&[rows, c]), g.scaled(&[c, 1, kernel, kernel], 0.4), g.normal(&[c])];
                x.extend(residual.then(|| g.normal(&[written, c])));
                x
            })
        })
        .collect()
}

/// The derivative of each case of a forward op: `make` gives the backward op's operands.
fn of_cases(
    kind: OpKind,
    wrt: &[usize],
    make: impl Fn(&Op, &Derivative, &[Input], &[Tensor]) -> (Op, Vec<Input>),
) -> Vec<Case> {
    cases_of(kind)
        .into_iter()
        .map(|c| {
            let mut g = Gen::new(&format!("backward/{}", c.name));
            let y = forward(&c.op, &c.inputs);
            let of = derivative(&mut g, c.op.clone(), c.inputs.clone(), wrt);
            let (op, inputs) = make(&c.op, &of, &c.inputs, &y);
            backward(c.name, op, inputs, of)
        })
        .collect()
}

fn cases_of(kind: OpKind) -> Vec<Case> {
    super::cases(kind)
}

pub fn depthwise_conv2d_input() -> Vec<Case> {
    let mut all = of_cases(OpKind::DepthwiseConv2d, &[0], |op, of, x, _| {
        let Op::DepthwiseConv2d(ops::DepthwiseConv2d { geometry, residual }) = op.clone() else {
            unreachable!("a depthwise case")
        };
        let inputs = vec![dy(of), x[1].clone()];
        (ops::DepthwiseConv2dBackwardInput { geometry, residual }.into(), inputs)
    });
    for case in &mut all {
        if let (
            Op::DepthwiseConv2dBackwardInput(ops::DepthwiseConv2dBackwardInput { residual: true, .. }),
            Expected::Derivative(of),
        ) = (&case.op, &mut case.expected)
        {
            let r = Gen::new(&case.name).normal(of.at[0].shape());
            of.plus = Some(r.float().clone());
            case.inputs.push(r);
        }
    }
    all
}

pub fn depthwise_conv2d_weight() -> Vec<Case> {
    of_cases(OpKind::DepthwiseConv2d, &[1, 2], |op, of, x, _| {
        let Op::DepthwiseConv2d(ops::DepthwiseConv2d { geometry, .. }) = op.clone() else {
            unreachable!("a depthwise case")
        };
        (ops::DepthwiseConv2dBackwardWeight { geometry }.into(), vec![dy(of), x[0].clone()])
    })
}

pub fn pixel_rows() -> Vec<Case> {
    // (B, H, W) per image, then (masked view, k).
    type Images<'a> = &'a [(usize, usize, usize)];
    let all: [(Images, Option<(usize, usize)>); 3] = [
        (&[(1, 16, 16)], None),
        (&[(2, 32, 48), (1, 16, 32)], Some((0, 4))),
        (&[(1, 16, 48), (2, 32, 32)], Some((1, 1))),
    ];
    all.into_iter()
        .map(|(images, masked)| {
            let op = Op::from(ops::PixelRows { masked: masked.map(|m| m.0), dtype: DType::F64 });
            case(format!("{images:?} masked {masked:?}"), op, |g| {
                let mut x: Vec<Input> = images.iter().map(|&(b, h, w)| g.normal(&[b, 3, h, w])).collect();
                if let Some((view, k)) = masked {
                    let (b, h, w) = images[view];
                    x.push(g.index(b, k, h / 16 * (w / 16)));
                }
                x
            })
        })
        .collect()
}

/// (rows of each group, C, eps); some have several tasks, or more channels than one block. Two rows by themselves need a large eps: where their
/// order changes, the gradient turns too fast for central differences.
const GROUPS: [(&[usize], usize, f64); 6] = [
    (&[2], 1, 0.1),
    (&[7, 3], 5, 1e-5),
    (&[33, 4, 9], 16, 1e-5),
    (&[700, 40], 32, 1e-5),
    (&[20, 6], 320, 1e-5),
    (&[4], 3, 0.5),
];

pub fn batch_norm() -> Vec<Case> {
    GROUPS
        .into_iter()
        .map(|(groups, c, eps)| {
            let (name, rows) = (format!("{groups:?}x{c} eps {eps}"), groups.iter().sum::<usize>());
            case(name, ops::BatchNorm { eps, groups: groups.to_vec(), then: None }, |g| {
                // Away from 0: the variance must not be a difference of squares.
                let x = g.tensor(&[rows, c], |g| g.gauss() + 3.0).into();
                vec![x, g.uniform(&[c], 0.5, 1.5), g.normal(&[c])]
            })
        })
        .chain(activated())
        .collect()
}

/// Normalised values lie around -1 and 1, away from the kinks of what follows them, of which a channel reaches all parts.
fn activated() -> Vec<Case> {
    let sizes: [(&[usize], usize); 3] = [(&[8, 4], 3), (&[60, 12], 32), (&[20], 80)];
    let all = [Activation::Gelu, Activation::Relu, Activation::Relu6];
    let each = all.into_iter().flat_map(|then| sizes.map(|(groups, c)| (then, groups, c)));
    each.map(|(then, groups, c)| {
        let name = format!("{then:?} {groups:?}x{c}");
        let op = ops::BatchNorm { eps: 1e-5, groups: groups.to_vec(), then: Some(then) };
        case(name, op, |g| {
            let mut i = 0;
            let x = g.tensor(&[groups.iter().sum(), c], |g| {
                i += 1;
                // Neighbours below one another have other signs.
                let sign = if (i - 1) / c % 2 == 0 { 1.0 } else { -1.0 };
                3.0 + sign * (0.9 + 0.2 * g.unit())
            });
            let gamma = g.tensor(&[c], |g| if g.below(2) == 0 { 1.0 + g.unit() } else { 8.0 + g.unit() });
            vec![x.into(), gamma.into(), g.uniform(&[c], -0.2, 0.2)]
        })
    })
    .collect()
}

pub fn batch_norm_backward() -> Vec<Case> {
    of_cases(OpKind::BatchNorm, &[0, 1, 2], |op, of, x, y| {
        let Op::BatchNorm(ops::BatchNorm { eps, groups, then: behind }) = op.clone() else {
            unreachable!("a batch_norm case")
        };
        let statistics = [y[1].clone().into(), y[2].clone().into()];
        let beta = behind.map(|_| x[2].clone());
        let inputs = [dy(of), x[0].clone(), x[1].clone()].into_iter().chain(statistics).chain(beta).collect();
        (ops::BatchNormBackward { eps, groups, behind }.into(), inputs)
    })
}

pub fn batch_norm_inference() -> Vec<Case> {
    [(1, 1, 1e-5), (9, 5, 1e-5), (600, 33, 1e-3), (300, 48, 1e-5)]
        .into_iter()
        .map(|(m, c, eps)| {
            case(format!("{m}x{c} eps {eps}"), ops::BatchNormInference { eps }, |g| {
                let (gamma, var) = (g.uniform(&[c], 0.5, 1.5), g.uniform(&[c], 0.3, 2.0));
                vec![g.normal(&[m, c]), gamma, g.normal(&[c]), g.normal(&[c]), var]
            })
        })
        .collect()
}

pub fn running_statistics() -> Vec<Case> {
    [(&[2][..], 1, 0.1), (&[7, 3], 5, 0.1), (&[100, 2, 9], 70, 0.25)]
        .into_iter()
        .map(|(groups, c, momentum)| {
            let op = Op::from(ops::RunningStatistics { momentum, groups: groups.to_vec() });
            let k = groups.len();
            case(format!("{groups:?}x{c} momentum {momentum}"), op, |g| {
                vec![
                    g.normal(&[c]),
                    g.uniform(&[c], 0.5, 2.0),
                    g.normal(&[k, c]),
                    g.uniform(&[k, c], 0.1, 3.0),
                ]
            })
        })
        .collect()
}

/// Values on all three parts of ReLU6, away from its kinks.
fn away_from_kinks(g: &mut Gen, shape: &[usize]) -> Input {
    let parts = [(-3.0, -0.1), (0.1, 5.9), (6.1, 9.0)];
    g.tensor(shape, |g| {
        let (low, high) = parts[g.below(3)];
        low + (high - low) * g.unit()
    })
    .into()
}

const RELU6: [&[usize]; 3] = [&[1], &[7, 5], &[170, 100]];

pub fn relu() -> Vec<Case> {
    RELU6.map(|shape| case(format!("{shape:?}"), ops::Relu, |g| vec![away_from_kinks(g, shape)])).into()
}

pub fn relu_backward() -> Vec<Case> {
    of_cases(OpKind::Relu, &[0], |_, of, _, y| (ops::ReluBackward.into(), vec![dy(of), y[0].clone().into()]))
}

/// Windows wider than the map, several sizes, whole accesses of channels and parts of them, strides of every kind.
pub fn max_pool2d() -> Vec<Case> {
    let all: [(&[FeatureMap], usize, usize, usize); 7] = [
        (&[map(1, 1, 1)], 1, 1, 1),
        (&[map(2, 6, 4)], 3, 2, 5),
        (&[map(1, 7, 5), map(3, 1, 2), map(1, 4, 4)], 3, 2, 8),
        (&[map(2, 9, 12), map(1, 3, 3)], 3, 2, 64),
        (&[map(1, 5, 4)], 5, 1, 16),
        (&[map(1, 8, 7)], 3, 3, 3),
        (&[map(30, 10, 8)], 3, 2, 48),
    ];
    all.into_iter()
        .map(|(maps, kernel, stride, c)| {
            let geometry = ConvGeometry { maps: maps.to_vec(), kernel, stride };
            let (name, rows) = (format!("{} C {c}", describe(&geometry)), geometry.rows());
            // Values of one window differ by a quarter at least, in bf16 too: which is largest must not turn within a
            // central difference.
            let value = |i: usize| ((i / c * 37 + i % c * 11) % 101) as f64 * 0.25 - 12.0;
            case(name, ops::MaxPool2d { geometry }, |_| vec![Tensor::from_fn(vec![rows, c], value).into()])
        })
        .collect()
}

/// The windows of a stem on a map of three lines and four columns: they begin at positions 0, 1, 4 and 5.
pub fn equal_values() -> ConvGeometry {
    ConvGeometry { maps: vec![map(1, 3, 4)], kernel: 3, stride: 2 }
}

pub fn max_pool2d_backward() -> Vec<Case> {
    of_cases(OpKind::MaxPool2d, &[0], |op, of, x, _| {
        let Op::MaxPool2d(ops::MaxPool2d { geometry }) = op.clone() else { unreachable!("a pooling case") };
        (ops::MaxPool2dBackward { geometry }.into(), vec![dy(of), x[0].clone()])
    })
}

pub fn relu6() -> Vec<Case> {
    RELU6.map(|shape| case(format!("{shape:?}"), ops::Relu6, |g| vec![away_from_kinks(g, shape)])).into()
}

pub fn relu6_backward() -> Vec<Case> {
    of_cases(OpKind::Relu6, &[0], |_, of, x, _| (ops::Relu6Backward.into(), vec![dy(of), x[0].clone()]))
}

pub fn relu6_gate() -> Vec<Case> {
    let gate = |shape| {
        case(format!("{shape:?}"), ops::Relu6Gate, |g| vec![away_from_kinks(g, shape), g.normal(shape)])
    };
    RELU6.map(gate).into()
}

pub fn relu6_gate_backward() -> Vec<Case> {
    of_cases(OpKind::Relu6Gate, &[0, 1], |_, of, x, _| {
        (ops::Relu6GateBackward.into(), vec![dy(of), x[0].clone(), x[1].clone()])
    })
}

pub fn global_average_pool() -> Vec<Case> {
    [(&[(1, 1)][..], 1), (&[(2, 3), (1, 8)], 5), (&[(3, 40)], 33), (&[(2, 32), (3, 6)], 48)]
        .into_iter()
        .map(|(images, c)| {
            let rows = images.iter().map(|i| i.0 * i.1).sum();
            let op = Op::from(ops::GlobalAveragePool { images: images.to_vec() });
            case(format!("{images:?} C {c}"), op, |g| vec![g.normal(&[rows, c])])
        })
        .collect()
}

pub fn global_average_pool_backward() -> Vec<Case> {
    of_cases(OpKind::GlobalAveragePool, &[0], |op, of, _, _| {
        let Op::GlobalAveragePool(ops::GlobalAveragePool { images }) = op.clone() else {
            unreachable!("a pooling case")
        };
        (ops::GlobalAveragePoolBackward { images }.into(), vec![dy(of)])
    })
}

/// Whole windows, parts of windows on either side, maps smaller than a window, several sizes, more windows than blocks; the
/// largest window.
pub fn window_attention() -> Vec<Case> {
    let all: [(usize, usize, usize, &[FeatureMap]); 13] = [
        (1, 1, 1, &[map(1, 1, 1)]),
        (1, 3, 2, &[map(2, 2, 2)]),
        (2, 4, 2, &[map(1, 4, 6)]),
        (2, 6, 3, &[map(2, 5, 4)]),
        (3, 12, 4, &[map(1, 3, 2), map(2, 5, 8)]),
        (2, 16, 7, &[map(1, 16, 8)]),
        (1, 32, 7, &[map(1, 7, 7), map(2, 3, 9), map(1, 8, 2)]),
        (2, 64, 7, &[map(1, 14, 8)]),
        (2, 4, 2, &[map(300, 3, 2)]),
        (1, 32, 14, &[map(1, 14, 14), map(1, 16, 8)]),
        // More windows than blocks; one warp and no whole tile; keys behind the last position.
        (1, 32, 2, &[map(1030, 1, 2), map(1, 2, 3)]),
        (2, 64, 1, &[map(2, 1, 3)]),
        (1, 32, 5, &[map(1, 5, 7)]),
    ];
    all.into_iter()
        .map(|(heads, d, window, maps)| {
            let rows = maps.iter().map(FeatureMap::rows).sum();
            let name = format!("heads {heads} D {d} window {window} {maps:?}");
            let op = Op::from(ops::WindowAttention { heads, window, maps: maps.to_vec() });
            case(name, op, |g| {
                let biases = g.normal(&[heads, window * window]);
                vec![g.scaled(&[rows, 3 * d], 1.2), g.scaled(&[1, 3 * d], 1.2), biases]
            })
        })
        .collect()
}

pub fn window_attention_backward() -> Vec<Case> {
    of_cases(OpKind::WindowAttention, &[0, 1, 2], |op, of, x, y| {
        let Op::WindowAttention(ops::WindowAttention { heads, window, maps }) = op.clone() else {
            unreachable!("a window case")
        };
        let mut inputs = vec![dy(of), y[0].clone().into(), y[1].clone().into()];
        inputs.extend(x.iter().cloned());
        (ops::WindowAttentionBackward { heads, window, maps }.into(), inputs)
    })
}
