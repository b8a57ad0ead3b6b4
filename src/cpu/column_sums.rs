//! Sums over rows.

use super::real::Real;
use super::simd::vectorize;
use rayon::prelude::*;

/// Columns that one task sums: whole cache lines.
const COLUMNS: usize = 32;
/// Rows summed before their sum is added to the total, so that rounding grows with the square root of a small number.
const ROWS: usize = 128;

/// `sums: [N]` of `x: [rows, N]`.
pub fn column_sums<T: Real>(sums: &mut [T], x: &[T], rows: usize) {
    let n = sums.len();
    sums.par_chunks_mut(COLUMNS).enumerate().for_each(|(t, sums)| {
        vectorize(
            #[inline(always)]
            || {
                let first = t * COLUMNS;
                sums.fill(T::ZERO);
                for block in x[..rows * n].chunks(ROWS * n) {
                    let mut partial = [T::ZERO; COLUMNS];
                    for row in block.chunks_exact(n) {
                        for (p, &x) in partial.iter_mut().zip(&row[first..first + sums.len()]) {
                            *p += x;
                        }
                    }
                    for (s, p) in sums.iter_mut().zip(partial) {
                        *s += p;
                    }
                }
            },
        );
    });
}
