//! Cross-entropy of student views against the expert's distributions over K prototypes, without the logits.
//!
//! `B` images, `V` student views, `K` prototypes, `d` bottleneck width. The prototypes are taken in tiles; a task
//! computes the logits of all rows against its tile in scratch, and leaves sums that are combined in tile order. Tiles
//! depend on K only. Outputs are overwritten.

use super::buffers::Io;
use super::kernel::{Kernel, rows};
use crate::tensor::Shape;
use rayon::prelude::*;

use crate::ir::ops::{self, Temperature};

use super::column_sums::column_sums;
use super::gemm::{Mat, Start, gemm_serial};
use super::par::{Slots, Tile, for_rows};
use super::real::Real;
use super::simd::{axpy, dot, max, sum_by, vectorize};

/// Prototypes of one tile.
const TILE: usize = 512;
/// Ranges of tiles with a gradient sum of their own.
const RANGES: usize = 16;

/// The operands of both passes.
#[derive(Clone, Copy)]
pub struct Prototypes<'a, T> {
    /// `[V * B, d]`.
    pub z: &'a [T],
    /// `[K, d]`.
    pub w: &'a [T],
    /// `[2B, d]`.
    pub zt: &'a [T],
    /// `[K, d]`.
    pub wt: &'a [T],
    /// `[K]`.
    pub center: &'a [T],
    pub temperatures: &'a [T],
    pub shape: Extent,
}

/// Sizes: `rows` = V * B student rows, `expert_rows` = 2B.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    pub rows: usize,
    pub expert_rows: usize,
    pub prototypes: usize,
    pub width: usize,
}

impl Extent {
    fn batch(&self) -> usize {
        self.expert_rows / 2
    }
    fn views(&self) -> usize {
        self.rows / self.batch().max(1)
    }
    fn tiles(&self) -> usize {
        self.prototypes.div_ceil(TILE)
    }
    /// Student rows against each expert row: its image's row in every view but its own.
    fn pairs(&self) -> usize {
        2 * (self.views() - 1)
    }
    /// Elements of scratch for the logits of one tile.
    fn scratch(&self) -> usize {
        (self.rows + self.expert_rows) * TILE
    }
    /// Sums that a tile leaves: largest exponent and sum per row, cross term per expert row and view.
    fn sums(&self) -> usize {
        2 * (self.rows + self.expert_rows) + self.expert_rows * self.views()
    }
    /// Elements of workspace of [`cross_entropy`].
    pub fn workspace(&self, threads: usize) -> usize {
        self.sums() * self.tiles() + Slots::<f64>::elements(self.scratch(), threads)
    }
    /// Elements of workspace of [`cross_entropy_backward`].
    pub fn backward_workspace(&self, threads: usize) -> usize {
        RANGES * self.rows * self.width + Slots::<f64>::elements(self.scratch(), threads)
    }
}

fn inverse<T: Real>(temperatures: &[T], which: Temperature) -> T {
    T::ONE / temperatures[which as usize]
}

impl<T: Real> Prototypes<'_, T> {
    /// Prototypes of tile `t`.
    fn range(&self, t: usize) -> std::ops::Range<usize> {
        t * TILE..((t + 1) * TILE).min(self.shape.prototypes)
    }

    /// `s: [V * B, tile]`, the student's logits over its temperature.
    fn student(&self, s: &mut [T], t: usize) {
        let inv = inverse(self.temperatures, Temperature::Student);
        logits(
            s,
            self.z,
            self.w,
            self.range(t),
            [self.shape.rows, self.shape.width],
            #[inline(always)]
            |x, _| x * inv,
        );
    }

    /// `s: [2B, tile]`, the expert's centered logits over its temperature.
    fn expert(&self, s: &mut [T], t: usize) {
        let (inv, c) = (inverse(self.temperatures, Temperature::Teacher), self.center);
        let first = t * TILE;
        let size = [self.shape.expert_rows, self.shape.width];
        logits(
            s,
            self.zt,
            self.wt,
            self.range(t),
            size,
            #[inline(always)]
            |x, k| (x - c[first + k]) * inv,
        );
    }
}

/// `s: [rows, tile]`: `f` of the inner products of `z: [rows, d]` with the rows `range` of `w: [K, d]`.
fn logits<T: Real>(
    s: &mut [T],
    z: &[T],
    w: &[T],
    range: std::ops::Range<usize>,
    [rows, width]: [usize; 2],
    f: impl Fn(T, usize) -> T,
) {
    let n = range.len();
    let w = Mat::transposed(&w[range.start * width..range.end * width], width);
    gemm_serial(Tile::new(s, rows, n), Mat::rows(z, width), w, width, Start::Zero);
    vectorize(
        #[inline(always)]
        || {
            for row in s.chunks_exact_mut(n) {
                for (k, x) in row.iter_mut().enumerate() {
                    *x = f(*x, k);
                }
            }
        },
    );
}

/// Writes the largest element of every row of `s: [rows, n]` and the sum of the exponentials of the differences to it.
/// With `exponentiate`, the elements become those exponentials.
#[inline(always)]
fn exponents<T: Real>(s: &mut [T], n: usize, sums: &mut [T], exponentiate: bool) {
    let (tops, sums) = sums.split_at_mut(sums.len() / 2);
    for ((row, top), sum) in s.chunks_exact_mut(n).zip(tops).zip(sums) {
        let largest = max(row, T::from_f64(f64::NEG_INFINITY));
        *top = largest;
        *sum = if exponentiate {
            for x in row.iter_mut() {
                *x = (*x - largest).exp();
            }
            sum_by(row, |x| x)
        } else {
            sum_by(row, |x| (x - largest).exp())
        };
    }
}

/// Log of the sum of exponentials from every tile's largest exponent and sum, for row `i` of `rows` at `offset`.
fn combine<T: Real>(partial: &[T], stride: usize, offset: usize, rows: usize, i: usize) -> f64 {
    let tiles =
        || partial.chunks_exact(stride).map(|p| (p[offset + i].to_f64(), p[offset + rows + i].to_f64()));
    let top = tiles().map(|(m, _)| m).fold(f64::NEG_INFINITY, f64::max);
    top + tiles().map(|(m, s)| s * (m - top).exp()).sum::<f64>().ln()
}

/// `loss: [1]`, `lse: [V * B]`, `lse_t: [2B]`.
pub fn cross_entropy<T: Real>(
    loss: &mut [T],
    lse: &mut [T],
    lse_t: &mut [T],
    op: &Prototypes<'_, T>,
    workspace: &mut [T],
) {
    let e = op.shape;
    let (partial, scratch) = workspace.split_at_mut(e.sums() * e.tiles());
    let slots = Slots::new(scratch, e.scratch());
    partial.par_chunks_mut(e.sums()).enumerate().for_each(|(t, sums)| {
        slots.with(|scratch| tile_sums(sums, op, t, scratch));
    });
    let (stride, expert_at, cross_at) = (e.sums(), 2 * e.rows, 2 * (e.rows + e.expert_rows));
    for (i, l) in lse.iter_mut().enumerate() {
        *l = T::from_f64(combine(partial, stride, 0, e.rows, i));
    }
    let mut sum = 0.0;
    for (r, l) in lse_t.iter_mut().enumerate() {
        let lse_t = combine(partial, stride, expert_at, e.expert_rows, r);
        *l = T::from_f64(lse_t);
        for v in (0..e.views()).filter(|&v| v != r / e.batch()) {
            let cross: f64 = partial
                .chunks_exact(stride)
                .map(|p| p[cross_at + r * e.views() + v].to_f64() * (p[expert_at + r].to_f64() - lse_t).exp())
                .sum();
            sum += lse[v * e.batch() + r % e.batch()].to_f64() - cross;
        }
    }
    loss[0] = T::from_f64(sum / (e.pairs() * e.batch()) as f64);
}

fn tile_sums<T: Real>(sums: &mut [T], op: &Prototypes<'_, T>, t: usize, scratch: &mut [T]) {
    let (e, n) = (op.shape, op.range(t).len());
    let (s, q) = scratch.split_at_mut(e.rows * TILE);
    let (s, q) = (&mut s[..e.rows * n], &mut q[..e.expert_rows * n]);
    op.student(s, t);
    op.expert(q, t);
    let (student, rest) = sums.split_at_mut(2 * e.rows);
    let (expert, cross) = rest.split_at_mut(2 * e.expert_rows);
    vectorize(
        #[inline(always)]
        || {
            exponents(s, n, student, false);
            exponents(q, n, expert, true);
            for (r, (cross, q)) in cross.chunks_exact_mut(e.views()).zip(q.chunks_exact(n)).enumerate() {
                for (v, c) in cross.iter_mut().enumerate() {
                    let row = v * e.batch() + r % e.batch();
                    *c = dot(q, &s[row * n..(row + 1) * n]);
                }
            }
        },
    );
}

/// `dz: [V * B, d]`, `dw: [K, d]`.
pub fn cross_entropy_backward<T: Real>(
    dz: &mut [T],
    dw: &mut [T],
    dloss: T,
    op: &Prototypes<'_, T>,
    [lse, lse_t]: [&[T]; 2],
    workspace: &mut [T],
) {
    let e = op.shape;
    let per_range = e.tiles().div_ceil(RANGES).max(1);
    let ranges = e.tiles().div_ceil(per_range);
    let (partial, scratch) = workspace.split_at_mut(RANGES * e.rows * e.width);
    let partial = &mut partial[..ranges * e.rows * e.width];
    let slots = Slots::new(scratch, e.scratch());
    let factor = dloss
        * inverse(op.temperatures, Temperature::Student)
        * T::from_f64(1.0 / (e.pairs() * e.batch()) as f64);
    let tiles = partial.par_chunks_mut((e.rows * e.width).max(1));
    tiles.zip(dw.par_chunks_mut(per_range * TILE * e.width)).enumerate().for_each(|(range, (dz, dw))| {
        slots.with(|scratch| {
            for (i, dw) in dw.chunks_mut(TILE * e.width).enumerate() {
                let t = range * per_range + i;
                let (g, q) = scratch.split_at_mut(e.rows * TILE);
                let k = op.range(t);
                let n = k.len();
                let (g, q) = (&mut g[..e.rows * n], &mut q[..e.expert_rows * n]);
                op.student(g, t);
                op.expert(q, t);
                logit_gradient(g, q, e, n, [lse, lse_t], factor);
                let start = if i == 0 { Start::Zero } else { Start::Accumulate };
                let w = &op.w[k.start * e.width..k.end * e.width];
                gemm_serial(Tile::new(dz, e.rows, e.width), Mat::rows(g, n), Mat::rows(w, e.width), n, start);
                let (gt, z) = (Mat::transposed(g, n), Mat::rows(op.z, e.width));
                gemm_serial(Tile::new(dw, n, e.width), gt, z, e.rows, Start::Zero);
            }
        });
    });
    column_sums(dz, partial, ranges);
}

/// `g: [V * B, n]`, the student's logits of a tile, become the gradient of the cosines; `q: [2B, n]` the expert's.
fn logit_gradient<T: Real>(
    g: &mut [T],
    q: &mut [T],
    e: Extent,
    n: usize,
    [lse, lse_t]: [&[T]; 2],
    factor: T,
) {
    let b = e.batch();
    vectorize(
        #[inline(always)]
        || {
            for (q, &l) in q.chunks_exact_mut(n).zip(lse_t) {
                for q in q {
                    *q = (*q - l).exp();
                }
            }
            for ((row, g), &l) in g.chunks_exact_mut(n).enumerate().zip(lse) {
                let (view, image) = (row / b, row % b);
                let first = &q[image * n..(image + 1) * n];
                let second = &q[(b + image) * n..(b + image + 1) * n];
                if view < 2 {
                    let q = if view == 0 { second } else { first };
                    for (g, &q) in g.iter_mut().zip(q) {
                        *g = ((*g - l).exp() - q) * factor;
                    }
                } else {
                    let two = T::ONE + T::ONE;
                    for ((g, &p), &q) in g.iter_mut().zip(first).zip(second) {
                        *g = (two * (*g - l).exp() - (p + q)) * factor;
                    }
                }
            }
        },
    );
}

/// Elements of workspace of [`expert_statistics`] with features of width `dim`.
pub fn statistics_workspace(e: &Extent, dim: usize, threads: usize) -> usize {
    2 * e.tiles() + e.expert_rows * dim + Slots::<f64>::elements(e.expert_rows * TILE, threads)
}

/// `[3]`: mean entropy of the expert's distributions, entropy of their mean, spread of the unit features
/// `features: [2B, D]`. `op.z` and `op.w` are not read.
pub fn expert_statistics<T: Real>(
    y: &mut [T],
    op: &Prototypes<'_, T>,
    lse_t: &[T],
    features: &[T],
    workspace: &mut [T],
) {
    let e = op.shape;
    let rows = e.expert_rows.max(1);
    let (partial, rest) = workspace.split_at_mut(2 * e.tiles());
    let (unit, scratch) = rest.split_at_mut(features.len());
    let slots = Slots::new(scratch, e.expert_rows * TILE);
    let inv = T::from_f64(1.0 / rows as f64);
    partial.par_chunks_mut(2).enumerate().for_each(|(t, sums)| {
        slots.with(|q| {
            let n = op.range(t).len();
            let q = &mut q[..e.expert_rows * n];
            op.expert(q, t);
            vectorize(
                #[inline(always)]
                || {
                    // The rows become shares of the mean distribution, which is summed into the first.
                    let mut entropy = T::ZERO;
                    for (q, &l) in q.chunks_exact_mut(n).zip(lse_t) {
                        entropy += sum_by(q, |x| (x - l).exp() * (l - x));
                        for x in q.iter_mut() {
                            *x = (*x - l).exp() * inv;
                        }
                    }
                    let (mean, others) = q.split_at_mut(n);
                    for q in others.chunks_exact(n) {
                        axpy(mean, T::ONE, q);
                    }
                    sums[0] = entropy * inv;
                    sums[1] = sum_by(mean, |p| if p == T::ZERO { p } else { -p * p.ln() });
                },
            );
        });
    });
    for (which, y) in y.iter_mut().take(2).enumerate() {
        *y = T::from_f64(partial.iter().skip(which).step_by(2).map(|p| p.to_f64()).sum());
    }
    y[2] = spread(unit, features, e.expert_rows);
}

/// `sqrt(D)` times the mean over dimensions of the standard deviation over rows of the unit rows of
/// `features: [rows, D]`; `unit` is scratch of the same size.
fn spread<T: Real>(unit: &mut [T], features: &[T], rows: usize) -> T {
    let d = features.len() / rows.max(1);
    for (u, f) in unit.chunks_exact_mut(d).zip(features.chunks_exact(d)) {
        let norm = sum_by(f, |x| x * x).sqrt();
        let norm = if norm < T::from_f64(1e-12) { T::from_f64(1e-12) } else { norm };
        u.iter_mut().zip(f).for_each(|(u, &f)| *u = f / norm);
    }
    let deviation = |c: usize| {
        let column = || unit.iter().skip(c).step_by(d).map(|x| x.to_f64());
        let mean = column().sum::<f64>() / rows as f64;
        (column().map(|x| (x - mean) * (x - mean)).sum::<f64>() / rows as f64).sqrt()
    };
    T::from_f64((0..d).map(deviation).sum::<f64>() / (d as f64).sqrt())
}

/// `center: [K]`, in place: `m center + (1 - m) wt mean(zt)` unless the step is skipped. Workspace: `d` elements.
pub fn center_update<T: Real>(
    center: &mut [T],
    zt: &[T],
    wt: &[T],
    temperatures: &[T],
    health: &[T],
    rows: usize,
    workspace: &mut [T],
) {
    if health[2] == T::ZERO {
        return;
    }
    let d = zt.len() / rows.max(1);
    let mean = &mut workspace[..d];
    column_sums(mean, zt, rows);
    let inv = T::from_f64(1.0 / rows as f64);
    mean.iter_mut().for_each(|m| *m *= inv);
    let mean = &*mean;
    let keep = temperatures[Temperature::CenterMomentum as usize];
    for_rows(center, 1, |first, center| {
        vectorize(
            #[inline(always)]
            || {
                for (i, c) in center.iter_mut().enumerate() {
                    let w = &wt[(first + i) * d..(first + i + 1) * d];
                    *c = keep * *c + (T::ONE - keep) * dot(w, mean);
                }
            },
        );
    });
}

fn extent(z: &Shape, w: &Shape, zt: &Shape) -> Extent {
    let (prototypes, width) = w.as_matrix();
    Extent { rows: z.as_matrix().0, expert_rows: zt.as_matrix().0, prototypes, width }
}

fn prototypes<'a, T: Real>(io: &Io<'a, T>, first: usize) -> Prototypes<'a, T> {
    let at = |i: usize| io.input(first + i);
    let shape = extent(io.input_shape(first), io.input_shape(first + 1), io.input_shape(first + 2));
    Prototypes { z: at(0), w: at(1), zt: at(2), wt: at(3), center: at(4), temperatures: at(5), shape }
}

impl<T: Real> Kernel<T> for ops::PrototypeCrossEntropy {
    fn workspace(&self, inputs: &[&Shape], _: &[&Shape], threads: usize) -> usize {
        extent(inputs[0], inputs[1], inputs[2]).workspace(threads)
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let (loss, lse, lse_t) = (io.output(0), io.output(1), io.output(2));
        let workspace = io.workspace();
        cross_entropy(loss, lse, lse_t, &prototypes(io, 0), workspace);
    }
}

impl<T: Real> Kernel<T> for ops::PrototypeCrossEntropyBackward {
    fn workspace(&self, inputs: &[&Shape], _: &[&Shape], threads: usize) -> usize {
        extent(inputs[1], inputs[2], inputs[3]).backward_workspace(threads)
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let (dz, dw, workspace) = (io.output(0), io.output(1), io.workspace());
        let (dloss, lse) = (io.input(0)[0], [io.input(7), io.input(8)]);
        cross_entropy_backward(dz, dw, dloss, &prototypes(io, 1), lse, workspace);
    }
}

impl<T: Real> Kernel<T> for ops::ExpertStatistics {
    fn workspace(&self, inputs: &[&Shape], _: &[&Shape], threads: usize) -> usize {
        let e = extent(inputs[0], inputs[1], inputs[0]);
        statistics_workspace(&e, inputs[5].as_matrix().1, threads)
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let (y, workspace) = (io.output(0), io.workspace());
        let (zt, wt) = (io.input(0), io.input(1));
        let op = Prototypes {
            z: &[],
            w: &[],
            zt,
            wt,
            center: io.input(2),
            temperatures: io.input(3),
            shape: extent(io.input_shape(0), io.input_shape(1), io.input_shape(0)),
        };
        expert_statistics(y, &op, io.input(4), io.input(5), workspace);
    }
}

impl<T: Real> Kernel<T> for ops::CenterUpdate {
    fn workspace(&self, inputs: &[&Shape], _: &[&Shape], _: usize) -> usize {
        inputs[1].as_matrix().1
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let (center, workspace, rows) = (io.output(0), io.workspace(), rows(io.input_shape(1)));
        let (zt, wt, temperatures, health) = (io.input(1), io.input(2), io.input(3), io.input(4));
        center_update(center, zt, wt, temperatures, health, rows, workspace);
    }
}
