//! Losses over patches and token maps, and the weighted sum of losses.
//!
//! Losses are summed per group of rows, then over groups in order and in f64. Gradients may overwrite `pred`/`logits`.

use super::kernel::Kernel;
use crate::ir::ops;
use crate::tensor::Shape;
use rayon::prelude::*;

use crate::ir::PATCH;

use super::buffers::{Io, Operand};
use super::embed::Images;
use super::par::for_rows;
use super::real::Real;
use super::simd::{axpy, dot, sum_by, sum_pairs, vectorize};

/// Values of one patch.
const VALUES: usize = 3 * PATCH * PATCH;
/// Elements whose losses one task sums.
const CHUNK: usize = 1 << 12;

/// Hidden patches and where they are: `image: [B, 3, H, W]`, `hidden: [B, h]`.
#[derive(Clone, Copy)]
pub struct Hidden<'a, T> {
    pub image: &'a [T],
    pub of: Images,
    pub hidden: &'a [i32],
}

impl<T: Real> Hidden<'_, T> {
    /// Target of row `r`: the hidden patch, values ordered (row, column, channel), normalised by mean and variance.
    #[inline(always)]
    fn target(&self, r: usize) -> [T; VALUES] {
        let each = self.hidden.len() / self.of.count.max(1);
        let across = self.of.width / PATCH;
        let patch = usize::try_from(self.hidden[r]).unwrap_or(usize::MAX);
        let (y, x) = (patch / across * PATCH, patch % across * PATCH);
        let mut t = [T::ZERO; VALUES];
        for channel in 0..3 {
            let plane = (r / each * 3 + channel) * self.of.height;
            for dy in 0..PATCH {
                let src = (plane + y + dy) * self.of.width + x;
                for (dx, &v) in self.image[src..src + PATCH].iter().enumerate() {
                    t[(dy * PATCH + dx) * 3 + channel] = v;
                }
            }
        }
        let mean = sum_by(&t, |v| v) * T::from_f64(1.0 / VALUES as f64);
        let var = sum_by(&t, |v| (v - mean) * (v - mean)) * T::from_f64(1.0 / (VALUES - 1) as f64);
        let inv = T::ONE / (var + T::from_f64(1e-6)).sqrt();
        for v in &mut t {
            *v = (*v - mean) * inv;
        }
        t
    }
}

/// Elements of workspace of [`masked_mse`] with `rows` hidden patches.
pub fn mse_workspace(rows: usize) -> usize {
    rows
}

/// Sum in order and in f64.
fn total<T: Real>(partial: &[T]) -> f64 {
    partial.iter().map(|&p| p.to_f64()).sum()
}

/// `loss: [1]`; `pred: [B * h, 3 * 16 * 16]`.
pub fn masked_mse<T: Real>(loss: &mut [T], pred: &[T], target: Hidden<'_, T>, workspace: &mut [T]) {
    let rows = target.hidden.len();
    let partial = &mut workspace[..rows];
    partial.par_iter_mut().zip(pred.par_chunks(VALUES)).enumerate().for_each(|(r, (sum, pred))| {
        *sum = vectorize(
            #[inline(always)]
            || sum_pairs(pred, &target.target(r), |p, t| (p - t) * (p - t)),
        );
    });
    loss[0] = T::from_f64(total(partial) / (rows * VALUES) as f64);
}

/// `dpred: [B * h, 3 * 16 * 16]`.
pub fn masked_mse_backward<T: Real>(dpred: &mut [T], dloss: T, pred: Operand<'_, T>, target: Hidden<'_, T>) {
    let factor = dloss * T::from_f64(2.0 / (target.hidden.len() * VALUES) as f64);
    for_rows(dpred, VALUES, |first, dpred| {
        vectorize(
            #[inline(always)]
            || {
                for (i, d) in dpred.chunks_exact_mut(VALUES).enumerate() {
                    let r = first + i;
                    if let Operand::Slice(pred) = pred {
                        d.copy_from_slice(&pred[r * VALUES..(r + 1) * VALUES]);
                    }
                    for (d, t) in d.iter_mut().zip(target.target(r)) {
                        *d = (*d - t) * factor;
                    }
                }
            },
        );
    });
}

/// Elements of workspace of [`bce_with_logits`] with `count` logits.
pub fn bce_workspace(count: usize) -> usize {
    count.div_ceil(CHUNK)
}

/// `loss: [1]`: mean over the images and tokens of one group, summed over `groups`; `logits, target: [G * B, m]`.
pub fn bce_with_logits<T: Real>(
    loss: &mut [T],
    logits: &[T],
    target: &[T],
    groups: usize,
    workspace: &mut [T],
) {
    let partial = &mut workspace[..bce_workspace(logits.len())];
    partial.par_iter_mut().zip(logits.par_chunks(CHUNK).zip(target.par_chunks(CHUNK))).for_each(
        |(sum, (x, t))| {
            *sum = sum_pairs(x, t, |x, t| {
                // ln(1 + e^x) - t x, without overflow and without cancellation.
                let positive = if x > T::ZERO { x } else { T::ZERO };
                positive - t * x + log_one_plus((-x.abs()).exp())
            });
        },
    );
    loss[0] = T::from_f64(total(partial) * groups as f64 / logits.len() as f64);
}

/// `ln(1 + x)`, accurate for small x.
fn log_one_plus<T: Real>(x: T) -> T {
    T::from_f64(x.to_f64().ln_1p())
}

/// `dlogits: [G * B, m]`.
pub fn bce_with_logits_backward<T: Real>(
    dlogits: &mut [T],
    dloss: T,
    logits: Operand<'_, T>,
    target: &[T],
    groups: usize,
) {
    let factor = dloss * T::from_f64(groups as f64 / dlogits.len() as f64);
    for_rows(dlogits, 1, |at, d| {
        vectorize(
            #[inline(always)]
            || {
                if let Operand::Slice(x) = logits {
                    d.copy_from_slice(&x[at..at + d.len()]);
                }
                for (d, &t) in d.iter_mut().zip(&target[at..]) {
                    *d = (T::ONE / (T::ONE + (-*d).exp()) - t) * factor;
                }
            },
        );
    });
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

fn sizes<T: Real>(io: &Io<'_, T>, first: usize, tokens: usize) -> DynamicConv {
    let (rows, width) = io.input_shape(first).as_matrix();
    let images = io.input_shape(first + 1).as_matrix().0 / tokens;
    DynamicConv { rows, images, tokens, width }
}

/// Hidden patches whose image is input `first` and whose positions are the next one.
fn hidden<'a, T: Real>(io: &Io<'a, T>, first: usize) -> Hidden<'a, T> {
    Hidden { image: io.input(first), of: Images::of(io.input_shape(first)), hidden: io.index(first + 1) }
}

impl<T: Real> Kernel<T> for ops::DynamicConv {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ops::DynamicConv { tokens } = self;
        let s = sizes(io, 0, *tokens);
        dynamic_conv(io.output(0), io.input(0), io.input(1), s);
    }
}

impl<T: Real> Kernel<T> for ops::DynamicConvBackward {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ops::DynamicConvBackward { tokens } = self;
        let s = sizes(io, 1, *tokens);
        let (dk, df) = (io.output(0), io.output(1));
        dynamic_conv_backward(dk, df, io.input(0), io.input(1), io.input(2), s);
    }
}

impl<T: Real> Kernel<T> for ops::MaskedMse {
    fn workspace(&self, inputs: &[&Shape], _: &[&Shape], _: usize) -> usize {
        mse_workspace(inputs[2].count())
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let (loss, workspace) = (io.output(0), io.workspace());
        masked_mse(loss, io.input(0), hidden(io, 1), workspace);
    }
}

impl<T: Real> Kernel<T> for ops::MaskedMseBackward {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let (dpred, dloss) = (io.output(0), io.input(0)[0]);
        masked_mse_backward(dpred, dloss, io.operand(1), hidden(io, 2));
    }
}

impl<T: Real> Kernel<T> for ops::BceWithLogits {
    fn workspace(&self, inputs: &[&Shape], _: &[&Shape], _: usize) -> usize {
        bce_workspace(inputs[0].count())
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ops::BceWithLogits { groups } = self;
        let (loss, workspace) = (io.output(0), io.workspace());
        bce_with_logits(loss, io.input(0), io.input(1), *groups, workspace);
    }
}

impl<T: Real> Kernel<T> for ops::BceWithLogitsBackward {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ops::BceWithLogitsBackward { groups } = self;
        let (d, dloss) = (io.output(0), io.input(0)[0]);
        bce_with_logits_backward(d, dloss, io.operand(1), io.input(2), *groups);
    }
}
