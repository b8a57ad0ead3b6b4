//! Pooling: means over whole maps, maxima of windows.

use rayon::prelude::*;

use super::buffers::Io;
use super::kernel::{Kernel, cols};
use super::par::for_rows;
use super::real::Real;
use super::simd::{add_row, vectorize};
use crate::ir::{ConvGeometry, FeatureMap, ops};
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

/// Whether `v` takes the place of the largest value so far: as PyTorch compares, so that NaN stays.
#[inline(always)]
fn larger<T: Real>(v: T, best: T) -> bool {
    v > best || v.is_nan()
}

/// The lines or columns of a map of `size` that output `at` reads.
fn window(at: usize, size: usize, g: &ConvGeometry) -> std::ops::Range<usize> {
    let first = at * g.stride;
    let half = g.kernel / 2;
    first.saturating_sub(half)..(first + g.kernel - half).min(size)
}

/// The maps of each size, their outputs, and of `read` the rows of these maps.
fn each_map<'a, T: Real>(
    g: &'a ConvGeometry,
    read: &'a [T],
    width: usize,
) -> impl Iterator<Item = (FeatureMap, FeatureMap, &'a [T])> {
    let mut read = read;
    g.maps.iter().zip(g.outputs()).map(move |(&map, out)| {
        let (mine, rest) = read.split_at(map.rows() * width);
        read = rest;
        (map, out, mine)
    })
}

/// `y: [Ro, C]`: the largest values of the windows on `x: [R, C]`.
pub fn max_pool2d<T: Real>(y: &mut [T], x: &[T], g: &ConvGeometry, width: usize) {
    let mut y = y;
    for (map, out, x) in each_map(g, x, width) {
        let (mine, rest) = std::mem::take(&mut y).split_at_mut(out.rows() * width);
        y = rest;
        for_rows(mine, width, |first, mine| {
            for (i, best) in mine.chunks_exact_mut(width).enumerate() {
                let (image, at) = ((first + i) / out.positions(), (first + i) % out.positions());
                let columns = window(at % out.width, map.width, g);
                vectorize(
                    #[inline(always)]
                    || {
                        best.fill(T::from_f64(f64::NEG_INFINITY));
                        for line in window(at / out.width, map.height, g) {
                            for column in columns.clone() {
                                let row = image * map.positions() + line * map.width + column;
                                for (b, &v) in best.iter_mut().zip(&x[row * width..]) {
                                    *b = if larger(v, *b) { v } else { *b };
                                }
                            }
                        }
                    },
                );
            }
        });
    }
}

/// `dx: [R, C]` of `dy: [Ro, C]` at `x: [R, C]`. Windows are taken in order, each map by one task.
pub fn max_pool2d_backward<T: Real>(dx: &mut [T], dy: &[T], x: &[T], g: &ConvGeometry, width: usize) {
    let (mut dx, mut dy) = (dx, dy);
    for (map, out, x) in each_map(g, x, width) {
        let (mine, rest) = std::mem::take(&mut dx).split_at_mut(map.rows() * width);
        let (read, other) = dy.split_at(out.rows() * width);
        (dx, dy) = (rest, other);
        let (from, to) = (out.positions() * width, map.positions() * width);
        mine.par_chunks_mut(to).zip(read.par_chunks(from).zip(x.par_chunks(to))).for_each(|(dx, (dy, x))| {
            dx.fill(T::ZERO);
            for (at, dy) in dy.chunks_exact(width).enumerate() {
                let lines = window(at / out.width, map.height, g);
                let columns = window(at % out.width, map.width, g);
                for (c, &dy) in dy.iter().enumerate() {
                    let first = (lines.start * map.width + columns.start) * width + c;
                    let (mut best, mut taken) = (T::from_f64(f64::NEG_INFINITY), first);
                    for line in lines.clone() {
                        for column in columns.clone() {
                            let place = (line * map.width + column) * width + c;
                            if larger(x[place], best) {
                                (best, taken) = (x[place], place);
                            }
                        }
                    }
                    dx[taken] += dy;
                }
            }
        });
    }
}

impl<T: Real> Kernel<T> for ops::MaxPool2d {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ops::MaxPool2d { geometry } = self;
        let (y, c) = (io.output(0), cols(io.input_shape(0)));
        max_pool2d(y, io.input(0), geometry, c);
    }
}

impl<T: Real> Kernel<T> for ops::MaxPool2dBackward {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ops::MaxPool2dBackward { geometry } = self;
        let (dx, c) = (io.output(0), cols(io.input_shape(1)));
        max_pool2d_backward(dx, io.input(0), io.input(1), geometry, c);
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
