//! Softmax attention inside the segments of a token stream.
//!
//! One task per (segment, head): scores, softmax and weighted values of a head stay in its scratch. The backward pass
//! recomputes the probabilities from the log-sum-exp. Key segments that several groups of queries read are one task's,
//! which adds the groups in order. Outputs are overwritten and share no memory with operands.

use super::buffers::Io;
use super::kernel::Kernel;
use crate::ir::{AttentionLayout, Segments, ops};
use crate::tensor::Shape;

use super::gemm::{Mat, Start, gemm_serial};
use super::par::{SegmentMatrix, Slots, Tile, for_segments_heads};
use super::real::Real;
use super::simd::{dot, max, sum_by, vectorize};

/// Rows and widths shared by both passes.
pub struct Geometry<'a> {
    pub heads: usize,
    /// `D`.
    pub width: usize,
    pub layout: AttentionLayout,
    pub segments: &'a Segments,
}

/// One key segment and the queries of the first group that read it.
#[derive(Clone, Copy)]
struct Place {
    q: usize,
    queries: usize,
    k: usize,
    keys: usize,
}

impl Geometry<'_> {
    fn per_group(&self) -> usize {
        self.segments.count() / self.segments.kv_groups
    }

    /// Rows between a query segment and the one of the next group that reads the same keys.
    fn group_rows(&self) -> usize {
        self.segments.query_rows() / self.segments.kv_groups
    }

    fn place(&self, segment: usize) -> Place {
        let (mut q, mut k, mut s) = (0, 0, segment);
        for r in &self.segments.runs {
            if s < r.count {
                return Place { q: q + s * r.queries, queries: r.queries, k: k + s * r.keys, keys: r.keys };
            }
            s -= r.count;
            q += r.count * r.queries;
            k += r.count * r.keys;
        }
        Place { q, queries: 0, k, keys: 0 }
    }

    fn head_width(&self) -> usize {
        self.width / self.heads
    }

    fn scale<T: Real>(&self) -> T {
        T::from_f64((self.head_width() as f64).powf(-0.5))
    }

    /// Elements of scratch for one task: `matrices` of scores, and one number per query.
    fn scratch(&self, matrices: usize) -> usize {
        let (q, k) = self.segments.largest();
        (q * (k * matrices + 1)).max(1)
    }

    /// Elements of workspace of the forward pass.
    pub fn workspace(&self, threads: usize) -> usize {
        Slots::<f64>::elements(self.scratch(1), threads)
    }

    /// Elements of workspace of the backward pass.
    pub fn backward_workspace(&self, threads: usize) -> usize {
        Slots::<f64>::elements(self.scratch(2), threads)
    }
}

/// `q` and `kv`, or twice the packed `qkv`.
#[derive(Clone, Copy)]
pub struct Inputs<'a, T> {
    pub q: &'a [T],
    pub kv: &'a [T],
}

impl<'a, T: Real> Inputs<'a, T> {
    /// A head's queries from row `q` of the query stream, its keys and its values from row `k` of theirs.
    fn head(&self, g: &Geometry<'_>, at: Place, head: usize) -> [(&'a [T], usize); 3] {
        let (d, c) = (g.width, head * g.head_width());
        match g.layout {
            AttentionLayout::Packed => {
                let base = at.k * 3 * d + c;
                [0, 1, 2].map(|part| (&self.kv[base + part * d..], 3 * d))
            }
            AttentionLayout::Separate => {
                let base = at.k * 2 * d + c;
                [(&self.q[at.q * d + c..], d), (&self.kv[base..], 2 * d), (&self.kv[base + d..], 2 * d)]
            }
        }
    }
}

/// `o: [Tq, D]`, `lse: [Tq, heads]`.
pub fn attention<T: Real>(
    o: &mut [T],
    lse: &mut [T],
    inputs: Inputs<'_, T>,
    g: &Geometry<'_>,
    workspace: &mut [T],
) {
    let rows = g.segments.query_rows();
    let (groups, group_stride) = (g.segments.kv_groups, g.group_rows());
    let matrix = |data| SegmentMatrix { data, rows, parts: 1, groups, group_stride };
    let slots = Slots::new(workspace, g.scratch(1));
    let range = |_, s| {
        let p = g.place(s);
        (p.q, p.queries)
    };
    for_segments_heads(
        [matrix(o), matrix(lse)],
        g.per_group(),
        g.heads,
        range,
        |s, head, [mut o, mut lse]| {
            for group in 0..groups {
                let mut at = g.place(s);
                at.q += group * group_stride;
                let (nq, nk) = (at.queries, at.keys);
                let [(q, qs), (k, ks), (v, vs)] = inputs.head(g, at, head);
                slots.with(|scratch| {
                    let p = &mut scratch[..nq * nk];
                    let (q, k) = (Mat::rows(q, qs), Mat::transposed(k, ks));
                    gemm_serial(Tile::new(p, nq, nk), q, k, g.head_width(), Start::Zero);
                    softmax(p, lse.part(group, 0), nk, g.scale());
                    gemm_serial(o.part(group, 0), Mat::rows(p, nk), Mat::rows(v, vs), nk, Start::Zero);
                });
            }
        },
    );
}

/// Every row of `p: [rows, keys]` becomes `softmax(scale * row)`; `lse: [rows, 1]`.
pub(super) fn softmax<T: Real>(p: &mut [T], mut lse: Tile<'_, T>, keys: usize, scale: T) {
    vectorize(
        #[inline(always)]
        || {
            for (i, row) in p.chunks_exact_mut(keys.max(1)).enumerate() {
                let top = max(row, T::from_f64(f64::NEG_INFINITY)) * scale;
                for x in row.iter_mut() {
                    *x = (*x * scale - top).exp();
                }
                let sum = sum_by(row, |x| x);
                let inv = T::ONE / sum;
                for x in row.iter_mut() {
                    *x *= inv;
                }
                lse.row(i)[0] = top + sum.ln();
            }
        },
    );
}

/// Values that the forward pass left and the gradient of its output.
#[derive(Clone, Copy)]
pub struct Saved<'a, T> {
    /// `do: [Tq, D]`.
    pub grad: &'a [T],
    /// `[Tq, D]`.
    pub o: &'a [T],
    /// `[Tq, heads]`.
    pub lse: &'a [T],
}

/// `dq: [Tq, D]` and `dkv: [Tk, 2D]`, or `dkv` alone as the packed `dqkv: [Tk, 3D]`.
pub fn attention_backward<T: Real>(
    dq: Option<&mut [T]>,
    dkv: &mut [T],
    saved: Saved<'_, T>,
    inputs: Inputs<'_, T>,
    g: &Geometry<'_>,
    workspace: &mut [T],
) {
    let (groups, group_stride) = (g.segments.kv_groups, g.group_rows());
    let slots = Slots::new(workspace, g.scratch(2));
    let keys = g.segments.key_rows();
    let parts = if dq.is_some() { 2 } else { 3 };
    let dkv = SegmentMatrix { data: dkv, rows: keys, parts, groups: 1, group_stride: keys };
    match dq {
        None => {
            let range = |_, s| {
                let p = g.place(s);
                (p.k, p.keys)
            };
            for_segments_heads([dkv], g.per_group(), g.heads, range, |s, head, [mut dqkv]| {
                let at = g.place(s);
                slots.with(|scratch| {
                    let task = Task::new(g, inputs, saved, at, head, scratch);
                    let mut dq = dqkv.part(0, 0);
                    task.query_gradient(dq.block(0..at.queries, 0..g.head_width()));
                    (at.queries..at.keys).for_each(|i| dq.row(i).fill(T::ZERO));
                    task.key_gradient(dqkv.part(0, 1), Start::Zero);
                    task.value_gradient(dqkv.part(0, 2), Start::Zero);
                });
            });
        }
        Some(dq) => {
            let dq =
                SegmentMatrix { data: dq, rows: g.segments.query_rows(), parts: 1, groups, group_stride };
            let range = |matrix, s| {
                let p = g.place(s);
                if matrix == 0 { (p.q, p.queries) } else { (p.k, p.keys) }
            };
            for_segments_heads([dq, dkv], g.per_group(), g.heads, range, |s, head, [mut dq, mut dkv]| {
                for group in 0..groups {
                    let mut at = g.place(s);
                    at.q += group * group_stride;
                    let start = if group == 0 { Start::Zero } else { Start::Accumulate };
                    slots.with(|scratch| {
                        let task = Task::new(g, inputs, saved, at, head, scratch);
                        task.query_gradient(dq.part(group, 0));
                        task.key_gradient(dkv.part(0, 0), start);
                        task.value_gradient(dkv.part(0, 1), start);
                    });
                }
            });
        }
    }
}

/// One head of one segment in the backward pass.
struct Task<'a, T> {
    at: Place,
    /// `[queries, keys]`.
    p: &'a [T],
    /// Gradient of the unscaled scores, `[queries, keys]`.
    ds: &'a [T],
    q: Mat<'a, T>,
    k: Mat<'a, T>,
    grad: Mat<'a, T>,
}

impl<'a, T: Real> Task<'a, T> {
    fn new(
        g: &Geometry<'_>,
        inputs: Inputs<'a, T>,
        saved: Saved<'a, T>,
        at: Place,
        head: usize,
        scratch: &'a mut [T],
    ) -> Self {
        let (nq, nk, d, width) = (at.queries, at.keys, g.width, g.head_width());
        let (p, rest) = scratch.split_at_mut(nq * nk);
        let (ds, rest) = rest.split_at_mut(nq * nk);
        let delta = &mut rest[..nq];
        let [(q, qs), (k, ks), (v, vs)] = inputs.head(g, at, head);
        let base = at.q * d + head * width;
        let grad = &saved.grad[base..];
        let o = &saved.o[base..];
        gemm_serial(Tile::new(p, nq, nk), Mat::rows(q, qs), Mat::transposed(k, ks), width, Start::Zero);
        gemm_serial(Tile::new(ds, nq, nk), Mat::rows(grad, d), Mat::transposed(v, vs), width, Start::Zero);
        let scale: T = g.scale();
        vectorize(
            #[inline(always)]
            || {
                for (i, delta) in delta.iter_mut().enumerate() {
                    *delta = dot(&grad[i * d..i * d + width], &o[i * d..i * d + width]);
                }
                let rows = p.chunks_exact_mut(nk.max(1)).zip(ds.chunks_exact_mut(nk.max(1))).zip(&*delta);
                for (i, ((p, ds), &delta)) in rows.enumerate() {
                    let lse = saved.lse[(at.q + i) * g.heads + head];
                    for (p, ds) in p.iter_mut().zip(ds) {
                        *p = (*p * scale - lse).exp();
                        *ds = *p * (*ds - delta) * scale;
                    }
                }
            },
        );
        Task { at, p, ds, q: Mat::rows(q, qs), k: Mat::rows(k, ks), grad: Mat::rows(grad, d) }
    }

    fn query_gradient(&self, dq: Tile<'_, T>) {
        gemm_serial(dq, Mat::rows(self.ds, self.at.keys), self.k, self.at.keys, Start::Zero);
    }
    fn key_gradient(&self, dk: Tile<'_, T>, start: Start) {
        gemm_serial(dk, Mat::transposed(self.ds, self.at.keys), self.q, self.at.queries, start);
    }
    fn value_gradient(&self, dv: Tile<'_, T>, start: Start) {
        gemm_serial(dv, Mat::transposed(self.p, self.at.keys), self.grad, self.at.queries, start);
    }
}

fn geometry<'a>(heads: usize, layout: AttentionLayout, segments: &'a Segments, o: &Shape) -> Geometry<'a> {
    Geometry { heads, width: o.as_matrix().1, layout, segments }
}

fn operands<'a, T: Real>(io: &Io<'a, T>, first: usize, layout: AttentionLayout) -> Inputs<'a, T> {
    let last = match layout {
        AttentionLayout::Packed => first,
        AttentionLayout::Separate => first + 1,
    };
    Inputs { q: io.input(first), kv: io.input(last) }
}

impl<T: Real> Kernel<T> for ops::Attention {
    fn workspace(&self, _: &[&Shape], outputs: &[&Shape], threads: usize) -> usize {
        let ops::Attention { heads, layout, segments } = self;
        geometry(*heads, *layout, segments, outputs[0]).workspace(threads)
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ops::Attention { heads, layout, segments } = self;
        let g = geometry(*heads, *layout, segments, io.output_shape(0));
        let (o, lse, workspace) = (io.output(0), io.output(1), io.workspace());
        attention(o, lse, operands(io, 0, *layout), &g, workspace);
    }
}

impl<T: Real> Kernel<T> for ops::AttentionBackward {
    fn workspace(&self, inputs: &[&Shape], _: &[&Shape], threads: usize) -> usize {
        let ops::AttentionBackward { heads, layout, segments } = self;
        geometry(*heads, *layout, segments, inputs[0]).backward_workspace(threads)
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ops::AttentionBackward { heads, layout, segments } = self;
        let g = geometry(*heads, *layout, segments, io.input_shape(0));
        let (first, workspace) = (io.output(0), io.workspace());
        let (dq, dkv) = match layout {
            AttentionLayout::Packed => (None, first),
            AttentionLayout::Separate => (Some(first), io.output(1)),
        };
        let saved = Saved { grad: io.input(0), o: io.input(1), lse: io.input(2) };
        attention_backward(dq, dkv, saved, operands(io, 3, *layout), &g, workspace);
    }
}
