//! The cases of backward ops: each pairs the op with the forward op whose derivative it computes. Where the operands
//! are those of the forward op, its cases are taken over.

use super::table::{GRIDS, MATRICES, cases, token_layouts, token_operands};
use super::{Case, Derivative, Expected, Function};
use crate::common::reference::forward;
use crate::common::tensor::{Gen, Input};
use saip_engine::ir::{Epilogue, InputEpilogue, Op, OpKind, ops};

/// Builds a case of backward op `op` with operands `inputs` from the derivative it stands for.
pub(super) fn case(
    name: impl Into<String>,
    op: impl Into<Op>,
    inputs: Vec<Input>,
    derivative: Derivative,
) -> Case {
    Case { name: name.into(), op: op.into(), inputs, expected: Expected::Derivative(derivative) }
}

/// The derivative of `op` at `at` in the inputs `wrt`, with random cotangents for its first output.
pub(super) fn derivative(g: &mut Gen, op: impl Into<Op>, at: Vec<Input>, wrt: &[usize]) -> Derivative {
    let op = op.into();
    let shape = forward(&op, &at)[0].shape.clone();
    let cotangents = vec![g.normal(&shape).float().clone()];
    Derivative {
        forward: Box::new(move |x| forward(&op, x)),
        at,
        cotangents,
        wrt: wrt.to_vec(),
        plus: None,
        slope: 1.0,
    }
}

/// The cotangent as an operand.
pub(super) fn dy(d: &Derivative) -> Input {
    d.cotangents[0].clone().into()
}

pub fn embed_tokens() -> Vec<Case> {
    token_layouts()
        .into_iter()
        .map(|(layout, table, d)| {
            let name = format!("{layout:?} D {d}");
            let mut g = Gen::new(&format!("embed_tokens_backward/{name}"));
            let at = token_operands(&mut g, &layout, table, d);
            let keep = layout.kept.map(|_| at.last().expect("the index").clone());
            let mut wrt = vec![0, 1];
            let mut tables = Vec::new();
            if layout.positions {
                // The leading token's position has the gradient of the token itself.
                for (v, view) in layout.views.iter().enumerate() {
                    wrt.push(3 + v);
                    tables.push(if layout.kept == Some(v) { table } else { view.tokens });
                }
            }
            let derivative = derivative(&mut g, ops::EmbedTokens { layout: layout.clone() }, at, &wrt);
            let inputs = [dy(&derivative)].into_iter().chain(keep).collect();
            case(name, ops::EmbedTokensBackward { layout, tables }, inputs, derivative)
        })
        .collect()
}

pub fn resize_positions() -> Vec<Case> {
    GRIDS
        .into_iter()
        .map(|(prefix, from, to, d)| {
            let name = format!("{prefix}+{from:?}->{to:?} D {d}");
            let mut g = Gen::new(&format!("resize_positions_backward/{name}"));
            let at = vec![g.normal(&[prefix + from[0] * from[1], d])];
            let derivative = derivative(&mut g, ops::ResizePositions { prefix, from, to }, at, &[0]);
            let op = Op::from(ops::ResizePositionsBackward { prefix, from, to });
            case(name, op, vec![dy(&derivative)], derivative)
        })
        .collect()
}

/// `inner(gelu(x[0]), ...)` as one function.
pub(super) fn behind_gelu(inner: impl Into<Op>) -> Function {
    let inner = inner.into();
    Box::new(move |x| {
        let mut x = x.to_vec();
        x[0] = forward(&ops::Gelu.into(), &x[..1]).swap_remove(0).into();
        forward(&inner, &x)
    })
}

pub fn linear_input() -> Vec<Case> {
    let mut out = Vec::new();
    // Widths of rows that a tile holds, and others.
    for (m, k, n) in [(20, 192, 392), (140, 192, 16), (130, 128, 16), (5, 7, 3)] {
        out.push(norm_input([m, k, n], true));
    }
    out.push(norm_input([9, 64, 8], false));
    for epilogue in [InputEpilogue::None, InputEpilogue::Gelu, InputEpilogue::Add] {
        for (m, k, n) in MATRICES {
            let name = format!("{m}x{k}->{n} {epilogue:?}");
            let mut g = Gen::new(&format!("linear_backward_input/{name}"));
            let at = vec![g.normal(&[m, k]), g.scaled(&[n, k], 0.5), g.normal(&[n])];
            let (x, w) = (at[0].clone(), at[1].clone());
            let mut derivative = derivative(&mut g, ops::Linear { epilogue: Epilogue::None }, at, &[0]);
            let mut inputs = vec![dy(&derivative), w];
            match epilogue {
                InputEpilogue::None | InputEpilogue::Norm { .. } => {}
                InputEpilogue::Gelu => {
                    derivative.forward = behind_gelu(ops::Linear { epilogue: Epilogue::None });
                    inputs.push(x);
                }
                InputEpilogue::Add => {
                    let other = g.normal(&[m, k]);
                    derivative.plus = Some(other.float().clone());
                    inputs.push(other);
                }
            }
            out.push(case(name, ops::LinearBackwardInput { epilogue }, inputs, derivative));
        }
    }
    out
}

/// Through a layer of a layer normalisation's output.
fn norm_input([m, k, n]: [usize; 3], residual: bool) -> Case {
    let epilogue = InputEpilogue::Norm { residual };
    let name = format!("{m}x{k}->{n} {epilogue:?}");
    let mut g = Gen::new(&format!("linear_backward_input/{name}"));
    let norm = Op::from(ops::LayerNorm { eps: 1e-5 });
    let x = g.tensor(&[m, k], |g| g.gauss() + 1.0).into();
    let at = vec![x, g.uniform(&[k], 0.5, 1.5), g.normal(&[k])];
    let (stats, w, zero) = (forward(&norm, &at), g.scaled(&[n, k], 0.5), g.scaled(&[n], 0.0));
    let layer = Op::from(ops::Linear { epilogue: Epilogue::None });
    let (weight, linear) = (w.clone(), layer.clone());
    let normal: Input = stats[0].clone().into();
    let mut derivative = derivative(&mut g, layer, vec![normal, w.clone(), zero.clone()], &[0, 1, 2]);
    derivative.at = at.clone();
    derivative.forward = Box::new(move |x| {
        let normal = forward(&norm, x).swap_remove(0).into();
        forward(&linear, &[normal, weight.clone(), zero.clone()])
    });
    let [x, gamma, _] = <[Input; 3]>::try_from(at).expect("three operands");
    let mut inputs = vec![dy(&derivative), w, x, gamma, stats[1].clone().into(), stats[2].clone().into()];
    if residual {
        let r = g.normal(&[m, k]);
        derivative.plus = Some(r.float().clone());
        inputs.push(r);
    }
    case(name, ops::LinearBackwardInput { epilogue }, inputs, derivative)
}

pub fn linear_weight() -> Vec<Case> {
    let matrices = MATRICES.into_iter().map(|(m, k, n)| (m, k, vec![n, k]));
    matrices
        .chain([(3, 48, vec![2, 3, 4, 4])])
        .map(|(m, k, weight)| {
            let name = format!("{m}x{k} weight {weight:?}");
            let mut g = Gen::new(&format!("linear_backward_weight/{name}"));
            let at = vec![g.normal(&[m, k]), g.scaled(&weight, 0.5), g.normal(&weight[..1])];
            let x = at[0].clone();
            let derivative = derivative(&mut g, ops::Linear { epilogue: Epilogue::None }, at, &[1, 2]);
            case(name, ops::LinearBackwardWeight { weight }, vec![dy(&derivative), x], derivative)
        })
        .collect()
}

pub fn gelu() -> Vec<Case> {
    cases(OpKind::Gelu)
        .into_iter()
        .map(|c| {
            let mut g = Gen::new(&format!("gelu_backward/{}", c.name));
            let x = c.inputs[0].clone();
            let derivative = derivative(&mut g, ops::Gelu, c.inputs, &[0]);
            case(c.name, ops::GeluBackward, vec![dy(&derivative), x], derivative)
        })
        .collect()
}

pub fn layer_norm() -> Vec<Case> {
    let mut out = Vec::new();
    for residual in [false, true] {
        for c in cases(OpKind::LayerNorm) {
            let name = format!("{} residual {residual}", c.name);
            let mut g = Gen::new(&format!("layer_norm_backward/{name}"));
            let (stats, at) = (forward(&c.op, &c.inputs), c.inputs);
            let mut derivative = derivative(&mut g, c.op, at.clone(), &[0, 1, 2]);
            let [x, gamma, _] = <[Input; 3]>::try_from(at).expect("three operands");
            // Statistics in full precision: the backward op receives what the forward op computed.
            let mut inputs =
                vec![dy(&derivative), x, gamma, stats[1].clone().into(), stats[2].clone().into()];
            if residual {
                let r = g.normal(inputs[0].shape());
                derivative.plus = Some(r.float().clone());
                inputs.push(r);
            }
            out.push(case(name, ops::LayerNormBackward { residual }, inputs, derivative));
        }
    }
    out
}

pub fn attention() -> Vec<Case> {
    cases(OpKind::Attention)
        .into_iter()
        .map(|c| {
            let mut g = Gen::new(&format!("attention_backward/{}", c.name));
            let (y, operands) = (forward(&c.op, &c.inputs), c.inputs.clone());
            let wrt: Vec<usize> = (0..operands.len()).collect();
            let Op::Attention(ops::Attention { heads, layout, segments }) = c.op.clone() else {
                unreachable!("an attention case")
            };
            let derivative = derivative(&mut g, c.op, c.inputs, &wrt);
            let mut inputs = vec![dy(&derivative), y[0].clone().into(), y[1].clone().into()];
            inputs.extend(operands);
            case(c.name, ops::AttentionBackward { heads, layout, segments }, inputs, derivative)
        })
        .collect()
}

pub fn restore_tokens() -> Vec<Case> {
    cases(OpKind::RestoreTokens)
        .into_iter()
        .map(|c| {
            let mut g = Gen::new(&format!("restore_tokens_backward/{}", c.name));
            let keep = c.inputs[1].clone();
            let derivative = derivative(&mut g, c.op, c.inputs, &[0, 2, 3]);
            case(c.name, ops::RestoreTokensBackward, vec![dy(&derivative), keep], derivative)
        })
        .collect()
}

pub fn dynamic_conv() -> Vec<Case> {
    cases(OpKind::DynamicConv)
        .into_iter()
        .map(|c| {
            let mut g = Gen::new(&format!("dynamic_conv_backward/{}", c.name));
            let Op::DynamicConv(ops::DynamicConv { tokens }) = c.op else {
                unreachable!("a dynamic_conv case")
            };
            let operands = c.inputs.clone();
            let derivative = derivative(&mut g, c.op, c.inputs, &[0, 1]);
            let inputs = [dy(&derivative)].into_iter().chain(operands).collect();
            case(c.name, ops::DynamicConvBackward { tokens }, inputs, derivative)
        })
        .collect()
}

pub fn scale_rows() -> Vec<Case> {
    cases(OpKind::ScaleRows)
        .into_iter()
        .map(|c| {
            let mut g = Gen::new(&format!("scale_rows_backward/{}", c.name));
            let operands = c.inputs.clone();
            let derivative = derivative(&mut g, c.op, c.inputs, &[0, 1]);
            let inputs = [dy(&derivative)].into_iter().chain(operands).collect();
            case(c.name, ops::ScaleRowsBackward, inputs, derivative)
        })
        .collect()
}

pub fn l2_normalize() -> Vec<Case> {
    cases(OpKind::L2Normalize)
        .into_iter()
        .map(|c| {
            let mut g = Gen::new(&format!("l2_normalize_backward/{}", c.name));
            let Op::L2Normalize(ops::L2Normalize { eps }) = c.op else {
                unreachable!("an l2_normalize case")
            };
            let y = forward(&c.op, &c.inputs);
            let derivative = derivative(&mut g, c.op, c.inputs, &[0]);
            // eps itself must survive the conversion: a row is clamped where its norm equals it.
            let inputs = vec![dy(&derivative), y[0].clone().into(), y[1].clone().into()];
            case(c.name, ops::L2NormalizeBackward { eps }, inputs, derivative)
        })
        .collect()
}

pub fn prototype_cross_entropy() -> Vec<Case> {
    cases(OpKind::PrototypeCrossEntropy)
        .into_iter()
        .map(|c| {
            let mut g = Gen::new(&format!("prototype_cross_entropy_backward/{}", c.name));
            let Op::PrototypeCrossEntropy(ops::PrototypeCrossEntropy { batch }) = c.op else {
                unreachable!("a cross-entropy case")
            };
            let (y, operands) = (forward(&c.op, &c.inputs), c.inputs.clone());
            let mut derivative = derivative(&mut g, c.op, c.inputs, &[0, 1]);
            // Probabilities that cancel, over the temperature.
            derivative.slope = 1.0 / operands[5].float().data[ops::Temperature::Student as usize];
            let mut inputs = vec![dy(&derivative)];
            inputs.extend(operands);
            inputs.extend([y[1].clone().into(), y[2].clone().into()]);
            case(c.name, ops::PrototypeCrossEntropyBackward { batch }, inputs, derivative)
        })
        .collect()
}

pub fn masked_mse() -> Vec<Case> {
    cases(OpKind::MaskedMse)
        .into_iter()
        .map(|c| {
            let mut g = Gen::new(&format!("masked_mse_backward/{}", c.name));
            let operands = c.inputs.clone();
            let derivative = derivative(&mut g, c.op, c.inputs, &[0]);
            let inputs = [dy(&derivative)].into_iter().chain(operands).collect();
            case(c.name, ops::MaskedMseBackward, inputs, derivative)
        })
        .collect()
}

pub fn bce_with_logits() -> Vec<Case> {
    cases(OpKind::BceWithLogits)
        .into_iter()
        .map(|c| {
            let mut g = Gen::new(&format!("bce_with_logits_backward/{}", c.name));
            let Op::BceWithLogits(ops::BceWithLogits { groups }) = c.op else {
                unreachable!("a bce_with_logits case")
            };
            let operands = c.inputs.clone();
            let derivative = derivative(&mut g, c.op, c.inputs, &[0]);
            let inputs = [dy(&derivative)].into_iter().chain(operands).collect();
            case(c.name, ops::BceWithLogitsBackward { groups }, inputs, derivative)
        })
        .collect()
}
