//! Values, nodes, and the graph that owns them.

use super::infer::infer;
use super::rules::{OpSet, Operand};
use crate::error::{Error, Result};
use crate::tensor::{DType, Shape};

/// A value of the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub u32);

/// A node of the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

impl ValueId {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl NodeId {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A flat buffer that outlives a step. Each holds elements of one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Region {
    /// The student's parameters, in registry order.
    Params,
    /// Gradients of one step, laid out as `Params`.
    Grads,
    /// Gradients of one micro step, laid out as `Params`; present with gradient accumulation only.
    MicroGrads,
    /// First moments, laid out as `Params`.
    Moment1,
    /// Second moments, laid out as `Params`.
    Moment2,
    /// The expert's parameters.
    Expert,
    /// Running statistics of the student's batch normalisations, in the order of their own registry.
    Buffers,
    /// The expert's.
    ExpertBuffers,
    /// The student's weight matrices in the type that the step computes in, laid out as `Params`; present where that type
    /// is narrower.
    Weights,
    /// The expert's, laid out as `Expert`.
    ExpertWeights,
    /// Other state that training carries along (the center).
    State,
    /// What the host writes before a step.
    Inputs,
    /// Index inputs.
    Indices,
    /// The scalar block.
    Scalars,
    /// What the host reads after a step.
    Outputs,
}

impl Region {
    pub const ALL: [Region; 15] = [
        Region::Params,
        Region::Grads,
        Region::MicroGrads,
        Region::Moment1,
        Region::Moment2,
        Region::Expert,
        Region::Buffers,
        Region::ExpertBuffers,
        Region::Weights,
        Region::ExpertWeights,
        Region::State,
        Region::Inputs,
        Region::Indices,
        Region::Scalars,
        Region::Outputs,
    ];

    /// Where a region of parameters has its copy in the type that the step computes in.
    pub const fn in_compute_type(self) -> Region {
        match self {
            Region::Params => Region::Weights,
            Region::Expert => Region::ExpertWeights,
            other => other,
        }
    }

    /// Where the running statistics beside a region of parameters are.
    pub const fn buffers(self) -> Region {
        match self {
            Region::Expert => Region::ExpertBuffers,
            _ => Region::Buffers,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Region::Params => "params",
            Region::Grads => "grads",
            Region::MicroGrads => "micro_grads",
            Region::Moment1 => "moment1",
            Region::Moment2 => "moment2",
            Region::Expert => "expert",
            Region::Buffers => "buffers",
            Region::ExpertBuffers => "expert_buffers",
            Region::Weights => "weights",
            Region::ExpertWeights => "expert_weights",
            Region::State => "state",
            Region::Inputs => "inputs",
            Region::Indices => "indices",
            Region::Scalars => "scalars",
            Region::Outputs => "outputs",
        }
    }
}

/// A place in a region: `offset` in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Binding {
    pub region: Region,
    pub offset: usize,
}

/// A tensor that flows through the graph. Bound values live in a region, all others in the arena.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    pub name: String,
    pub shape: Shape,
    pub dtype: DType,
    pub binding: Option<Binding>,
    /// The node that computes it, and which of the node's outputs it is. None for values given from outside.
    pub producer: Option<(NodeId, usize)>,
}

/// One application of an op.
#[derive(Clone, Debug, PartialEq)]
pub struct Node<O> {
    pub op: O,
    pub inputs: Vec<ValueId>,
    pub outputs: Vec<ValueId>,
    /// Path of the layer this belongs to, such as `encoder.vit.blocks.3.attn.qkv`.
    pub path: String,
    /// Nodes of one block share a number; recomputation works block by block.
    pub block: Option<u32>,
}

/// A static single-assignment graph; nodes are in an order in which they can be executed.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph<O> {
    pub values: Vec<Value>,
    pub nodes: Vec<Node<O>>,
    block: Option<u32>,
    blocks: u32,
}

impl<O> Default for Graph<O> {
    fn default() -> Self {
        Graph { values: Vec::new(), nodes: Vec::new(), block: None, blocks: 0 }
    }
}

impl<O> Graph<O> {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.index()]
    }

    pub fn node(&self, id: NodeId) -> &Node<O> {
        &self.nodes[id.index()]
    }

    pub fn shape(&self, id: ValueId) -> &Shape {
        &self.value(id).shape
    }

    /// A value given from outside, living in a region.
    pub fn source(
        &mut self,
        name: impl Into<String>,
        shape: impl Into<Shape>,
        dtype: DType,
        binding: Binding,
    ) -> ValueId {
        self.add_value(Value {
            name: name.into(),
            shape: shape.into(),
            dtype,
            binding: Some(binding),
            producer: None,
        })
    }

    /// Binds a computed value to a place in a region: the node writes there instead of into the arena.
    pub fn bind(&mut self, id: ValueId, binding: Binding) {
        self.values[id.index()].binding = Some(binding);
    }

    /// Nodes pushed inside `body` form one block for recomputation.
    pub fn in_block<R>(&mut self, body: impl FnOnce(&mut Self) -> Result<R>) -> Result<R> {
        let outer = self.block.replace(self.blocks);
        self.blocks += 1;
        let result = body(self);
        self.block = outer;
        result
    }

    pub(crate) fn add_value(&mut self, value: Value) -> ValueId {
        self.values.push(value);
        ValueId(self.values.len() as u32 - 1)
    }

    /// Rebuilds producers after a pass has changed the node list.
    pub(crate) fn relink(&mut self) {
        for v in &mut self.values {
            v.producer = None;
        }
        for (n, node) in self.nodes.iter().enumerate() {
            for (slot, id) in node.outputs.iter().enumerate() {
                self.values[id.index()].producer = Some((NodeId(n as u32), slot));
            }
        }
    }

    /// How often each value is read.
    pub fn use_counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.values.len()];
        for id in self.nodes.iter().flat_map(|n| &n.inputs) {
            counts[id.index()] += 1;
        }
        counts
    }
}

impl<O: OpSet> Graph<O> {
    /// Appends a node; shapes and types of its outputs are inferred.
    ///
    /// # Errors
    /// [`Error::Shape`] naming `path` when the operands do not fit.
    pub fn push(
        &mut self,
        path: impl Into<String>,
        op: impl Into<O>,
        inputs: &[ValueId],
    ) -> Result<Vec<ValueId>> {
        let (path, op) = (path.into(), op.into());
        let operands: Vec<Operand<'_>> = inputs
            .iter()
            .map(|id| {
                let v = self.values.get(id.index()).ok_or_else(|| {
                    Error::shape(&path, op.name(), "an operand is not a value of this graph")
                })?;
                Ok(Operand { shape: &v.shape, dtype: v.dtype })
            })
            .collect::<Result<_>>()?;
        let inferred = infer(&path, &op, &operands)?;
        let node = NodeId(self.nodes.len() as u32);
        let outputs = inferred
            .into_iter()
            .enumerate()
            .map(|(slot, (shape, dtype))| {
                let name = if slot == 0 { path.clone() } else { format!("{path}:{slot}") };
                self.add_value(Value { name, shape, dtype, binding: None, producer: Some((node, slot)) })
            })
            .collect::<Vec<_>>();
        self.nodes.push(Node {
            op,
            inputs: inputs.to_vec(),
            outputs: outputs.clone(),
            path,
            block: self.block,
        });
        Ok(outputs)
    }

    /// [`Graph::push`] for an op of which the first output alone is wanted.
    pub fn push1(
        &mut self,
        path: impl Into<String>,
        op: impl Into<O>,
        inputs: &[ValueId],
    ) -> Result<ValueId> {
        Ok(self.push(path, op, inputs)?[0])
    }
}
