//! What an op is on the CPU.

use super::buffers::Io;
use super::real::Real;
use crate::ir::{Op, for_op};
use crate::tensor::Shape;

/// An op that computes in `T`. Shapes have passed inference; operands that do not fit their shapes panic.
pub trait Kernel<T: Real> {
    /// Elements of scratch memory on up to `threads` threads.
    fn workspace(&self, inputs: &[&Shape], outputs: &[&Shape], threads: usize) -> usize;

    /// Computes the outputs of `io` from its inputs. Allocates nothing beyond one packing buffer per thread, the first time
    /// that thread multiplies.
    fn execute(&self, io: &mut Io<'_, T>);
}

pub(super) fn rows(shape: &Shape) -> usize {
    shape.as_matrix().0
}

pub(super) fn cols(shape: &Shape) -> usize {
    shape.as_matrix().1
}

/// Bytes of scratch memory that [`execute`] needs for `op` on up to `threads` threads.
pub fn workspace<T: Real>(op: &Op, inputs: &[&Shape], outputs: &[&Shape], threads: usize) -> usize {
    let elements = for_op!(op, o => Kernel::<T>::workspace(o, inputs, outputs, threads));
    elements * size_of::<T>()
}

/// Computes the outputs of `io` from its inputs, as [`Kernel::execute`] does.
pub fn execute<T: Real>(io: &mut Io<'_, T>) {
    for_op!(io.op(), o => o.execute(io))
}
