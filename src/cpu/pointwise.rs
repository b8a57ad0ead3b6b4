//! Element by element ops and the normalisation of rows to unit length.
//!
//! Outputs are overwritten and may share memory with the operands given as [`Operand`].

use super::kernel::{Kernel, cols};
use crate::ir::ops;
use crate::tensor::Shape;
use rayon::prelude::*;

use super::buffers::{Io, Operand};
use super::par::{for_elements, for_rows, rows_per_task};
use super::real::Real;
use super::simd::{sum_by, sum_pairs, vectorize};

/// `y = f(x)`.
fn map<T: Real>(y: &mut [T], x: Operand<'_, T>, f: impl Fn(T) -> T + Sync) {
    for_elements(y, |at, y| {
        vectorize(
            #[inline(always)]
            || match x {
                Operand::InPlace => {
                    for y in y {
                        *y = f(*y);
                    }
                }
                Operand::Slice(x) => {
                    for (y, &x) in y.iter_mut().zip(&x[at..]) {
                        *y = f(x);
                    }
                }
            },
        );
    });
}

/// `y = f(a, b)`.
fn zip<T: Real>(y: &mut [T], a: Operand<'_, T>, b: Operand<'_, T>, f: impl Fn(T, T) -> T + Sync) {
    for_elements(y, |at, y| {
        vectorize(
            #[inline(always)]
            || match (a, b) {
                (Operand::Slice(a), Operand::Slice(b)) => {
                    for ((y, &a), &b) in y.iter_mut().zip(&a[at..]).zip(&b[at..]) {
                        *y = f(a, b);
                    }
                }
                (Operand::InPlace, Operand::Slice(b)) => {
                    for (y, &b) in y.iter_mut().zip(&b[at..]) {
                        *y = f(*y, b);
                    }
                }
                (Operand::Slice(a), Operand::InPlace) => {
                    for (y, &a) in y.iter_mut().zip(&a[at..]) {
                        *y = f(a, *y);
                    }
                }
                (Operand::InPlace, Operand::InPlace) => {
                    for y in y {
                        *y = f(*y, *y);
                    }
                }
            },
        );
    });
}

/// `y = x Phi(x)`.
pub fn gelu<T: Real>(y: &mut [T], x: Operand<'_, T>) {
    map(
        y,
        x,
        #[inline(always)]
        |x| x.gelu(),
    );
}

/// `dx = dy gelu'(x)`.
pub fn gelu_backward<T: Real>(dx: &mut [T], dy: Operand<'_, T>, x: &[T]) {
    zip(
        dx,
        dy,
        Operand::Slice(x),
        #[inline(always)]
        |dy, x| dy * x.gelu_grad(),
    );
}

/// `y = max(x, 0)`.
pub fn relu<T: Real>(y: &mut [T], x: Operand<'_, T>) {
    map(
        y,
        x,
        #[inline(always)]
        // The comparison lets NaN through.
        |x| if x < T::ZERO { T::ZERO } else { x },
    );
}

/// `dx = dy` where `y > 0`, else 0.
pub fn relu_backward<T: Real>(dx: &mut [T], dy: Operand<'_, T>, y: &[T]) {
    zip(
        dx,
        dy,
        Operand::Slice(y),
        #[inline(always)]
        |dy, y| if y > T::ZERO { dy } else { T::ZERO },
    );
}

#[inline(always)]
pub(super) fn clamp6<T: Real>(x: T) -> T {
    // Comparisons in this order let NaN through.
    let six = T::from_f64(6.0);
    let x = if x < T::ZERO { T::ZERO } else { x };
    if x > six { six } else { x }
}

/// 1 where ReLU6 has a slope, as in PyTorch: not at 0 and 6 themselves.
#[inline(always)]
pub(super) fn slope6<T: Real>(x: T) -> T {
    if x > T::ZERO && x < T::from_f64(6.0) { T::ONE } else { T::ZERO }
}

/// `y = min(max(x, 0), 6)`.
pub fn relu6<T: Real>(y: &mut [T], x: Operand<'_, T>) {
    map(
        y,
        x,
        #[inline(always)]
        |x| clamp6(x),
    );
}

/// `dx = dy` where `0 < x < 6`, else 0.
pub fn relu6_backward<T: Real>(dx: &mut [T], dy: Operand<'_, T>, x: &[T]) {
    zip(
        dx,
        dy,
        Operand::Slice(x),
        #[inline(always)]
        |dy, x| dy * slope6(x),
    );
}

/// `y = relu6(a) b`.
pub fn relu6_gate<T: Real>(y: &mut [T], a: Operand<'_, T>, b: Operand<'_, T>) {
    zip(
        y,
        a,
        b,
        #[inline(always)]
        |a, b| clamp6(a) * b,
    );
}

/// `da = dy b` where `0 < a < 6`, else 0; `db = dy relu6(a)`.
pub fn relu6_gate_backward<T: Real>(da: &mut [T], db: &mut [T], dy: &[T], a: &[T], b: &[T]) {
    let n = rows_per_task(1);
    let outputs = da.par_chunks_mut(n).zip(db.par_chunks_mut(n));
    let inputs = dy.par_chunks(n).zip(a.par_chunks(n).zip(b.par_chunks(n)));
    outputs.zip(inputs).for_each(|((da, db), (dy, (a, b)))| {
        vectorize(
            #[inline(always)]
            || {
                let terms = dy.iter().zip(a.iter().zip(b));
                for ((da, db), (&dy, (&a, &b))) in da.iter_mut().zip(db).zip(terms) {
                    *da = dy * b * slope6(a);
                    *db = dy * clamp6(a);
                }
            },
        );
    });
}

/// `y = a + b`.
pub fn add<T: Real>(y: &mut [T], a: Operand<'_, T>, b: Operand<'_, T>) {
    zip(
        y,
        a,
        b,
        #[inline(always)]
        |a, b| a + b,
    );
}

/// `y = factor x`.
pub fn scale<T: Real>(y: &mut [T], x: Operand<'_, T>, factor: f64) {
    let factor = T::from_f64(factor);
    map(
        y,
        x,
        #[inline(always)]
        |x| x * factor,
    );
}

/// Every element of `y` becomes `value`.
pub fn fill<T: Real>(y: &mut [T], value: f64) {
    for_elements(y, |_, y| y.fill(T::from_f64(value)));
}

/// `y: [T, D]` is x with every row times the factor of its segment; `segments` lists `(count, rows)`.
pub fn scale_segments<T: Real>(
    y: &mut [T],
    x: Operand<'_, T>,
    factors: &[T],
    segments: &[(usize, usize)],
    width: usize,
) {
    let mut factors = factors.iter();
    let mut at = 0;
    let lengths = segments.iter().flat_map(|&(count, rows)| std::iter::repeat_n(rows, count));
    for (rows, &factor) in lengths.zip(factors.by_ref()) {
        let range = at..at + rows * width;
        at = range.end;
        let x = match x {
            Operand::Slice(x) => Operand::Slice(&x[range.clone()]),
            Operand::InPlace => Operand::InPlace,
        };
        map(
            &mut y[range],
            x,
            #[inline(always)]
            |x| x * factor,
        );
    }
}

/// `y: [M, D]` is x with every row times its factor.
pub fn scale_rows<T: Real>(y: &mut [T], x: Operand<'_, T>, factors: &[T], width: usize) {
    for_rows(y, width, |first, y| {
        vectorize(
            #[inline(always)]
            || {
                for (row, y) in (first..).zip(y.chunks_exact_mut(width)) {
                    let factor = factors[row];
                    match x {
                        Operand::InPlace => y.iter_mut().for_each(|y| *y *= factor),
                        Operand::Slice(x) => {
                            for (y, &x) in y.iter_mut().zip(&x[row * width..]) {
                                *y = x * factor;
                            }
                        }
                    }
                }
            },
        );
    });
}

/// `dx = dy factor`, `dfactors: [M] = dy . x`, row by row.
pub fn scale_rows_backward<T: Real>(
    dx: &mut [T],
    dfactors: &mut [T],
    dy: Operand<'_, T>,
    x: &[T],
    factors: &[T],
    width: usize,
) {
    let rows = rows_per_task(width);
    let tasks = dx.par_chunks_mut(rows * width).zip(dfactors.par_chunks_mut(rows)).enumerate();
    tasks.for_each(|(task, (dx, dfactors))| {
        vectorize(
            #[inline(always)]
            || {
                for (row, (dx, d)) in (task * rows..).zip(dx.chunks_exact_mut(width).zip(dfactors)) {
                    let at = row * width..(row + 1) * width;
                    if let Operand::Slice(dy) = dy {
                        dx.copy_from_slice(&dy[at.clone()]);
                    }
                    *d = sum_pairs(dx, &x[at], |a, b| a * b);
                    let factor = factors[row];
                    dx.iter_mut().for_each(|dx| *dx *= factor);
                }
            },
        );
    });
}

/// `y: [M, D] = x / norm`, `norm: [M] = max(||x||, eps)`.
pub fn l2_normalize<T: Real>(y: &mut [T], norm: &mut [T], x: &[T], width: usize, eps: f64) {
    let (rows, eps) = (rows_per_task(width), T::from_f64(eps));
    y.par_chunks_mut(rows * width).zip(norm.par_chunks_mut(rows)).zip(x.par_chunks(rows * width)).for_each(
        |((y, norm), x)| {
            vectorize(
                #[inline(always)]
                || {
                    for ((y, n), x) in y.chunks_exact_mut(width).zip(norm).zip(x.chunks_exact(width)) {
                        let length = sum_by(x, |v| v * v).sqrt();
                        // The order lets NaN through.
                        *n = if length < eps { eps } else { length };
                        for (y, &x) in y.iter_mut().zip(x) {
                            *y = x / *n;
                        }
                    }
                },
            );
        },
    );
}

/// `dx = (dy - y (y . dy)) / norm`; where the denominator was eps, `dx = dy / eps`.
pub fn l2_normalize_backward<T: Real>(
    dx: &mut [T],
    dy: Operand<'_, T>,
    y: &[T],
    norm: &[T],
    width: usize,
    eps: f64,
) {
    let eps = T::from_f64(eps);
    for_rows(dx, width, |first, dx| {
        vectorize(
            #[inline(always)]
            || {
                for (i, dx) in dx.chunks_exact_mut(width).enumerate() {
                    let row = first + i;
                    let at = row * width..(row + 1) * width;
                    if let Operand::Slice(dy) = dy {
                        dx.copy_from_slice(&dy[at.clone()]);
                    }
                    let (y, norm) = (&y[at], norm[row]);
                    let along = if norm == eps { T::ZERO } else { sum_pairs(y, dx, |a, b| a * b) };
                    for (d, &y) in dx.iter_mut().zip(y) {
                        *d = (*d - y * along) / norm;
                    }
                }
            },
        );
    });
}

/// `sum: [1]` of `losses`, each times its weight.
pub fn weighted_sum<'a, T: Real>(sum: &mut [T], losses: impl Iterator<Item = &'a [T]>, weights: &[f64]) {
    sum[0] = T::from_f64(losses.zip(weights).map(|(l, w)| l[0].to_f64() * w).sum());
}

impl<T: Real> Kernel<T> for ops::Gelu {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        gelu(io.output(0), io.operand(0));
    }
}

impl<T: Real> Kernel<T> for ops::GeluBackward {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        gelu_backward(io.output(0), io.operand(0), io.input(1));
    }
}

impl<T: Real> Kernel<T> for ops::Relu {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        relu(io.output(0), io.operand(0));
    }
}

impl<T: Real> Kernel<T> for ops::ReluBackward {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        relu_backward(io.output(0), io.operand(0), io.input(1));
    }
}

impl<T: Real> Kernel<T> for ops::Relu6 {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        relu6(io.output(0), io.operand(0));
    }
}

impl<T: Real> Kernel<T> for ops::Relu6Backward {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        relu6_backward(io.output(0), io.operand(0), io.input(1));
    }
}

impl<T: Real> Kernel<T> for ops::Relu6Gate {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        relu6_gate(io.output(0), io.operand(0), io.operand(1));
    }
}

impl<T: Real> Kernel<T> for ops::Relu6GateBackward {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let (da, db) = (io.output(0), io.output(1));
        relu6_gate_backward(da, db, io.input(0), io.input(1), io.input(2));
    }
}

impl<T: Real> Kernel<T> for ops::Add {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        add(io.output(0), io.operand(0), io.operand(1));
    }
}

impl<T: Real> Kernel<T> for ops::Scale {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ops::Scale { factor } = self;
        scale(io.output(0), io.operand(0), *factor);
    }
}

impl<T: Real> Kernel<T> for ops::Fill {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ops::Fill { value, .. } = self;
        fill(io.output(0), *value);
    }
}

impl<T: Real> Kernel<T> for ops::Cast {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        io.output(0).copy_from_slice(io.input(0));
    }
}

impl<T: Real> Kernel<T> for ops::ScaleSegments {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ops::ScaleSegments { segments } = self;
        let d = cols(io.input_shape(0));
        scale_segments(io.output(0), io.operand(0), io.input(1), segments, d);
    }
}

impl<T: Real> Kernel<T> for ops::ScaleRows {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let d = cols(io.input_shape(0));
        scale_rows(io.output(0), io.operand(0), io.input(1), d);
    }
}

impl<T: Real> Kernel<T> for ops::ScaleRowsBackward {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let (dx, dfactors, d) = (io.output(0), io.output(1), cols(io.input_shape(0)));
        scale_rows_backward(dx, dfactors, io.operand(0), io.input(1), io.input(2), d);
    }
}

impl<T: Real> Kernel<T> for ops::L2Normalize {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ops::L2Normalize { eps } = self;
        let (y, norm, d) = (io.output(0), io.output(1), cols(io.input_shape(0)));
        l2_normalize(y, norm, io.input(0), d, *eps);
    }
}

impl<T: Real> Kernel<T> for ops::L2NormalizeBackward {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ops::L2NormalizeBackward { eps } = self;
        let (dx, d) = (io.output(0), cols(io.input_shape(0)));
        l2_normalize_backward(dx, io.operand(0), io.input(1), io.input(2), d, *eps);
    }
}

impl<T: Real> Kernel<T> for ops::WeightedSum {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ops::WeightedSum { weights } = self;
        let sum = io.output(0);
        weighted_sum(sum, (0..io.input_count()).map(|i| io.input(i)), weights);
    }
}
