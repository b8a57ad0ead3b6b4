//! Batch normalisation over groups of rows.
//!
//! `M` rows of `C` channels. Outputs are overwritten and share no memory with operands, except the running statistics,
//! which are updated in place. Deterministic: rows are cut into tasks by their shape, and tasks are added in order.

use super::buffers::{Io, Operand};
use super::kernel::{Kernel, cols};
use crate::ir::{Activation, ops};
use crate::tensor::Shape;
use rayon::prelude::*;

use super::par::{for_rows, row_tasks, rows_per_task};
use super::pointwise::{clamp6, slope6};
use super::real::Real;
use super::simd::vectorize;

/// Elements of workspace of the forward pass.
pub fn workspace(groups: &[usize], channels: usize) -> usize {
    let tasks = groups.iter().map(|&rows| row_tasks(rows, channels)).max().unwrap_or(0);
    (2 * tasks + 1) * channels
}

/// Elements of workspace of the backward pass.
pub fn backward_workspace(groups: &[usize], channels: usize) -> usize {
    let tasks = groups.iter().map(|&rows| row_tasks(rows, channels)).max().unwrap_or(0);
    (SUMS * tasks + 4) * channels
}

/// `y: [M, C]`, `mean: [G, C]`, `var: [G, C]` of `x: [M, C]`; `gamma, beta: [C]`. With `then`, `y` is that of the
/// normalised value.
pub fn batch_norm<T: Real>(
    [y, mean, var]: [&mut [T]; 3],
    [x, gamma, beta]: [&[T]; 3],
    (groups, eps, then): (&[usize], f64, Option<Activation>),
    workspace: &mut [T],
) {
    let c = gamma.len();
    let (factor, partial) = workspace.split_at_mut(c);
    let (mut y, mut x) = (y, x);
    for (&rows, (mean, var)) in groups.iter().zip(mean.chunks_exact_mut(c).zip(var.chunks_exact_mut(c))) {
        let (mine, rest) = std::mem::take(&mut y).split_at_mut(rows * c);
        let (read, other) = x.split_at(rows * c);
        (y, x) = (rest, other);
        statistics(mean, var, read, partial);
        scale(factor, gamma, var, eps);
        let columns = [mean, factor, beta];
        match then {
            None => normalise(mine, read, columns, |y| y),
            Some(Activation::Gelu) => normalise(mine, read, columns, |y: T| y.gelu()),
            // The comparison lets NaN through.
            Some(Activation::Relu) => {
                normalise(mine, read, columns, |y: T| if y < T::ZERO { T::ZERO } else { y });
            }
            Some(Activation::Relu6) => normalise(mine, read, columns, clamp6),
        }
    }
}

/// `y: [M, C]` of `x: [M, C]` by the statistics `mean, var: [C]`.
pub fn batch_norm_inference<T: Real>(
    y: &mut [T],
    [x, gamma, beta, mean, var]: [&[T]; 5],
    eps: f64,
    workspace: &mut [T],
) {
    let factor = &mut workspace[..gamma.len()];
    scale(factor, gamma, var, eps);
    normalise(y, x, [mean, factor, beta], |y| y);
}

/// `factor = gamma / sqrt(var + eps)`.
fn scale<T: Real>(factor: &mut [T], gamma: &[T], var: &[T], eps: f64) {
    let eps = T::from_f64(eps);
    for ((f, &g), &v) in factor.iter_mut().zip(gamma).zip(var) {
        *f = g / (v + eps).sqrt();
    }
}

/// `y = then((x - mean) * factor + beta)`.
fn normalise<T: Real>(y: &mut [T], x: &[T], [mean, factor, beta]: [&[T]; 3], then: impl Fn(T) -> T + Sync) {
    let c = mean.len();
    for_rows(y, c, |first, y| {
        vectorize(
            #[inline(always)]
            || {
                for (y, x) in y.chunks_exact_mut(c).zip(x[first * c..].chunks_exact(c)) {
                    let columns = mean.iter().zip(factor).zip(beta);
                    for ((y, &x), ((&m, &f), &b)) in y.iter_mut().zip(x).zip(columns) {
                        *y = then((x - m) * f + b);
                    }
                }
            },
        );
    });
}

/// Mean and biased variance of every channel: per task the mean and the squares around it, then Chan's combination
/// ("Algorithms for computing the sample variance", 1983), so that no large numbers cancel.
fn statistics<T: Real>(mean: &mut [T], var: &mut [T], x: &[T], partial: &mut [T]) {
    let c = mean.len();
    let (rows, each) = (x.len() / c, rows_per_task(c));
    let partial = &mut partial[..2 * c * row_tasks(rows, c)];
    partial.par_chunks_mut(2 * c).zip(x.par_chunks(each * c)).for_each(|(partial, x)| {
        let (mean, squares) = partial.split_at_mut(c);
        vectorize(
            #[inline(always)]
            || {
                mean.fill(T::ZERO);
                squares.fill(T::ZERO);
                for x in x.chunks_exact(c) {
                    for (m, &x) in mean.iter_mut().zip(x) {
                        *m += x;
                    }
                }
                let inv = T::from_f64(c as f64 / x.len() as f64);
                for m in mean.iter_mut() {
                    *m *= inv;
                }
                for x in x.chunks_exact(c) {
                    for ((s, &m), &x) in squares.iter_mut().zip(&*mean).zip(x) {
                        *s += (x - m) * (x - m);
                    }
                }
            },
        );
    });
    let count = |task: usize| each.min(rows - task * each) as f64;
    for (i, (mean, var)) in mean.iter_mut().zip(var).enumerate() {
        let tasks = || partial.chunks_exact(2 * c).enumerate();
        let sum: f64 = tasks().map(|(t, p)| count(t) * p[i].to_f64()).sum();
        let mu = sum / rows as f64;
        let squares: f64 =
            tasks().map(|(t, p)| p[c + i].to_f64() + count(t) * (p[i].to_f64() - mu).powi(2)).sum();
        (*mean, *var) = (T::from_f64(mu), T::from_f64(squares / rows as f64));
    }
}

/// `dx = through(dy, (x - mean) * factor + beta)`: the gradient of what is normalised.
fn before_activation<T: Real>(
    dx: &mut [T],
    [dy, x]: [&[T]; 2],
    [mean, factor, beta]: [&[T]; 3],
    through: impl Fn(T, T) -> T + Sync,
) {
    let c = mean.len();
    for_rows(dx, c, |first, dx| {
        vectorize(
            #[inline(always)]
            || {
                let rows = dy[first * c..].chunks_exact(c).zip(x[first * c..].chunks_exact(c));
                for (dx, (dy, x)) in dx.chunks_exact_mut(c).zip(rows) {
                    let columns = mean.iter().zip(factor).zip(beta);
                    for ((d, (&dy, &x)), ((&m, &f), &b)) in dx.iter_mut().zip(dy.iter().zip(x)).zip(columns) {
                        *d = through(dy, (x - m) * f + b);
                    }
                }
            },
        );
    });
}

/// `dx: [M, C]`, `dgamma, dbeta: [C]` from `dy, x: [M, C]`, `gamma: [C]`, `mean, var: [G, C]`; with an activation behind,
/// which takes `beta: [C]`, `dy` is its output's.
pub fn batch_norm_backward<T: Real>(
    [dx, dgamma, dbeta]: [&mut [T]; 3],
    [dy, x, gamma, mean, var]: [&[T]; 5],
    (groups, eps): (&[usize], f64),
    behind: Option<(Activation, &[T])>,
    workspace: &mut [T],
) {
    let c = gamma.len();
    let (columns, partial) = workspace.split_at_mut(4 * c);
    dgamma.fill(T::ZERO);
    dbeta.fill(T::ZERO);
    let (mut dx, mut dy, mut x) = (dx, dy, x);
    for (&rows, (mean, var)) in groups.iter().zip(mean.chunks_exact(c).zip(var.chunks_exact(c))) {
        let (mine, rest) = std::mem::take(&mut dx).split_at_mut(rows * c);
        let ((grads, others), (read, other)) = (dy.split_at(rows * c), x.split_at(rows * c));
        (dx, dy, x) = (rest, others, other);
        let partial = &mut partial[..SUMS * c * row_tasks(rows, c)];
        let (factor, others) = columns.split_at_mut(c);
        let (shift, others) = others.split_at_mut(c);
        let (slope, rest) = others.split_at_mut(c);
        scale(factor, gamma, var, eps);
        if let Some((activation, beta)) = behind {
            let (rows, columns) = ([grads, read], [mean, &*factor, beta]);
            match activation {
                Activation::Gelu => before_activation(mine, rows, columns, |dy, y| dy * y.gelu_grad()),
                Activation::Relu => {
                    before_activation(mine, rows, columns, |dy, y| if y > T::ZERO { dy } else { T::ZERO });
                }
                Activation::Relu6 => before_activation(mine, rows, columns, |dy, y| dy * slope6(y)),
            }
        }
        gradient_sums(partial, if behind.is_some() { mine } else { grads }, read, mean);
        // dx = factor * (dy - shift) - slope * (x - mean - rest)
        for i in 0..c {
            let sum = |k: usize| partial.chunks_exact(SUMS * c).map(|p| p[k * c + i].to_f64()).sum::<f64>();
            let (one, offset) = (sum(0), sum(2) / rows as f64);
            let along = sum(1) - offset * one;
            let rstd = 1.0 / (var[i].to_f64() + eps).sqrt();
            dbeta[i] += T::from_f64(one);
            dgamma[i] += T::from_f64(along * rstd);
            shift[i] = T::from_f64(one / rows as f64);
            slope[i] = T::from_f64(gamma[i].to_f64() * rstd.powi(3) * along / rows as f64);
            rest[i] = T::from_f64(offset);
        }
        let grads = if behind.is_some() { Operand::InPlace } else { Operand::Slice(grads) };
        input_gradient(mine, grads, read, mean, [factor, shift, slope, rest]);
    }
}

/// Sums over rows that the gradient needs per channel.
const SUMS: usize = 3;

/// Per task the sums over rows of `dy`, of `dy * (x - mean)` and of `x - mean`. The last is what rounding the mean left: it
/// counts where the mean is large against the deviation.
fn gradient_sums<T: Real>(partial: &mut [T], dy: &[T], x: &[T], mean: &[T]) {
    let c = mean.len();
    let each = rows_per_task(c) * c;
    partial.par_chunks_mut(SUMS * c).zip(dy.par_chunks(each).zip(x.par_chunks(each))).for_each(
        |(partial, (dy, x))| {
            let (one, others) = partial.split_at_mut(c);
            let (along, rest) = others.split_at_mut(c);
            vectorize(
                #[inline(always)]
                || {
                    one.fill(T::ZERO);
                    along.fill(T::ZERO);
                    rest.fill(T::ZERO);
                    for (dy, x) in dy.chunks_exact(c).zip(x.chunks_exact(c)) {
                        let sums = one.iter_mut().zip(along.iter_mut()).zip(rest.iter_mut());
                        for ((((one, along), rest), &m), (&dy, &x)) in sums.zip(mean).zip(dy.iter().zip(x)) {
                            *one += dy;
                            *along += dy * (x - m);
                            *rest += x - m;
                        }
                    }
                },
            );
        },
    );
}

fn input_gradient<T: Real>(
    dx: &mut [T],
    dy: Operand<'_, T>,
    x: &[T],
    mean: &[T],
    [factor, shift, slope, rest]: [&[T]; 4],
) {
    let c = mean.len();
    for_rows(dx, c, |first, dx| {
        vectorize(
            #[inline(always)]
            || {
                for (row, (dx, x)) in
                    (first..).zip(dx.chunks_exact_mut(c).zip(x[first * c..].chunks_exact(c)))
                {
                    if let Operand::Slice(dy) = dy {
                        dx.copy_from_slice(&dy[row * c..][..c]);
                    }
                    let centre = mean.iter().zip(rest);
                    let columns = centre.zip(factor).zip(shift.iter().zip(slope));
                    for ((d, &x), (((&m, &r), &f), (&k, &s))) in dx.iter_mut().zip(x).zip(columns) {
                        *d = f * (*d - k) - s * ((x - m) - r);
                    }
                }
            },
        );
    });
}

/// Moves `running_mean, running_var: [C]` towards the statistics `mean, var: [G, C]` (biased) of groups of rows, one after
/// the other. A channel whose statistics are not finite keeps its running ones.
pub fn running_statistics<T: Real>(
    running_mean: &mut [T],
    running_var: &mut [T],
    mean: &[T],
    var: &[T],
    groups: &[usize],
    momentum: f64,
) {
    let c = running_mean.len();
    let (keep, take) = (T::from_f64(1.0 - momentum), T::from_f64(momentum));
    for (&rows, (mean, var)) in groups.iter().zip(mean.chunks_exact(c).zip(var.chunks_exact(c))) {
        let unbiased = T::from_f64(rows as f64 / (rows as f64 - 1.0));
        for i in 0..c {
            if mean[i].is_finite() && var[i].is_finite() {
                running_mean[i] = keep * running_mean[i] + take * mean[i];
                running_var[i] = keep * running_var[i] + take * (var[i] * unbiased);
            }
        }
    }
}

impl<T: Real> Kernel<T> for ops::BatchNorm {
    fn workspace(&self, inputs: &[&Shape], _: &[&Shape], _: usize) -> usize {
        let ops::BatchNorm { groups, .. } = self;
        workspace(groups, cols(inputs[0]))
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ops::BatchNorm { eps, groups, then } = self;
        let (outputs, workspace) = ([0, 1, 2].map(|o| io.output(o)), io.workspace());
        batch_norm(outputs, [0, 1, 2].map(|i| io.input(i)), (groups, *eps, *then), workspace);
    }
}

impl<T: Real> Kernel<T> for ops::BatchNormBackward {
    fn workspace(&self, inputs: &[&Shape], _: &[&Shape], _: usize) -> usize {
        let ops::BatchNormBackward { groups, .. } = self;
        backward_workspace(groups, cols(inputs[0]))
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ops::BatchNormBackward { eps, groups, behind } = self;
        let (outputs, workspace) = ([0, 1, 2].map(|o| io.output(o)), io.workspace());
        let inputs = [0, 1, 2, 3, 4].map(|i| io.input(i));
        let behind = behind.map(|activation| (activation, io.input(5)));
        batch_norm_backward(outputs, inputs, (groups, *eps), behind, workspace);
    }
}

impl<T: Real> Kernel<T> for ops::BatchNormInference {
    fn workspace(&self, inputs: &[&Shape], _: &[&Shape], _: usize) -> usize {
        cols(inputs[0])
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ops::BatchNormInference { eps } = self;
        let (y, workspace) = (io.output(0), io.workspace());
        batch_norm_inference(y, [0, 1, 2, 3, 4].map(|i| io.input(i)), *eps, workspace);
    }
}

impl<T: Real> Kernel<T> for ops::RunningStatistics {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ops::RunningStatistics { momentum, groups } = self;
        let [mean, var] = [0, 1].map(|o| io.output(o));
        running_statistics(mean, var, io.input(2), io.input(3), groups, *momentum);
    }
}
