//! What the host writes and reads: named places in the regions.

use crate::ir::{Binding, Graph, Region, ValueId};
use crate::tensor::{DType, Shape};

/// Places start at multiples of this many elements.
const ALIGNMENT: usize = 64;

/// A named tensor in a region that the host reads or writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoSlot {
    pub name: String,
    pub region: Region,
    /// First element.
    pub offset: usize,
    pub shape: Shape,
}

impl IoSlot {
    /// Where it is.
    pub fn binding(&self) -> Binding {
        Binding { region: self.region, offset: self.offset }
    }
}

/// Hands out places, one region after the other.
#[derive(Clone, Debug, Default)]
pub(super) struct Slots {
    pub list: Vec<IoSlot>,
}

impl Slots {
    /// A new place behind all others of `region`.
    pub fn add(&mut self, name: &str, region: Region, shape: impl Into<Shape>) -> Binding {
        let end = self.list.iter().filter(|s| s.region == region).map(|s| s.offset + s.shape.count()).max();
        let offset = end.unwrap_or(0).next_multiple_of(ALIGNMENT);
        self.list.push(IoSlot { name: name.to_owned(), region, offset, shape: shape.into() });
        Binding { region, offset }
    }

    /// A new place that `value` is written to.
    pub fn output(&mut self, graph: &mut Graph, name: &str, value: ValueId) -> Binding {
        let shape = graph.shape(value).clone();
        self.output_shaped(graph, name, value, shape)
    }

    /// [`Slots::output`] shown to the host under another shape of as many elements.
    pub fn output_shaped(
        &mut self,
        graph: &mut Graph,
        name: &str,
        value: ValueId,
        shape: impl Into<Shape>,
    ) -> Binding {
        let binding = self.add(name, Region::Outputs, shape);
        graph.bind(value, binding);
        binding
    }
}

/// The element types of a step's regions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Types {
    /// Inputs and activations.
    pub compute: DType,
    /// Parameters, gradients, moments, state, scalars.
    pub master: DType,
}

impl Types {
    pub fn of(compute: DType) -> Self {
        Types { compute, master: compute.accumulator() }
    }
}
