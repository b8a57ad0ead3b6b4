//! Ops that move rows: patches out of images, tokens into streams, selections, their gradients.
//!
//! `D` is the width of a row. Outputs are overwritten unless a name says so. Every output row is one task's, and sums
//! run over images in order.

use rayon::prelude::*;

use crate::ir::{RowRun, TokenLayout};
use crate::saip::config::PATCH;

use super::buffers::Operand;
use super::par::{for_rows, rows_per_task};
use super::real::Real;
use super::simd::{axpy, vectorize};

/// A row number that an index input gives; the loader has checked that it is not negative.
fn row_of(index: i32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

/// `y += x`.
fn add_row<T: Real>(y: &mut [T], x: &[T]) {
    axpy(y, T::ONE, x);
}

/// Extent of an image batch: `[B, 3, H, W]`.
#[derive(Clone, Copy, Debug)]
pub struct Images {
    pub count: usize,
    pub height: usize,
    pub width: usize,
}

impl Images {
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
