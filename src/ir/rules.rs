//! What the graph, its passes and the planner ask of an op.

use super::scalar::Scalar;
use crate::error::{Error, Result};
use crate::tensor::{DType, Shape};

/// Dimensions of an op's outputs.
pub type Shapes = Result<Vec<Vec<usize>>>;

/// A set of operand numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots(u64);

impl Slots {
    pub const NONE: Slots = Slots(0);
    pub const ALL: Slots = Slots(u64::MAX);
    /// Operands from here on share one bit: no op tells them apart.
    const LAST: usize = 63;

    /// `first` and all behind it.
    pub const fn from(first: usize) -> Slots {
        Slots(u64::MAX << first)
    }

    pub const fn only(slots: &[usize]) -> Slots {
        let (mut bits, mut i) = (0, 0);
        while i < slots.len() {
            bits |= 1 << slots[i];
            i += 1;
        }
        Slots(bits)
    }

    pub const fn except(self, slots: &[usize]) -> Slots {
        Slots(self.0 & !Slots::only(slots).0)
    }

    pub const fn contains(self, slot: usize) -> bool {
        let bit = if slot < Slots::LAST { slot } else { Slots::LAST };
        self.0 >> bit & 1 == 1
    }
}

/// Which of the two types an operand has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The type that the op computes in: activations, their gradients, weight matrices.
    Element,
    /// Its accumulator's type.
    Wide,
}

/// A function of every element by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    Gelu,
    Relu,
    Relu6,
}

/// What an op is to a function of every element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applies {
    /// Its operand 0 through the function.
    Forward(Activation),
    /// Its operand 0 times the function's slope where the function took operand 1.
    Slope(Activation),
    /// The same, told by what the function gave: operand 1.
    SlopeByOutput(Activation),
}

/// An op on one value that the op computing this value may take over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fusion {
    /// GELU of the first output; the value before it stays the second.
    Gelu,
    /// Times the slope of GELU at one more operand.
    GeluBackward,
    /// Plus one more operand.
    Add,
    /// Layer normalisation of the first output, which stays the first, by gamma and beta; then what it gives.
    Norm { eps: f64 },
    /// The gradient of the layer normalisation whose output's gradient this is: by its x, gamma, mean and rstd.
    NormBackward,
}

/// What is true of an op whatever its operands are.
///
/// A step computes in one element type; sums, statistics, losses and everything that training carries along have its
/// accumulator's type: they are wide.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Facts {
    /// Inputs of the accumulator's type; the others, if they are no indices, have the type that the op computes in.
    pub wide_inputs: Slots,
    /// The same of outputs.
    pub wide_outputs: Slots,
    /// Inputs that may share memory with output 0, since each of their elements is read only to write the same element.
    pub in_place: &'static [usize],
    /// `(input, output)` pairs that are the same memory by definition.
    pub updates: &'static [(usize, usize)],
    /// Outputs that are left unwritten when nothing reads them.
    pub droppable: &'static [usize],
    /// What the op is to the one before it, if that can take it over.
    pub fusion: Option<Fusion>,
    /// What the op is to an activation.
    pub applies: Option<Applies>,
    /// The type that the op itself names for its outputs.
    pub gives: Option<DType>,
    /// The input that may have either type, and gives it to output 0.
    pub follows: Option<usize>,
}

impl Facts {
    /// Of an op with the given wide operands that is never in place and stores all it computes.
    pub const fn new(wide_inputs: Slots, wide_outputs: Slots) -> Facts {
        Facts {
            wide_inputs,
            wide_outputs,
            in_place: &[],
            updates: &[],
            droppable: &[],
            fusion: None,
            applies: None,
            gives: None,
            follows: None,
        }
    }

    pub const fn in_place(self, in_place: &'static [usize]) -> Facts {
        Facts { in_place, ..self }
    }

    pub const fn updates(self, updates: &'static [(usize, usize)]) -> Facts {
        Facts { updates, ..self }
    }

    pub const fn droppable(self, droppable: &'static [usize]) -> Facts {
        Facts { droppable, ..self }
    }

    pub const fn fusion(self, fusion: Fusion) -> Facts {
        Facts { fusion: Some(fusion), ..self }
    }

    pub const fn applies(self, applies: Applies) -> Facts {
        Facts { applies: Some(applies), ..self }
    }

    pub const fn gives(self, dtype: DType) -> Facts {
        Facts { gives: Some(dtype), ..self }
    }

    pub const fn follows(self, input: usize) -> Facts {
        Facts { follows: Some(input), ..self }
    }

    /// Role of input `i`, if it is no index.
    pub fn input_role(&self, i: usize) -> Role {
        if self.wide_inputs.contains(i) { Role::Wide } else { Role::Element }
    }

    /// Role of output `slot`; types that the op itself names are not told here.
    pub fn output_role(&self, slot: usize) -> Role {
        if self.wide_outputs.contains(slot) { Role::Wide } else { Role::Element }
    }
}

/// What an op is to the graph. Its gradient is a [`Gradient`](super::vjp::Gradient).
pub trait Rules {
    fn facts(&self) -> Facts;

    /// Dimensions of the outputs, from operands that fit.
    ///
    /// # Errors
    /// [`Error::Shape`] naming what came and what was expected.
    fn shapes(&self, cx: &Cx<'_>) -> Shapes;

    /// The op that does what this one and then `next` do, of which the extra operand comes last; None if there is none.
    fn fused(&self, _next: Fusion) -> Option<Self>
    where
        Self: Sized,
    {
        None
    }

    /// Of a normalisation, the op that applies `then` to what it normalises, and stores that alone; of its backward op, the
    /// one of both, of which the last operand is the forward's last. None of any other op.
    fn activated(&self, _then: Activation) -> Option<Self>
    where
        Self: Sized,
    {
        None
    }

    /// Multiplications of the op's matrix products, from the shapes of its operands; 0 for an op without one.
    fn products(&self, _inputs: &[&Shape], _outputs: &[&Shape]) -> usize {
        0
    }
}

/// The ops that a graph is made of.
pub trait OpSet: Rules + Clone {
    /// The op's name in dumps and messages.
    fn name(&self) -> &'static str;
}

/// What inference knows of an operand.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    pub shape: &'a Shape,
    pub dtype: DType,
}

/// Edge of a patch in pixels: every encoder gives its patch tokens on this grid.
pub const PATCH: usize = 16;

/// Values of one pixel patch.
pub const PATCH_VALUES: usize = 3 * PATCH * PATCH;

/// The operands of a node under inference, and the name under which it complains.
pub struct Cx<'a> {
    pub path: &'a str,
    pub op: &'static str,
    pub inputs: &'a [Operand<'a>],
}

impl Cx<'_> {
    pub fn err<T>(&self, message: String) -> Result<T> {
        Err(Error::shape(self.path, self.op, message))
    }

    pub fn arity(&self, n: usize) -> Result<()> {
        if self.inputs.len() == n {
            return Ok(());
        }
        self.err(format!("takes {n} operands, got {}", self.inputs.len()))
    }

    pub fn shape(&self, i: usize) -> &Shape {
        self.inputs[i].shape
    }

    pub fn rows_cols(&self, i: usize) -> (usize, usize) {
        self.shape(i).as_matrix()
    }

    /// Operand `i` must hold exactly the elements of a `[rows, cols]` matrix.
    pub fn matrix(&self, i: usize, what: &str, rows: usize, cols: usize) -> Result<()> {
        let (r, c) = self.rows_cols(i);
        if (r, c) == (rows, cols) {
            return Ok(());
        }
        self.err(format!("{what} must be [{rows}, {cols}] as rows, got {}", self.shape(i)))
    }

    pub fn vector(&self, i: usize, what: &str, len: usize) -> Result<()> {
        if self.shape(i).count() == len {
            return Ok(());
        }
        self.err(format!("{what} must have {len} elements, got {}", self.shape(i)))
    }

    pub fn same(&self, i: usize, j: usize) -> Result<()> {
        if self.shape(i) == self.shape(j) {
            return Ok(());
        }
        self.err(format!("operands must have one shape, got {} and {}", self.shape(i), self.shape(j)))
    }

    pub fn image(&self, i: usize) -> Result<(usize, usize, usize)> {
        match *self.shape(i).dims() {
            [b, 3, h, w] if h >= PATCH && w >= PATCH && h % PATCH == 0 && w % PATCH == 0 => {
                Ok((b, h / PATCH, w / PATCH))
            }
            _ => self.err(format!(
                "an image must be [B, 3, H, W] with H and W multiples of {PATCH}, got {}",
                self.shape(i)
            )),
        }
    }

    pub fn index(&self, i: usize) -> Result<(usize, usize)> {
        match (self.inputs[i].dtype, self.shape(i).dims()) {
            (DType::I32, &[b, k]) => Ok((b, k)),
            (t, _) => self.err(format!("an index must be i32 [B, k], got {t} {}", self.shape(i))),
        }
    }

    /// Index operand `i` of distinct positions below `tokens`.
    pub fn kept(&self, i: usize, tokens: usize) -> Result<(usize, usize)> {
        let (b, k) = self.index(i)?;
        if k > tokens {
            return self.err(format!("{k} distinct positions in an image of {tokens} tokens"));
        }
        Ok((b, k))
    }

    pub fn divides(&self, what: &str, whole: usize, part: usize) -> Result<usize> {
        if part > 0 && whole.is_multiple_of(part) {
            return Ok(whole / part);
        }
        self.err(format!("{what}: {whole} is no multiple of {part}"))
    }

    pub fn scalars(&self, i: usize) -> Result<()> {
        self.vector(i, "the scalar block", Scalar::COUNT)
    }

    /// Dimensions of operand `i`.
    pub fn dims(&self, i: usize) -> Vec<usize> {
        self.shape(i).dims().to_vec()
    }

    /// One output like the `n` operands, which have one shape.
    pub fn elementwise(&self, n: usize) -> Shapes {
        self.arity(n)?;
        (1..n).try_for_each(|i| self.same(0, i))?;
        Ok(vec![self.dims(0)])
    }
}
