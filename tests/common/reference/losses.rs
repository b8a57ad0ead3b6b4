//! Losses and the statistics that come with them.

use super::dense::log_sum_exp;
use super::layout::pixel;
use crate::common::tensor::{Input, Tensor};
use saip_engine::ir::ops::Temperature;

const PATCH: usize = 16;

fn scalar(temperatures: &Input, s: Temperature) -> f64 {
    temperatures.float().data[s as usize]
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// `(x_r . w_k - center_k) / temperature` for every row and prototype.
fn logits(x: &Tensor, w: &Tensor, center: Option<&Tensor>, temperature: f64) -> Tensor {
    let k = w.rows();
    Tensor::from_fn([x.rows(), k], |i| {
        let c = center.map_or(0.0, |c| c.data[i % k]);
        (dot(x.row(i / k), w.row(i % k)) - c) / temperature
    })
}

/// Inputs `z, w, zt, wt, center, temperatures` -> `loss, lse, lse_t`.
pub fn prototype_cross_entropy(x: &[Input], batch: usize) -> Vec<Tensor> {
    let student = logits(x[0].float(), x[1].float(), None, scalar(&x[5], Temperature::Student));
    let expert = logits(x[2].float(), x[3].float(), Some(x[4].float()), scalar(&x[5], Temperature::Teacher));
    let lse = Tensor::from_fn([student.rows()], |r| log_sum_exp(student.row(r)));
    let lse_t = Tensor::from_fn([expert.rows()], |r| log_sum_exp(expert.row(r)));
    let views = student.rows() / batch;
    let (mut sum, mut pairs) = (0.0, 0);
    for target in 0..2 {
        for view in (0..views).filter(|&v| v != target) {
            pairs += 1;
            for b in 0..batch {
                let (t, s) = (target * batch + b, view * batch + b);
                for k in 0..student.cols() {
                    let q = (expert.row(t)[k] - lse_t.data[t]).exp();
                    sum -= q * (student.row(s)[k] - lse.data[s]);
                }
            }
        }
    }
    vec![Tensor::new([1], vec![sum / (pairs * batch) as f64]), lse, lse_t]
}

fn entropy(p: &[f64]) -> f64 {
    -p.iter().map(|&v| if v > 0.0 { v * v.ln() } else { 0.0 }).sum::<f64>()
}

/// Inputs `zt, wt, center, temperatures, lse_t, features`. The features are brought to unit length first; the standard
/// deviation is the population's.
pub fn expert_statistics(x: &[Input]) -> Tensor {
    let scores = logits(x[0].float(), x[1].float(), Some(x[2].float()), scalar(&x[3], Temperature::Teacher));
    let (rows, k) = (scores.rows(), scores.cols());
    let q = Tensor::from_fn([rows, k], |i| (scores.data[i] - x[4].float().data[i / k]).exp());
    let mean: Vec<f64> = (0..k).map(|c| (0..rows).map(|r| q.row(r)[c]).sum::<f64>() / rows as f64).collect();
    let each = (0..rows).map(|r| entropy(q.row(r))).sum::<f64>() / rows as f64;
    let f = x[5].float();
    let d = f.cols();
    let unit = Tensor::from_fn([rows, d], |i| f.data[i] / dot(f.row(i / d), f.row(i / d)).sqrt());
    let deviation = |c: usize| {
        let mean = (0..rows).map(|r| unit.row(r)[c]).sum::<f64>() / rows as f64;
        ((0..rows).map(|r| (unit.row(r)[c] - mean).powi(2)).sum::<f64>() / rows as f64).sqrt()
    };
    let spread = (d as f64).sqrt() * (0..d).map(deviation).sum::<f64>() / d as f64;
    Tensor::new([3], vec![each, entropy(&mean), spread])
}

/// Inputs `center, zt, wt, temperatures, health`.
pub fn center_update(x: &[Input]) -> Tensor {
    let center = x[0].float();
    if x[4].float().data[2] == 0.0 {
        return center.clone();
    }
    let (scores, m) =
        (logits(x[1].float(), x[2].float(), None, 1.0), scalar(&x[3], Temperature::CenterMomentum));
    let (rows, k) = (scores.rows(), scores.cols());
    Tensor::from_fn(center.shape.clone(), |c| {
        let mean = scores.data.iter().skip(c).step_by(k).sum::<f64>() / rows as f64;
        m * center.data[c] + (1.0 - m) * mean
    })
}

/// Inputs `pred, image, hidden`.
pub fn masked_mse(x: &[Input]) -> Tensor {
    let (pred, image) = (x[0].float(), x[1].float());
    let (batch, hidden, grid_w) = (x[2].shape()[0], x[2].shape()[1], image.shape[3] / PATCH);
    let n = 3 * PATCH * PATCH;
    let mut sum = 0.0;
    for b in 0..batch {
        for (j, p) in x[2].index_row(b).into_iter().enumerate() {
            let (top, left) = (p / grid_w * PATCH, p % grid_w * PATCH);
            let mut target = Vec::with_capacity(n);
            for r in 0..PATCH {
                for col in 0..PATCH {
                    for c in 0..3 {
                        target.push(pixel(image, b, c, top + r, left + col));
                    }
                }
            }
            let mean = target.iter().sum::<f64>() / n as f64;
            let var = target.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / (n - 1) as f64;
            for (v, y) in target.iter().zip(pred.row(b * hidden + j)) {
                sum += (y - (v - mean) / (var + 1e-6).sqrt()).powi(2);
            }
        }
    }
    Tensor::new([1], vec![sum / (batch * hidden * n) as f64])
}

pub fn bce_with_logits(logits: &Tensor, target: &Tensor, groups: usize) -> Tensor {
    let each = |i: usize| {
        let (x, t) = (logits.data[i], target.data[i]);
        x.max(0.0) - x * t + (-x.abs()).exp().ln_1p()
    };
    let per_group = logits.data.len() / groups;
    let loss = (0..groups)
        .map(|g| (0..per_group).map(|i| each(g * per_group + i)).sum::<f64>() / per_group as f64)
        .sum();
    Tensor::new([1], vec![loss])
}
