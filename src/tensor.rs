//! Shapes and element types; no data.

use std::fmt;

/// Element type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    Bf16,
    F32,
    F64,
    /// Row positions and other indices.
    I32,
}

impl DType {
    /// Size of one element in bytes.
    pub const fn bytes(self) -> usize {
        match self {
            DType::Bf16 => 2,
            DType::F32 | DType::I32 => 4,
            DType::F64 => 8,
        }
    }

    /// The type in which sums, statistics and losses of values of this type are kept.
    pub const fn accumulator(self) -> DType {
        match self {
            DType::Bf16 | DType::F32 => DType::F32,
            DType::F64 => DType::F64,
            DType::I32 => DType::I32,
        }
    }

    pub const fn is_float(self) -> bool {
        !matches!(self, DType::I32)
    }

    pub const fn name(self) -> &'static str {
        match self {
            DType::Bf16 => "bf16",
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::I32 => "i32",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Extents of a dense row-major tensor, outermost first. `[]` is a scalar.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Shape(Vec<usize>);

impl Shape {
    pub fn new(dims: impl Into<Vec<usize>>) -> Self {
        Shape(dims.into())
    }

    pub fn dims(&self) -> &[usize] {
        &self.0
    }

    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// Number of elements.
    pub fn count(&self) -> usize {
        self.0.iter().product()
    }

    /// The tensor seen as a matrix `[rows, last dimension]`; a scalar is `[1, 1]`.
    pub fn as_matrix(&self) -> (usize, usize) {
        match self.0.split_last() {
            Some((&cols, rest)) => (rest.iter().product(), cols),
            None => (1, 1),
        }
    }

    /// A weight seen as a matrix `[first dimension, everything else]`: linear `[N, K]`, convolution `[O, C * k * k]`.
    pub fn as_weight(&self) -> (usize, usize) {
        match self.0.split_first() {
            Some((&rows, rest)) => (rows, rest.iter().product()),
            None => (1, 1),
        }
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(dims: [usize; N]) -> Self {
        Shape(dims.to_vec())
    }
}

impl From<&[usize]> for Shape {
    fn from(dims: &[usize]) -> Self {
        Shape(dims.to_vec())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, d) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{d}")?;
        }
        f.write_str("]")
    }
}

/// A named tensor of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    pub name: &'static str,
    pub shape: Shape,
    /// [`DType::F32`] or [`DType::I32`].
    pub dtype: DType,
    /// The dimension of `shape` that counts images; those before it count views.
    pub images: usize,
}

impl TensorSpec {
    /// `[B, ...]`, or with views `[V, B, ...]`: `images` is the dimension of B.
    pub fn new(name: &'static str, dtype: DType, images: usize, shape: impl Into<Shape>) -> Self {
        TensorSpec { name, shape: shape.into(), dtype, images }
    }

    /// How many views of each image there are.
    pub fn views(&self) -> usize {
        self.shape.dims()[..self.images].iter().product()
    }

    /// Elements of one view of one image.
    pub fn part(&self) -> usize {
        self.shape.dims()[self.images + 1..].iter().product()
    }
}
