//! Attention inside windows of feature maps, with learned biases by relative position.
//!
//! Rows are positions of maps; nothing is moved into windows and back. A window's positions outside of the map all have
//! the same key and value: they are one more key whose bias is the log-sum-exp of theirs, which gives the same sums.
//! One task per band of windows (the windows beside each other of one image). Outputs are overwritten and share no memory
//! with operands. Deterministic: gradients that bands share are kept per band and added in order.

use super::buffers::Io;
use super::kernel::{Kernel, cols};
use crate::tensor::Shape;
use rayon::prelude::*;

use crate::ir::{FeatureMap, ops};

use super::attention::softmax;
use super::column_sums::column_sums;
use super::gemm::{Mat, Start, gemm_serial};
use super::par::{Slots, Tile};
use super::real::Real;
use super::simd::{dot, max, vectorize};
use super::windows::{Geometry, Window};

/// The operands of the forward pass.
#[derive(Clone, Copy)]
pub struct Inputs<'a, T> {
    /// `[R, 3D]`.
    pub qkv: &'a [T],
    /// `[3D]`.
    pub pad: &'a [T],
    /// `[heads, window^2]`.
    pub biases: &'a [T],
}

/// The biases of all pairs of positions of a window, and their exponentials over the largest.
#[derive(Clone, Copy)]
struct Biases<'a, T> {
    /// `[heads, window^2, window^2]`.
    pairs: &'a [T],
    /// `exp(pairs - largest of the head)`.
    powers: &'a [T],
    /// `[heads, window^2]`.
    table: &'a [T],
    positions: usize,
}

impl<'a, T: Real> Biases<'a, T> {
    fn expand(memory: &'a mut [T], table: &'a [T], g: &Geometry<'_>) -> Self {
        let (n, size) = (g.positions(), g.window);
        let (pairs, powers) = memory.split_at_mut(g.heads * n * n);
        pairs.par_chunks_mut(n).zip(powers.par_chunks_mut(n)).enumerate().for_each(
            |(row, (pairs, powers))| {
                let (head, i) = (row / n, row % n);
                let table = &table[head * n..(head + 1) * n];
                let top = max(table, T::from_f64(f64::NEG_INFINITY));
                for (j, (pair, power)) in pairs.iter_mut().zip(powers).enumerate() {
                    *pair = table[offset(i, j, size)];
                    *power = (*pair - top).exp();
                }
            },
        );
        Biases { pairs, powers, table, positions: n }
    }

    fn row(&self, head: usize, position: usize) -> std::ops::Range<usize> {
        let first = (head * self.positions + position) * self.positions;
        first..first + self.positions
    }

    /// The sum of the exponentials from `position` over the positions outside of `window`.
    fn outside(&self, head: usize, position: usize, window: &Window, size: usize) -> T {
        let powers = &self.powers[self.row(head, position)];
        let mut sum = T::ZERO;
        for (y, line) in powers.chunks_exact(size).enumerate() {
            let inside = if y < window.height { window.width } else { 0 };
            for &p in &line[inside..] {
                sum += p;
            }
        }
        sum
    }

    fn top(&self, head: usize) -> T {
        max(&self.table[head * self.positions..][..self.positions], T::from_f64(f64::NEG_INFINITY))
    }
}

/// Where the bias of positions `i` and `j` of a window of edge `size` is.
#[inline(always)]
fn offset(i: usize, j: usize, size: usize) -> usize {
    (i / size).abs_diff(j / size) * size + (i % size).abs_diff(j % size)
}

/// One head's part `part` (0: q, 1: k, 2: v) of the rows of a window, `[rows, D / heads]`, behind each other in `to`.
fn take<T: Real>(to: &mut [T], rows: &[T], w: &Window, g: &Geometry<'_>, head: usize, part: usize) {
    let d = g.head_width();
    for (i, to) in to.chunks_exact_mut(d).take(w.rows()).enumerate() {
        let from = w.row(i) * 3 * g.width + (3 * head + part) * d;
        to.copy_from_slice(&rows[from..from + d]);
    }
}

/// Reading a window: its queries (scaled), keys and values, the outside as one more key and value where there is one.
struct Head<'a, T> {
    q: &'a mut [T],
    k: &'a mut [T],
    v: &'a mut [T],
    /// `[rows, keys]`.
    scores: &'a mut [T],
    /// Per query, the sum of the exponentials of the biases outside.
    outside: &'a mut [T],
    rows: usize,
    keys: usize,
}

impl<'a, T: Real> Head<'a, T> {
    /// Reads head `head` of window `w` of a band whose rows are `qkv`, and computes the scores; also gives the scratch
    /// that is left.
    fn read(
        scratch: &'a mut [T],
        qkv: &[T],
        pad: &[T],
        biases: &Biases<'_, T>,
        (g, w, head): (&Geometry<'_>, &Window, usize),
    ) -> (Self, &'a mut [T]) {
        let (d, n, rows) = (g.head_width(), g.positions(), w.rows());
        let keys = rows + usize::from(rows < n);
        let (q, scratch) = scratch.split_at_mut(rows * d);
        let (k, scratch) = scratch.split_at_mut(keys * d);
        let (v, scratch) = scratch.split_at_mut(keys * d);
        let (scores, scratch) = scratch.split_at_mut(rows * keys);
        let (outside, scratch) = scratch.split_at_mut(rows);
        for (part, to) in [&mut *q, &mut *k, &mut *v].into_iter().enumerate() {
            take(to, qkv, w, g, head, part);
        }
        let scale = T::from_f64((d as f64).powf(-0.5));
        q.iter_mut().for_each(|q| *q *= scale);
        if keys > rows {
            let pad = &pad[3 * head * d..][..3 * d];
            k[rows * d..].copy_from_slice(&pad[d..2 * d]);
            v[rows * d..].copy_from_slice(&pad[2 * d..]);
        }
        gemm_serial(Tile::new(scores, rows, keys), Mat::rows(q, d), Mat::transposed(k, d), d, Start::Zero);
        vectorize(
            #[inline(always)]
            || {
                for (i, row) in scores.chunks_exact_mut(keys).enumerate() {
                    let position = i / w.width * g.window + i % w.width;
                    let pairs = &biases.pairs[biases.row(head, position)];
                    let (inside, last) = row.split_at_mut(rows);
                    for (row, pairs) in inside.chunks_exact_mut(w.width).zip(pairs.chunks_exact(g.window)) {
                        for (s, &b) in row.iter_mut().zip(pairs) {
                            *s += b;
                        }
                    }
                    if let Some(s) = last.first_mut() {
                        outside[i] = biases.outside(head, position, w, g.window);
                        *s += biases.top(head) + outside[i].ln();
                    }
                }
            },
        );
        (Head { q, k, v, scores, outside, rows, keys }, scratch)
    }
}

/// `o: [R, D]`, `lse: [R, heads]`.
pub fn window_attention<T: Real>(
    o: &mut [T],
    lse: &mut [T],
    x: Inputs<'_, T>,
    g: &Geometry<'_>,
    workspace: &mut [T],
) {
    let (table, scratch) = workspace.split_at_mut(g.table());
    let biases = Biases::expand(table, x.biases, g);
    let slots = Slots::new(scratch, g.scratch());
    let (mut o, mut lse, mut qkv) = (o, lse, x.qkv);
    for map in g.maps {
        let (mine, rest) = std::mem::take(&mut o).split_at_mut(map.rows() * g.width);
        let (sums, others) = std::mem::take(&mut lse).split_at_mut(map.rows() * g.heads);
        let (read, other) = qkv.split_at(map.rows() * 3 * g.width);
        (o, lse, qkv) = (rest, others, other);
        let (image, band) = (map.positions(), g.window * map.width);
        let images = mine.par_chunks_mut(image * g.width).zip(sums.par_chunks_mut(image * g.heads));
        images.zip(read.par_chunks(image * 3 * g.width)).for_each(|((o, lse), qkv)| {
            let bands = o.par_chunks_mut(band * g.width).zip(lse.par_chunks_mut(band * g.heads));
            bands.zip(qkv.par_chunks(band * 3 * g.width)).for_each(|((o, lse), qkv)| {
                slots.with(|scratch| {
                    for w in g.windows(map, o.len() / g.width) {
                        for head in 0..g.heads {
                            forward_head((o, lse), scratch, qkv, x.pad, &biases, (g, &w, head));
                        }
                    }
                });
            });
        });
    }
}

/// One head of one window.
fn forward_head<T: Real>(
    (o, lse): (&mut [T], &mut [T]),
    scratch: &mut [T],
    qkv: &[T],
    pad: &[T],
    biases: &Biases<'_, T>,
    at: (&Geometry<'_>, &Window, usize),
) {
    let (g, w, head) = at;
    let d = g.head_width();
    let (h, rest) = Head::read(scratch, qkv, pad, biases, at);
    let (out, rest) = rest.split_at_mut(h.rows * d);
    let sums = &mut rest[..h.rows];
    softmax(h.scores, Tile::new(sums, h.rows, 1), h.keys, T::ONE);
    gemm_serial(
        Tile::new(out, h.rows, d),
        Mat::rows(h.scores, h.keys),
        Mat::rows(h.v, d),
        h.keys,
        Start::Zero,
    );
    for (i, out) in out.chunks_exact(d).enumerate() {
        let row = w.row(i);
        o[row * g.width + head * d..][..d].copy_from_slice(out);
        lse[row * g.heads + head] = sums[i];
    }
}

/// Values that the forward pass left and the gradient of its output.
#[derive(Clone, Copy)]
pub struct Saved<'a, T> {
    /// `do: [R, D]`.
    pub grad: &'a [T],
    /// `[R, D]`.
    pub o: &'a [T],
    /// `[R, heads]`.
    pub lse: &'a [T],
}

/// `dqkv: [R, 3D]`, `dpad: [3D]`, `dbiases: [heads, window^2]`.
pub fn window_attention_backward<T: Real>(
    [dqkv, dpad, dbiases]: [&mut [T]; 3],
    saved: Saved<'_, T>,
    x: Inputs<'_, T>,
    g: &Geometry<'_>,
    workspace: &mut [T],
) {
    let shared = g.shared();
    let all: usize = g.maps.iter().map(|m| m.count * g.bands(m)).sum();
    let (table, rest) = workspace.split_at_mut(g.table());
    let (sums, rest) = rest.split_at_mut(all * shared);
    let (total, scratch) = rest.split_at_mut(shared);
    let biases = Biases::expand(table, x.biases, g);
    let slots = Slots::new(scratch, g.backward_scratch());
    let (mut dqkv, mut unread, mut first) = (dqkv, &mut *sums, 0);
    for map in g.maps {
        let (image, band, bands) = (map.positions(), g.window * map.width, g.bands(map));
        let (mine, others) = std::mem::take(&mut dqkv).split_at_mut(map.rows() * 3 * g.width);
        let (partial, rest) = std::mem::take(&mut unread).split_at_mut(map.count * bands * shared);
        (dqkv, unread) = (others, rest);
        let images = mine.par_chunks_mut(image * 3 * g.width).zip(partial.par_chunks_mut(bands * shared));
        images.enumerate().for_each(|(i, (dqkv, partial))| {
            let bands = dqkv.par_chunks_mut(band * 3 * g.width).zip(partial.par_chunks_mut(shared));
            bands.enumerate().for_each(|(b, (dqkv, shared))| {
                let rows = dqkv.len() / (3 * g.width);
                let start = first + i * image + b * band;
                let part = |x: &mut &[T], width: usize| *x = &x[start * width..(start + rows) * width];
                let (mut of, mut qkv) = (saved, x.qkv);
                part(&mut of.grad, g.width);
                part(&mut of.o, g.width);
                part(&mut of.lse, g.heads);
                part(&mut qkv, 3 * g.width);
                shared.fill(T::ZERO);
                slots.with(|scratch| {
                    for w in g.windows(map, rows) {
                        for head in 0..g.heads {
                            let at = (g, &w, head);
                            backward_head((dqkv, shared), scratch, of, (qkv, x.pad), &biases, at);
                        }
                    }
                });
            });
        });
        first += map.rows();
    }
    column_sums(total, sums, all);
    let (of_biases, of_pad) = total.split_at(g.heads * g.positions());
    dbiases.copy_from_slice(of_biases);
    dpad.copy_from_slice(of_pad);
}

/// One head of one window; `shared` collects the gradients of the biases and of the outside.
fn backward_head<T: Real>(
    (dqkv, shared): (&mut [T], &mut [T]),
    scratch: &mut [T],
    saved: Saved<'_, T>,
    (qkv, pad): (&[T], &[T]),
    biases: &Biases<'_, T>,
    at: (&Geometry<'_>, &Window, usize),
) {
    let (g, w, head) = at;
    let d = g.head_width();
    let (h, rest) = Head::read(scratch, qkv, pad, biases, at);
    let (grad, rest) = rest.split_at_mut(h.rows * d);
    let (ds, rest) = rest.split_at_mut(h.rows * h.keys);
    let (dq, rest) = rest.split_at_mut(h.rows * d);
    let (dk, rest) = rest.split_at_mut(h.keys * d);
    let dv = &mut rest[..h.keys * d];
    for (i, grad) in grad.chunks_exact_mut(d).enumerate() {
        grad.copy_from_slice(&saved.grad[w.row(i) * g.width + head * d..][..d]);
    }
    gemm_serial(Tile::new(ds, h.rows, h.keys), Mat::rows(grad, d), Mat::transposed(h.v, d), d, Start::Zero);
    let p = &mut *h.scores;
    vectorize(
        #[inline(always)]
        || {
            let rows = p.chunks_exact_mut(h.keys).zip(ds.chunks_exact_mut(h.keys));
            for (i, ((p, ds), grad)) in rows.zip(grad.chunks_exact(d)).enumerate() {
                let row = w.row(i);
                let lse = saved.lse[row * g.heads + head];
                let delta = dot(grad, &saved.o[row * g.width + head * d..][..d]);
                for (p, ds) in p.iter_mut().zip(ds) {
                    *p = (*p - lse).exp();
                    *ds = *p * (*ds - delta);
                }
            }
        },
    );
    let (p, ds) = (&*p, &*ds);
    let (of_biases, of_pad) = shared.split_at_mut(g.heads * g.positions());
    let table = &mut of_biases[head * g.positions()..][..g.positions()];
    bias_gradient(table, ds, h.outside, biases, at);
    gemm_serial(Tile::new(dq, h.rows, d), Mat::rows(ds, h.keys), Mat::rows(h.k, d), h.keys, Start::Zero);
    gemm_serial(
        Tile::new(dk, h.keys, d),
        Mat::transposed(ds, h.keys),
        Mat::rows(h.q, d),
        h.rows,
        Start::Zero,
    );
    gemm_serial(
        Tile::new(dv, h.keys, d),
        Mat::transposed(p, h.keys),
        Mat::rows(grad, d),
        h.rows,
        Start::Zero,
    );
    let scale = T::from_f64((d as f64).powf(-0.5));
    dq.iter_mut().for_each(|q| *q *= scale);
    for i in 0..h.rows {
        let to = &mut dqkv[w.row(i) * 3 * g.width + 3 * head * d..][..3 * d];
        to[..d].copy_from_slice(&dq[i * d..][..d]);
        to[d..2 * d].copy_from_slice(&dk[i * d..][..d]);
        to[2 * d..].copy_from_slice(&dv[i * d..][..d]);
    }
    if h.keys > h.rows {
        let to = &mut of_pad[(3 * head + 1) * d..][..2 * d];
        for (to, from) in to.iter_mut().zip(dk[h.rows * d..].iter().chain(&dv[h.rows * d..])) {
            *to += *from;
        }
    }
}

/// Adds the gradient of one head's biases to `table: [window^2]`; `ds: [rows, keys]` is that of the scores.
fn bias_gradient<T: Real>(
    table: &mut [T],
    ds: &[T],
    outside: &[T],
    biases: &Biases<'_, T>,
    (g, w, head): (&Geometry<'_>, &Window, usize),
) {
    let (n, size, rows) = (g.positions(), g.window, w.rows());
    let keys = ds.len() / rows;
    for (i, ds) in ds.chunks_exact(keys).enumerate() {
        let (y, x) = (i / w.width, i % w.width);
        for (ky, ds) in ds[..rows].chunks_exact(w.width).enumerate() {
            let line = &mut table[y.abs_diff(ky) * size..][..size];
            let (left, right) = ds.split_at(x);
            for (t, &d) in line.iter_mut().zip(right) {
                *t += d;
            }
            for (t, &d) in line[1..].iter_mut().zip(left.iter().rev()) {
                *t += d;
            }
        }
        // The outside's positions share its gradient by their exponentials.
        if keys > rows && outside[i] > T::ZERO {
            let share = ds[rows] / outside[i];
            let position = y * size + x;
            let powers = &biases.powers[biases.row(head, position)];
            for (j, &power) in powers.iter().enumerate().take(n) {
                if j / size >= w.height || j % size >= w.width {
                    table[offset(position, j, size)] += share * power;
                }
            }
        }
    }
}

fn geometry(heads: usize, window: usize, maps: &[FeatureMap], width: usize) -> Geometry<'_> {
    Geometry { heads, width, window, maps }
}

fn operands<'a, T: Real>(io: &Io<'a, T>, first: usize) -> Inputs<'a, T> {
    let [qkv, pad, biases] = [0, 1, 2].map(|i| io.input(first + i));
    Inputs { qkv, pad, biases }
}

impl<T: Real> Kernel<T> for ops::WindowAttention {
    fn workspace(&self, _: &[&Shape], outputs: &[&Shape], threads: usize) -> usize {
        let ops::WindowAttention { heads, window, maps } = self;
        geometry(*heads, *window, maps, cols(outputs[0])).workspace(threads)
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ops::WindowAttention { heads, window, maps } = self;
        let g = geometry(*heads, *window, maps, cols(io.output_shape(0)));
        let (o, lse, workspace) = (io.output(0), io.output(1), io.workspace());
        window_attention(o, lse, operands(io, 0), &g, workspace);
    }
}

impl<T: Real> Kernel<T> for ops::WindowAttentionBackward {
    fn workspace(&self, inputs: &[&Shape], _: &[&Shape], threads: usize) -> usize {
        let ops::WindowAttentionBackward { heads, window, maps } = self;
        geometry(*heads, *window, maps, cols(inputs[0])).backward_workspace(threads)
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ops::WindowAttentionBackward { heads, window, maps } = self;
        let g = geometry(*heads, *window, maps, cols(io.input_shape(0)));
        let (outputs, workspace) = ([0, 1, 2].map(|o| io.output(o)), io.workspace());
        let saved = Saved { grad: io.input(0), o: io.input(1), lse: io.input(2) };
        window_attention_backward(outputs, saved, operands(io, 3), &g, workspace);
    }
}
