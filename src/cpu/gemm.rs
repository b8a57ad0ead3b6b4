//! `C[m, n] = A[m, k] B[k, n] (+ C)` with an epilogue on finished rows, by the crate `matrixmultiply`.
//!
//! A and B have any row and column stride; C is row-major. C is cut into pieces by its shape alone; each piece is one
//! single-threaded call of the crate, whose order of additions over k does not depend on the piece, so every element is
//! the same for any number of threads. The crate takes its packing buffers from the allocator and gives them back
//! within the call.
//!
//! One of the few files with `unsafe`: the crate's interface is pointers and strides.

use super::par::Tile;
use super::real::Real;
use super::simd::vectorize;

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
    /// Whether a `[rows, cols]` matrix lies inside the data.
    fn holds(&self, rows: usize, cols: usize) -> bool {
        rows == 0 || cols == 0 || (rows - 1) * self.rs + (cols - 1) * self.cs < self.data.len()
    }
}

/// What C holds before the product is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    Zero,
    /// `C += A B`.
    Accumulate,
}

/// Extents of a product: `[m, k] [k, n]`.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    m: usize,
    k: usize,
    n: usize,
}

/// A number type that the crate multiplies matrices of.
pub trait Product: Sized {
    /// `C = A B + beta C`; strides in elements, rows first.
    ///
    /// # Safety
    /// All elements that extents and strides reach must be valid: A and B to read, C to write (and to read unless `beta` is
    /// 0), and C must not overlap A or B.
    unsafe fn product(
        e: Extent,
        a: (*const Self, [usize; 2]),
        b: (*const Self, [usize; 2]),
        beta: Self,
        c: (*mut Self, usize),
    );
}

macro_rules! product {
    ($t:ty, $gemm:ident) => {
        impl Product for $t {
            unsafe fn product(
                e: Extent,
                a: (*const $t, [usize; 2]),
                b: (*const $t, [usize; 2]),
                beta: $t,
                c: (*mut $t, usize),
            ) {
                let [ra, ca] = a.1.map(|s| s as isize);
                let [rb, cb] = b.1.map(|s| s as isize);
                // SAFETY: the caller's promise is the crate's condition.
                unsafe {
                    matrixmultiply::$gemm(
                        e.m,
                        e.k,
                        e.n,
                        1.0,
                        a.0,
                        ra,
                        ca,
                        b.0,
                        rb,
                        cb,
                        beta,
                        c.0,
                        c.1 as isize,
                        1,
                    )
                }
            }
        }
    };
}

product!(f32, sgemm);
product!(f64, dgemm);

/// Multiplies in all threads. `done(i, j, row, extra)` is called on each finished stretch of a row of C, which begins at
/// element (i, j), with the same stretch of `extra`, while it is in the cache.
pub fn gemm<T: Real>(
    c: Tile<'_, T>,
    extra: Option<Tile<'_, T>>,
    a: Mat<'_, T>,
    b: Mat<'_, T>,
    k: usize,
    start: Start,
    done: impl Fn(usize, usize, &mut [T], Option<&mut [T]>) + Sync,
) {
    let (height, width) = cut(c.rows(), c.cols(), k);
    c.for_grid(extra, height, width, |i, j, mut c, mut extra| {
        serial(&mut c, a.at(i, 0), b.at(0, j), k, start);
        vectorize(
            #[inline(always)]
            || {
                for r in 0..c.rows() {
                    done(i + r, j, c.row(r), extra.as_mut().map(|e| e.row(r)));
                }
            },
        );
    });
}

/// Multiplies in the calling thread.
pub fn gemm_serial<T: Real>(mut c: Tile<'_, T>, a: Mat<'_, T>, b: Mat<'_, T>, k: usize, start: Start) {
    serial(&mut c, a, b, k, start);
}

fn serial<T: Real>(c: &mut Tile<'_, T>, a: Mat<'_, T>, b: Mat<'_, T>, k: usize, start: Start) {
    let e = Extent { m: c.rows(), k, n: c.cols() };
    if e.m == 0 || e.n == 0 {
        return;
    }
    assert!(a.holds(e.m, k) && b.holds(k, e.n), "operands of a {}x{k}x{} product are too short", e.m, e.n);
    let beta = if start == Start::Accumulate { T::ONE } else { T::ZERO };
    let (at, stride) = c.raw();
    // SAFETY: A and B reach only into their slices (checked above); C is an exclusively borrowed tile of m rows of n
    // elements, so it overlaps neither.
    unsafe {
        T::product(e, (a.data.as_ptr(), [a.rs, a.cs]), (b.data.as_ptr(), [b.rs, b.cs]), beta, (at, stride))
    }
}

/// Height and width of the pieces of C that threads take: up to 16, none so small that packing A and B weighs.
fn cut(m: usize, n: usize, k: usize) -> (usize, usize) {
    let pieces = ((m * n * k) >> 20).clamp(1, 16);
    let down = m.div_ceil(192).clamp(1, pieces);
    let across = (pieces / down).clamp(1, n.div_ceil(192));
    (m.div_ceil(down).next_multiple_of(16), n.div_ceil(across).next_multiple_of(32))
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
                gemm(
                    Tile::new(&mut c, m, n),
                    Some(Tile::new(&mut pre, m, n)),
                    am,
                    bm,
                    k,
                    start,
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
