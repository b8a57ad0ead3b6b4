//! Selections of rows and tokens. `D` is the width of a row. Outputs are overwritten unless a name says so.

use rayon::prelude::*;

use super::kernel::{Kernel, cols};
use crate::ir::{RowRun, ops};
use crate::tensor::Shape;

use super::buffers::{Io, Operand};
use super::par::for_rows;
use super::real::Real;
use super::simd::add_row;

/// A row number that an index input gives; the loader has checked that it is not negative.
pub(super) fn row_of(index: i32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

/// The source row that row `r` of a selection is.
fn selected(runs: &[RowRun], mut r: usize) -> usize {
    for run in runs {
        if r < run.rows() {
            return run.start + r / run.len * run.stride + r % run.len;
        }
        r -= run.rows();
    }
    usize::MAX
}

/// The row of a selection that source row `r` is, if it is selected.
fn selection_of(runs: &[RowRun], r: usize) -> Option<usize> {
    let mut before = 0;
    for run in runs {
        if r >= run.start && r < run.end() {
            let stride = run.stride.max(1);
            // With one range the stride says nothing.
            let (n, at) = if run.count == 1 {
                (0, r - run.start)
            } else {
                ((r - run.start) / stride, (r - run.start) % stride)
            };
            return (at < run.len).then_some(before + n * run.len + at);
        }
        before += run.rows();
    }
    None
}

/// `y: [sum, D]`: the rows of `runs` of x.
pub fn select_rows<T: Real>(y: &mut [T], x: &[T], runs: &[RowRun], width: usize) {
    for_rows(y, width, |first, y| {
        for (i, dst) in y.chunks_exact_mut(width).enumerate() {
            let s = selected(runs, first + i);
            dst.copy_from_slice(&x[s * width..(s + 1) * width]);
        }
    });
}

/// `dx: [rows, D]`: the rows of `runs` from `dy: [sum, D]`, the others 0; with a base, its rows plus those.
pub fn scatter_rows<T: Real>(
    dx: &mut [T],
    dy: &[T],
    base: Option<Operand<'_, T>>,
    runs: &[RowRun],
    width: usize,
) {
    for_rows(dx, width, |first, dx| {
        for (i, dst) in dx.chunks_exact_mut(width).enumerate() {
            let at = first + i;
            match base {
                None => dst.fill(T::ZERO),
                Some(Operand::InPlace) => {}
                Some(Operand::Slice(b)) => dst.copy_from_slice(&b[at * width..(at + 1) * width]),
            }
            if let Some(s) = selection_of(runs, at) {
                add_row(dst, &dy[s * width..(s + 1) * width]);
            }
        }
    });
}

/// `y: [B * k, D]`: rows `index: [B, k]` of every image of `x: [B * n, D]`.
pub fn gather_tokens<T: Real>(y: &mut [T], x: &[T], index: &[i32], [k, n]: [usize; 2], width: usize) {
    for_rows(y, width, |first, y| {
        for (i, dst) in y.chunks_exact_mut(width).enumerate() {
            let s = (first + i) / k * n + row_of(index[first + i]);
            dst.copy_from_slice(&x[s * width..(s + 1) * width]);
        }
    });
}

/// `dx: [B * n, D]` of `dy: [B * k, D]`: rows at their `index: [B, k]`, 0 elsewhere.
pub fn scatter_tokens<T: Real>(dx: &mut [T], dy: &[T], index: &[i32], [k, n]: [usize; 2], width: usize) {
    dx.par_chunks_mut(n * width).enumerate().for_each(|(image, dx)| {
        dx.fill(T::ZERO);
        for r in image * k..(image + 1) * k {
            let at = row_of(index[r]) * width;
            dx[at..at + width].copy_from_slice(&dy[r * width..(r + 1) * width]);
        }
    });
}

impl<T: Real> Kernel<T> for ops::SelectRows {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ops::SelectRows { runs } = self;
        let d = cols(io.input_shape(0));
        select_rows(io.output(0), io.input(0), runs, d);
    }
}

impl<T: Real> Kernel<T> for ops::ScatterRows {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ops::ScatterRows { runs, accumulate, .. } = self;
        let d = cols(io.input_shape(0));
        let base = accumulate.then(|| io.operand(1));
        scatter_rows(io.output(0), io.input(0), base, runs, d);
    }
}

impl<T: Real> Kernel<T> for ops::GatherTokens {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ops::GatherTokens { tokens } = self;
        let (k, d) = (cols(io.input_shape(1)), cols(io.input_shape(0)));
        gather_tokens(io.output(0), io.input(0), io.index(1), [k, *tokens], d);
    }
}

impl<T: Real> Kernel<T> for ops::ScatterTokens {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ops::ScatterTokens { tokens } = self;
        let (k, d) = (cols(io.input_shape(1)), cols(io.input_shape(0)));
        scatter_tokens(io.output(0), io.input(0), io.index(1), [k, *tokens], d);
    }
}
