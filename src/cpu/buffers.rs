//! Raw memory of the CPU backend and the typed views of it that ops receive.
//!
//! One of the few files with `unsafe`: the planner proves that the operands of a step do not overlap except where it
//! declares an output in place of an input; this file turns that proof into slices.

use super::real::Real;
use crate::ir::Op;
use crate::tensor::{DType, Shape};
use std::ops::Range;

/// Cache lines, so that every buffer is aligned for any vector load.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Zeroed memory that owns its bytes; addresses handed out stay valid until it is moved or dropped.
pub(super) struct Memory {
    /// From `Box::into_raw`, so that operands' addresses and the slices below share one provenance.
    lines: *mut [Line],
}

// SAFETY: Memory owns its allocation; access follows Rust's borrows of it, and `Io`'s contract for operands.
unsafe impl Send for Memory {}
// SAFETY: as above: `&Memory` only reads.
unsafe impl Sync for Memory {}

impl Default for Memory {
    /// Of no bytes.
    fn default() -> Self {
        Memory { lines: Box::into_raw(Box::<[Line]>::default()) }
    }
}

impl Memory {
    /// None when the system does not grant so many bytes.
    pub fn zeroed(bytes: usize) -> Option<Self> {
        let lines = bytemuck::try_zeroed_vec::<Line>(bytes.div_ceil(size_of::<Line>())).ok()?;
        Some(Memory { lines: Box::into_raw(lines.into_boxed_slice()) })
    }

    /// Length in bytes, a multiple of a cache line.
    pub fn len(&self) -> usize {
        self.lines.len() * size_of::<Line>()
    }

    fn lines(&self) -> &[Line] {
        // SAFETY: the pointer is a live box, and `&self` forbids writers: operands are written only under `&mut`.
        unsafe { &*self.lines }
    }

    fn lines_mut(&mut self) -> &mut [Line] {
        // SAFETY: the pointer is a live box, exclusively borrowed through `self`.
        unsafe { &mut *self.lines }
    }

    /// Goes over to `larger`, with the contents.
    pub fn move_to(&mut self, mut larger: Memory) {
        let kept = self.lines.len().min(larger.lines.len());
        larger.lines_mut()[..kept].copy_from_slice(&self.lines()[..kept]);
        *self = larger;
    }

    pub fn fill(&mut self, byte: u8) {
        self.lines_mut().fill(Line([byte; 64]));
    }

    /// Typed view of a range of bytes, which must be aligned for `E` and inside.
    pub fn slice<E: bytemuck::AnyBitPattern>(&self, range: Range<usize>) -> &[E] {
        bytemuck::cast_slice(&bytemuck::cast_slice::<Line, u8>(self.lines())[range])
    }

    pub fn slice_mut<E: bytemuck::Pod>(&mut self, range: Range<usize>) -> &mut [E] {
        bytemuck::cast_slice_mut(&mut bytemuck::cast_slice_mut::<Line, u8>(self.lines_mut())[range])
    }

    /// The address of an operand; None when it is misaligned or leaves the memory.
    pub fn arg(&self, offset: usize, bytes: usize, shape: Shape, dtype: DType) -> Option<Arg> {
        let inside = offset.checked_add(bytes)? <= self.len();
        let aligned = offset.is_multiple_of(dtype.bytes());
        (inside && aligned).then(|| Arg { ptr: self.lines.cast::<u8>().wrapping_add(offset), shape, dtype })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `Box::into_raw` and is given back once.
        drop(unsafe { Box::from_raw(self.lines) });
    }
}

/// Where one operand lives, resolved when the program is compiled.
#[derive(Clone, Debug)]
pub struct Arg {
    pub(super) ptr: *mut u8,
    pub shape: Shape,
    pub dtype: DType,
}

impl Arg {
    /// An operand of no elements.
    pub(super) fn empty(dtype: DType) -> Self {
        Arg { ptr: std::ptr::without_provenance_mut(64), shape: Shape::from([0]), dtype }
    }
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
    workspace: &'a Arg,
    taken: u64,
    _type: std::marker::PhantomData<T>,
}

impl<'a, T: Real> Io<'a, T> {
    /// # Safety
    /// Every argument must point to live memory of its shape and type, aligned for it, that nothing else accesses while
    /// the result or slices from it live; inputs and outputs overlap only where an output has exactly the address and
    /// length of an input; `workspace` overlaps none of them.
    pub unsafe fn new(op: &'a Op, inputs: &'a [Arg], outputs: &'a [Arg], workspace: &'a Arg) -> Self {
        Io { op, inputs, outputs, workspace, taken: 0, _type: std::marker::PhantomData }
    }

    pub fn op(&self) -> &'a Op {
        self.op
    }
    pub fn input_count(&self) -> usize {
        self.inputs.len()
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
        // SAFETY: `new` promises exclusive, live memory of this size, aligned to at least 64 bytes by the planner; any bit
        // pattern is a valid float, and the mask above hands it out once.
        unsafe { std::slice::from_raw_parts_mut(self.workspace.ptr.cast(), self.workspace.shape.count()) }
    }
}
