//! Layer normalisation over the last dimension.
//!
//! `M` rows of width `D`. Outputs are overwritten; `dx` may share memory with the residual `r`. Deterministic: every
//! row is one task's, and the parameters' gradients are summed per group of rows, then over groups in order.

use super::kernel::Kernel;
use crate::ir::ops;
use crate::tensor::Shape;
use rayon::prelude::*;

use super::buffers::{Io, Operand};
use super::column_sums::column_sums;
use super::par::{row_tasks, rows_per_task};
use super::real::Real;
use super::simd::{sum_by, sum_pairs, vectorize};

/// `y: [M, D]`, `mean: [M]`, `rstd: [M]` of `x: [M, D]`; `gamma, beta: [D]`.
pub fn layer_norm<T: Real>(
    y: &mut [T],
    mean: &mut [T],
    rstd: &mut [T],
    x: &[T],
    gamma: &[T],
    beta: &[T],
    eps: f64,
) {
    let d = gamma.len();
    let rows = rows_per_task(d);
    let (inv, eps) = (T::from_f64(1.0 / d as f64), T::from_f64(eps));
    y.par_chunks_mut(rows * d)
        .zip(x.par_chunks(rows * d))
        .zip(mean.par_chunks_mut(rows).zip(rstd.par_chunks_mut(rows)))
        .for_each(|((y, x), (mean, rstd))| {
            vectorize(
                #[inline(always)]
                || {
                    let stats = mean.iter_mut().zip(rstd);
                    for ((y, x), (mean, rstd)) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(stats) {
                        let mu = sum_by(x, |v| v) * inv;
                        let var = sum_by(x, |v| (v - mu) * (v - mu)) * inv;
                        let r = T::ONE / (var + eps).sqrt();
                        (*mean, *rstd) = (mu, r);
                        for ((y, &x), (&g, &b)) in y.iter_mut().zip(x).zip(gamma.iter().zip(beta)) {
                            *y = (x - mu) * r * g + b;
                        }
                    }
                },
            );
        });
}

/// Elements of workspace for [`layer_norm_backward`].
pub fn backward_workspace(m: usize, d: usize) -> usize {
    2 * d * row_tasks(m, d)
}

/// Operands of [`layer_norm_backward`].
pub struct Backward<'a, T> {
    /// `[M, D]`.
    pub dy: &'a [T],
    /// `[M, D]`.
    pub x: &'a [T],
    /// `[D]`.
    pub gamma: &'a [T],
    /// `[M]`.
    pub mean: &'a [T],
    /// `[M]`.
    pub rstd: &'a [T],
    /// `[M, D]`, added to dx.
    pub residual: Option<Operand<'a, T>>,
}

/// `dx: [M, D]`, `dgamma, dbeta: [D]`.
pub fn layer_norm_backward<T: Real>(
    dx: &mut [T],
    dgamma: &mut [T],
    dbeta: &mut [T],
    op: &Backward<'_, T>,
    workspace: &mut [T],
) {
    let d = op.gamma.len();
    let (rows, m) = (rows_per_task(d), op.mean.len());
    let partial = &mut workspace[..backward_workspace(m, d)];
    let (pg, pb) = partial.split_at_mut(partial.len() / 2);
    dx.par_chunks_mut(rows * d).zip(pg.par_chunks_mut(d).zip(pb.par_chunks_mut(d))).enumerate().for_each(
        |(t, (dx, (dg, db)))| {
            vectorize(
                #[inline(always)]
                || {
                    dg.fill(T::ZERO);
                    db.fill(T::ZERO);
                    for (i, dx) in dx.chunks_exact_mut(d).enumerate() {
                        backward_row(dx, dg, db, op, t * rows + i);
                    }
                },
            );
        },
    );
    let groups = row_tasks(m, d);
    column_sums(dgamma, pg, groups);
    column_sums(dbeta, pb, groups);
}

#[inline(always)]
fn backward_row<T: Real>(dx: &mut [T], dg: &mut [T], db: &mut [T], op: &Backward<'_, T>, row: usize) {
    let d = dx.len();
    let at = row * d..(row + 1) * d;
    let (dy, x, gamma) = (&op.dy[at.clone()], &op.x[at.clone()], &op.gamma[..d]);
    let (mean, rstd) = (op.mean[row], op.rstd[row]);
    for (((dg, db), &dy), &x) in dg.iter_mut().zip(db).zip(dy).zip(x) {
        *dg += dy * ((x - mean) * rstd);
        *db += dy;
    }
    let inv = T::from_f64(1.0 / d as f64);
    let along_one = sum_pairs(dy, gamma, |a, b| a * b) * inv;
    let mut lanes = [T::ZERO; 16];
    let (dyc, dyr) = dy.as_chunks::<16>();
    let (xc, xr) = x.as_chunks::<16>();
    let (gc, gr) = gamma.as_chunks::<16>();
    for ((a, b), c) in dyc.iter().zip(xc).zip(gc) {
        for i in 0..16 {
            lanes[i] += a[i] * c[i] * (b[i] - mean);
        }
    }
    for i in 0..dyr.len() {
        lanes[i] += dyr[i] * gr[i] * (xr[i] - mean);
    }
    let along_x = sum_by(&lanes, |v| v) * rstd * inv;
    let value = |dy: T, x: T, g: T| rstd * (dy * g - along_one - (x - mean) * rstd * along_x);
    let terms = dy.iter().zip(x).zip(gamma);
    match op.residual {
        None => {
            for (o, ((&dy, &x), &g)) in dx.iter_mut().zip(terms) {
                *o = value(dy, x, g);
            }
        }
        Some(Operand::InPlace) => {
            for (o, ((&dy, &x), &g)) in dx.iter_mut().zip(terms) {
                *o += value(dy, x, g);
            }
        }
        Some(Operand::Slice(r)) => {
            for ((o, ((&dy, &x), &g)), &r) in dx.iter_mut().zip(terms).zip(&r[at]) {
                *o = r + value(dy, x, g);
            }
        }
    }
}

impl<T: Real> Kernel<T> for ops::LayerNorm {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ops::LayerNorm { eps } = self;
        let (y, mean, rstd) = (io.output(0), io.output(1), io.output(2));
        layer_norm(y, mean, rstd, io.input(0), io.input(1), io.input(2), *eps);
    }
}

impl<T: Real> Kernel<T> for ops::LayerNormBackward {
    fn workspace(&self, inputs: &[&Shape], _: &[&Shape], _: usize) -> usize {
        let (m, d) = inputs[0].as_matrix();
        backward_workspace(m, d)
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let (dx, dgamma, dbeta, workspace) = (io.output(0), io.output(1), io.output(2), io.workspace());
        let op = Backward {
            dy: io.input(0),
            x: io.input(1),
            gamma: io.input(2),
            mean: io.input(3),
            rstd: io.input(4),
            residual: self.residual.then(|| io.operand(5)),
        };
        layer_norm_backward(dx, dgamma, dbeta, &op, workspace);
    }
}
