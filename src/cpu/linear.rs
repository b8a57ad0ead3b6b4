//! Linear layers: `y = x w^T + b` with the epilogue fused into the product.
//!
//! `M` rows, `K` inputs, `N` outputs. Outputs are overwritten; no output may share memory with an operand, except `y`
//! with the residual.

use super::kernel::{Kernel, cols, rows};
use crate::ir::{Epilogue, InputEpilogue, ops};
use crate::tensor::Shape;

use super::buffers::{Io, Operand};
use super::column_sums::column_sums;
use super::gemm::{self, Mat, Start};
use super::layer_norm::{Backward, backward_workspace, layer_norm, layer_norm_backward};
use super::par::Tile;
use super::real::Real;
use super::simd::vectorize;

/// What is done to `x w^T + b`.
pub enum Finish<'a, T> {
    None,
    /// Keeps the value before GELU in a matrix like y.
    Gelu(&'a mut [T]),
    /// GELU, the value before it is dropped.
    GeluOnly,
    Residual(Operand<'a, T>),
}

/// `y: [M, N]`, `x: [M, K]`, `w: [N, K]`, `bias: [N]`.
pub fn linear<T: Real>(
    y: &mut [T],
    finish: Finish<'_, T>,
    x: &[T],
    w: &[T],
    bias: &[T],
    [m, n, k]: [usize; 3],
) {
    product(Tile::new(y, m, n), finish, Mat::rows(x, k), Mat::transposed(w, k), bias, k, 0);
}

/// `y = x w + bias` with its epilogue, `w: [depth, N]`; `first` is the residual's row for row 0 of y.
pub(super) fn product<T: Real>(
    y: Tile<'_, T>,
    finish: Finish<'_, T>,
    x: Mat<'_, T>,
    w: Mat<'_, T>,
    bias: &[T],
    depth: usize,
    first: usize,
) {
    let (m, n) = (y.rows(), y.cols());
    let add_bias = |_: usize, j: usize, y: Tile<'_, T>, _: Option<Tile<'_, T>>| {
        each_row(
            y,
            #[inline(always)]
            |_, y| {
                for (y, &b) in y.iter_mut().zip(&bias[j..]) {
                    *y += b;
                }
            },
        );
    };
    match finish {
        Finish::None => gemm::gemm_then(y, None, x, w, depth, Start::Zero, &add_bias),
        Finish::Residual(Operand::InPlace) => {
            gemm::gemm_then(y, None, x, w, depth, Start::Accumulate, &add_bias);
        }
        Finish::Gelu(pre) => {
            let pre = Tile::new(pre, m, n);
            gemm::gemm_then(y, Some(pre), x, w, depth, Start::Zero, &|_, j, y, pre| {
                let Some(mut pre) = pre else { return };
                each_row(
                    y,
                    #[inline(always)]
                    |r, y| {
                        for ((y, p), &b) in y.iter_mut().zip(pre.row(r)).zip(&bias[j..]) {
                            *p = *y + b;
                            *y = p.gelu();
                        }
                    },
                );
            });
        }
        Finish::GeluOnly => gemm::gemm_then(y, None, x, w, depth, Start::Zero, &|_, j, y, _| {
            each_row(
                y,
                #[inline(always)]
                |_, y| {
                    for (y, &b) in y.iter_mut().zip(&bias[j..]) {
                        *y = (*y + b).gelu();
                    }
                },
            );
        }),
        Finish::Residual(Operand::Slice(residual)) => {
            gemm::gemm_then(y, None, x, w, depth, Start::Zero, &|i, j, y, _| {
                each_row(
                    y,
                    #[inline(always)]
                    |r, y| {
                        let residual = &residual[(first + i + r) * n + j..];
                        for ((y, &b), &r) in y.iter_mut().zip(&bias[j..]).zip(residual) {
                            *y += b + r;
                        }
                    },
                );
            });
        }
    }
}

/// Calls `f(row, elements)` for the rows of a piece, with vector instructions.
fn each_row<T: Real>(mut piece: Tile<'_, T>, mut f: impl FnMut(usize, &mut [T])) {
    vectorize(
        #[inline(always)]
        || {
            for r in 0..piece.rows() {
                f(r, piece.row(r));
            }
        },
    );
}

/// What is done to the gradient of an input; both are like it.
pub enum FinishInput<'a, T> {
    None,
    /// Times GELU's slope at what is given.
    Gelu(&'a [T]),
    /// Plus what is given.
    Add(&'a [T]),
}

/// `dx: [M, K] = dy w` and what follows it, `dy: [M, N]`, `w: [N, K]`.
pub fn linear_backward_input<T: Real>(
    dx: &mut [T],
    dy: &[T],
    w: &[T],
    finish: FinishInput<'_, T>,
    [m, n, k]: [usize; 3],
) {
    let (dx, dy, w) = (Tile::new(dx, m, k), Mat::rows(dy, n), Mat::rows(w, k));
    let other = match finish {
        FinishInput::None => return product_gelu_grad(dx, dy, w, None, n),
        FinishInput::Gelu(pre) => return product_gelu_grad(dx, dy, w, Some(pre), n),
        FinishInput::Add(other) => other,
    };
    gemm::gemm_then(dx, None, dy, w, n, Start::Zero, &|i, j, dx, _| {
        each_row(
            dx,
            #[inline(always)]
            |r, dx| {
                for (d, &o) in dx.iter_mut().zip(&other[(i + r) * k + j..]) {
                    *d += o;
                }
            },
        );
    });
}

/// `dx = dy w`, times `gelu'(pre)` where given; `w: [depth, ..]`.
pub(super) fn product_gelu_grad<T: Real>(
    dx: Tile<'_, T>,
    dy: Mat<'_, T>,
    w: Mat<'_, T>,
    pre: Option<&[T]>,
    depth: usize,
) {
    let cols = dx.cols();
    let Some(pre) = pre else { return gemm::gemm(dx, dy, w, depth, Start::Zero) };
    gemm::gemm_then(dx, None, dy, w, depth, Start::Zero, &|i, j, dx, _| {
        each_row(
            dx,
            #[inline(always)]
            |r, dx| {
                let pre = &pre[(i + r) * cols + j..];
                for (d, &p) in dx.iter_mut().zip(pre) {
                    *d *= p.gelu_grad();
                }
            },
        );
    });
}

/// `dw: [N, K] = dy^T x`, `db: [N]` the column sums of `dy: [M, N]`; `x: [M, K]`.
pub fn linear_backward_weight<T: Real>(dw: &mut [T], db: &mut [T], dy: &[T], x: &[T], [m, n, k]: [usize; 3]) {
    gemm::gemm(Tile::new(dw, n, k), Mat::transposed(dy, n), Mat::rows(x, k), m, Start::Zero);
    column_sums(db, dy, m);
}

pub(super) fn finish<'a, T: Real>(io: &mut Io<'a, T>, epilogue: Epilogue) -> Finish<'a, T> {
    match epilogue {
        Epilogue::None => Finish::None,
        Epilogue::Gelu => match io.output(1) {
            // Nothing reads the value before GELU.
            [] => Finish::GeluOnly,
            pre => Finish::Gelu(pre),
        },
        // What is behind the sum is done to all of it.
        Epilogue::Residual | Epilogue::Norm { .. } => Finish::Residual(io.operand(3)),
    }
}

impl<T: Real> Kernel<T> for ops::Linear {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ops::Linear { epilogue } = self;
        let (n, k) = io.input_shape(1).as_weight();
        let (y, finish) = (io.output(0), finish(io, *epilogue));
        let size = [rows(io.input_shape(0)), n, k];
        linear(y, finish, io.input(0), io.input(1), io.input(2), size);
        if let Epilogue::Norm { eps } = *epilogue {
            let (n, mean, rstd) = (io.output(1), io.output(2), io.output(3));
            layer_norm(n, mean, rstd, y, io.input(4), io.input(5), eps);
        }
    }
}

impl<T: Real> Kernel<T> for ops::LinearBackwardInput {
    fn workspace(&self, inputs: &[&Shape], _: &[&Shape], _: usize) -> usize {
        match self.epilogue {
            InputEpilogue::Norm { .. } => {
                let (m, k) = inputs[2].as_matrix();
                m * k + backward_workspace(m, k)
            }
            _ => 0,
        }
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let (n, k) = io.input_shape(1).as_weight();
        let (dx, size) = (io.output(0), [rows(io.input_shape(0)), n, k]);
        let (dy, w) = (io.input(0), io.input(1));
        match self.epilogue {
            InputEpilogue::None => linear_backward_input(dx, dy, w, FinishInput::None, size),
            InputEpilogue::Gelu => linear_backward_input(dx, dy, w, FinishInput::Gelu(io.input(2)), size),
            InputEpilogue::Add => linear_backward_input(dx, dy, w, FinishInput::Add(io.input(2)), size),
            InputEpilogue::Norm { residual } => {
                let (dgamma, dbeta) = (io.output(1), io.output(2));
                let (normal, workspace) = io.workspace().split_at_mut(size[0] * k);
                linear_backward_input(normal, dy, w, FinishInput::None, size);
                let op = Backward {
                    dy: normal,
                    x: io.input(2),
                    gamma: io.input(3),
                    mean: io.input(4),
                    rstd: io.input(5),
                    residual: residual.then(|| io.operand(6)),
                };
                layer_norm_backward(dx, dgamma, dbeta, &op, workspace);
            }
        }
    }
}

impl<T: Real> Kernel<T> for ops::LinearBackwardWeight {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ((m, n), k) = (io.input_shape(0).as_matrix(), cols(io.input_shape(1)));
        let (dw, db) = (io.output(0), io.output(1));
        linear_backward_weight(dw, db, io.input(0), io.input(1), [m, n, k]);
    }
}
