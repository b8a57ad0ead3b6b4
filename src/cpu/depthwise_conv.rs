//! Depthwise convolutions: every channel by itself.
//!
//! Maps are rows of channels, so that neighbouring channels are neighbours in memory: sums over taps are kept in
//! registers for a block of channels and, where no tap leaves the map, for several positions that share the weights.
//! Outputs are overwritten and share no memory with operands. Deterministic: each output element is one task's, and
//! gradients of weights are summed per group of images, then over groups in order.

use super::buffers::{Io, Operand};
use super::kernel::{Kernel, cols};
use crate::tensor::Shape;
use rayon::prelude::*;

use crate::ir::{ConvGeometry, FeatureMap, ops};

use super::column_sums::column_sums;
use super::par::for_rows;
use super::pointwise::add;
use super::real::Real;
use super::simd::vectorize;

/// Groups of images of one size whose weight gradients are summed by themselves.
const GROUPS: usize = 64;

/// Elements of workspace of the two ops that read weights of `channels` channels.
pub fn workspace(g: &ConvGeometry, channels: usize) -> usize {
    g.kernel * g.kernel * channels
}

/// Images per group, and groups.
fn groups(map: &FeatureMap) -> (usize, usize) {
    let each = map.count.div_ceil(GROUPS).max(1);
    (each, map.count.div_ceil(each))
}

/// Elements of workspace of [`depthwise_conv2d_backward_weight`].
pub fn backward_weight_workspace(g: &ConvGeometry, channels: usize) -> usize {
    let all: usize = g.maps.iter().map(|m| groups(m).1).sum();
    (all + 1) * workspace(g, channels)
}

/// One size of maps under one convolution.
#[derive(Clone, Copy)]
struct Geometry {
    map: FeatureMap,
    out: FeatureMap,
    kernel: usize,
    stride: usize,
    channels: usize,
}

impl Geometry {
    /// Taps of output coordinate `at` that lie inside a map of `size`.
    #[inline(always)]
    fn taps(&self, at: usize, size: usize) -> std::ops::Range<usize> {
        let (half, first) = (self.kernel / 2, at * self.stride);
        half.saturating_sub(first)..(size + half - first).min(self.kernel)
    }
}

/// `taps: [k * k, C]` of `w: [C, 1, k, k]`; `turned` by half a turn.
fn order_taps<T: Real>(taps: &mut [T], w: &[T], channels: usize, turned: bool) {
    let count = taps.len() / channels.max(1);
    for (tap, row) in taps.chunks_exact_mut(channels.max(1)).enumerate() {
        let from = if turned { count - 1 - tap } else { tap };
        for (c, v) in row.iter_mut().enumerate() {
            *v = w[c * count + from];
        }
    }
}

/// `y: [Ro, C]`, `x: [R, C]`, `w: [C, 1, k, k]`, `bias: [C]`.
pub fn depthwise_conv2d<T: Real>(
    y: &mut [T],
    x: &[T],
    w: &[T],
    bias: &[T],
    g: &ConvGeometry,
    workspace: &mut [T],
) {
    order_taps(workspace, w, bias.len(), false);
    convolve(y, x, workspace, Some(bias), g, bias.len());
}

/// `dx: [R, C]` from `dy: [Ro, C]`, `w: [C, 1, k, k]`.
pub fn depthwise_conv2d_backward_input<T: Real>(
    dx: &mut [T],
    dy: &[T],
    w: &[T],
    g: &ConvGeometry,
    workspace: &mut [T],
) {
    let channels = w.len() / (g.kernel * g.kernel).max(1);
    if g.stride == 1 {
        order_taps(workspace, w, channels, true);
        return convolve(dx, dy, workspace, None, g, channels);
    }
    order_taps(workspace, w, channels, false);
    let (mut dx, mut dy) = (dx, dy);
    for map in &g.maps {
        let out = map.strided(g.stride);
        let (mine, rest) = std::mem::take(&mut dx).split_at_mut(map.rows() * channels);
        let (grads, other) = dy.split_at(out.rows() * channels);
        (dx, dy) = (rest, other);
        let geometry = Geometry { map: *map, out, kernel: g.kernel, stride: g.stride, channels };
        for_rows(mine, channels, |first, rows| {
            vectorize(
                #[inline(always)]
                || {
                    for (i, row) in rows.chunks_exact_mut(channels).enumerate() {
                        strided_gradient(row, grads, workspace, &geometry, first + i);
                    }
                },
            );
        });
    }
}

/// The gradient of input row `row`: the taps of a strided convolution that read it.
#[inline(always)]
fn strided_gradient<T: Real>(dx: &mut [T], dy: &[T], taps: &[T], g: &Geometry, row: usize) {
    let (image, at, half) = (row / g.map.positions(), row % g.map.positions(), g.kernel / 2);
    let (y, x) = (at / g.map.width + half, at % g.map.width + half);
    dx.fill(T::ZERO);
    for ky in (y % g.stride..g.kernel.min(y + 1)).step_by(g.stride) {
        for kx in (x % g.stride..g.kernel.min(x + 1)).step_by(g.stride) {
            let (oy, ox) = ((y - ky) / g.stride, (x - kx) / g.stride);
            if oy < g.out.height && ox < g.out.width {
                let from = ((image * g.out.height + oy) * g.out.width + ox) * g.channels;
                let tap = (ky * g.kernel + kx) * g.channels;
                let terms = dy[from..from + g.channels].iter().zip(&taps[tap..tap + g.channels]);
                for (d, (&dy, &w)) in dx.iter_mut().zip(terms) {
                    *d = dy.mul_add(w, *d);
                }
            }
        }
    }
}

/// The convolution with `taps: [k * k, C]`.
fn convolve<T: Real>(
    y: &mut [T],
    x: &[T],
    taps: &[T],
    bias: Option<&[T]>,
    g: &ConvGeometry,
    channels: usize,
) {
    let (mut y, mut x) = (y, x);
    for map in &g.maps {
        let out = map.strided(g.stride);
        let (mine, rest) = std::mem::take(&mut y).split_at_mut(out.rows() * channels);
        let (read, other) = x.split_at(map.rows() * channels);
        (y, x) = (rest, other);
        let geometry = Geometry { map: *map, out, kernel: g.kernel, stride: g.stride, channels };
        for_rows(mine, out.width * channels, |first, lines| {
            vectorize(
                #[inline(always)]
                || {
                    for (i, line) in lines.chunks_exact_mut(out.width * channels).enumerate() {
                        convolve_line(line, read, taps, bias, &geometry, first + i);
                    }
                },
            );
        });
    }
}

/// Positions that share the weights in registers.
const SHARED: usize = 4;

/// Output line `line` of all maps of one size.
#[inline(always)]
fn convolve_line<T: Real>(y: &mut [T], x: &[T], taps: &[T], bias: Option<&[T]>, g: &Geometry, line: usize) {
    let (image, oy) = (line / g.out.height, line % g.out.height);
    let (half, ky) = (g.kernel / 2, g.taps(oy, g.map.height));
    let sum = Sum {
        // The row of x that tap (ky.start, 0) of output column 0 would read, shifted right by the padding.
        base: (image * g.map.height + oy * g.stride + ky.start - half) * g.map.width,
        x,
        taps,
        bias,
        g,
        ky,
    };
    let mut ox = 0;
    while ox < g.out.width {
        let kx = g.taps(ox, g.map.width);
        let last = ox + SHARED - 1;
        let shared =
            kx.len() == g.kernel && last < g.out.width && g.taps(last, g.map.width).len() == g.kernel;
        if shared {
            sum.all_channels::<SHARED>(y, ox, kx);
            ox += SHARED;
        } else {
            sum.all_channels::<1>(y, ox, kx);
            ox += 1;
        }
    }
}

/// The sums of one output line.
struct Sum<'a, T> {
    x: &'a [T],
    taps: &'a [T],
    bias: Option<&'a [T]>,
    g: &'a Geometry,
    ky: std::ops::Range<usize>,
    base: usize,
}

impl<T: Real> Sum<'_, T> {
    /// Output columns `ox .. ox + N`, which all have the taps `kx`.
    #[inline(always)]
    fn all_channels<const N: usize>(&self, y: &mut [T], ox: usize, kx: std::ops::Range<usize>) {
        let channels = self.g.channels;
        let mut c = 0;
        // Sums that do not depend on each other hide the latency of additions: of positions, or of more channels.
        while N == 1 && c + 64 <= channels {
            self.block::<64, N>(y, ox, kx.clone(), c);
            c += 64;
        }
        while c + 32 <= channels {
            self.block::<32, N>(y, ox, kx.clone(), c);
            c += 32;
        }
        while c + 8 <= channels {
            self.block::<8, N>(y, ox, kx.clone(), c);
            c += 8;
        }
        while c < channels {
            self.block::<1, N>(y, ox, kx.clone(), c);
            c += 1;
        }
    }

    /// `L` channels from `c` on.
    #[inline(always)]
    fn block<const L: usize, const N: usize>(
        &self,
        y: &mut [T],
        ox: usize,
        kx: std::ops::Range<usize>,
        c: usize,
    ) {
        let (g, half) = (self.g, self.g.kernel / 2);
        let start = match self.bias {
            Some(bias) => lanes::<T, L>(bias, c),
            None => [T::ZERO; L],
        };
        let mut sums = [start; N];
        for (line, ky) in self.ky.clone().enumerate() {
            let row = self.base + line * g.map.width + ox * g.stride;
            for kx in kx.clone() {
                let w = lanes::<T, L>(self.taps, (ky * g.kernel + kx) * g.channels + c);
                for (n, sum) in sums.iter_mut().enumerate() {
                    let x = lanes::<T, L>(self.x, (row + n * g.stride + kx - half) * g.channels + c);
                    for i in 0..L {
                        sum[i] = x[i].mul_add(w[i], sum[i]);
                    }
                }
            }
        }
        for (n, sum) in sums.iter().enumerate() {
            let at = (ox + n) * g.channels + c;
            y[at..at + L].copy_from_slice(sum);
        }
    }
}

/// The `L` elements from `at` on.
#[inline(always)]
fn lanes<T: Real, const L: usize>(x: &[T], at: usize) -> [T; L] {
    let mut out = [T::ZERO; L];
    out.copy_from_slice(&x[at..at + L]);
    out
}

/// `dw: [C, 1, k, k]` and, unless it is empty, `db: [C]` from `dy: [Ro, C]` and `x: [R, C]`.
pub fn depthwise_conv2d_backward_weight<T: Real>(
    dw: &mut [T],
    db: &mut [T],
    dy: &[T],
    x: &[T],
    g: &ConvGeometry,
    workspace: &mut [T],
) {
    let taps = g.kernel * g.kernel;
    let size = dw.len();
    let channels = size / taps.max(1);
    let (total, partial) = workspace.split_at_mut(size);
    let (mut first, mut dys, mut xs) = (0, dy, x);
    for map in &g.maps {
        let out = map.strided(g.stride);
        let (each, count) = groups(map);
        let (grads, rest) = dys.split_at(out.rows() * channels);
        let (read, other) = xs.split_at(map.rows() * channels);
        (dys, xs) = (rest, other);
        let geometry = Geometry { map: *map, out, kernel: g.kernel, stride: g.stride, channels };
        partial[first * size..(first + count) * size].par_chunks_mut(size.max(1)).enumerate().for_each(
            |(group, sums)| {
                vectorize(
                    #[inline(always)]
                    || {
                        sums.fill(T::ZERO);
                        for image in group * each..(group * each + each).min(map.count) {
                            image_gradient(sums, grads, read, &geometry, image);
                        }
                    },
                );
            },
        );
        first += count;
    }
    column_sums(total, partial, first);
    for_rows(dw, taps, |start, dw| {
        for (i, dw) in dw.chunks_exact_mut(taps).enumerate() {
            for (tap, v) in dw.iter_mut().enumerate() {
                *v = total[tap * channels + start + i];
            }
        }
    });
    if !db.is_empty() {
        column_sums(db, dy, g.output_rows());
    }
}

/// Adds the gradient of the taps over one image to `sums: [k * k, C]`.
#[inline(always)]
fn image_gradient<T: Real>(sums: &mut [T], dy: &[T], x: &[T], g: &Geometry, image: usize) {
    for oy in 0..g.out.height {
        let mut c = 0;
        while c + 64 <= g.channels {
            line_gradient::<T, 64>(sums, dy, x, g, [image, oy, c]);
            c += 64;
        }
        while c + 32 <= g.channels {
            line_gradient::<T, 32>(sums, dy, x, g, [image, oy, c]);
            c += 32;
        }
        while c + 8 <= g.channels {
            line_gradient::<T, 8>(sums, dy, x, g, [image, oy, c]);
            c += 8;
        }
        while c < g.channels {
            line_gradient::<T, 1>(sums, dy, x, g, [image, oy, c]);
            c += 1;
        }
    }
}

/// One output line's share, `L` channels from `c` on.
#[inline(always)]
fn line_gradient<T: Real, const L: usize>(
    sums: &mut [T],
    dy: &[T],
    x: &[T],
    g: &Geometry,
    [image, oy, c]: [usize; 3],
) {
    let half = g.kernel / 2;
    let grads = (image * g.out.height + oy) * g.out.width;
    for ky in g.taps(oy, g.map.height) {
        let row = (image * g.map.height + oy * g.stride + ky - half) * g.map.width;
        for kx in 0..g.kernel {
            // Output columns whose tap lies inside the map.
            let from = half.saturating_sub(kx).div_ceil(g.stride);
            let to = (g.map.width + half).saturating_sub(kx).div_ceil(g.stride).min(g.out.width);
            let tap = (ky * g.kernel + kx) * g.channels + c;
            let mut sum = lanes::<T, L>(sums, tap);
            for ox in from..to {
                let d = lanes::<T, L>(dy, (grads + ox) * g.channels + c);
                let x = lanes::<T, L>(x, (row + ox * g.stride + kx - half) * g.channels + c);
                for i in 0..L {
                    sum[i] = d[i].mul_add(x[i], sum[i]);
                }
            }
            sums[tap..tap + L].copy_from_slice(&sum);
        }
    }
}

impl<T: Real> Kernel<T> for ops::DepthwiseConv2d {
    fn workspace(&self, inputs: &[&Shape], _: &[&Shape], _: usize) -> usize {
        let ops::DepthwiseConv2d { geometry, .. } = self;
        workspace(geometry, cols(inputs[0]))
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ops::DepthwiseConv2d { geometry, residual } = self;
        let (y, workspace) = (io.output(0), io.workspace());
        let (x, w, bias) = (io.input(0), io.input(1), io.input(2));
        depthwise_conv2d(y, x, w, bias, geometry, workspace);
        if *residual {
            add(y, Operand::InPlace, Operand::Slice(io.input(3)));
        }
    }
}

impl<T: Real> Kernel<T> for ops::DepthwiseConv2dBackwardInput {
    fn workspace(&self, inputs: &[&Shape], _: &[&Shape], _: usize) -> usize {
        let ops::DepthwiseConv2dBackwardInput { geometry, .. } = self;
        workspace(geometry, cols(inputs[0]))
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ops::DepthwiseConv2dBackwardInput { geometry, residual } = self;
        let (dx, workspace) = (io.output(0), io.workspace());
        let (dy, w) = (io.input(0), io.input(1));
        depthwise_conv2d_backward_input(dx, dy, w, geometry, workspace);
        if *residual {
            add(dx, Operand::InPlace, Operand::Slice(io.input(2)));
        }
    }
}

impl<T: Real> Kernel<T> for ops::DepthwiseConv2dBackwardWeight {
    fn workspace(&self, inputs: &[&Shape], _: &[&Shape], _: usize) -> usize {
        let ops::DepthwiseConv2dBackwardWeight { geometry } = self;
        backward_weight_workspace(geometry, cols(inputs[0]))
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ops::DepthwiseConv2dBackwardWeight { geometry } = self;
        let (dw, db, workspace) = (io.output(0), io.output(1), io.workspace());
        let (dy, x) = (io.input(0), io.input(1));
        depthwise_conv2d_backward_weight(dw, db, dy, x, geometry, workspace);
    }
}
