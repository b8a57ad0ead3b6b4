//! From an op and its operands' addresses to kernel calls.

use super::choices::Choices;
use super::driver::LibraryProduct;
use super::kernel::Call;
use crate::ir::{Op, for_op};
use crate::plan::OperandType;
use crate::tensor::{DType, Shape};

/// An operand on the device; the address is 0 for an output that is not stored.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    pub at: u64,
    pub shape: &'a Shape,
    pub dtype: DType,
}

impl Operand<'_> {
    pub fn count(&self) -> u64 {
        self.shape.count() as u64
    }

    /// Rows and width as a matrix.
    ///
    /// # Errors
    /// More of either than kernels count.
    pub fn rows_width(&self) -> Result<(u32, u32), String> {
        let (rows, width) = self.shape.as_matrix();
        match (u32::try_from(rows), u32::try_from(width)) {
            (Ok(rows), Ok(width)) => Ok((rows, width)),
            _ => Err(format!("takes at most {} rows and columns, not {}", u32::MAX, self.shape)),
        }
    }
}

/// Where an op finds and leaves everything.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a> {
    pub inputs: &'a [Operand<'a>],
    pub outputs: &'a [Operand<'a>],
    /// Memory of [`workspace`] bytes, aligned to 256.
    pub scratch: u64,
    pub choices: &'a Choices,
}

impl Operands<'_> {
    /// The kernels' `T`: bf16 if any operand is, else f32.
    pub fn element(&self) -> DType {
        let bf16 = self.inputs.iter().chain(self.outputs).any(|o| o.dtype == DType::Bf16);
        if bf16 { DType::Bf16 } else { DType::F32 }
    }
}

/// Calls that compute an op, or why there are none.
pub type Lowered = Result<Vec<Call>, String>;

/// An op that the device computes.
pub trait Lower {
    /// Bytes of scratch memory that [`Lower::lower`]'s calls need.
    fn workspace(&self, inputs: &[OperandType<'_>], outputs: &[OperandType<'_>]) -> usize;

    /// Calls that compute the op; [`Call::bf16`] is the caller's to set.
    ///
    /// # Errors
    /// Why there are none.
    fn lower(&self, o: &Operands<'_>) -> Lowered;

    /// The plain product that the op is, without its bias and what follows it, for a library to be measured at; None for any
    /// other op.
    fn product(&self, _inputs: &[Operand<'_>], _outputs: &[Operand<'_>]) -> Option<LibraryProduct> {
        None
    }
}

impl Lower for Op {
    fn workspace(&self, inputs: &[OperandType<'_>], outputs: &[OperandType<'_>]) -> usize {
        for_op!(self, o => o.workspace(inputs, outputs))
    }

    fn lower(&self, operands: &Operands<'_>) -> Lowered {
        for_op!(self, o => o.lower(operands))
    }

    fn product(&self, inputs: &[Operand<'_>], outputs: &[Operand<'_>]) -> Option<LibraryProduct> {
        for_op!(self, o => o.product(inputs, outputs))
    }
}
