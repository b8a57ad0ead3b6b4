//! Linear algebra, normalisation and attention.

use crate::common::tensor::{Input, Tensor};
use saip_engine::ir::{AttentionLayout, Epilogue, Segments};

pub fn gelu(x: f64) -> f64 {
    x * 0.5 * libm::erfc(-x / std::f64::consts::SQRT_2)
}

pub fn log_sum_exp(x: &[f64]) -> f64 {
    let max = x.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(v));
    max + x.iter().map(|v| (v - max).exp()).sum::<f64>().ln()
}

pub fn add(a: &Tensor, b: &Tensor) -> Tensor {
    assert_eq!(a.data.len(), b.data.len());
    Tensor::from_fn(a.shape.clone(), |i| a.data[i] + b.data[i])
}

/// What is stored for a result `y`, and `y` itself behind GELU.
pub fn epilogue(y: Tensor, epilogue: Epilogue, x: &[Input]) -> Vec<Tensor> {
    match epilogue {
        Epilogue::None => vec![y],
        Epilogue::Gelu => vec![y.map(gelu), y],
        Epilogue::Residual => vec![add(x[3].float(), &y)],
        Epilogue::Norm { eps } => {
            let y = add(x[3].float(), &y);
            let mut out = layer_norm(&[y.clone().into(), x[4].clone(), x[5].clone()], eps);
            out.insert(0, y);
            out
        }
    }
}

/// `x w^T + b`; a weight of higher rank is `[N, everything else]`.
pub fn linear(x: &[Input]) -> Tensor {
    let (x, w, b) = (x[0].float(), x[1].float(), x[2].float());
    let (m, k, n) = (x.rows(), x.cols(), w.shape[0]);
    assert_eq!(w.data.len(), n * k);
    Tensor::from_fn([m, n], |i| {
        let (r, c) = (i / n, i % n);
        let mut sum = b.data[c];
        for j in 0..k {
            sum += x.data[r * k + j] * w.data[c * k + j];
        }
        sum
    })
}

/// `y`, `mean`, `1 / sqrt(biased variance + eps)`.
pub fn layer_norm(x: &[Input], eps: f64) -> Vec<Tensor> {
    let (x, gamma, beta) = (x[0].float(), x[1].float(), x[2].float());
    let (m, d) = (x.rows(), x.cols());
    let (mut y, mut means, mut rstds) = (Tensor::zeros([m, d]), Tensor::zeros([m]), Tensor::zeros([m]));
    for r in 0..m {
        let mean = x.row(r).iter().sum::<f64>() / d as f64;
        let var = x.row(r).iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / d as f64;
        let rstd = 1.0 / (var + eps).sqrt();
        for c in 0..d {
            y.data[r * d + c] = (x.data[r * d + c] - mean) * rstd * gamma.data[c] + beta.data[c];
        }
        (means.data[r], rstds.data[r]) = (mean, rstd);
    }
    vec![y, means, rstds]
}

/// First query row, queries, first key row and keys of every query segment.
fn segment_rows(segments: &Segments) -> Vec<[usize; 4]> {
    let lengths: Vec<(usize, usize)> =
        segments.runs.iter().flat_map(|r| vec![(r.queries, r.keys); r.count]).collect();
    let per_group = lengths.len() / segments.kv_groups;
    let mut query = 0;
    (0..lengths.len())
        .map(|s| {
            let key: usize = lengths[..s % per_group].iter().map(|l| l.1).sum();
            let item = [query, lengths[s].0, key, lengths[s].1];
            query += lengths[s].0;
            item
        })
        .collect()
}

/// What one head has of a row.
fn head_part(t: &Tensor, row: usize, first: usize, width: usize) -> &[f64] {
    &t.row(row)[first..first + width]
}

/// `softmax(q k^T / sqrt(D / heads)) v` inside each segment, and the log-sum-exp of the scaled scores.
pub fn attention(x: &[Input], heads: usize, layout: AttentionLayout, segments: &Segments) -> Vec<Tensor> {
    // (tensor, first column) of queries, keys and values, and the width.
    let (q, k, v, d) = match layout {
        AttentionLayout::Packed => {
            let (t, d) = (x[0].float(), x[0].float().cols() / 3);
            ((t, 0), (t, d), (t, 2 * d), d)
        }
        AttentionLayout::Separate => {
            let (t, d) = (x[1].float(), x[0].float().cols());
            ((x[0].float(), 0), (t, 0), (t, d), d)
        }
    };
    let (width, rows) = (d / heads, segment_rows(segments));
    let out_rows: usize = rows.iter().map(|s| s[1]).sum();
    let (mut o, mut lse) = (Tensor::zeros([out_rows, d]), Tensor::zeros([out_rows, heads]));
    for [query, queries, key, keys] in rows {
        for h in 0..heads {
            // A head's part of a row.
            let part = |row: usize, (t, first)| head_part(t, row, first + h * width, width);
            let [all_k, all_v] = [k, v].map(|of| (0..keys).map(|j| part(key + j, of)).collect::<Vec<_>>());
            for i in 0..queries {
                // Packed queries are the first rows of their segment's keys.
                let source = if layout == AttentionLayout::Packed { key + i } else { query + i };
                let scores: Vec<f64> = all_k
                    .iter()
                    .map(|k| {
                        let dot: f64 = part(source, q).iter().zip(*k).map(|(a, b)| a * b).sum();
                        dot / (width as f64).sqrt()
                    })
                    .collect();
                let total = log_sum_exp(&scores);
                lse.data[(query + i) * heads + h] = total;
                let shares: Vec<f64> = scores.iter().map(|s| (s - total).exp()).collect();
                for c in 0..width {
                    o.data[(query + i) * d + h * width + c] =
                        all_v.iter().zip(&shares).map(|(v, share)| share * v[c]).sum();
                }
            }
        }
    }
    vec![o, lse]
}

/// Every kernel against the features of its image, `row % images`.
pub fn dynamic_conv(kernel: &Tensor, features: &Tensor, tokens: usize) -> Tensor {
    let images = features.rows() / tokens;
    Tensor::from_fn([kernel.rows(), tokens], |i| {
        let (r, t) = (i / tokens, i % tokens);
        let f = features.row((r % images) * tokens + t);
        kernel.row(r).iter().zip(f).map(|(a, b)| a * b).sum()
    })
}

pub fn l2_normalize(x: &Tensor, eps: f64) -> Vec<Tensor> {
    let norm = Tensor::from_fn([x.rows()], |r| x.row(r).iter().map(|v| v * v).sum::<f64>().sqrt().max(eps));
    let d = x.cols();
    vec![Tensor::from_fn([x.rows(), d], |i| x.data[i] / norm.data[i / d]), norm]
}

/// Row `i` times `factors[i]`.
pub fn scale_rows(x: &Tensor, factors: &Tensor) -> Tensor {
    let d = x.cols();
    Tensor::from_fn(x.shape.clone(), |i| x.data[i] * factors.data[i / d])
}
