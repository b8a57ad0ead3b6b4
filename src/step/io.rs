//! What the host writes and reads: named places in the regions.

use crate::error::Result;
use crate::ir::{Binding, Graph, Region, ValueId, ops};
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
pub struct Slots {
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

    /// A new place that `value` is written to, in its accumulator's type.
    pub fn output(&mut self, graph: &mut Graph, name: &str, value: ValueId) -> Result<Binding> {
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
    ) -> Result<Binding> {
        let binding = self.add(name, Region::Outputs, shape);
        let (dtype, wide) = (graph.value(value).dtype, graph.value(value).dtype.accumulator());
        let value = match dtype == wide {
            true => value,
            false => graph.push1(format!("{name}.wide"), ops::Cast { dtype: wide }, &[value])?,
        };
        graph.bind(value, binding);
        Ok(binding)
    }
}

/// The element types of a step's regions.
#[derive(Clone, Copy, Debug)]
pub struct Types {
    /// Activations and the weight matrices that they meet.
    pub compute: DType,
    /// Inputs, outputs, parameters, gradients, moments, state, scalars.
    pub master: DType,
}

impl Types {
    pub fn of(compute: DType) -> Self {
        Types { compute, master: compute.accumulator() }
    }
}
