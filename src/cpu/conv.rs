//! Convolutions, and the convolution whose kernel is predicted.
//!
//! Maps are rows of channels; `R` rows are read, `Ro` are written. A convolution gathers the neighbourhoods of a range of
//! output positions into rows of `k * k * C` values, ordered (ky, kx, c), and multiplies them by the weight in the same
//! order. Ranges bound
//! the workspace; their length depends on the shape only. Outputs are overwritten; `y` may share the residual's memory.

use super::kernel::{Kernel, cols};
use super::linear::finish;
use crate::ir::{ConvGeometry, FeatureMap, ops};
use crate::tensor::Shape;

use super::buffers::{Io, Operand};
use super::column_sums::column_sums;
use super::gemm::{self, Mat, Start};
use super::linear::{Finish, product, product_gelu_grad};
use super::par::{Tile, for_rows};
use super::real::Real;
use super::simd::{axpy, vectorize};

/// Elements of gathered neighbourhoods at a time.
const GATHERED: usize = 1 << 21;

/// Output positions gathered at a time when each input position has `channels`.
fn range(g: &ConvGeometry, channels: usize) -> usize {
    (GATHERED / (g.kernel * g.kernel * channels).max(1)).max(64).min(g.output_rows().max(1))
}

/// Elements of workspace of [`conv2d`] and [`conv2d_backward_weight`] from C to O channels.
pub fn workspace(g: &ConvGeometry, channels: usize, outputs: usize) -> usize {
    let depth = g.kernel * g.kernel * channels;
    (range(g, channels) + outputs) * depth
}

/// Elements of workspace of [`conv2d_backward_input`].
pub fn backward_input_workspace(g: &ConvGeometry, outputs: usize, channels: usize) -> usize {
    if g.stride == 1 {
        return workspace(g, outputs, channels);
    }
    let depth = g.kernel * g.kernel * channels;
    let largest = g.outputs().map(|m| images_at_a_time(&m, depth) * m.positions()).max();
    (largest.unwrap_or(0) + outputs) * depth
}

/// Images whose positions' products with all taps are kept at a time.
fn images_at_a_time(out: &FeatureMap, depth: usize) -> usize {
    (GATHERED / (out.positions() * depth).max(1)).clamp(1, out.count.max(1))
}

/// Where an output position reads.
struct Window {
    map: FeatureMap,
    /// First input row of its image.
    image: usize,
    y: usize,
    x: usize,
}

/// The window of output row `row`.
fn window(g: &ConvGeometry, row: usize) -> Window {
    let (mut row, mut start) = (row, 0);
    for map in &g.maps {
        let out = map.strided(g.stride);
        if row < out.rows() {
            let (image, at) = (row / out.positions(), row % out.positions());
            let (y, x) = (at / out.width * g.stride, at % out.width * g.stride);
            return Window { map: *map, image: start + image * map.positions(), y, x };
        }
        row -= out.rows();
        start += map.rows();
    }
    Window { map: FeatureMap { count: 0, height: 0, width: 0 }, image: start, y: 0, x: 0 }
}

/// `cols: [positions, k * k * C]`: the neighbourhoods of the output positions from `first` on; 0 outside the map.
fn gather<T: Real>(cols: &mut [T], x: &[T], g: &ConvGeometry, channels: usize, first: usize) {
    let (line, half) = (g.kernel * channels, g.kernel / 2);
    for_rows(cols, g.kernel * line, |start, cols| {
        for (i, row) in cols.chunks_exact_mut(g.kernel * line).enumerate() {
            let Window { map, image, y, x: left } = window(g, first + start + i);
            // Taps of a line that lie inside the map are neighbours in memory.
            let inside = half.saturating_sub(left)..(map.width + half - left).min(g.kernel);
            for (ky, dst) in row.chunks_exact_mut(line).enumerate() {
                if y + ky < half || y + ky - half >= map.height {
                    dst.fill(T::ZERO);
                    continue;
                }
                let src = (image + (y + ky - half) * map.width + left + inside.start - half) * channels;
                let (before, rest) = dst.split_at_mut(inside.start * channels);
                let (taken, behind) = rest.split_at_mut(inside.len() * channels);
                before.fill(T::ZERO);
                taken.copy_from_slice(&x[src..src + inside.len() * channels]);
                behind.fill(T::ZERO);
            }
        }
    });
}

/// `y: [Ro, O]`, `x: [R, C]`, `w: [O, C, k, k]`, `bias: [O]`.
pub fn conv2d<T: Real>(
    y: &mut [T],
    finish: Finish<'_, T>,
    x: &[T],
    w: &[T],
    bias: &[T],
    g: &ConvGeometry,
    workspace: &mut [T],
) {
    let (o, taps) = (bias.len(), g.kernel * g.kernel);
    let c = x.len() / g.rows().max(1);
    let (pixels, depth) = (range(g, c), taps * c);
    let (cols, rest) = workspace.split_at_mut(pixels * depth);
    let weight = &mut rest[..o * depth];
    for_rows(weight, depth, |first, rows| {
        for (i, row) in rows.chunks_exact_mut(depth).enumerate() {
            for (at, v) in row.iter_mut().enumerate() {
                *v = w[((first + i) * c + at % c) * taps + at / c];
            }
        }
    });
    let weight = Mat::transposed(weight, depth);
    let mut finish = finish;
    for (n, y) in y.chunks_mut((pixels * o).max(1)).enumerate() {
        let (first, m) = (n * pixels, y.len() / o);
        let cols = &mut cols[..m * depth];
        gather(cols, x, g, c, first);
        let part = match &mut finish {
            Finish::None => Finish::None,
            Finish::GeluOnly => Finish::GeluOnly,
            Finish::Gelu(pre) => Finish::Gelu(&mut pre[first * o..(first + m) * o]),
            Finish::Residual(Operand::Slice(r)) => Finish::Residual(Operand::Slice(r)),
            Finish::Residual(Operand::InPlace) => Finish::Residual(Operand::InPlace),
        };
        product(Tile::new(y, m, o), part, Mat::rows(cols, depth), weight, bias, depth, first);
    }
}

/// `dx: [R, C]` from `dy: [Ro, O]`; with `pre: [R, C]` times `gelu'(pre)`. With stride 1 the convolution of `dy` with the
/// weight turned by half a turn. `channels` is C, `outputs` is O.
pub fn conv2d_backward_input<T: Real>(
    dx: &mut [T],
    dy: &[T],
    w: &[T],
    pre: Option<&[T]>,
    g: &ConvGeometry,
    [outputs, channels]: [usize; 2],
    workspace: &mut [T],
) {
    if g.stride > 1 {
        return strided_backward_input(dx, dy, w, pre, g, [outputs, channels], workspace);
    }
    let taps = g.kernel * g.kernel;
    let (pixels, depth) = (range(g, outputs), taps * outputs);
    let (cols, rest) = workspace.split_at_mut(pixels * depth);
    let weight = &mut rest[..channels * depth];
    // Rows (tap, o), columns c.
    for_rows(weight, channels, |first, rows| {
        for (i, row) in rows.chunks_exact_mut(channels).enumerate() {
            let (tap, o) = ((first + i) / outputs, (first + i) % outputs);
            for (c, v) in row.iter_mut().enumerate() {
                *v = w[(o * channels + c) * taps + taps - 1 - tap];
            }
        }
    });
    let weight = Mat::rows(weight, channels);
    for (n, dx) in dx.chunks_mut((pixels * channels).max(1)).enumerate() {
        let (first, m) = (n * pixels, dx.len() / channels);
        let cols = &mut cols[..m * depth];
        gather(cols, dy, g, outputs, first);
        let pre = pre.map(|p| &p[first * channels..]);
        product_gelu_grad(Tile::new(dx, m, channels), Mat::rows(cols, depth), weight, pre, depth);
    }
}

/// With a stride: every output position times all taps, then each input position gathers the taps that reached it.
fn strided_backward_input<T: Real>(
    dx: &mut [T],
    dy: &[T],
    w: &[T],
    pre: Option<&[T]>,
    g: &ConvGeometry,
    [outputs, channels]: [usize; 2],
    workspace: &mut [T],
) {
    let taps = g.kernel * g.kernel;
    let depth = taps * channels;
    let (weight, cols) = workspace.split_at_mut(outputs * depth);
    // Rows o, columns (tap, c).
    for_rows(weight, depth, |first, rows| {
        for (i, row) in rows.chunks_exact_mut(depth).enumerate() {
            for (at, v) in row.iter_mut().enumerate() {
                *v = w[((first + i) * channels + at % channels) * taps + at / channels];
            }
        }
    });
    let weight = Mat::rows(weight, depth);
    let (mut dx, mut dy, mut pre) = (dx, dy, pre);
    for map in &g.maps {
        let out = map.strided(g.stride);
        let (mine, rest) = std::mem::take(&mut dx).split_at_mut(map.rows() * channels);
        let (grads, other) = dy.split_at(out.rows() * outputs);
        let before = pre.map(|p| p.split_at(map.rows() * channels));
        (dx, dy, pre) = (rest, other, before.map(|p| p.1));
        let images = images_at_a_time(&out, depth);
        let size = images * map.positions() * channels;
        for (n, part) in mine.chunks_mut(size.max(1)).enumerate() {
            let m = part.len() / (map.positions() * channels) * out.positions();
            let grads = &grads[n * images * out.positions() * outputs..];
            let cols = &mut cols[..m * depth];
            gemm::gemm(Tile::new(cols, m, depth), Mat::rows(grads, outputs), weight, outputs, Start::Zero);
            scatter_taps(part, cols, before.map(|p| &p.0[n * size..]), map, g, channels);
        }
    }
}

/// `dx: [rows of some images, C]`: the sum of the taps in `cols: [output rows of these images, k * k * C]` that lie on
/// each position; with `pre` times `gelu'(pre)`.
fn scatter_taps<T: Real>(
    dx: &mut [T],
    cols: &[T],
    pre: Option<&[T]>,
    map: &FeatureMap,
    g: &ConvGeometry,
    channels: usize,
) {
    let (out, half, depth) = (map.strided(g.stride), g.kernel / 2, g.kernel * g.kernel * channels);
    for_rows(dx, channels, |first, dx| {
        vectorize(
            #[inline(always)]
            || {
                for (i, dx) in dx.chunks_exact_mut(channels).enumerate() {
                    let row = first + i;
                    let (image, at) = (row / map.positions(), row % map.positions());
                    let (y, x) = (at / map.width + half, at % map.width + half);
                    dx.fill(T::ZERO);
                    for ky in (y % g.stride..g.kernel.min(y + 1)).step_by(g.stride) {
                        for kx in (x % g.stride..g.kernel.min(x + 1)).step_by(g.stride) {
                            let (oy, ox) = ((y - ky) / g.stride, (x - kx) / g.stride);
                            if oy < out.height && ox < out.width {
                                let from = (image * out.height + oy) * out.width + ox;
                                let tap = from * depth + (ky * g.kernel + kx) * channels;
                                axpy(dx, T::ONE, &cols[tap..tap + channels]);
                            }
                        }
                    }
                    if let Some(pre) = pre {
                        for (d, p) in dx.iter_mut().zip(&pre[row * channels..]) {
                            *d *= p.gelu_grad();
                        }
                    }
                }
            },
        );
    });
}

/// `dw: [O, C, k, k]` and, unless it is empty, `db: [O]` from `dy: [Ro, O]` and `x: [R, C]`.
pub fn conv2d_backward_weight<T: Real>(
    dw: &mut [T],
    db: &mut [T],
    dy: &[T],
    x: &[T],
    g: &ConvGeometry,
    workspace: &mut [T],
) {
    let (taps, rows) = (g.kernel * g.kernel, g.output_rows());
    let o = dy.len() / rows.max(1);
    let c = dw.len() / (o * taps).max(1);
    let (pixels, depth) = (range(g, c), taps * c);
    let (cols, rest) = workspace.split_at_mut(pixels * depth);
    let sum = &mut rest[..o * depth];
    sum.fill(T::ZERO);
    for first in (0..rows).step_by(pixels) {
        let m = pixels.min(rows - first);
        let cols = &mut cols[..m * depth];
        gather(cols, x, g, c, first);
        let (a, b) = (Mat::transposed(&dy[first * o..], o), Mat::rows(cols, depth));
        gemm::gemm(Tile::new(sum, o, depth), a, b, m, Start::Accumulate);
    }
    let sum = &*sum;
    for_rows(dw, c * taps, |first, dw| {
        for (i, dw) in dw.chunks_exact_mut(c * taps).enumerate() {
            let sum = &sum[(first + i) * depth..];
            for (at, v) in dw.iter_mut().enumerate() {
                *v = sum[at % taps * c + at / taps];
            }
        }
    });
    column_sums(db, dy, rows);
}

impl<T: Real> Kernel<T> for ops::Conv2d {
    fn workspace(&self, inputs: &[&Shape], _: &[&Shape], _: usize) -> usize {
        let ops::Conv2d { geometry, .. } = self;
        workspace(geometry, cols(inputs[0]), inputs[1].dims()[0])
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ops::Conv2d { geometry, epilogue } = self;
        let (y, finish, workspace) = (io.output(0), finish(io, *epilogue), io.workspace());
        conv2d(y, finish, io.input(0), io.input(1), io.input(2), geometry, workspace);
    }
}

impl<T: Real> Kernel<T> for ops::Conv2dBackwardInput {
    fn workspace(&self, inputs: &[&Shape], _: &[&Shape], _: usize) -> usize {
        let ops::Conv2dBackwardInput { geometry, .. } = self;
        backward_input_workspace(geometry, cols(inputs[0]), inputs[1].dims()[1])
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ops::Conv2dBackwardInput { geometry, gelu } = self;
        let (dx, workspace, pre) = (io.output(0), io.workspace(), gelu.then(|| io.input(2)));
        let size = [cols(io.input_shape(0)), cols(io.output_shape(0))];
        conv2d_backward_input(dx, io.input(0), io.input(1), pre, geometry, size, workspace);
    }
}

impl<T: Real> Kernel<T> for ops::Conv2dBackwardWeight {
    fn workspace(&self, inputs: &[&Shape], _: &[&Shape], _: usize) -> usize {
        let ops::Conv2dBackwardWeight { geometry } = self;
        workspace(geometry, cols(inputs[1]), cols(inputs[0]))
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ops::Conv2dBackwardWeight { geometry } = self;
        let (dw, db, workspace) = (io.output(0), io.output(1), io.workspace());
        conv2d_backward_weight(dw, db, io.input(0), io.input(1), geometry, workspace);
    }
}
