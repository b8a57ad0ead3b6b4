//! Resampling of position tables: bicubic with antialiasing, as `torch.nn.functional.interpolate` does with
//! `mode="bicubic", antialias=True, align_corners=False`.
//!
//! A linear map, separable: along the width, then along the height (the gradient in the opposite order, transposed).
//! Outputs are overwritten. Workspace: both matrices and the table between the two passes.

use super::par::for_rows;
use super::real::Real;
use super::simd::{axpy, vectorize};
use crate::ir::resample_weights;

/// Elements of workspace for grids `from`, `to` (`[height, width]`) and width `d`.
pub fn workspace(from: [usize; 2], to: [usize; 2], d: usize) -> usize {
    to[0] * from[0] + to[1] * from[1] + from[0] * to[1] * d
}

/// `weights: [to, from]`; rows sum to 1.
fn resample_matrix<T: Real>(weights: &mut [T], from: usize, to: usize) {
    weights.iter_mut().zip(resample_weights(from, to)).for_each(|(w, v)| *w = T::from_f64(v));
}

/// The two matrices and the table between the passes.
fn prepare<T: Real>(
    workspace: &mut [T],
    from: [usize; 2],
    to: [usize; 2],
    d: usize,
) -> (&[T], &[T], &mut [T]) {
    let (down, rest) = workspace.split_at_mut(to[0] * from[0]);
    let (across, rest) = rest.split_at_mut(to[1] * from[1]);
    resample_matrix(down, from[0], to[0]);
    resample_matrix(across, from[1], to[1]);
    (down, across, &mut rest[..from[0] * to[1] * d])
}

/// Every row of `y` becomes the sum of `weight(row, j) * x[source(row, j)]` over `j < terms`; zero weights are skipped.
fn combine<T: Real>(
    y: &mut [T],
    x: &[T],
    d: usize,
    terms: usize,
    at: impl Fn(usize, usize) -> (T, usize) + Sync,
) {
    for_rows(y, d, |first, y| {
        vectorize(
            #[inline(always)]
            || {
                for (i, y) in y.chunks_exact_mut(d).enumerate() {
                    y.fill(T::ZERO);
                    for j in 0..terms {
                        let (weight, row) = at(first + i, j);
                        if weight != T::ZERO {
                            axpy(y, weight, &x[row * d..(row + 1) * d]);
                        }
                    }
                }
            },
        );
    });
}

/// `y: [h' * w', D]` of `table: [h * w, D]` (without prefix); `from = [h, w]`, `to = [h', w']`.
pub fn resize_positions<T: Real>(
    y: &mut [T],
    table: &[T],
    from: [usize; 2],
    to: [usize; 2],
    d: usize,
    workspace: &mut [T],
) {
    let (down, across, between) = prepare(workspace, from, to, d);
    // between: [h, w', D]
    combine(between, table, d, from[1], |r, j| (across[r % to[1] * from[1] + j], r / to[1] * from[1] + j));
    combine(y, between, d, from[0], |r, j| (down[r / to[1] * from[0] + j], j * to[1] + r % to[1]));
}

/// `dtable: [h * w, D]` (without prefix) of `dy: [h' * w', D]`.
pub fn resize_positions_backward<T: Real>(
    dtable: &mut [T],
    dy: &[T],
    from: [usize; 2],
    to: [usize; 2],
    d: usize,
    workspace: &mut [T],
) {
    let (down, across, between) = prepare(workspace, from, to, d);
    combine(between, dy, d, to[0], |r, j| (down[j * from[0] + r / to[1]], j * to[1] + r % to[1]));
    combine(dtable, between, d, to[1], |r, j| (across[j * from[1] + r % from[1]], r / from[1] * to[1] + j));
}
