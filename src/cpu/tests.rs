//! Numbers of every family: against naive formulas, central differences, itself in f64 and with other thread counts.

use super::testing::{HostTensor, check_gradient, check_op, random, run_op};
use crate::ir::{
    AttentionLayout, ConvGeometry, Epilogue, InputEpilogue, Op, ParamSegment, RowRun, Scalar, SegmentRun,
    Segments, TokenLayout, TokenView, ops,
};
use crate::tensor::DType;

fn float(t: &HostTensor) -> &[f64] {
    match t {
        HostTensor::Float(_, x) => x,
        HostTensor::Index(..) => panic!("an index"),
    }
}

fn tensor(dims: &[usize], x: &[f64]) -> HostTensor {
    HostTensor::Float(dims.to_vec(), x.to_vec())
}

fn index(dims: &[usize], x: &[i32]) -> HostTensor {
    HostTensor::Index(dims.to_vec(), x.to_vec())
}

fn assert_close(got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= 1e-9 * (1.0 + w.abs()), "[{i}]: {g}, not {w}");
    }
}

/// Rows of unit length.
fn unit(dims: [usize; 2], seed: u64) -> HostTensor {
    let x = random(&dims, seed);
    let rows = float(&x).chunks(dims[1]).flat_map(|r| {
        let n = r.iter().map(|v| v * v).sum::<f64>().sqrt();
        r.iter().map(move |v| v / n)
    });
    HostTensor::Float(dims.to_vec(), rows.collect())
}

#[test]
fn linear() {
    let (m, k, n) = (37, 20, 45);
    let (x, w, b, r) = (random(&[m, k], 1), random(&[n, k], 2), random(&[n], 3), random(&[m, n], 4));
    let naive: Vec<f64> = (0..m * n)
        .map(|i| {
            let (row, col) = (i / n, i % n);
            (0..k).map(|p| float(&x)[row * k + p] * float(&w)[col * k + p]).sum::<f64>() + float(&b)[col]
        })
        .collect();
    let plain = Op::from(ops::Linear { epilogue: Epilogue::None });
    let inputs = [x.clone(), w.clone(), b.clone()];
    assert_close(&check_op(&plain, &inputs)[0], &naive);
    let out = check_op(&ops::Linear { epilogue: Epilogue::Gelu }.into(), &inputs);
    assert_close(&out[1], &naive);
    assert_close(&out[0], &run_op::<f64>(&ops::Gelu.into(), &[tensor(&[m, n], &naive)])[0]);
    let out =
        check_op(&ops::Linear { epilogue: Epilogue::Residual }.into(), &[x.clone(), w.clone(), b, r.clone()]);
    assert_close(&out[0], &naive.iter().zip(float(&r)).map(|(y, r)| y + r).collect::<Vec<_>>());

    let dx =
        check_op(&ops::LinearBackwardInput { epilogue: InputEpilogue::None }.into(), &[r.clone(), w.clone()]);
    check_gradient(&plain, &inputs, float(&r), 0, &dx[0]);
    let dw = check_op(&ops::LinearBackwardWeight { weight: vec![n, k] }.into(), &[r.clone(), x.clone()]);
    check_gradient(&plain, &inputs, float(&r), 1, &dw[0]);
    check_gradient(&plain, &inputs, float(&r), 2, &dw[1]);
    let fused =
        check_op(&ops::LinearBackwardInput { epilogue: InputEpilogue::Gelu }.into(), &[r, w, x.clone()]);
    assert_close(&fused[0], &run_op::<f64>(&ops::GeluBackward.into(), &[tensor(&[m, k], &dx[0]), x])[0]);
}

#[test]
fn large_products_do_not_depend_on_threads() {
    let (m, k, n) = (400, 700, 300);
    let (x, w, b) = (random(&[m, k], 1), random(&[n, k], 2), random(&[n], 3));
    check_op(&ops::Linear { epilogue: Epilogue::Gelu }.into(), &[x.clone(), w, b]);
    check_op(&ops::LinearBackwardWeight { weight: vec![n, k] }.into(), &[random(&[m, n], 5), x]);
}

#[test]
fn conv2d() {
    let (c, o) = (5, 7);
    let g = ConvGeometry::same(3, 4, 6, 3);
    let m = g.rows();
    let (x, w, b) = (random(&[m, c], 1), random(&[o, c, 3, 3], 2), random(&[o], 3));
    let naive: Vec<f64> = (0..m * o)
        .map(|i| {
            let (p, out) = (i / o, i % o);
            let (image, y, x0) = (p / 24, p / 6 % 4, p % 6);
            let mut sum = float(&b)[out];
            for (ky, kx, ch) in (0..9 * c).map(|t| (t / 3 % 3, t % 3, t / 9)) {
                if (1..=4).contains(&(y + ky)) && (1..=6).contains(&(x0 + kx)) {
                    let at = (image * 24 + (y + ky - 1) * 6 + x0 + kx - 1) * c + ch;
                    sum += float(&x)[at] * float(&w)[((out * c + ch) * 3 + ky) * 3 + kx];
                }
            }
            sum
        })
        .collect();
    let op = Op::from(ops::Conv2d { geometry: g.clone(), epilogue: Epilogue::None });
    let inputs = [x.clone(), w.clone(), b.clone()];
    assert_close(&check_op(&op, &inputs)[0], &naive);
    let r = random(&[m, o], 4);
    let out = check_op(
        &ops::Conv2d { geometry: g.clone(), epilogue: Epilogue::Residual }.into(),
        &[x.clone(), w.clone(), b, r.clone()],
    );
    assert_close(&out[0], &naive.iter().zip(float(&r)).map(|(y, r)| y + r).collect::<Vec<_>>());
    let out = check_op(&ops::Conv2d { geometry: g.clone(), epilogue: Epilogue::Gelu }.into(), &inputs);
    assert_close(&out[1], &naive);
    let dx = check_op(
        &ops::Conv2dBackwardInput { geometry: g.clone(), gelu: false }.into(),
        &[r.clone(), w.clone()],
    );
    check_gradient(&op, &inputs, float(&r), 0, &dx[0]);
    let fused = check_op(
        &ops::Conv2dBackwardInput { geometry: g.clone(), gelu: true }.into(),
        &[r.clone(), w, x.clone()],
    );
    assert_close(
        &fused[0],
        &run_op::<f64>(&ops::GeluBackward.into(), &[tensor(&[m, c], &dx[0]), x.clone()])[0],
    );
    let dw = check_op(&ops::Conv2dBackwardWeight { geometry: g.clone() }.into(), &[r.clone(), x]);
    check_gradient(&op, &inputs, float(&r), 1, &dw[0]);
    check_gradient(&op, &inputs, float(&r), 2, &dw[1]);
}

#[test]
fn conv2d_over_several_ranges() {
    let g = ConvGeometry::same(7, 14, 14, 3);
    let (c, o) = (256, 8);
    let (x, w, b) = (random(&[g.rows(), c], 1), random(&[o, c, 3, 3], 2), random(&[o], 3));
    let (op, r) =
        (ops::Conv2d { geometry: g.clone(), epilogue: Epilogue::Residual }.into(), random(&[g.rows(), o], 4));
    check_op(&op, &[x.clone(), w, b, r.clone()]);
    check_op(&ops::Conv2dBackwardWeight { geometry: g.clone() }.into(), &[r, x]);
}

#[test]
fn dynamic_conv() {
    let (b, m, d, groups) = (3, 10, 6, 2);
    let op = Op::from(ops::DynamicConv { tokens: m });
    let inputs = [random(&[groups * b, d], 1), random(&[b * m, d], 2)];
    let y = check_op(&op, &inputs);
    let (kernel, features) = (float(&inputs[0]), float(&inputs[1]));
    let want: f64 = (0..d).map(|i| kernel[4 * d + i] * features[(m + 3) * d + i]).sum();
    assert!((y[0][4 * m + 3] - want).abs() < 1e-12);
    let dy = random(&[groups * b, m], 3);
    let grads = check_op(
        &ops::DynamicConvBackward { tokens: m }.into(),
        &[dy.clone(), inputs[0].clone(), inputs[1].clone()],
    );
    check_gradient(&op, &inputs, float(&dy), 0, &grads[0]);
    check_gradient(&op, &inputs, float(&dy), 1, &grads[1]);
}

#[test]
fn layer_norm() {
    let (m, d) = (1300, 24);
    let op = Op::from(ops::LayerNorm { eps: 1e-6 });
    let inputs = [random(&[m, d], 1), random(&[d], 2), random(&[d], 3)];
    let out = check_op(&op, &inputs);
    let row = &float(&inputs[0])[..d];
    let mean = row.iter().sum::<f64>() / d as f64;
    let var = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / d as f64;
    assert_close(
        &out[0][..1],
        &[(row[0] - mean) / (var + 1e-6).sqrt() * float(&inputs[1])[0] + float(&inputs[2])[0]],
    );
    let dy = random(&[m, d], 4);
    let (mean, rstd) = (tensor(&[m], &out[1]), tensor(&[m], &out[2]));
    let operands = [dy.clone(), inputs[0].clone(), inputs[1].clone(), mean, rstd];
    let grads = check_op(&ops::LayerNormBackward { residual: false }.into(), &operands);
    (0..3).for_each(|i| check_gradient(&op, &inputs, float(&dy), i, &grads[i]));
    let r = random(&[m, d], 5);
    let with = check_op(
        &ops::LayerNormBackward { residual: true }.into(),
        &[&operands[..], std::slice::from_ref(&r)].concat(),
    );
    assert_close(&with[0], &grads[0].iter().zip(float(&r)).map(|(a, b)| a + b).collect::<Vec<_>>());
}

/// Checks attention with `n` inputs against its gradient, and the first row against the formula.
fn attention_case(segments: Segments, layout: AttentionLayout, heads: usize, d: usize) {
    let (tq, tk) = (segments.query_rows(), segments.key_rows());
    let inputs = match layout {
        AttentionLayout::Packed => vec![random(&[tk, 3 * d], 1)],
        AttentionLayout::Separate => vec![random(&[tq, d], 1), random(&[tk, 2 * d], 2)],
    };
    let op = Op::from(ops::Attention { heads, layout, segments: segments.clone() });
    let out = check_op(&op, &inputs);
    let dh = d / heads;
    let last = inputs.len() - 1;
    let (width, at) = if last == 0 { (3 * d, d) } else { (2 * d, 0) };
    for (q0, nq, k0, nk) in segments.iter() {
        for (i, h) in (0..nq).flat_map(|i| (0..heads).map(move |h| (i, h))) {
            let q = if last == 0 {
                &float(&inputs[0])[(k0 + i) * width..]
            } else {
                &float(&inputs[0])[(q0 + i) * d..]
            };
            let kv = |j: usize, c: usize| float(&inputs[last])[(k0 + j) * width + at + c];
            let s: Vec<f64> = (0..nk)
                .map(|j| (0..dh).map(|c| q[h * dh + c] * kv(j, h * dh + c)).sum::<f64>() / (dh as f64).sqrt())
                .collect();
            let sum: f64 = s.iter().map(|s| s.exp()).sum();
            let o: f64 = (0..nk).map(|j| s[j].exp() / sum * kv(j, d + h * dh)).sum();
            assert!((out[0][(q0 + i) * d + h * dh] - o).abs() < 1e-9, "row {} head {h}", q0 + i);
            assert!((out[1][(q0 + i) * heads + h] - sum.ln()).abs() < 1e-9);
        }
    }
    let dy = random(&[tq, d], 3);
    let mut operands = vec![dy.clone(), tensor(&[tq, d], &out[0]), tensor(&[tq, heads], &out[1])];
    operands.extend(inputs.iter().cloned());
    let grads = check_op(&ops::AttentionBackward { heads, layout, segments }.into(), &operands);
    for (i, grad) in grads.iter().enumerate() {
        check_gradient(&op, &inputs, float(&dy), i, grad);
    }
}

#[test]
fn attention() {
    use AttentionLayout::{Packed, Separate};
    attention_case(Segments::full([(3, 9), (4, 5)]), Packed, 3, 12);
    attention_case(Segments::first_row([(3, 9), (4, 5)]), Packed, 2, 12);
    let runs =
        vec![SegmentRun { count: 3, queries: 4, keys: 7 }, SegmentRun { count: 2, queries: 1, keys: 5 }];
    attention_case(Segments { runs, kv_groups: 1 }, Separate, 2, 8);
    let runs = vec![SegmentRun { count: 6, queries: 4, keys: 7 }];
    attention_case(Segments { runs, kv_groups: 2 }, Separate, 4, 8);
}

#[test]
fn pointwise() {
    let (a, b) = (random(&[7, 3001], 1), random(&[7, 3001], 2));
    let sum = check_op(&ops::Add.into(), &[a.clone(), b.clone()]);
    assert_close(&sum[0], &float(&a).iter().zip(float(&b)).map(|(a, b)| a + b).collect::<Vec<_>>());
    let x = random(&[30, 20], 3);
    check_op(&ops::Gelu.into(), std::slice::from_ref(&x));
    let dy = random(&[30, 20], 4);
    let dx = check_op(&ops::GeluBackward.into(), &[dy.clone(), x.clone()]);
    check_gradient(&ops::Gelu.into(), std::slice::from_ref(&x), float(&dy), 0, &dx[0]);
    assert_close(
        &check_op(&ops::Scale { factor: 2.5 }.into(), &[random(&[1], 1)])[0],
        &[2.5 * float(&random(&[1], 1))[0]],
    );
    let f = tensor(&[4], &[0.0, 2.0, 1.0, 0.5]);
    let y = check_op(&ops::ScaleSegments { segments: vec![(3, 6), (1, 12)] }.into(), &[x.clone(), f]);
    let want: Vec<f64> = float(&x)
        .iter()
        .enumerate()
        .map(|(i, v)| {
            v * match i / 20 {
                0..6 => 0.0,
                6..12 => 2.0,
                12..18 => 1.0,
                _ => 0.5,
            }
        })
        .collect();
    assert_close(&y[0], &want);
    let fill = Op::from(ops::Fill { shape: vec![2, 3], value: 1.5, dtype: DType::F32 });
    assert_eq!(run_op::<f32>(&fill, &[])[0], [1.5; 6]);
}

#[test]
fn l2_normalize() {
    let op = Op::from(ops::L2Normalize { eps: 1e-12 });
    let x = random(&[30, 20], 1);
    let out = check_op(&op, std::slice::from_ref(&x));
    let norm = float(&x)[..20].iter().map(|v| v * v).sum::<f64>().sqrt();
    assert_close(&out[0][..1], &[float(&x)[0] / norm]);
    let dy = random(&[30, 20], 2);
    let operands = [dy.clone(), tensor(&[30, 20], &out[0]), tensor(&[30], &out[1])];
    let dx = check_op(&ops::L2NormalizeBackward { eps: 1e-12 }.into(), &operands);
    check_gradient(&op, &[x], float(&dy), 0, &dx[0]);
    let zero = run_op::<f64>(&op, &[tensor(&[1, 2], &[0.0, 0.0])]);
    assert_eq!(zero, [vec![0.0, 0.0], vec![1e-12]]);
}

#[test]
fn patch_rows() {
    let (a, b) = (random(&[2, 3, 32, 16], 1), random(&[2, 3, 32, 48], 2));
    let keep = index(&[2, 2], &[4, 1, 0, 5]);
    let rows =
        check_op(&ops::PatchRows { kept: Some(1), dtype: DType::F64 }.into(), &[a.clone(), b.clone(), keep]);
    // Image 1 of a, patch 1, channel 2, row 3, column 4.
    assert_close(
        &rows[0][3 * 768 + 2 * 256 + 3 * 16 + 4..][..1],
        &[float(&a)[((3 + 2) * 32 + 16 + 3) * 16 + 4]],
    );
    // Image 0 of b, patch 4 = (1, 1), channel 1, row 0, column 2.
    assert_close(&rows[0][4 * 768 + 256 + 2..][..1], &[float(&b)[(32 + 16) * 48 + 16 + 2]]);
}

#[test]
fn embed_tokens() {
    let views = vec![TokenView { count: 2, tokens: 3 }, TokenView { count: 2, tokens: 2 }];
    let layout = TokenLayout { views, positions: true, kept: Some(1) };
    let d = 5;
    let inputs = [
        random(&[10, d], 1),
        random(&[1, d], 2),
        random(&[1, d], 3),
        random(&[3, d], 4),
        random(&[6, d], 5),
        index(&[2, 2], &[5, 1, 2, 3]),
    ];
    let op = Op::from(ops::EmbedTokens { layout: layout.clone() });
    let y = check_op(&op, &inputs);
    // Second image of the second view, its first patch: row 8 of the patches at position 2.
    let want: Vec<f64> =
        (0..d).map(|i| float(&inputs[0])[8 * d + i] + float(&inputs[4])[2 * d + i]).collect();
    assert_close(&y[0][12 * d..13 * d], &want);
    let dy = random(&[14, d], 6);
    let back = Op::from(ops::EmbedTokensBackward { layout, tables: vec![3, 6] });
    let grads = check_op(&back, &[dy.clone(), inputs[5].clone()]);
    for (i, grad) in [0, 1, 3, 4].into_iter().zip(&grads) {
        check_gradient(&op, &inputs, float(&dy), i, grad);
    }
    check_gradient(&op, &inputs, float(&dy), 2, &grads[1]);
}

#[test]
fn resize_positions() {
    let same = Op::from(ops::ResizePositions { prefix: 1, from: [3, 4], to: [3, 4] });
    let table = random(&[13, 2], 1);
    assert_close(&check_op(&same, std::slice::from_ref(&table))[0], &float(&table)[2..]);
    let squares = tensor(&[5, 1], &[0.0, 1.0, 4.0, 9.0, 16.0]);
    let constant = tensor(&[5, 1], &[2.0; 5]);
    for to in [1, 2, 3, 7, 11] {
        let op = Op::from(ops::ResizePositions { prefix: 0, from: [1, 5], to: [1, to] });
        assert_close(&check_op(&op, std::slice::from_ref(&constant))[0], &vec![2.0; to]);
        check_op(&op, std::slice::from_ref(&squares));
    }
    for to in [[2, 3], [5, 4], [6, 9]] {
        let op = Op::from(ops::ResizePositions { prefix: 1, from: [3, 4], to });
        let dy = random(&[to[0] * to[1], 2], 2);
        let grad = check_op(
            &ops::ResizePositionsBackward { prefix: 1, from: [3, 4], to }.into(),
            std::slice::from_ref(&dy),
        );
        check_gradient(&op, std::slice::from_ref(&table), float(&dy), 0, &grad[0]);
    }
}

#[test]
fn row_selection() {
    let runs = vec![
        RowRun { start: 1, len: 2, stride: 4, count: 2 },
        RowRun { start: 8, len: 1, stride: 0, count: 1 },
        RowRun { start: 10, len: 2, stride: 2, count: 1 },
    ];
    let (x, d) = (random(&[13, 3], 1), 3);
    let y = check_op(&ops::SelectRows { runs: runs.clone() }.into(), std::slice::from_ref(&x));
    let want = [1, 2, 5, 6, 8, 10, 11];
    let rows: Vec<f64> = want.iter().flat_map(|r| float(&x)[r * d..(r + 1) * d].to_vec()).collect();
    assert_close(&y[0], &rows);
    let dy = random(&[7, d], 2);
    let scatter = |accumulate| Op::ScatterRows(ops::ScatterRows { runs: runs.clone(), rows: 13, accumulate });
    let dx = check_op(&scatter(false), std::slice::from_ref(&dy));
    check_gradient(
        &ops::SelectRows { runs: runs.clone() }.into(),
        std::slice::from_ref(&x),
        float(&dy),
        0,
        &dx[0],
    );
    let sum = check_op(&scatter(true), &[dy, x.clone()]);
    assert_close(&sum[0], &dx[0].iter().zip(float(&x)).map(|(a, b)| a + b).collect::<Vec<_>>());
}

#[test]
fn tokens() {
    let (b, n, k, d) = (2, 5, 3, 4);
    let keep = index(&[b, k], &[4, 0, 2, 1, 3, 0]);
    let (x, visible) = (random(&[b * n, d], 1), random(&[b * k, d], 2));
    let y = check_op(&ops::GatherTokens { tokens: n }.into(), &[x.clone(), keep.clone()]);
    assert_close(&y[0][4 * d..5 * d], &float(&x)[8 * d..9 * d]);
    let dx = check_op(&ops::ScatterTokens { tokens: n }.into(), &[visible.clone(), keep.clone()]);
    check_gradient(
        &ops::GatherTokens { tokens: n }.into(),
        &[x.clone(), keep.clone()],
        float(&visible),
        0,
        &dx[0],
    );

    let inputs = [visible, keep.clone(), random(&[1, d], 3), random(&[n, d], 4)];
    let y = check_op(&ops::RestoreTokens.into(), &inputs);
    let want: Vec<f64> = (0..d).map(|i| float(&inputs[2])[i] + float(&inputs[3])[d + i]).collect();
    assert_close(&y[0][d..2 * d], &want);
    let grads = check_op(&ops::RestoreTokensBackward.into(), &[x.clone(), keep]);
    for (i, grad) in [0, 2, 3].into_iter().zip(&grads) {
        check_gradient(&ops::RestoreTokens.into(), &inputs, float(&x), i, grad);
    }

    let inputs = [x.clone(), random(&[n, d], 5)];
    let y = check_op(&ops::AddPositions.into(), &inputs);
    assert_close(&y[0][n * d..n * d + 1], &[float(&x)[n * d] + float(&inputs[1])[0]]);
    let dpos = check_op(&ops::SumImages { tokens: n }.into(), std::slice::from_ref(&x));
    check_gradient(&ops::AddPositions.into(), &inputs, float(&x), 1, &dpos[0]);
}

fn scalars() -> HostTensor {
    let mut s = vec![0.0; Scalar::COUNT];
    for (which, value) in [
        (Scalar::LearningRate, 0.01),
        (Scalar::WeightDecay, 0.05),
        (Scalar::Beta1, 0.9),
        (Scalar::Beta2, 0.95),
        (Scalar::AdamEps, 1e-8),
        (Scalar::BiasCorrection1, 1.0 - 0.9f64.powi(3)),
        (Scalar::BiasCorrection2, 1.0 - 0.95f64.powi(3)),
        (Scalar::ClipNorm, 0.5),
        (Scalar::ExpertMomentum, 0.99),
        (Scalar::MicroStep, 1.0),
        (Scalar::MicroWeight, 0.5),
    ] {
        s[which as usize] = value;
    }
    tensor(&[Scalar::COUNT], &s)
}

fn temperatures() -> HostTensor {
    tensor(&[3], &[0.1, 0.04, 0.9])
}

/// Softmax of `scale * (z_row . w_k - c_k)` over k, and its logarithm.
fn log_softmax(z: &[f64], w: &[f64], c: &[f64], scale: f64) -> Vec<f64> {
    let s: Vec<f64> = w
        .chunks(z.len())
        .zip(c)
        .map(|(w, c)| scale * (z.iter().zip(w).map(|(a, b)| a * b).sum::<f64>() - c))
        .collect();
    let lse = s.iter().map(|x| x.exp()).sum::<f64>().ln();
    s.iter().map(|x| x - lse).collect()
}

#[test]
fn prototype_cross_entropy() {
    let (b, v, k, d) = (3, 4, 1100, 6);
    let center = HostTensor::Float(vec![1, k], float(&random(&[1, k], 5)).iter().map(|x| 0.05 * x).collect());
    let inputs =
        [unit([v * b, d], 1), unit([k, d], 2), unit([2 * b, d], 3), unit([k, d], 4), center, temperatures()];
    let op = Op::from(ops::PrototypeCrossEntropy { batch: b });
    let out = check_op(&op, &inputs);
    let row = |t: &HostTensor, r: usize| float(t)[r * d..(r + 1) * d].to_vec();
    let (w, wt, c) = (float(&inputs[1]), float(&inputs[3]), float(&inputs[4]));
    let mut want = 0.0;
    for (i, view, image) in (0..2 * v * b).map(|n| (n / (v * b), n / b % v, n % b)).filter(|n| n.0 != n.1) {
        let log_p = log_softmax(&row(&inputs[0], view * b + image), w, &vec![0.0; k], 10.0);
        let log_q = log_softmax(&row(&inputs[2], i * b + image), wt, c, 25.0);
        want -= log_p.iter().zip(&log_q).map(|(p, q)| q.exp() * p).sum::<f64>() / (b * 2 * (v - 1)) as f64;
    }
    assert_close(&out[0], &[want]);
    let mut operands = vec![tensor(&[1], &[0.7])];
    operands.extend(inputs.iter().cloned());
    operands.extend([tensor(&[v * b], &out[1]), tensor(&[2 * b], &out[2])]);
    let grads = check_op(&ops::PrototypeCrossEntropyBackward { batch: b }.into(), &operands);
    check_gradient(&op, &inputs, &[0.7], 0, &grads[0]);
    check_gradient(&op, &inputs, &[0.7], 1, &grads[1]);
}

#[test]
fn expert_statistics_and_center() {
    let (rows, k, d, dim) = (6, 1100, 6, 5);
    let center = random(&[1, k], 5);
    let center = HostTensor::Float(vec![1, k], float(&center).iter().map(|x| 0.05 * x).collect());
    let (zt, wt, features) = (unit([rows, d], 3), unit([k, d], 4), random(&[rows, dim], 6));
    let log_q: Vec<Vec<f64>> =
        float(&zt).chunks(d).map(|z| log_softmax(z, float(&wt), float(&center), 25.0)).collect();
    let lse: Vec<f64> = float(&zt)
        .chunks(d)
        .zip(&log_q)
        .map(|(z, q)| {
            let s = z.iter().zip(float(&wt)).map(|(a, b)| a * b).sum::<f64>() - float(&center)[0];
            25.0 * s - q[0]
        })
        .collect();
    let inputs =
        [zt.clone(), wt.clone(), center.clone(), temperatures(), tensor(&[rows], &lse), features.clone()];
    let y = check_op(&ops::ExpertStatistics.into(), &inputs);
    let entropy = log_q.iter().flatten().map(|q| -q.exp() * q).sum::<f64>() / rows as f64;
    let mean = (0..k).map(|i| log_q.iter().map(|q| q[i].exp()).sum::<f64>() / rows as f64);
    assert_close(&y[0][..2], &[entropy, mean.map(|p| -p * p.ln()).sum()]);
    let u = unit([rows, dim], 6);
    let spread = (0..dim).map(|c| {
        let column: Vec<f64> = float(&u).iter().skip(c).step_by(dim).copied().collect();
        let m = column.iter().sum::<f64>() / rows as f64;
        (column.iter().map(|x| (x - m).powi(2)).sum::<f64>() / rows as f64).sqrt()
    });
    assert_close(&y[0][2..], &[spread.sum::<f64>() / (dim as f64).sqrt()]);

    let update = |healthy: f64| {
        let health = tensor(&[3], &[1.0, 1.0, healthy]);
        check_op(&ops::CenterUpdate.into(), &[center.clone(), zt.clone(), wt.clone(), temperatures(), health])
    };
    assert_close(&update(0.0)[0], float(&center));
    let mean: f64 =
        float(&zt).iter().enumerate().map(|(i, z)| z * float(&wt)[7 * d + i % d]).sum::<f64>() / rows as f64;
    assert_close(&update(1.0)[0][7..8], &[0.9 * float(&center)[7] + 0.1 * mean]);
}

#[test]
fn masked_mse() {
    let inputs = [random(&[4, 768], 1), random(&[2, 3, 32, 48], 2), index(&[2, 2], &[4, 1, 0, 5])];
    let loss = check_op(&ops::MaskedMse.into(), &inputs);
    let mut want = 0.0;
    for (r, (image, patch)) in [(0, 4), (0, 1), (1, 0), (1, 5)].into_iter().enumerate() {
        let value = |i: usize| {
            let (y, x, c) = (i / 48 + patch / 3 * 16, i / 3 % 16 + patch % 3 * 16, i % 3);
            float(&inputs[1])[((image * 3 + c) * 32 + y) * 48 + x]
        };
        let mean = (0..768).map(value).sum::<f64>() / 768.0;
        let var = (0..768).map(|i| (value(i) - mean).powi(2)).sum::<f64>() / 767.0;
        let pred = &float(&inputs[0])[r * 768..];
        want += (0..768).map(|i| (pred[i] - (value(i) - mean) / (var + 1e-6).sqrt()).powi(2)).sum::<f64>();
    }
    assert_close(&loss[0], &[want / (4.0 * 768.0)]);
    let operands = [&[tensor(&[1], &[0.3])], &inputs[..]].concat();
    let grad = check_op(&ops::MaskedMseBackward.into(), &operands);
    check_gradient(&ops::MaskedMse.into(), &inputs, &[0.3], 0, &grad[0]);
}

#[test]
fn bce_with_logits() {
    let (op, shape) = (ops::BceWithLogits { groups: 2 }.into(), [6, 900]);
    let target = float(&random(&shape, 2)).iter().map(|&x| f64::from(x > 0.0)).collect::<Vec<_>>();
    let logits = float(&random(&shape, 1)).iter().map(|x| 20.0 * x).collect::<Vec<_>>();
    let inputs = [tensor(&shape, &logits), tensor(&shape, &target)];
    let want: f64 = logits.iter().zip(&target).map(|(x, t)| -t * x + x.exp().ln_1p()).sum();
    assert_close(&check_op(&op, &inputs)[0], &[want / 2700.0]);
    let operands = [&[tensor(&[1], &[0.3])], &inputs[..]].concat();
    let grad = check_op(&ops::BceWithLogitsBackward { groups: 2 }.into(), &operands);
    check_gradient(&op, &inputs, &[0.3], 0, &grad[0]);
    let sum =
        check_op(&ops::WeightedSum { weights: vec![2.0, -0.5] }.into(), &[random(&[1], 1), random(&[1], 2)]);
    assert_close(&sum[0], &[2.0 * float(&random(&[1], 1))[0] - 0.5 * float(&random(&[1], 2))[0]]);
}

#[test]
fn optimizer() {
    let n = 70_000;
    let (p, g, m, e) = (random(&[n], 1), random(&[n], 2), random(&[n], 3), random(&[100], 5));
    let v = HostTensor::Float(vec![n], float(&random(&[n], 4)).iter().map(|x| x.abs()).collect());
    let total = check_op(&ops::AccumulateGrads.into(), &[p.clone(), g.clone(), scalars()]);
    assert_close(&total[0][5..6], &[float(&p)[5] + 0.5 * float(&g)[5]]);
    let norm = float(&g).iter().map(|g| g * g).sum::<f64>().sqrt();
    let loss = tensor(&[1], &[1.0]);
    let health = check_op(&ops::GradHealth.into(), &[g.clone(), loss.clone(), scalars()]);
    assert_close(&health[0], &[norm, 0.5 / (norm + 1e-6), 1.0]);
    let mut bad = float(&g).to_vec();
    bad[40_000] = f64::INFINITY;
    let skipped = run_op::<f32>(&ops::GradHealth.into(), &[tensor(&[n], &bad), loss, scalars()]);
    assert_eq!(skipped[0][2], 0.0);
    let lost = run_op::<f32>(&ops::GradHealth.into(), &[g.clone(), tensor(&[1], &[f64::NAN]), scalars()]);
    assert_eq!(lost[0][2], 0.0);

    let segments = vec![
        ParamSegment { start: 0, len: 100, decay: true, late: false, expert: Some(0) },
        ParamSegment { start: 100, len: n - 100, decay: false, late: false, expert: None },
    ];
    let op = Op::from(ops::AdamW { segments, copies: false });
    let step = |healthy: f64| {
        let h = tensor(&[3], &[norm, 0.5, healthy]);
        check_op(&op, &[p.clone(), g.clone(), m.clone(), v.clone(), e.clone(), scalars(), h])
    };
    let old = [&p, &m, &v, &e].map(|t| float(t).to_vec());
    step(0.0).iter().zip(&old).for_each(|(a, b)| assert_close(a, b));
    let out = step(1.0);
    for i in [50, 60_000] {
        let g = 0.5 * float(&g)[i];
        let (m, v) = (0.9 * old[1][i] + 0.1 * g, 0.95 * old[2][i] + 0.05 * g * g);
        let decay = if i < 100 { 1.0 - 0.01 * 0.05 } else { 1.0 };
        let (bc1, bc2) = (1.0 - 0.9f64.powi(3), 1.0 - 0.95f64.powi(3));
        let p = old[0][i] * decay - 0.01 / bc1 * m / (v.sqrt() / bc2.sqrt() + 1e-8);
        assert_close(&[out[0][i], out[1][i], out[2][i]], &[p, m, v]);
        if i < 100 {
            assert_close(&[out[3][i]], &[0.99 * old[3][i] + 0.01 * p]);
        }
    }
}
