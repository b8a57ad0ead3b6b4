//! Feature vectors with their labels, and exact distances between them.

use pulp::Arch;
use rayon::prelude::*;

use crate::error::{Error, Result};

/// Feature vectors of n labelled images.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Features {
    /// `[n, dim]`, row-major.
    pub values: Vec<f32>,
    pub dim: usize,
    /// Who (or which class) is on each image; length n.
    pub identities: Vec<i64>,
    /// Which camera took each image; length n.
    pub cameras: Vec<i64>,
}

impl Features {
    /// The number of images n.
    pub fn len(&self) -> usize {
        self.identities.len()
    }

    pub fn is_empty(&self) -> bool {
        self.identities.is_empty()
    }

    /// The vector of image `row`.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.dim..(row + 1) * self.dim]
    }

    /// Checks lengths and values; `what` ("query", "gallery") names the set in the message.
    pub fn check(&self, what: &str) -> Result<()> {
        let n = self.len();
        if n == 0 {
            return Err(Error::usage(format!(
                "the {what} features are empty: metrics need at least one image"
            )));
        }
        if self.dim == 0 || n.checked_mul(self.dim) != Some(self.values.len()) || self.cameras.len() != n {
            return Err(Error::usage(format!(
                "the {what} features do not fit together: {} values of dimension {}, {n} identities, {} cameras",
                self.values.len(),
                self.dim,
                self.cameras.len()
            )));
        }
        if let Some(at) = self.values.iter().position(|v| !v.is_finite()) {
            return Err(Error::usage(format!(
                "the {what} feature of image {} (identity {}) holds {} at position {}; features must be finite: \
                 the encoder's weights are probably damaged or its training diverged",
                at / self.dim,
                self.identities[at / self.dim],
                self.values[at],
                at % self.dim
            )));
        }
        Ok(())
    }

    /// The vectors divided by their L2 norms, `[n, dim]`. A zero vector stays zero, as with torch's `normalize`.
    pub(crate) fn normalized(&self) -> Vec<f32> {
        let mut values = self.values.clone();
        values.par_chunks_mut(self.dim).for_each(normalize);
        values
    }
}

/// Checks both sets, and that they belong together.
pub(crate) fn check_pair(a: (&Features, &str), b: (&Features, &str)) -> Result<()> {
    a.0.check(a.1)?;
    b.0.check(b.1)?;
    if a.0.dim != b.0.dim {
        return Err(Error::usage(format!(
            "the {} features have dimension {}, the {} features {}: both must come from the same encoder",
            a.1, a.0.dim, b.1, b.0.dim
        )));
    }
    Ok(())
}

/// Divides `row` by its L2 norm.
pub(crate) fn normalize(row: &mut [f32]) {
    let norm = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    if norm > 0.0 {
        row.iter_mut().for_each(|v| *v = (f64::from(*v) / norm) as f32);
    }
}

/// `out[q * n + g]` becomes the sum over the dimensions of `term(a, b)` for row q of `queries` and row g of `gallery`
/// (`[n, dim]`), in f64 and in one fixed order of additions: equal rows give equal sums wherever they stand, which
/// makes ties exact, and every machine gives the same result.
pub(crate) fn pairwise(
    queries: &[f32],
    gallery: &[f32],
    dim: usize,
    out: &mut [f64],
    term: impl Fn(f64, f64) -> f64 + Copy,
) {
    let n = gallery.len() / dim;
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for (g, b) in gallery.chunks_exact(dim).enumerate() {
                for (q, a) in queries.chunks_exact(dim).enumerate() {
                    out[q * n + g] = accumulate(a, b, term);
                }
            }
        },
    );
}

/// Sixteen partial sums: enough independent additions to hide their latency.
const LANES: usize = 16;

#[inline(always)]
fn accumulate(a: &[f32], b: &[f32], term: impl Fn(f64, f64) -> f64) -> f64 {
    let mut sums = [0f64; LANES];
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let (b_blocks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for lane in 0..LANES {
            sums[lane] += term(f64::from(a[lane]), f64::from(b[lane]));
        }
    }
    for (sum, (a, b)) in sums.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *sum += term(f64::from(*a), f64::from(*b));
    }
    sums.iter().sum()
}

pub(crate) fn squared_difference(a: f64, b: f64) -> f64 {
    (a - b) * (a - b)
}

/// Queries compared with the gallery at once, so that each gallery row is fetched once for all of them.
pub(crate) const QUERY_BLOCK: usize = 8;
