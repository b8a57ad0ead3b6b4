//! Loop bodies compiled for the instruction set of the machine that runs them.
//!
//! The crate is built for the baseline of its architecture; [`vectorize`] compiles its argument once per instruction
//! set and picks at run time. Bodies are plain `for` loops over slices that the compiler vectorises: the inside of
//! `for_each` or `fold` becomes a function of its own where it is not inlined, and stays at the baseline.

use super::real::Real;

/// Runs `body` with the widest vector instructions of this machine. Give closures `#[inline(always)]`: a body that is
/// not inlined stays at the baseline.
#[inline(always)]
pub fn vectorize<R>(body: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(body)
}

/// Accumulators of a sum. Fixed, so that a sum does not depend on the machine's vector width.
const LANES: usize = 16;

#[inline(always)]
fn fold<T: Real>(lanes: [T; LANES]) -> T {
    let mut lanes = lanes;
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}

/// Sum of `f(x)`.
#[inline(always)]
pub fn sum_by<T: Real>(x: &[T], f: impl Fn(T) -> T) -> T {
    let mut lanes = [T::ZERO; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for c in chunks {
        for (l, &v) in lanes.iter_mut().zip(c) {
            *l += f(v);
        }
    }
    for (l, &v) in lanes.iter_mut().zip(rest) {
        *l += f(v);
    }
    fold(lanes)
}

/// Sum of `f(x, y)` over pairs of elements.
#[inline(always)]
pub fn sum_pairs<T: Real>(x: &[T], y: &[T], f: impl Fn(T, T) -> T) -> T {
    let mut lanes = [T::ZERO; LANES];
    let ((xc, xr), (yc, yr)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    for (a, b) in xc.iter().zip(yc) {
        for ((l, &u), &v) in lanes.iter_mut().zip(a).zip(b) {
            *l += f(u, v);
        }
    }
    for ((l, &u), &v) in lanes.iter_mut().zip(xr).zip(yr) {
        *l += f(u, v);
    }
    fold(lanes)
}

/// Inner product.
#[inline(always)]
pub fn dot<T: Real>(x: &[T], y: &[T]) -> T {
    sum_pairs(x, y, |a, b| a * b)
}

/// Largest element of a slice, at least `least`; NaN elements are passed over.
#[inline(always)]
pub fn max<T: Real>(x: &[T], least: T) -> T {
    let mut lanes = [least; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for c in chunks {
        for (l, &v) in lanes.iter_mut().zip(c) {
            *l = v.max(*l);
        }
    }
    for (l, &v) in lanes.iter_mut().zip(rest) {
        *l = v.max(*l);
    }
    lanes.into_iter().fold(least, |a, b| b.max(a))
}

/// `y += x`.
#[inline(always)]
pub fn add_row<T: Real>(y: &mut [T], x: &[T]) {
    axpy(y, T::ONE, x);
}

/// `y += a * x`.
#[inline(always)]
pub fn axpy<T: Real>(y: &mut [T], a: T, x: &[T]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}
