//! Raw memory of the CPU backend and the typed views of it that ops receive.
//!
//! One of the few files with `unsafe`: the planner proves that the operands of a step do not overlap except where it
//! declares an output in place of an input; this file turns that proof into slices.

use super::real::Real;
use crate::ir::Op;
use crate::tensor::{DType, Shape};

/// Where one operand lives, resolved when the program is compiled.
#[derive(Clone, Debug)]
pub struct Arg {
    pub(super) ptr: *mut u8,
    pub shape: Shape,
    pub dtype: DType,
}

// SAFETY: an Arg is an address into memory owned by the backend; it is dereferenced only while the backend is
// exclusively borrowed by `run`, through an `Io`.
unsafe impl Send for Arg {}
// SAFETY: as above; sharing the address itself is harmless.
unsafe impl Sync for Arg {}

/// An input that may have been given the same memory as the output.
#[derive(Clone, Copy, Debug)]
pub enum Operand<'a, T> {
    Slice(&'a [T]),
    /// The values are in the output slice already.
    InPlace,
}

/// The operands of one step.
pub struct Io<'a, T> {
    op: &'a Op,
    inputs: &'a [Arg],
    outputs: &'a [Arg],
    workspace: (*mut u8, usize),
    taken: u64,
    _type: std::marker::PhantomData<T>,
}

impl<'a, T: Real> Io<'a, T> {
    /// # Safety
    /// Every argument must point to live memory of its shape and type, aligned for it, that nothing else accesses while
    /// the result or slices from it live; inputs and outputs overlap only where an output has exactly the address and
    /// length of an input; `workspace` (address, bytes) overlaps none of them.
    pub unsafe fn new(
        op: &'a Op,
        inputs: &'a [Arg],
        outputs: &'a [Arg],
        workspace: (*mut u8, usize),
    ) -> Self {
        Io { op, inputs, outputs, workspace, taken: 0, _type: std::marker::PhantomData }
    }

    pub fn op(&self) -> &'a Op {
        self.op
    }
    pub fn input_count(&self) -> usize {
        self.inputs.len()
    }
    pub fn output_count(&self) -> usize {
        self.outputs.len()
    }
    pub fn input_shape(&self, i: usize) -> &'a Shape {
        &self.inputs[i].shape
    }
    pub fn output_shape(&self, o: usize) -> &'a Shape {
        &self.outputs[o].shape
    }

    /// Float input `i`, which must not be in place of an output.
    pub fn input(&self, i: usize) -> &'a [T] {
        let arg = &self.inputs[i];
        assert_eq!(arg.dtype, T::DTYPE, "{}: input {i}", self.op.name());
        assert!(
            !self.outputs.iter().any(|o| o.ptr == arg.ptr && arg.shape.count() > 0),
            "{}: input {i} is in place",
            self.op.name()
        );
        // SAFETY: `new` promises live, aligned memory of this shape and type; it overlaps no output (checked above and
        // promised), so no `&mut` to it exists.
        unsafe { std::slice::from_raw_parts(arg.ptr.cast(), arg.shape.count()) }
    }

    /// Float input `i`, or the note that it is in place of an output.
    pub fn operand(&self, i: usize) -> Operand<'a, T> {
        if self.outputs.iter().any(|o| o.ptr == self.inputs[i].ptr) {
            Operand::InPlace
        } else {
            Operand::Slice(self.input(i))
        }
    }

    /// Index input `i`.
    pub fn index(&self, i: usize) -> &'a [i32] {
        let arg = &self.inputs[i];
        assert_eq!(arg.dtype, DType::I32, "{}: input {i}", self.op.name());
        // SAFETY: as in `input`; no op writes indices.
        unsafe { std::slice::from_raw_parts(arg.ptr.cast(), arg.shape.count()) }
    }

    /// Float output `o`; each can be taken once.
    pub fn output(&mut self, o: usize) -> &'a mut [T] {
        let arg = &self.outputs[o];
        assert_eq!(arg.dtype, T::DTYPE, "{}: output {o}", self.op.name());
        assert!(self.taken & (1 << o) == 0, "{}: output {o} taken twice", self.op.name());
        self.taken |= 1 << o;
        // SAFETY: `new` promises exclusive, live, aligned memory; outputs do not overlap each other, and the mask above
        // hands out each one once.
        unsafe { std::slice::from_raw_parts_mut(arg.ptr.cast(), arg.shape.count()) }
    }

    /// The scratch memory this op asked for; can be taken once.
    pub fn workspace(&mut self) -> &'a mut [T] {
        assert!(self.taken & (1 << 63) == 0, "{}: workspace taken twice", self.op.name());
        self.taken |= 1 << 63;
        let (ptr, bytes) = self.workspace;
        if bytes == 0 {
            return &mut [];
        }
        // SAFETY: `new` promises exclusive, live memory of `bytes` bytes, aligned to at least 64 bytes by the planner; any
        // bit pattern is a valid float.
        unsafe { std::slice::from_raw_parts_mut(ptr.cast(), bytes / size_of::<T>()) }
    }
}
