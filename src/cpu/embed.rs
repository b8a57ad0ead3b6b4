//! From images to streams of tokens with positions, and back to whole maps.
//!
//! `D` is the width of a row. Outputs are overwritten. Every output row is one task's, and sums run over images in order.

use rayon::prelude::*;

use super::buffers::{Io, Operand};
use super::kernel::{Kernel, cols, rows};
use crate::ir::PATCH;
use crate::ir::{TokenLayout, ops};
use crate::tensor::Shape;

use super::layout::{gather_tokens, row_of};
use super::par::{for_rows, rows_per_task};
use super::positions;
use super::real::Real;
use super::simd::{add_row, vectorize};

/// Extent of an image batch: `[B, 3, H, W]`.
#[derive(Clone, Copy, Debug)]
pub struct Images {
    pub count: usize,
    pub height: usize,
    pub width: usize,
}

impl Images {
    /// Of a tensor's shape; no images if it is none of images.
    pub fn of(shape: &Shape) -> Images {
        match *shape.dims() {
            [count, _, height, width] => Images { count, height, width },
            _ => Images { count: 0, height: 0, width: 0 },
        }
    }

    /// Patches of one image.
    pub fn patches(&self) -> usize {
        (self.height / PATCH) * (self.width / PATCH)
    }
}

/// `rows: [B * n, 3 * 16 * 16]`: patches of `image: [B, 3, H, W]`, all of them or those that `keep: [B, n]` lists.
pub fn patch_rows<T: Real>(rows: &mut [T], image: &[T], of: Images, keep: Option<&[i32]>) {
    const WIDTH: usize = 3 * PATCH * PATCH;
    let across = of.width / PATCH;
    let each = keep.map_or(of.patches(), |k| k.len() / of.count.max(1));
    for_rows(rows, WIDTH, |first, rows| {
        for (i, row) in rows.chunks_exact_mut(WIDTH).enumerate() {
            let r = first + i;
            let patch = keep.map_or(r % each, |k| row_of(k[r]));
            let (y, x) = (patch / across * PATCH, patch % across * PATCH);
            for (line, dst) in row.chunks_exact_mut(PATCH).enumerate() {
                let (channel, dy) = (line / PATCH, line % PATCH);
                let src = ((r / each * 3 + channel) * of.height + y + dy) * of.width + x;
                dst.copy_from_slice(&image[src..src + PATCH]);
            }
        }
    });
}

/// `rows: [B * H * W, 3]`: the pixels of `image: [B, 3, H, W]`; those of patches that `keep: [B, k]` lacks are 0.
pub fn pixel_rows<T: Real>(rows: &mut [T], image: &[T], of: Images, keep: Option<&[i32]>) {
    let (across, plane) = (of.width / PATCH, of.height * of.width);
    let kept = keep.map_or(0, |k| k.len() / of.count.max(1));
    // Lines of pixels.
    for_rows(rows, 3 * of.width, |first, lines| {
        for (i, line) in lines.chunks_exact_mut(3 * of.width).enumerate() {
            let (b, y) = ((first + i) / of.height, (first + i) % of.height);
            let from = 3 * b * plane + y * of.width;
            for (patch, pixels) in line.chunks_exact_mut(3 * PATCH).enumerate() {
                let at = y / PATCH * across + patch;
                let visible =
                    keep.is_none_or(|k| k[b * kept..(b + 1) * kept].iter().any(|&p| row_of(p) == at));
                if !visible {
                    pixels.fill(T::ZERO);
                    continue;
                }
                for (x, pixel) in pixels.chunks_exact_mut(3).enumerate() {
                    for (channel, v) in pixel.iter_mut().enumerate() {
                        *v = image[from + channel * plane + patch * PATCH + x];
                    }
                }
            }
        }
    });
}

/// Positions of a stream: of the leading token, `[1, D]`, and of a view, `[n, D]`.
pub struct ViewTokens<'a, T> {
    /// Patch rows of this view, `[count * tokens, D]`.
    pub rows: &'a [T],
    /// `[D]`.
    pub token: &'a [T],
    /// `[1, D]` and `[n, D]`.
    pub positions: Option<(&'a [T], &'a [T])>,
    /// Which positions this view's tokens have, `[count, tokens]`.
    pub keep: Option<&'a [i32]>,
    pub tokens: usize,
}

/// One view's part of the stream, `[count * (tokens + 1), D]`.
pub fn embed_view<T: Real>(stream: &mut [T], view: &ViewTokens<'_, T>, width: usize) {
    let length = view.tokens + 1;
    for_rows(stream, width, |first, stream| {
        for (i, dst) in stream.chunks_exact_mut(width).enumerate() {
            let (image, at) = ((first + i) / length, (first + i) % length);
            if at == 0 {
                dst.copy_from_slice(&view.token[..width]);
            } else {
                let row = image * view.tokens + at - 1;
                dst.copy_from_slice(&view.rows[row * width..(row + 1) * width]);
            }
            let Some((token_position, positions)) = view.positions else { continue };
            if at == 0 {
                add_row(dst, token_position);
            } else {
                let p = view.keep.map_or(at - 1, |k| row_of(k[image * view.tokens + at - 1]));
                add_row(dst, &positions[p * width..(p + 1) * width]);
            }
        }
    });
}

/// `drows: [R, D]` of `dy: [T, D]`: the rows behind the leading tokens.
pub fn embed_rows_backward<T: Real>(drows: &mut [T], dy: &[T], layout: &TokenLayout, width: usize) {
    let (mut out, mut src) = (drows, dy);
    for v in &layout.views {
        let (rows, rest) = std::mem::take(&mut out).split_at_mut(v.count * v.tokens * width);
        let (dy, after) = src.split_at(v.count * (v.tokens + 1) * width);
        (out, src) = (rest, after);
        for_rows(rows, width, |first, rows| {
            for (i, dst) in rows.chunks_exact_mut(width).enumerate() {
                let r = first + i;
                let s = r / v.tokens * (v.tokens + 1) + r % v.tokens + 1;
                dst.copy_from_slice(&dy[s * width..(s + 1) * width]);
            }
        });
    }
}

/// `dtoken: [1, D]`: the sum of the leading rows of `dy: [T, D]`.
pub fn embed_token_backward<T: Real>(dtoken: &mut [T], dy: &[T], layout: &TokenLayout, width: usize) {
    dtoken.fill(T::ZERO);
    let mut start = 0;
    for v in &layout.views {
        for image in 0..v.count {
            let s = start + image * (v.tokens + 1);
            add_row(dtoken, &dy[s * width..(s + 1) * width]);
        }
        start += v.count * (v.tokens + 1);
    }
}

/// `dpos: [table, D]` of one view, whose part of the stream's gradient is `dy: [count * (tokens + 1), D]`.
pub fn embed_positions_backward<T: Real>(
    dpos: &mut [T],
    dy: &[T],
    keep: Option<&[i32]>,
    [count, tokens]: [usize; 2],
    width: usize,
) {
    for_rows(dpos, width, |first, dpos| {
        for (i, dst) in dpos.chunks_exact_mut(width).enumerate() {
            dst.fill(T::ZERO);
            for image in 0..count {
                let at = match keep {
                    None => Some(first + i).filter(|&t| t < tokens),
                    Some(k) => {
                        k[image * tokens..(image + 1) * tokens].iter().position(|&p| row_of(p) == first + i)
                    }
                };
                if let Some(t) = at {
                    let s = image * (tokens + 1) + t + 1;
                    add_row(dst, &dy[s * width..(s + 1) * width]);
                }
            }
        }
    });
}

/// `y: [B * n, D]`: `visible: [B * k, D]` at `keep: [B, k]`, the mask token elsewhere, plus `pos: [n, D]`.
pub fn restore_tokens<T: Real>(
    y: &mut [T],
    visible: &[T],
    keep: &[i32],
    mask_token: &[T],
    pos: &[T],
    [k, n]: [usize; 2],
) {
    let width = pos.len() / n.max(1);
    y.par_chunks_mut(n * width).enumerate().for_each(|(image, y)| {
        for (y, pos) in y.chunks_exact_mut(width).zip(pos.chunks_exact(width)) {
            for ((y, &p), &m) in y.iter_mut().zip(pos).zip(mask_token) {
                *y = m + p;
            }
        }
        for r in image * k..(image + 1) * k {
            let at = row_of(keep[r]) * width;
            let tokens = visible[r * width..(r + 1) * width].iter().zip(&pos[at..at + width]);
            y[at..at + width].iter_mut().zip(tokens).for_each(|(y, (&v, &p))| *y = v + p);
        }
    });
}

/// `dmask_token: [1, D]` of `dy: [B * n, D]`: the sum of the rows that `keep: [B, k]` does not list.
pub fn restore_mask_backward<T: Real>(dmask: &mut [T], dy: &[T], keep: &[i32], [k, n]: [usize; 2]) {
    /// Columns of one task.
    const COLUMNS: usize = 32;
    let width = dmask.len();
    dmask.par_chunks_mut(COLUMNS).enumerate().for_each(|(t, dmask)| {
        let cols = t * COLUMNS..t * COLUMNS + dmask.len();
        dmask.fill(T::ZERO);
        for (image, dy) in dy.chunks_exact(n * width).enumerate() {
            let keep = &keep[image * k..(image + 1) * k];
            for (r, row) in dy.chunks_exact(width).enumerate() {
                if !keep.iter().any(|&p| row_of(p) == r) {
                    add_row(dmask, &row[cols.clone()]);
                }
            }
        }
    });
}

/// `y: [B * n, D] = x + pos` for every image; `pos: [n, D]`.
pub fn add_positions<T: Real>(y: &mut [T], x: Operand<'_, T>, pos: &[T], width: usize) {
    for_rows(y, width, |first, y| {
        vectorize(
            #[inline(always)]
            || {
                if let Operand::Slice(x) = x {
                    y.copy_from_slice(&x[first * width..first * width + y.len()]);
                }
                for (i, y) in y.chunks_exact_mut(width).enumerate() {
                    let p = (first + i) * width % pos.len();
                    add_row(y, &pos[p..p + width]);
                }
            },
        );
    });
}

/// `y: [n, D]`: the sum over images of `x: [B * n, D]`.
pub fn sum_images<T: Real>(y: &mut [T], x: &[T]) {
    let size = y.len().max(1);
    let piece = rows_per_task(1);
    y.par_chunks_mut(piece).enumerate().for_each(|(t, y)| {
        vectorize(
            #[inline(always)]
            || {
                y.fill(T::ZERO);
                for x in x.chunks_exact(size) {
                    add_row(y, &x[t * piece..t * piece + y.len()]);
                }
            },
        );
    });
}

/// The index input behind the others of an embedding op.
fn embed_keep<'a, T: Real>(io: &Io<'a, T>, layout: &TokenLayout, view: usize) -> Option<&'a [i32]> {
    (layout.kept == Some(view)).then(|| io.index(io.input_count() - 1))
}

impl<T: Real> Kernel<T> for ops::PatchRows {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let mut rows = io.output(0);
        let count = io.input_count() - usize::from(self.kept.is_some());
        for i in 0..count {
            let of = Images::of(io.input_shape(i));
            let keep = (self.kept == Some(i)).then(|| io.index(count));
            let n = keep.map_or(of.count * of.patches(), <[i32]>::len);
            let (part, rest) = rows.split_at_mut(n * cols(io.output_shape(0)));
            rows = rest;
            patch_rows(part, io.input(i), of, keep);
        }
    }
}

impl<T: Real> Kernel<T> for ops::PixelRows {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let mut rows = io.output(0);
        let count = io.input_count() - usize::from(self.masked.is_some());
        for i in 0..count {
            let of = Images::of(io.input_shape(i));
            let (part, rest) = rows.split_at_mut(of.count * of.height * of.width * 3);
            rows = rest;
            pixel_rows(part, io.input(i), of, (self.masked == Some(i)).then(|| io.index(count)));
        }
    }
}

impl<T: Real> Kernel<T> for ops::EmbedTokens {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let (mut stream, mut patches) = (io.output(0), io.input(0));
        let (layout, d) = (&self.layout, cols(io.input_shape(0)));
        for (v, view) in layout.views.iter().enumerate() {
            let (part, rest) = stream.split_at_mut(view.count * (view.tokens + 1) * d);
            let (rows, others) = patches.split_at(view.count * view.tokens * d);
            (stream, patches) = (rest, others);
            let positions = layout.positions.then(|| (io.input(2), io.input(3 + v)));
            let keep = embed_keep(io, layout, v);
            let tokens = ViewTokens { rows, token: io.input(1), positions, keep, tokens: view.tokens };
            embed_view(part, &tokens, d);
        }
    }
}

impl<T: Real> Kernel<T> for ops::EmbedTokensBackward {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let (layout, dy, d) = (&self.layout, io.input(0), cols(io.input_shape(0)));
        embed_rows_backward(io.output(0), dy, layout, d);
        embed_token_backward(io.output(1), dy, layout, d);
        let mut start = 0;
        for (v, view) in layout.views.iter().enumerate().filter(|_| layout.positions) {
            let end = start + view.count * (view.tokens + 1) * d;
            let keep = embed_keep(io, layout, v);
            let size = [view.count, view.tokens];
            embed_positions_backward(io.output(2 + v), &dy[start..end], keep, size, d);
            start = end;
        }
    }
}

impl<T: Real> Kernel<T> for ops::ResizePositions {
    fn workspace(&self, inputs: &[&Shape], _: &[&Shape], _: usize) -> usize {
        let ops::ResizePositions { from, to, .. } = self;
        positions::workspace(*from, *to, inputs[0].as_matrix().1)
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ops::ResizePositions { prefix, from, to } = self;
        let d = cols(io.input_shape(0));
        let (y, workspace, table) = (io.output(0), io.workspace(), &io.input(0)[prefix * d..]);
        positions::resize_positions(y, table, *from, *to, d, workspace);
    }
}

impl<T: Real> Kernel<T> for ops::ResizePositionsBackward {
    fn workspace(&self, inputs: &[&Shape], _: &[&Shape], _: usize) -> usize {
        let ops::ResizePositionsBackward { from, to, .. } = self;
        positions::workspace(*from, *to, inputs[0].as_matrix().1)
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ops::ResizePositionsBackward { prefix, from, to } = self;
        let d = cols(io.input_shape(0));
        let (y, workspace) = (io.output(0), io.workspace());
        let (head, table) = y.split_at_mut(prefix * d);
        head.fill(T::ZERO);
        positions::resize_positions_backward(table, io.input(0), *from, *to, d, workspace);
    }
}

impl<T: Real> Kernel<T> for ops::RestoreTokens {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let size = [cols(io.input_shape(1)), rows(io.input_shape(3))];
        let (y, mask, pos) = (io.output(0), io.input(2), io.input(3));
        restore_tokens(y, io.input(0), io.index(1), mask, pos, size);
    }
}

impl<T: Real> Kernel<T> for ops::RestoreTokensBackward {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let (k, n, d) = (cols(io.input_shape(1)), rows(io.output_shape(2)), cols(io.input_shape(0)));
        let (dvisible, dmask, dpos) = (io.output(0), io.output(1), io.output(2));
        let (dy, keep) = (io.input(0), io.index(1));
        gather_tokens(dvisible, dy, keep, [k, n], d);
        restore_mask_backward(dmask, dy, keep, [k, n]);
        sum_images(dpos, dy);
    }
}

impl<T: Real> Kernel<T> for ops::SumImages {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        sum_images(io.output(0), io.input(0));
    }
}

impl<T: Real> Kernel<T> for ops::AddPositions {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let d = cols(io.input_shape(0));
        add_positions(io.output(0), io.operand(0), io.input(1), d);
    }
}
