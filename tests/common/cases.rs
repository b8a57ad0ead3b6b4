//! The one table of op cases: `cases(kind)` has an arm for every op, so that an op without a case does not compile.

mod derivatives;
mod maps;
mod mixup;
mod table;
mod tolerance;

use super::check::{Precision, Probe, probes};
use super::reference::forward;
use super::tensor::{Input, Tensor};
use saip_engine::ir::{Op, OpKind};

pub use maps::equal_values;
pub use table::cases;

/// One op at one set of shapes.
pub struct Case {
    pub name: String,
    pub op: Op,
    pub inputs: Vec<Input>,
    pub expected: Expected,
}

/// What the outputs are held against.
pub enum Expected {
    /// The reference of the op itself.
    Reference,
    /// Central differences of another op's reference.
    Derivative(Derivative),
}

pub type Function = Box<dyn Fn(&[Input]) -> Vec<Tensor>>;

/// The vector-Jacobian product that a backward op computes.
pub struct Derivative {
    pub forward: Function,
    pub at: Vec<Input>,
    /// Cotangents of the first outputs of `forward`.
    pub cotangents: Vec<Tensor>,
    /// Output `i` of the op is the derivative in `at[wrt[i]]`.
    pub wrt: Vec<usize>,
    /// Added to the op's first output.
    pub plus: Option<Tensor>,
    /// Size of the op's largest partial derivatives, before they cancel.
    pub slope: f64,
}

impl Derivative {
    /// `<cotangents, forward(x)>`.
    fn functional(&self, x: &[Input]) -> f64 {
        (self.forward)(x).iter().zip(&self.cotangents).map(|(y, c)| y.dot(c)).sum()
    }

    pub fn probes(&self, name: &str) -> Vec<Probe> {
        probes(name, &self.at, &self.wrt, |x| self.functional(x))
    }

    /// Natural size of a derivative, for gradients that are 0 but for rounding.
    pub fn magnitude(&self) -> f64 {
        self.slope * self.cotangents.iter().fold(0.0f64, |m, c| m.max(c.max_abs()))
    }
}

impl Case {
    pub fn new(name: impl Into<String>, op: impl Into<Op>, inputs: Vec<Input>) -> Self {
        Case { name: name.into(), op: op.into(), inputs, expected: Expected::Reference }
    }

    pub fn kind(&self) -> OpKind {
        self.op.kind()
    }

    /// The reference's outputs and, per element, how far a computation may be from them.
    pub fn reference(&self, precision: Precision) -> Vec<(Tensor, Tensor)> {
        let outputs = forward(&self.op, &self.inputs);
        let tolerances = tolerance::tolerances(&self.op, &self.inputs, &outputs, precision);
        outputs.into_iter().zip(tolerances).collect()
    }

    /// The part of the error of output `slot` that storing makes.
    pub fn stored(&self, slot: usize, precision: Precision) -> f64 {
        tolerance::stored(&self.op, slot, precision)
    }

    /// Longest sum inside the op.
    pub fn longest_sum(&self) -> usize {
        tolerance::longest_sum(&self.op, &self.inputs)
    }
}
