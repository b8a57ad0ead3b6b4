//! Global average pooling.

use rayon::prelude::*;

use super::buffers::Io;
use super::kernel::{Kernel, cols};
use super::par::for_rows;
use super::real::Real;
use super::simd::{add_row, vectorize};
use crate::ir::ops;
use crate::tensor::Shape;

/// `y: [images, C]`: the mean over the rows of every image of `x: [rows, C]`; `images` lists `(count, rows)`.
pub fn global_average_pool<T: Real>(y: &mut [T], x: &[T], images: &[(usize, usize)], width: usize) {
    let (mut y, mut x) = (y, x);
    for &(count, rows) in images {
        let (mine, rest) = std::mem::take(&mut y).split_at_mut(count * width);
        let (read, other) = x.split_at(count * rows * width);
        (y, x) = (rest, other);
        let inv = T::from_f64(1.0 / rows as f64);
        mine.par_chunks_mut(width).zip(read.par_chunks(rows * width)).for_each(|(mean, rows)| {
            vectorize(
                #[inline(always)]
                || {
                    mean.fill(T::ZERO);
                    rows.chunks_exact(width).for_each(|row| add_row(mean, row));
                    for m in mean {
                        *m *= inv;
                    }
                },
            );
        });
    }
}

/// `dx: [rows, C]` of `dy: [images, C]`.
pub fn global_average_pool_backward<T: Real>(
    dx: &mut [T],
    dy: &[T],
    images: &[(usize, usize)],
    width: usize,
) {
    let (mut dx, mut dy) = (dx, dy);
    for &(count, rows) in images {
        let (mine, rest) = std::mem::take(&mut dx).split_at_mut(count * rows * width);
        let (read, other) = dy.split_at(count * width);
        (dx, dy) = (rest, other);
        let inv = T::from_f64(1.0 / rows as f64);
        for_rows(mine, width, |first, mine| {
            for (i, row) in mine.chunks_exact_mut(width).enumerate() {
                let image = (first + i) / rows;
                for (d, &g) in row.iter_mut().zip(&read[image * width..]) {
                    *d = g * inv;
                }
            }
        });
    }
}

impl<T: Real> Kernel<T> for ops::GlobalAveragePool {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ops::GlobalAveragePool { images } = self;
        let (y, c) = (io.output(0), cols(io.input_shape(0)));
        global_average_pool(y, io.input(0), images, c);
    }
}

impl<T: Real> Kernel<T> for ops::GlobalAveragePoolBackward {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ops::GlobalAveragePoolBackward { images } = self;
        let (dx, c) = (io.output(0), cols(io.input_shape(0)));
        global_average_pool_backward(dx, io.input(0), images, c);
    }
}
