//! Tolerances and central differences.

use super::tensor::{Gen, Input, Tensor};

/// Roundoff of f32 and f64 (half an ulp of 1).
pub const EPS_F32: f64 = 5.96e-8;
pub const EPS_F64: f64 = 1.11e-16;

/// How exactly an op is computed.
#[derive(Clone, Copy, Debug)]
pub struct Precision {
    /// Roundoff of sums.
    pub sums: f64,
    /// What storing in a narrower type adds, relative to the sum of magnitudes; 0 where the types are one.
    pub stored: f64,
}

impl Precision {
    pub const F32: Precision = Precision { sums: EPS_F32, stored: 0.0 };
    pub const F64: Precision = Precision { sums: EPS_F64, stored: 0.0 };
    /// Sums in f32; outputs, and up to two factors of every product on the way, rounded to bf16 (half an ulp: 2^-9).
    pub const BF16: Precision = Precision { sums: EPS_F32, stored: 3.0 / 512.0 };
}

/// Probabilistic bound on the growth of roundoff in a sum of `k` terms (Higham and Mary 2019: `lambda sqrt(k) eps` times
/// the sum of magnitudes), with room for the handful of operations around the sum.
pub fn growth(k: usize) -> f64 {
    8.0 + 4.0 * (k as f64).sqrt()
}

/// Elements that a message shows.
const SHOWN: usize = 4;

/// Whether every element of `got` is as near to `want` as `tolerance` allows; NaN never is. Names the first that are not,
/// and the worst.
pub fn compare(got: &[f64], want: &Tensor, tolerance: &Tensor) -> Result<(), String> {
    if got.len() != want.data.len() {
        return Err(format!("{} elements instead of {}", got.len(), want.data.len()));
    }
    let error = |i: usize| (got[i] - want.data[i]).abs();
    let within = |i: &usize| error(*i) <= tolerance.data[*i];
    let bad: Vec<usize> = (0..got.len()).filter(|i| !within(i)).collect();
    let excess = |i: usize| {
        let e = error(i);
        if e.is_nan() { f64::INFINITY } else { e / tolerance.data[i].max(1e-300) }
    };
    let Some(worst) = bad.iter().copied().reduce(|a, b| if excess(b) > excess(a) { b } else { a }) else {
        return Ok(());
    };
    let mut message = format!("{} of {:?} elements off", bad.len(), want.shape);
    let first = bad.iter().take(SHOWN).map(|i| ("at", *i));
    for (what, i) in first.chain(std::iter::once(("worst at", worst))) {
        let (g, w, tolerance) = (got[i], want.data[i], tolerance.data[i]);
        message += &format!("; {what} {i} {g:e}, expected {w:e} within {tolerance:.1e}");
    }
    Err(message)
}

/// The derivative of a scalar function along a direction in one of its inputs.
pub struct Probe {
    /// Position in `wrt`.
    pub slot: usize,
    /// Nonzero coordinates of the direction; it has unit length.
    pub direction: Vec<(usize, f64)>,
    pub derivative: f64,
}

/// Coordinates probed one by one in a tensor with more elements than this are a random sample.
const COORDINATES: usize = 40;
/// Directions through all coordinates of such a tensor.
const DIRECTIONS: usize = 4;

/// Central differences of `f` at `at` in the inputs `wrt`, by the five-point stencil.
///
/// A small tensor is probed at every coordinate, a large one at a sample and along random directions through all of it.
pub fn probes(name: &str, at: &[Input], wrt: &[usize], mut f: impl FnMut(&[Input]) -> f64) -> Vec<Probe> {
    let mut rng = Gen::new(name);
    let mut x = at.to_vec();
    let mut out = Vec::new();
    for (slot, &input) in wrt.iter().enumerate() {
        let n = at[input].float().data.len();
        let mut directions: Vec<Vec<(usize, f64)>> = if n <= COORDINATES {
            (0..n).map(|i| vec![(i, 1.0)]).collect()
        } else {
            (0..COORDINATES).map(|_| vec![(rng.below(n), 1.0)]).collect()
        };
        if n > 1 {
            directions.extend((0..DIRECTIONS).map(|_| {
                let raw: Vec<f64> = (0..n).map(|_| rng.gauss()).collect();
                let norm = raw.iter().map(|v| v * v).sum::<f64>().sqrt();
                raw.iter().map(|v| v / norm).enumerate().collect()
            }));
        }
        for direction in directions {
            let mut along = |h: f64| {
                for &(i, u) in &direction {
                    x[input].float_mut().data[i] = at[input].float().data[i] + h * u;
                }
                let y = f(&x);
                for &(i, _) in &direction {
                    x[input].float_mut().data[i] = at[input].float().data[i];
                }
                y
            };
            let h = 1e-3;
            let derivative = (8.0 * (along(h) - along(-h)) - (along(2.0 * h) - along(-2.0 * h))) / (12.0 * h);
            out.push(Probe { slot, direction, derivative });
        }
    }
    out
}

/// Compares gradients (one per entry of `wrt`) with probes. Tolerances, per gradient: relative to the largest derivative
/// of the same tensor, and absolute.
pub fn compare_gradients(
    got: &[Vec<f64>],
    probes: &[Probe],
    tolerances: &[(f64, f64)],
) -> Result<(), String> {
    for ((slot, g), &(relative, absolute)) in got.iter().enumerate().zip(tolerances) {
        let mine = || probes.iter().filter(move |p| p.slot == slot);
        let scale = mine().fold(0.0f64, |m, p| m.max(p.derivative.abs()));
        if let Some(i) = g.iter().position(|v| !v.is_finite()) {
            return Err(format!("gradient {slot} is {} at {i}", g[i]));
        }
        for p in mine() {
            let along: f64 = p.direction.iter().map(|&(i, u)| g[i] * u).sum();
            let error = (along - p.derivative).abs();
            let within = error <= relative * scale + absolute;
            if !within {
                let place = match p.direction[..] {
                    [(i, _)] => format!("at {i}"),
                    _ => "along a random direction".into(),
                };
                return Err(format!(
                    "gradient {slot} {place}: {along:e}, central difference {:e}, error {error:.1e} (largest {scale:.1e})",
                    p.derivative
                ));
            }
        }
    }
    Ok(())
}
