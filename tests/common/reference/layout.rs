//! Movement of rows, patches and tokens; position tables.

use crate::common::tensor::{Input, Tensor};
use saip_engine::ir::{RowRun, TokenLayout};

const PATCH: usize = 16;

/// Pixel `(channel, y, x)` of image `b` of `[B, 3, H, W]`.
pub fn pixel(images: &Tensor, b: usize, c: usize, y: usize, x: usize) -> f64 {
    let (h, w) = (images.shape[2], images.shape[3]);
    images.data[((b * 3 + c) * h + y) * w + x]
}

pub fn patch_rows(x: &[Input], kept: Option<usize>) -> Tensor {
    let images = x.len() - usize::from(kept.is_some());
    let mut data = Vec::new();
    for i in 0..images {
        let t = x[i].float();
        let (grid_h, grid_w) = (t.shape[2] / PATCH, t.shape[3] / PATCH);
        for b in 0..t.shape[0] {
            let patches =
                if kept == Some(i) { x[images].index_row(b) } else { (0..grid_h * grid_w).collect() };
            for p in patches {
                let (top, left) = (p / grid_w * PATCH, p % grid_w * PATCH);
                for c in 0..3 {
                    for r in 0..PATCH {
                        for col in 0..PATCH {
                            data.push(pixel(t, b, c, top + r, left + col));
                        }
                    }
                }
            }
        }
    }
    let d = 3 * PATCH * PATCH;
    Tensor::new([data.len() / d, d], data)
}

pub fn embed_tokens(x: &[Input], layout: &TokenLayout) -> Tensor {
    let (rows, token) = (x[0].float(), x[1].float());
    let d = rows.cols();
    let keep = layout.kept.map(|_| x.last().expect("the index"));
    let mut out = Vec::new();
    let mut source = 0;
    for (v, view) in layout.views.iter().enumerate() {
        for b in 0..view.count {
            for c in 0..d {
                out.push(token.data[c] + if layout.positions { x[2].float().data[c] } else { 0.0 });
            }
            for t in 0..view.tokens {
                let position = match keep {
                    Some(keep) if layout.kept == Some(v) => keep.index_row(b)[t],
                    _ => t,
                };
                for c in 0..d {
                    let pos = if layout.positions { x[3 + v].float().data[position * d + c] } else { 0.0 };
                    out.push(rows.data[source * d + c] + pos);
                }
                source += 1;
            }
        }
    }
    Tensor::new([out.len() / d, d], out)
}

/// Keys' cubic kernel with `a = -0.5`.
fn keys(x: f64) -> f64 {
    let (a, x) = (-0.5, x.abs());
    if x < 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * a
    } else {
        0.0
    }
}

/// Weight of every input sample in output sample `i`: half-pixel centres, the kernel widened when shrinking, weights
/// renormalised at the border.
pub fn bicubic(i: usize, from: usize, to: usize) -> Vec<f64> {
    let scale = from as f64 / to as f64;
    let centre = (i as f64 + 0.5) * scale;
    let w: Vec<f64> = (0..from).map(|j| keys((j as f64 + 0.5 - centre) / scale.max(1.0))).collect();
    let sum: f64 = w.iter().sum();
    w.iter().map(|x| x / sum).collect()
}

pub fn resize_positions(table: &Tensor, prefix: usize, from: [usize; 2], to: [usize; 2]) -> Tensor {
    let d = table.cols();
    let mut out = Tensor::zeros([to[0] * to[1], d]);
    for y in 0..to[0] {
        let wy = bicubic(y, from[0], to[0]);
        for x in 0..to[1] {
            let wx = bicubic(x, from[1], to[1]);
            for c in 0..d {
                let mut sum = 0.0;
                for (sy, wy) in wy.iter().enumerate() {
                    for (sx, wx) in wx.iter().enumerate() {
                        sum += wy * wx * table.data[(prefix + sy * from[1] + sx) * d + c];
                    }
                }
                out.data[(y * to[1] + x) * d + c] = sum;
            }
        }
    }
    out
}

pub fn scale_segments(x: &Tensor, factors: &Tensor, segments: &[(usize, usize)]) -> Tensor {
    let mut out = x.clone();
    let lengths = segments.iter().flat_map(|&(count, rows)| vec![rows; count]);
    let mut row = 0;
    for (length, factor) in lengths.zip(&factors.data) {
        for r in row..row + length {
            out.row_mut(r).iter_mut().for_each(|v| *v *= factor);
        }
        row += length;
    }
    out
}

fn run_rows(runs: &[RowRun]) -> Vec<usize> {
    let mut rows = Vec::new();
    for r in runs {
        for i in 0..r.count {
            rows.extend((0..r.len).map(|j| r.start + i * r.stride + j));
        }
    }
    rows
}

pub fn select_rows(x: &Tensor, runs: &[RowRun]) -> Tensor {
    let rows = run_rows(runs);
    let data = rows.iter().flat_map(|&r| x.row(r).to_vec()).collect();
    Tensor::new([rows.len(), x.cols()], data)
}

pub fn scatter_rows(dy: &Tensor, base: Option<&Tensor>, runs: &[RowRun], rows: usize) -> Tensor {
    let d = dy.cols();
    let mut out = Tensor::new([rows, d], base.map_or(vec![0.0; rows * d], |b| b.data.clone()));
    for (i, r) in run_rows(runs).into_iter().enumerate() {
        for (o, v) in out.row_mut(r).iter_mut().zip(dy.row(i)) {
            *o += v;
        }
    }
    out
}

pub fn gather_tokens(x: &[Input], tokens: usize) -> Tensor {
    let (t, b, k) = (x[0].float(), x[1].shape()[0], x[1].shape()[1]);
    let data = (0..b)
        .flat_map(|i| x[1].index_row(i).into_iter().map(move |p| i * tokens + p))
        .flat_map(|r| t.row(r).to_vec())
        .collect();
    Tensor::new([b * k, t.cols()], data)
}

pub fn scatter_tokens(x: &[Input], tokens: usize) -> Tensor {
    let (t, b, k) = (x[0].float(), x[1].shape()[0], x[1].shape()[1]);
    let mut out = Tensor::zeros([b * tokens, t.cols()]);
    for i in 0..b {
        for (j, p) in x[1].index_row(i).into_iter().enumerate() {
            out.row_mut(i * tokens + p).copy_from_slice(t.row(i * k + j));
        }
    }
    out
}

pub fn restore_tokens(x: &[Input]) -> Tensor {
    let (visible, mask, pos) = (x[0].float(), x[2].float(), x[3].float());
    let (b, k, n, d) = (x[1].shape()[0], x[1].shape()[1], pos.rows(), pos.cols());
    let mut out = Tensor::zeros([b * n, d]);
    for i in 0..b {
        for t in 0..n {
            let place = x[1].index_row(i).iter().position(|&p| p == t);
            for c in 0..d {
                let token = place.map_or(mask.data[c], |j| visible.data[(i * k + j) * d + c]);
                out.data[(i * n + t) * d + c] = token + pos.data[t * d + c];
            }
        }
    }
    out
}

pub fn add_positions(x: &Tensor, pos: &Tensor) -> Tensor {
    Tensor::from_fn([x.rows(), x.cols()], |i| x.data[i] + pos.data[i % pos.data.len()])
}

pub fn sum_images(dy: &Tensor, tokens: usize) -> Tensor {
    let n = tokens * dy.cols();
    Tensor::from_fn([tokens, dy.cols()], |i| dy.data.iter().skip(i).step_by(n).sum())
}
