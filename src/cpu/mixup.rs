//! Images mixed with their partners, soft targets, and cross-entropy against them.
//!
//! `B` images; the partner of image `i` is `B - 1 - i`. Losses are summed per row, then over rows in order and in f64.

use super::buffers::{Io, Operand};
use super::kernel::{Kernel, cols, rows};
use super::par::for_rows;
use super::real::Real;
use super::simd::vectorize;
use crate::ir::ops;
use crate::tensor::Shape;
use rayon::prelude::*;
use std::ops::Range;

/// What comes from the partner: lines and columns of a box, none where it is empty.
struct Cut {
    lines: Range<usize>,
    columns: Range<usize>,
}

impl Cut {
    /// The box `[top, bottom, left, right]` as far as it lies in `[height, width]` pixels.
    fn new(of: &[i32], [height, width]: [usize; 2]) -> Self {
        let within = |from: i32, to: i32, size: usize| {
            let place = |v: i32| usize::try_from(v).unwrap_or(0).min(size);
            place(from)..place(to).max(place(from))
        };
        match *of {
            [top, bottom, left, right] => {
                Cut { lines: within(top, bottom, height), columns: within(left, right, width) }
            }
            _ => Cut { lines: 0..0, columns: 0..0 },
        }
    }

    fn pixels(&self) -> usize {
        self.lines.len() * self.columns.len()
    }
}

/// `y: [B, 3, H, W]` of `x: [B, 3, H, W]`, `lam: [B]` and `boxes: [B, 4]`.
pub fn mix_images<T: Real>(y: &mut [T], x: &[T], lam: &[T], boxes: &[i32], [height, width]: [usize; 2]) {
    let images = lam.len();
    for_rows(y, width, |first, y| {
        for (i, y) in y.chunks_exact_mut(width).enumerate() {
            let (plane, line) = ((first + i) / height, (first + i) % height);
            let (image, channel) = (plane / 3, plane % 3);
            let row = |image: usize| {
                let at = ((image * 3 + channel) * height + line) * width;
                &x[at..at + width]
            };
            let (own, other) = (row(image), row(images - 1 - image));
            let cut = Cut::new(&boxes[image * 4..][..4], [height, width]);
            if cut.pixels() == 0 {
                let (lam, rest) = (lam[image], T::ONE - lam[image]);
                vectorize(
                    #[inline(always)]
                    || {
                        for ((y, &a), &b) in y.iter_mut().zip(own).zip(other) {
                            *y = lam * a + rest * b;
                        }
                    },
                );
                continue;
            }
            y.copy_from_slice(own);
            if cut.lines.contains(&line) {
                y[cut.columns.clone()].copy_from_slice(&other[cut.columns]);
            }
        }
    });
}

/// `y: [B, C]`.
pub fn soft_targets<T: Real>(y: &mut [T], lam: &[T], boxes: &[i32], labels: &[i32], op: &ops::SoftTargets) {
    let ops::SoftTargets { classes, smoothing, size } = *op;
    let images = lam.len();
    let cold = T::from_f64(smoothing / classes as f64);
    let hot = T::from_f64(1.0 - smoothing) + cold;
    for_rows(y, classes, |first, y| {
        for (i, y) in y.chunks_exact_mut(classes).enumerate() {
            let image = first + i;
            let cut = Cut::new(&boxes[image * 4..][..4], size).pixels();
            let share = T::from_f64(cut as f64 / (size[0] * size[1]) as f64);
            let lam = if cut == 0 { lam[image] } else { T::ONE - share };
            let [own, other] = [image, images - 1 - image].map(|i| usize::try_from(labels[i]).ok());
            let of = |label: Option<usize>, class: usize| if label == Some(class) { hot } else { cold };
            for (class, y) in y.iter_mut().enumerate() {
                *y = lam * of(own, class) + (T::ONE - lam) * of(other, class);
            }
        }
    });
}

/// Logarithm of the sum of the exponentials of `x`.
fn log_sum_exp<T: Real>(x: &[T]) -> T {
    let most = x.iter().copied().fold(x[0], T::max);
    let sum: f64 = x.iter().map(|&v| (v - most).exp().to_f64()).sum();
    most + T::from_f64(sum.ln())
}

/// `loss: [1]`, `lse: [B]` of `logits, target: [B, C]`; `each: [B]` is workspace.
pub fn soft_cross_entropy<T: Real>(
    loss: &mut [T],
    lse: &mut [T],
    each: &mut [T],
    logits: &[T],
    target: &[T],
    classes: usize,
) {
    let rows = logits.par_chunks(classes).zip(target.par_chunks(classes));
    lse.par_iter_mut().zip(&mut *each).zip(rows).for_each(|((lse, sum), (x, t))| {
        *lse = log_sum_exp(x);
        // No term is negative: nothing cancels.
        *sum = T::from_f64(x.iter().zip(t).map(|(&x, &t)| (t * (*lse - x)).to_f64()).sum());
    });
    let total: f64 = each.iter().map(|v| v.to_f64()).sum();
    loss[0] = T::from_f64(total / each.len() as f64);
}

/// `dlogits: [B, C]`.
pub fn soft_cross_entropy_backward<T: Real>(
    dlogits: &mut [T],
    dloss: T,
    logits: Operand<'_, T>,
    target: &[T],
    lse: &[T],
    classes: usize,
) {
    let factor = dloss * T::from_f64(1.0 / lse.len() as f64);
    for_rows(dlogits, classes, |first, d| {
        if let Operand::Slice(x) = logits {
            d.copy_from_slice(&x[first * classes..][..d.len()]);
        }
        for (i, d) in d.chunks_exact_mut(classes).enumerate() {
            let (target, lse) = (&target[(first + i) * classes..][..classes], lse[first + i]);
            let weight = T::from_f64(target.iter().map(|t| t.to_f64()).sum());
            for (d, &t) in d.iter_mut().zip(target) {
                *d = ((*d - lse).exp() * weight - t) * factor;
            }
        }
    });
}

/// Height and width of images `[B, 3, H, W]`.
fn size(shape: &Shape) -> [usize; 2] {
    match *shape.dims() {
        [.., height, width] => [height, width],
        _ => [1, 1],
    }
}

impl<T: Real> Kernel<T> for ops::MixImages {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let (y, size) = (io.output(0), size(io.input_shape(0)));
        mix_images(y, io.input(0), io.input(1), io.index(2), size);
    }
}

impl<T: Real> Kernel<T> for ops::SoftTargets {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let y = io.output(0);
        soft_targets(y, io.input(0), io.index(1), io.index(2), self);
    }
}

impl<T: Real> Kernel<T> for ops::SoftCrossEntropy {
    fn workspace(&self, inputs: &[&Shape], _: &[&Shape], _: usize) -> usize {
        rows(inputs[0])
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let classes = cols(io.input_shape(0));
        let (loss, lse, each) = (io.output(0), io.output(1), io.workspace());
        soft_cross_entropy(loss, lse, each, io.input(0), io.input(1), classes);
    }
}

impl<T: Real> Kernel<T> for ops::SoftCrossEntropyBackward {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let (d, dloss, classes) = (io.output(0), io.input(0)[0], cols(io.input_shape(1)));
        soft_cross_entropy_backward(d, dloss, io.operand(1), io.input(2), io.input(3), classes);
    }
}
