//! `C[m, n] = A[m, k] B[k, n] (+ C)` with an epilogue on finished rows.
//!
//! A and B have any row and column stride; C is row-major. The classic layered algorithm: B is packed once into panels
//! as wide as two registers, A block by block into panels as high as the accumulators allow, and the inner kernel
//! multiplies a panel of each in registers. The order of the sum over k depends on k only, so every element is the same
//! for any cut of C and any number of threads.
//!
//! Packed blocks live in the workspace ([`workspace`]) and in one buffer per thread, allocated when a thread first
//! multiplies.

use std::cell::RefCell;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::par::Tile;
use super::real::Real;

/// A matrix that is read: element `(i, j)` is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a, T> {
    data: &'a [T],
    rs: usize,
    cs: usize,
}

impl<'a, T> Mat<'a, T> {
    /// Rows `stride` elements apart.
    pub fn rows(data: &'a [T], stride: usize) -> Self {
        Mat { data, rs: stride, cs: 1 }
    }
    /// The transpose of a matrix whose rows are `stride` elements apart.
    pub fn transposed(data: &'a [T], stride: usize) -> Self {
        Mat { data, rs: 1, cs: stride }
    }
    /// The part whose element (0, 0) is element (i, j).
    fn at(self, i: usize, j: usize) -> Self {
        let offset = (i * self.rs + j * self.cs).min(self.data.len());
        Mat { data: &self.data[offset..], ..self }
    }
}

/// What C holds before the product is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    Zero,
    /// `C += A B`.
    Accumulate,
}

/// Widest panel of B over all machines, for sizing.
const MAX_PANEL: usize = 32;
/// Most rows of a panel of A.
const MAX_ROWS: usize = 14;
/// Rows of A packed at a time.
const BLOCK_ROWS: usize = 168;
/// Longest k range packed at a time.
const BLOCK_DEPTH: usize = 384;
/// Columns of B packed at a time where there is no workspace.
const BLOCK_COLS: usize = 512;

/// Length of the k ranges into which `k` is cut.
fn depth(k: usize) -> usize {
    if k <= BLOCK_DEPTH { k.max(1) } else { k.div_ceil(k.div_ceil(BLOCK_DEPTH * 4 / 5)) }
}

/// Elements of workspace for [`gemm`] with a B of `[k, n]`.
pub fn workspace(n: usize, k: usize) -> usize {
    n.next_multiple_of(MAX_PANEL) * k
}

/// Packs `b: [k, n]` for [`multiply`] into `packed` of [`workspace`] elements.
pub fn pack<T: Real>(packed: &mut [T], b: Mat<'_, T>, n: usize, k: usize) {
    let panel = panel_width::<T>();
    let packed = &mut packed[..n.next_multiple_of(panel) * k];
    let step = depth(k);
    // Panels of one k range lie one behind the other; ranges follow each other.
    for (q, range) in packed.chunks_mut((n.next_multiple_of(panel) * step).max(1)).enumerate() {
        let len = step.min(k - q * step);
        let group = ((1 << 14) / (len * panel)).max(1);
        range.par_chunks_mut(panel * len * group).enumerate().for_each(|(t, dst)| {
            let first = t * group * panel;
            pulp::Arch::new().dispatch(Pack { dst, b: b.at(q * step, first), n: n - first, len });
        });
    }
}

/// Multiplies with all threads by a packed B. `done(row, column, c, extra)` is called once for every piece of a row of
/// C when it is final, with the same piece of `extra`.
pub fn multiply<T: Real>(
    c: Tile<'_, T>,
    extra: Option<Tile<'_, T>>,
    a: Mat<'_, T>,
    packed: &[T],
    k: usize,
    start: Start,
    done: impl Fn(usize, usize, &mut [T], Option<&mut [T]>) + Sync,
) {
    let (m, n) = (c.rows(), c.cols());
    let (height, width) = cut(m, n, k);
    c.for_grid(extra, height, width, |i, j, c, extra| {
        let b = Right::Packed { data: packed, first: j, n };
        with_blocks(|blocks| {
            let origin = (i, j);
            let a = a.at(i, 0);
            pulp::Arch::new().dispatch(Piece { c, extra, a, b, k, start, blocks, origin, done: &done });
        });
    });
}

/// [`pack`], then [`multiply`].
#[allow(clippy::too_many_arguments)]
pub fn gemm<T: Real>(
    c: Tile<'_, T>,
    extra: Option<Tile<'_, T>>,
    a: Mat<'_, T>,
    b: Mat<'_, T>,
    k: usize,
    start: Start,
    packed: &mut [T],
    done: impl Fn(usize, usize, &mut [T], Option<&mut [T]>) + Sync,
) {
    pack(packed, b, c.cols(), k);
    multiply(c, extra, a, packed, k, start, done);
}

/// Multiplies in the calling thread.
pub fn gemm_serial<T: Real>(c: Tile<'_, T>, a: Mat<'_, T>, b: Mat<'_, T>, k: usize, start: Start) {
    if c.rows() > 0 && c.cols() > 0 {
        let b = Right::Plain(b);
        with_blocks(|blocks| {
            let done = &|_, _, _: &mut [T], _: Option<&mut [T]>| {};
            pulp::Arch::new().dispatch(Piece {
                c,
                extra: None,
                a,
                b,
                k,
                start,
                blocks,
                origin: (0, 0),
                done,
            });
        });
    }
}

/// Height and width of the pieces of C that threads take: up to 16, none so small that packing A weighs.
fn cut(m: usize, n: usize, k: usize) -> (usize, usize) {
    let pieces = ((m * n * k) >> 20).clamp(1, 16);
    let down = m.div_ceil(84).clamp(1, pieces);
    let across = (pieces / down).clamp(1, n.div_ceil(128));
    (m.div_ceil(down).next_multiple_of(MAX_ROWS), n.div_ceil(across).next_multiple_of(MAX_PANEL))
}

/// Elements per panel of B on this machine.
fn panel_width<T: Real>() -> usize {
    struct Width<T>(std::marker::PhantomData<T>);
    impl<T: Real> WithSimd for Width<T> {
        type Output = usize;
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> usize {
            2 * T::lanes::<S>()
        }
    }
    pulp::Arch::new().dispatch(Width(std::marker::PhantomData::<T>))
}

/// Packs the first `n` columns of `b` over `len` values of k.
struct Pack<'a, T> {
    dst: &'a mut [T],
    b: Mat<'a, T>,
    n: usize,
    len: usize,
}

impl<T: Real> WithSimd for Pack<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        pack_right(self.dst, self.b, self.n, self.len, 2 * T::lanes::<S>());
    }
}

#[inline(always)]
fn pack_right<T: Real>(dst: &mut [T], b: Mat<'_, T>, n: usize, len: usize, panel: usize) {
    for (j, dst) in dst.chunks_exact_mut((panel * len).max(1)).enumerate() {
        let b = b.at(0, j * panel);
        // Columns of B are what rows of A are: the same packing with the roles of the strides changed.
        pack_panel(dst, b.data, b.cs, b.rs, panel.min(n - j * panel), len, panel);
    }
}

/// `dst[p * panel + i] = src[i * rs + p * cs]` for `i < rows`, 0 behind.
#[inline(always)]
fn pack_panel<T: Real>(
    dst: &mut [T],
    src: &[T],
    rs: usize,
    cs: usize,
    rows: usize,
    len: usize,
    panel: usize,
) {
    if rs == 1 {
        for (p, d) in dst.chunks_exact_mut(panel).take(len).enumerate() {
            let (d, rest) = d.split_at_mut(rows);
            d.copy_from_slice(&src[p * cs..p * cs + rows]);
            rest.fill(T::ZERO);
        }
        return;
    }
    if rows < panel {
        dst.fill(T::ZERO);
    }
    if cs == 1 {
        transpose_panel(dst, src, rs, rows, len, panel);
        return;
    }
    for i in 0..rows {
        for p in 0..len {
            dst[p * panel + i] = src[i * rs + p * cs];
        }
    }
}

/// Square blocks keep the reads and the writes of a transposition in the cache lines just touched.
const SQUARE: usize = 8;

#[inline(always)]
fn transpose_panel<T: Real>(dst: &mut [T], src: &[T], rs: usize, rows: usize, len: usize, panel: usize) {
    let (mut i, whole) = (0, len / SQUARE * SQUARE);
    while i + SQUARE <= rows {
        for p in (0..whole).step_by(SQUARE) {
            let mut square = [[T::ZERO; SQUARE]; SQUARE];
            for (r, line) in square.iter_mut().enumerate() {
                let at = (i + r) * rs + p;
                line.copy_from_slice(&src[at..at + SQUARE]);
            }
            for q in 0..SQUARE {
                let at = (p + q) * panel + i;
                let out = &mut dst[at..at + SQUARE];
                for (o, line) in out.iter_mut().zip(&square) {
                    *o = line[q];
                }
            }
        }
        for r in i..i + SQUARE {
            for p in whole..len {
                dst[p * panel + r] = src[r * rs + p];
            }
        }
        i += SQUARE;
    }
    for r in i..rows {
        for p in 0..len {
            dst[p * panel + r] = src[r * rs + p];
        }
    }
}

#[derive(Clone, Copy)]
enum Right<'a, T> {
    Plain(Mat<'a, T>),
    /// All of B in panels; this piece starts at column `first` of `n`.
    Packed {
        data: &'a [T],
        first: usize,
        n: usize,
    },
}

/// One piece of C, computed by one thread.
struct Piece<'a, T, F> {
    c: Tile<'a, T>,
    extra: Option<Tile<'a, T>>,
    a: Mat<'a, T>,
    b: Right<'a, T>,
    k: usize,
    start: Start,
    /// Room for packed blocks, of [`BLOCK_BYTES`].
    blocks: &'a mut [T],
    /// Place of the piece in the whole C.
    origin: (usize, usize),
    done: &'a F,
}

thread_local! {
    /// Packed blocks of A and B, in the unit of the largest alignment needed.
    static BLOCKS: RefCell<Vec<f64>> = const { RefCell::new(Vec::new()) };
}

/// Bytes of a thread's buffer: the largest blocks of A and B in f64, and panels that stick out.
const BLOCK_BYTES: usize = 8 * BLOCK_DEPTH * (BLOCK_ROWS + BLOCK_COLS + 2 * MAX_PANEL);

/// Calls `f` with this thread's buffer. Vector code starts inside `f`: nothing is inlined through a thread-local.
fn with_blocks<T: Real>(f: impl FnOnce(&mut [T])) {
    BLOCKS.with_borrow_mut(|buffer| {
        buffer.resize(BLOCK_BYTES / 8, 0.0);
        f(bytemuck::cast_slice_mut(buffer));
    });
}

impl<T: Real, F: Fn(usize, usize, &mut [T], Option<&mut [T]>)> WithSimd for Piece<'_, T, F> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // Accumulators fill the registers, less two for B and one for A.
        if S::REGISTER_COUNT >= 32 {
            self.run::<S, MAX_ROWS>(simd);
        } else {
            self.run::<S, 6>(simd);
        }
    }
}

impl<T: Real, F: Fn(usize, usize, &mut [T], Option<&mut [T]>)> Piece<'_, T, F> {
    #[inline(always)]
    fn run<S: Simd, const MR: usize>(mut self, simd: S) {
        let blocks = std::mem::take(&mut self.blocks);
        let (block_a, block_b) = blocks.split_at_mut(BLOCK_DEPTH * (BLOCK_ROWS + MAX_PANEL));
        let panel = 2 * T::lanes::<S>();
        let (n, step) = (self.c.cols(), depth(self.k));
        let width = if matches!(self.b, Right::Plain(_)) { BLOCK_COLS } else { n };
        for j in (0..n).step_by(width) {
            let cols = width.min(n - j);
            // k = 0 still has to write zeros.
            for p in (0..self.k.max(1)).step_by(step) {
                let len = step.min(self.k - p);
                let panels: &[T] = match self.b {
                    Right::Plain(b) => {
                        let block = &mut block_b[..cols.next_multiple_of(panel) * len];
                        pack_right(block, b.at(p, j), cols, len, panel);
                        block
                    }
                    Right::Packed { data, first, n } => {
                        let n = n.next_multiple_of(panel);
                        &data[n * p + first * len..][..cols.next_multiple_of(panel) * len]
                    }
                };
                self.depth_range::<S, MR>(simd, block_a, panels, j..j + cols, p, len);
            }
        }
    }

    /// Adds the products over `p .. p + len` to the columns `cols` of C.
    #[inline(always)]
    fn depth_range<S: Simd, const MR: usize>(
        &mut self,
        simd: S,
        block_a: &mut [T],
        panels: &[T],
        cols: std::ops::Range<usize>,
        p: usize,
        len: usize,
    ) {
        let panel = 2 * T::lanes::<S>();
        let (m, last) = (self.c.rows(), p + len == self.k);
        let mut tile = [T::ZERO; MAX_ROWS * MAX_PANEL];
        let add = p > 0 || self.start == Start::Accumulate;
        for i in (0..m).step_by(BLOCK_ROWS) {
            let rows = BLOCK_ROWS.min(m - i);
            let block = &mut block_a[..rows.next_multiple_of(MR) * len];
            for (r, dst) in block.chunks_exact_mut((MR * len).max(1)).enumerate() {
                let a = self.a.at(i + r * MR, p);
                pack_panel(dst, a.data, a.rs, a.cs, MR.min(rows - r * MR), len, MR);
            }
            for j in (0..cols.len()).step_by(panel) {
                let b = &panels[j * len..][..panel * len];
                for r in (0..rows).step_by(MR) {
                    kernel::<T, S, MR>(simd, &mut tile[..MR * panel], &block[r * len..][..MR * len], b);
                    let c = self.c.block(
                        i + r..i + (r + MR).min(rows),
                        cols.start + j..cols.start + (j + panel).min(cols.len()),
                    );
                    store(c, &tile, panel, add);
                }
            }
            if last {
                for r in i..i + rows {
                    let extra = self.extra.as_mut().map(|e| &mut e.row(r)[cols.clone()]);
                    (self.done)(
                        self.origin.0 + r,
                        self.origin.1 + cols.start,
                        &mut self.c.row(r)[cols.clone()],
                        extra,
                    );
                }
            }
        }
    }
}

/// `tile: [MR, 2 registers]` becomes the product of `a: [len, MR]` and `b: [len, 2 registers]`.
///
/// The accumulators are copied out one by one: were their array's address taken, they would not stay in registers.
#[inline(always)]
fn kernel<T: Real, S: Simd, const MR: usize>(simd: S, tile: &mut [T], a: &[T], b: &[T]) {
    let mut acc = [[T::splat(simd, T::ZERO); 2]; MR];
    let (a, _) = a.as_chunks::<MR>();
    let (b, _) = T::vectors::<S>(b).0.as_chunks::<2>();
    for (a, b) in a.iter().zip(b) {
        for i in 0..MR {
            let x = T::splat(simd, a[i]);
            acc[i][0] = T::fused_mul_add(simd, x, b[0], acc[i][0]);
            acc[i][1] = T::fused_mul_add(simd, x, b[1], acc[i][1]);
        }
    }
    let tile = &mut T::vectors_mut::<S>(tile).0[..2 * MR];
    for i in 0..MR {
        tile[2 * i] = acc[i][0];
        tile[2 * i + 1] = acc[i][1];
    }
}

/// Writes or adds the part of `tile: [.., panel]` that lies inside C.
#[inline(always)]
fn store<T: Real>(mut c: Tile<'_, T>, tile: &[T], panel: usize, add: bool) {
    for (i, tile) in tile.chunks_exact(panel).take(c.rows()).enumerate() {
        let row = c.row(i);
        if add {
            row.iter_mut().zip(tile).for_each(|(c, &x)| *c += x);
        } else {
            row.copy_from_slice(&tile[..row.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: u64) -> Vec<f64> {
        (0..n as u64).map(|i| (((i * 2654435761 + seed * 40503) % 1009) as f64) / 504.0 - 1.0).collect()
    }

    #[test]
    fn products_of_all_strides_and_edges() {
        for (m, n, k) in
            [(1, 1, 1), (3, 5, 7), (14, 32, 9), (29, 67, 400), (185, 33, 129), (7, 530, 800), (2, 3, 0)]
        {
            let (a, b, c0) = (values(m * k, 1), values(k * n, 2), values(m * n, 3));
            for (ta, tb, accumulate) in
                [(false, false, false), (true, false, true), (false, true, true), (true, true, false)]
            {
                let at = |i: usize, p: usize| if ta { a[p * m + i] } else { a[i * k + p] };
                let bt = |p: usize, j: usize| if tb { b[j * k + p] } else { b[p * n + j] };
                let am = if ta { Mat::transposed(&a, m) } else { Mat::rows(&a, k) };
                let bm = if tb { Mat::transposed(&b, k) } else { Mat::rows(&b, n) };
                let start = if accumulate { Start::Accumulate } else { Start::Zero };
                let (mut c, mut pre, mut s) = (c0.clone(), vec![0.0; m * n], c0.clone());
                let mut packed = vec![f64::NAN; workspace(n, k)];
                gemm(
                    Tile::new(&mut c, m, n),
                    Some(Tile::new(&mut pre, m, n)),
                    am,
                    bm,
                    k,
                    start,
                    &mut packed,
                    |i, j, c, e| {
                        for (q, (c, e)) in c.iter_mut().zip(e.unwrap()).enumerate() {
                            *e = *c;
                            *c += (i * n + j + q) as f64;
                        }
                    },
                );
                gemm_serial(Tile::new(&mut s, m, n), am, bm, k, start);
                for i in 0..m {
                    for j in 0..n {
                        let base = if accumulate { c0[i * n + j] } else { 0.0 };
                        let want = base + (0..k).map(|p| at(i, p) * bt(p, j)).sum::<f64>();
                        assert!((pre[i * n + j] - want).abs() < 1e-10, "{m}x{n}x{k} at {i}, {j}");
                        assert!((c[i * n + j] - want - (i * n + j) as f64).abs() < 1e-10);
                        assert_eq!(s[i * n + j], pre[i * n + j]);
                    }
                }
            }
        }
    }
}
