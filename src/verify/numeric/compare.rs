//! One gradient against central differences.

use crate::backend::Backend;
use crate::data::rng::{Purpose, StreamRng, stream};
use crate::error::{Error, Result};
use crate::ir::{Graph, Op};
use crate::tensor::DType;
use rand_distr::{Distribution, StandardNormal};
use serde::Serialize;

/// Length of the step along a direction, as a share of the length of what it changes.
const STEP: f64 = 1e-5;
/// Shorter steps, as shares of that one, for a direction in which it disagrees: where a ReLU6 has its kink between the two
/// ends the difference is no derivative, and the shorter the step the fewer kinks lie there. A wrong gradient disagrees at
/// every length.
const SHORTER: [f64; 3] = [1.0 / 16.0, 1.0 / 256.0, 1.0 / 4096.0];
/// Largest error in f64 that passes: the differences' own, of rounding and of third derivatives, is below.
pub(super) const F64_BOUND: f64 = 1e-6;
/// Gradients shorter than this share of all of them together are zero but for rounding.
const FLOOR: f64 = 1e-2;

/// A way to open a device.
pub type Open<'a> = &'a dyn Fn() -> Result<Box<dyn Backend>>;

/// Two ways to the same numbers.
#[derive(Clone, Copy)]
pub struct Backends<'a> {
    /// Computes losses for the differences, in f64.
    pub reference: Open<'a>,
    /// Computes the gradients.
    pub device: Open<'a>,
}

/// One gradient along one direction.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    /// `step`, or the op by its name and the shapes of its operands.
    pub of: String,
    /// The parameter, or the operand.
    pub with_respect_to: String,
    /// The derivative by the gradient, and by central differences.
    pub gradient: f64,
    pub difference: f64,
    /// Of the two, relative to the length of the gradient.
    pub error: f64,
    /// Largest error that passes.
    pub bound: f64,
}

impl Check {
    /// Whether the error is within its bound; NaN never is.
    pub fn passed(&self) -> bool {
        self.error <= self.bound
    }

    /// The error in units of the bound; infinite when it is no number.
    pub(super) fn excess(&self) -> f64 {
        let excess = self.error / self.bound;
        if excess.is_nan() { f64::INFINITY } else { excess }
    }
}

/// How far a correct gradient in `dtype` may be from the exact one, relative to its length: every stored value is off by half
/// a unit in the last place times `8 + 4 sqrt(k)`, for its sum of `k` terms and what is around it, independently of the
/// `n` before it in a row, whose longest chain counts (by `sqrt(n)`); batch normalisation enlarges that where a channel
/// varies little around its mean. In f64 the differences' own error is all that there is.
pub(super) fn bound(graph: &Graph, dtype: DType) -> f64 {
    if dtype == DType::F64 {
        return F64_BOUND;
    }
    let mut chain = vec![0u32; graph.values.len()];
    let mut terms = 1;
    for node in &graph.nodes {
        let longest = node.inputs.iter().map(|i| chain[i.index()]).max().unwrap_or(0);
        node.outputs.iter().for_each(|o| chain[o.index()] = longest + 1);
        let longest_side = |i: &crate::ir::ValueId| graph.shape(*i).dims().iter().copied().max().unwrap_or(1);
        terms = node.inputs.iter().map(longest_side).max().unwrap_or(1).max(terms);
    }
    let longest = f64::from(chain.into_iter().max().unwrap_or(0));
    let enlarged = if graph.nodes.iter().any(|n| matches!(n.op, Op::BatchNorm(_))) { 8.0 } else { 1.0 };
    let half_unit = f64::from(f32::EPSILON) / 2.0;
    longest.sqrt() * (8.0 + 4.0 * (terms as f64).sqrt()) * half_unit * enlarged
}

/// Random numbers of one purpose, told apart by a name.
pub(super) fn numbers(name: &str) -> StreamRng {
    stream(u64::from(crc32c::crc32c(name.as_bytes())), 0, 0, Purpose::Synth)
}

pub(super) fn normal(rng: &mut StreamRng, n: usize) -> Vec<f64> {
    // As f32 has them, so that every precision starts from the same numbers.
    (0..n)
        .map(|_| {
            let x: f64 = StandardNormal.sample(rng);
            f64::from(x as f32)
        })
        .collect()
}

pub(super) fn norm(values: &[f64]) -> f64 {
    values.iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// Unit directions for a tensor whose gradient is said to be `gradient`: one by chance alone, and one by chance that leans on
/// the gradient, along which there is something to measure however many elements there are.
fn directions(rng: &mut StreamRng, gradient: &[f64]) -> [Vec<f64>; 2] {
    let unit = |mut v: Vec<f64>| {
        let length = norm(&v).max(f64::MIN_POSITIVE);
        v.iter_mut().for_each(|x| *x /= length);
        v
    };
    let chance = unit(normal(rng, gradient.len()));
    let length = norm(gradient);
    if !(length > 0.0 && length.is_finite()) {
        return [chance, unit(normal(rng, gradient.len()))];
    }
    let leaning =
        unit(normal(rng, gradient.len())).iter().zip(gradient).map(|(c, g)| c + g / length).collect();
    [chance, unit(leaning)]
}

/// What a gradient is of, for the table.
pub(super) struct Subject<'a> {
    pub of: &'a str,
    pub with_respect_to: &'a str,
    /// Length of the gradients beside it.
    pub all: f64,
    pub bound: f64,
}

/// Compares `gradient` at `at` with central differences of `loss`.
pub(super) fn compare(
    subject: &Subject<'_>,
    at: &[f64],
    gradient: &[f64],
    mut loss: impl FnMut(&[f64]) -> Result<f64>,
) -> Result<Vec<Check>> {
    if at.len() != gradient.len() {
        let message = format!("`{}` has a gradient of another size", subject.with_respect_to);
        return Err(Error::invariant("differentiation", message));
    }
    let mut rng = numbers(&format!("{}/{}", subject.of, subject.with_respect_to));
    let scale = norm(gradient).max(FLOOR * subject.all).max(f64::MIN_POSITIVE);
    let h = STEP * (norm(at) + 1.0);
    let mut checks = Vec::new();
    for direction in directions(&mut rng, gradient) {
        let mut along = |h: f64| loss(&at.iter().zip(&direction).map(|(x, d)| x + h * d).collect::<Vec<_>>());
        let by_gradient: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
        let mut at_length = |h: f64| {
            let difference = (along(h)? - along(-h)?) / (2.0 * h);
            Ok::<_, Error>((difference, (by_gradient - difference).abs() / scale))
        };
        let (mut difference, mut error) = at_length(h)?;
        for share in SHORTER {
            if error <= subject.bound {
                break;
            }
            let shorter = at_length(share * h)?;
            if shorter.1 < error {
                (difference, error) = shorter;
            }
        }
        checks.push(Check {
            of: subject.of.to_owned(),
            with_respect_to: subject.with_respect_to.to_owned(),
            gradient: by_gradient,
            difference,
            error,
            bound: subject.bound,
        });
    }
    Ok(checks)
}
