//! Convolutions that keep the size, and the convolution whose kernel is predicted.
//!
//! Images are rows of channels, `[B * h * w, C]`. A convolution gathers the neighbourhoods of a range of pixels into
//! rows of `k * k * C` values, ordered (ky, kx, c), and multiplies them by the weight in the same order. Ranges bound
//! the workspace; their length depends on the shape only. Outputs are overwritten; `y` may share the residual's memory.

use rayon::prelude::*;

use crate::ir::ConvGeometry;

use super::buffers::Operand;
use super::gemm::{self, Mat, Start};
use super::linear::{Finish, column_sums, product, product_gelu_grad};
use super::par::{Tile, for_rows};
use super::real::Real;
use super::simd::{axpy, dot, vectorize};

/// Elements of gathered neighbourhoods at a time.
const GATHERED: usize = 1 << 21;

/// Pixels gathered at a time when each has `channels`.
fn range(g: &ConvGeometry, channels: usize) -> usize {
    (GATHERED / (g.kernel * g.kernel * channels).max(1)).max(64).min(g.rows().max(1))
}

/// Elements of workspace of [`conv2d`] (`from` = C, `to` = O) and [`conv2d_backward_input`] (`from` = O, `to` = C).
pub fn workspace(g: &ConvGeometry, from: usize, to: usize) -> usize {
    let depth = g.kernel * g.kernel * from;
    (range(g, from) + to) * depth
}

/// Elements of workspace of [`conv2d_backward_weight`].
pub fn backward_weight_workspace(g: &ConvGeometry, channels: usize, outputs: usize) -> usize {
    workspace(g, channels, outputs)
}

/// `cols: [pixels, k * k * C]`: the neighbourhoods of the pixels from `first` on; 0 outside the image.
fn gather<T: Real>(cols: &mut [T], x: &[T], g: &ConvGeometry, channels: usize, first: usize) {
    let (size, half) = (g.kernel * g.kernel * channels, g.kernel / 2);
    for_rows(cols, size, |start, cols| {
        for (i, row) in cols.chunks_exact_mut(size).enumerate() {
            let pixel = first + start + i;
            let (image, at) = (pixel / (g.height * g.width), pixel % (g.height * g.width));
            let (y, x0) = (at / g.width, at % g.width);
            for (tap, dst) in row.chunks_exact_mut(channels).enumerate() {
                let (ty, tx) = (y + tap / g.kernel, x0 + tap % g.kernel);
                if ty < half || ty - half >= g.height || tx < half || tx - half >= g.width {
                    dst.fill(T::ZERO);
                } else {
                    let src = ((image * g.height + ty - half) * g.width + tx - half) * channels;
                    dst.copy_from_slice(&x[src..src + channels]);
                }
            }
        }
    });
}

/// `y: [B * h * w, O]`, `x: [B * h * w, C]`, `w: [O, C, k, k]`, `bias: [O]`.
pub fn conv2d<T: Real>(
    y: &mut [T],
    finish: Finish<'_, T>,
    x: &[T],
    w: &[T],
    bias: &[T],
    g: &ConvGeometry,
    workspace: &mut [T],
) {
    let (o, taps) = (bias.len(), g.kernel * g.kernel);
    let c = x.len() / g.rows().max(1);
    let (pixels, depth) = (range(g, c), taps * c);
    let (cols, rest) = workspace.split_at_mut(pixels * depth);
    let weight = &mut rest[..o * depth];
    for_rows(weight, depth, |first, rows| {
        for (i, row) in rows.chunks_exact_mut(depth).enumerate() {
            for (at, v) in row.iter_mut().enumerate() {
                *v = w[((first + i) * c + at % c) * taps + at / c];
            }
        }
    });
    let weight = Mat::transposed(weight, depth);
    let mut finish = finish;
    for (n, y) in y.chunks_mut((pixels * o).max(1)).enumerate() {
        let (first, m) = (n * pixels, y.len() / o);
        let cols = &mut cols[..m * depth];
        gather(cols, x, g, c, first);
        let part = match &mut finish {
            Finish::None => Finish::None,
            Finish::GeluOnly => Finish::GeluOnly,
            Finish::Gelu(pre) => Finish::Gelu(&mut pre[first * o..(first + m) * o]),
            Finish::Residual(Operand::Slice(r)) => Finish::Residual(Operand::Slice(r)),
            Finish::Residual(Operand::InPlace) => Finish::Residual(Operand::InPlace),
        };
        product(Tile::new(y, m, o), part, Mat::rows(cols, depth), weight, bias, depth, first);
    }
}

/// `dx: [B * h * w, C]`: the convolution of `dy: [B * h * w, O]` with the weight turned by half a turn; with
/// `pre: [B * h * w, C]` times `gelu'(pre)`. `channels` is C, `outputs` is O.
pub fn conv2d_backward_input<T: Real>(
    dx: &mut [T],
    dy: &[T],
    w: &[T],
    pre: Option<&[T]>,
    g: &ConvGeometry,
    [outputs, channels]: [usize; 2],
    workspace: &mut [T],
) {
    let taps = g.kernel * g.kernel;
    let (pixels, depth) = (range(g, outputs), taps * outputs);
    let (cols, rest) = workspace.split_at_mut(pixels * depth);
    let weight = &mut rest[..channels * depth];
    // Rows (tap, o), columns c.
    for_rows(weight, channels, |first, rows| {
        for (i, row) in rows.chunks_exact_mut(channels).enumerate() {
            let (tap, o) = ((first + i) / outputs, (first + i) % outputs);
            for (c, v) in row.iter_mut().enumerate() {
                *v = w[(o * channels + c) * taps + taps - 1 - tap];
            }
        }
    });
    let weight = Mat::rows(weight, channels);
    for (n, dx) in dx.chunks_mut((pixels * channels).max(1)).enumerate() {
        let (first, m) = (n * pixels, dx.len() / channels);
        let cols = &mut cols[..m * depth];
        gather(cols, dy, g, outputs, first);
        let pre = pre.map(|p| &p[first * channels..]);
        product_gelu_grad(Tile::new(dx, m, channels), Mat::rows(cols, depth), weight, pre, depth);
    }
}

/// `dw: [O, C, k, k]`, `db: [O]` from `dy: [B * h * w, O]` and `x: [B * h * w, C]`.
pub fn conv2d_backward_weight<T: Real>(
    dw: &mut [T],
    db: &mut [T],
    dy: &[T],
    x: &[T],
    g: &ConvGeometry,
    workspace: &mut [T],
) {
    let (o, taps, rows) = (db.len(), g.kernel * g.kernel, g.rows());
    let c = dw.len() / (o * taps).max(1);
    let (pixels, depth) = (range(g, c), taps * c);
    let (cols, rest) = workspace.split_at_mut(pixels * depth);
    let sum = &mut rest[..o * depth];
    sum.fill(T::ZERO);
    for first in (0..rows).step_by(pixels) {
        let m = pixels.min(rows - first);
        let cols = &mut cols[..m * depth];
        gather(cols, x, g, c, first);
        let (a, b) = (Mat::transposed(&dy[first * o..], o), Mat::rows(cols, depth));
        gemm::gemm(Tile::new(sum, o, depth), a, b, m, Start::Accumulate);
    }
    let sum = &*sum;
    for_rows(dw, c * taps, |first, dw| {
        for (i, dw) in dw.chunks_exact_mut(c * taps).enumerate() {
            let sum = &sum[(first + i) * depth..];
            for (at, v) in dw.iter_mut().enumerate() {
                *v = sum[at % taps * c + at / taps];
            }
        }
    });
    column_sums(db, dy, rows);
}

/// Shape of a dynamic convolution: `rows` = G * B kernels of width `width`, `tokens` features for each of B images.
#[derive(Clone, Copy, Debug)]
pub struct DynamicConv {
    pub rows: usize,
    pub images: usize,
    pub tokens: usize,
    pub width: usize,
}

/// `logits: [G * B, m]`, `kernel: [G * B, D]`, `features: [B * m, D]`.
pub fn dynamic_conv<T: Real>(logits: &mut [T], kernel: &[T], features: &[T], s: DynamicConv) {
    let DynamicConv { images, tokens, width, .. } = s;
    logits.par_chunks_mut(tokens).zip(kernel.par_chunks(width)).enumerate().for_each(
        |(r, (logits, kernel))| {
            let features = &features[r % images * tokens * width..];
            vectorize(
                #[inline(always)]
                || {
                    for (l, f) in logits.iter_mut().zip(features.chunks_exact(width)) {
                        *l = dot(kernel, f);
                    }
                },
            );
        },
    );
}

/// `dkernel: [G * B, D]`, `dfeatures: [B * m, D]` from `dlogits: [G * B, m]`.
pub fn dynamic_conv_backward<T: Real>(
    dkernel: &mut [T],
    dfeatures: &mut [T],
    dlogits: &[T],
    kernel: &[T],
    features: &[T],
    s: DynamicConv,
) {
    let DynamicConv { rows, images, tokens, width } = s;
    dkernel.par_chunks_mut(width).zip(dlogits.par_chunks(tokens)).enumerate().for_each(|(r, (dk, dl))| {
        let features = &features[r % images * tokens * width..];
        vectorize(
            #[inline(always)]
            || {
                dk.fill(T::ZERO);
                for (&dl, f) in dl.iter().zip(features.chunks_exact(width)) {
                    axpy(dk, dl, f);
                }
            },
        );
    });
    for_rows(dfeatures, width, |first, df| {
        vectorize(
            #[inline(always)]
            || {
                for (i, df) in df.chunks_exact_mut(width).enumerate() {
                    let (image, token) = ((first + i) / tokens, (first + i) % tokens);
                    df.fill(T::ZERO);
                    for r in (image..rows).step_by(images) {
                        axpy(df, dlogits[r * tokens + token], &kernel[r * width..(r + 1) * width]);
                    }
                }
            },
        );
    });
}
