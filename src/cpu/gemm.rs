//! `C[m, n] = A[m, k] B[k, n] (+ C)` with an epilogue on finished pieces of C.
//!
//! A and B have any row and column stride; C is row-major. C is cut into pieces by its shape only; the crate `gemm`
//! multiplies every piece in one thread, so every element is the same for any number of threads. The epilogue follows
//! on the piece while it is in the cache.
//!
//! `gemm` 0.19 is well kept (faer's author) and was the fastest of the candidates on one AVX-512 core, f32, in GFLOP/s
//! for 1032x768x192, 2064x512x2048, 512x2048x2064 and 200x32x200: `gemm` 181, 180, 161, 162 (its feature `x86-v4` on);
//! `private-gemm-x86` 162, 162, 124, 167; `matrixmultiply` 155, 144, 131, 112. It packs into a buffer that it allocates
//! per call, at most a few MiB per thread, which no plan counts.
//!
//! One of the few files with `unsafe`: the crate takes pointers.

use gemm::Parallelism;

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
    /// Whether all of `[rows, cols]` lies in the slice.
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

/// Called with row and column of a finished piece of C, the piece, and the same piece of the extra matrix.
pub type Epilogue<'a, T> = &'a (dyn Fn(usize, usize, Tile<'_, T>, Option<Tile<'_, T>>) + Sync);

/// Multiplies with all threads, then calls `done` once for every piece of C, with the same piece of `extra`.
pub fn gemm_then<T: Real>(
    c: Tile<'_, T>,
    extra: Option<Tile<'_, T>>,
    a: Mat<'_, T>,
    b: Mat<'_, T>,
    k: usize,
    start: Start,
    done: Epilogue<'_, T>,
) {
    let (height, width) = cut(c.rows(), c.cols(), k);
    c.for_grid(extra, height, width, |i, j, mut c, extra| {
        let (rows, cols) = (c.rows(), c.cols());
        gemm_serial(c.block(0..rows, 0..cols), a.at(i, 0), b.at(0, j), k, start);
        done(i, j, c, extra);
    });
}

/// Multiplies with all threads.
pub fn gemm<T: Real>(c: Tile<'_, T>, a: Mat<'_, T>, b: Mat<'_, T>, k: usize, start: Start) {
    gemm_then(c, None, a, b, k, start, &|_, _, _, _| {});
}

/// Multiplies in the calling thread.
pub fn gemm_serial<T: Real>(mut c: Tile<'_, T>, a: Mat<'_, T>, b: Mat<'_, T>, k: usize, start: Start) {
    let (m, n) = (c.rows(), c.cols());
    if m == 0 || n == 0 {
        return;
    }
    assert!(a.holds(m, k) && b.holds(k, n), "an operand of a matrix product is too short");
    let stride = |s: usize| s as isize;
    let (dst, row) = c.as_mut_ptr();
    // SAFETY: `dst` is the first element of m rows of n elements, `row` elements apart, that `c` borrows exclusively. The
    // elements of A and B that are read lie in their slices, as just checked. No slice is longer than isize::MAX bytes,
    // so strides fit.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst,
            1,
            stride(row),
            start == Start::Accumulate,
            a.data.as_ptr(),
            stride(a.cs),
            stride(a.rs),
            b.data.as_ptr(),
            stride(b.cs),
            stride(b.rs),
            T::ONE,
            T::ONE,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// Longest side of a piece: longer ones gain nothing, and at 512 a piece's epilogue still finds it in the L2 cache.
const LONGEST: usize = 512;
/// Pieces that keep cores busy, if each multiplies at least [`LEAST`] numbers.
const PIECES: usize = 8;
const LEAST: usize = 1 << 20;

/// Height and width of the pieces of C that threads take.
fn cut(m: usize, n: usize, k: usize) -> (usize, usize) {
    let (mut down, mut across) = (m.div_ceil(LONGEST).max(1), n.div_ceil(LONGEST).max(1));
    // An even number does not leave one of two cores idle at the end.
    while (down * across < PIECES || down * across % 2 == 1) && m * n * k / (down * across) >= 2 * LEAST {
        // Packing costs least for square pieces.
        if m / down >= n / across { down += 1 } else { across += 1 }
    }
    // Whole registers.
    (m.div_ceil(down).next_multiple_of(16), n.div_ceil(across).next_multiple_of(16))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: u64) -> Vec<f64> {
        (0..n as u64).map(|i| (((i * 2654435761 + seed * 40503) % 1009) as f64) / 504.0 - 1.0).collect()
    }

    #[test]
    fn products_of_all_strides_and_edges() {
        for (m, n, k) in [
            (1, 1, 1),
            (3, 5, 7),
            (14, 32, 9),
            (29, 67, 400),
            (185, 33, 129),
            (7, 530, 800),
            (530, 600, 20),
            (2, 3, 0),
        ] {
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
                gemm_then(
                    Tile::new(&mut c, m, n),
                    Some(Tile::new(&mut pre, m, n)),
                    am,
                    bm,
                    k,
                    start,
                    &|i, j, mut c, e| {
                        let mut e = e.unwrap();
                        for r in 0..c.rows() {
                            for (q, (c, e)) in c.row(r).iter_mut().zip(e.row(r)).enumerate() {
                                *e = *c;
                                *c += ((i + r) * n + j + q) as f64;
                            }
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
                        assert!((s[i * n + j] - want).abs() < 1e-10);
                    }
                }
            }
        }
    }
}
