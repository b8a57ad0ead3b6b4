//! Element by element ops and the normalisation of rows to unit length.
//!
//! Outputs are overwritten and may share memory with the operands given as [`Operand`].

use rayon::prelude::*;

use super::buffers::Operand;
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
