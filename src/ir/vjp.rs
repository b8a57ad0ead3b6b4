//! The derivative of one node, put together from ops of the same graph.

use super::graph::{Graph, NodeId, ValueId};
use super::rules::OpSet;
use crate::error::{Error, Result};

/// The gradient of each input, None where there is none or it is not wanted.
pub type Gradients = Result<Vec<Option<ValueId>>>;

/// An op with a derivative among the ops `O`.
pub trait Gradient<O: OpSet> {
    /// Pushes the vector-Jacobian product of a node of this op; `dy` is the gradient of its first output, the only one that
    /// may have one.
    ///
    /// # Errors
    /// Where there is no derivative.
    fn gradient(&self, vjp: &mut Vjp<'_, O>, _dy: ValueId) -> Gradients {
        vjp.refuse("has no derivative")
    }
}

/// A node under differentiation.
pub struct Vjp<'a, O> {
    graph: &'a mut Graph<O>,
    node: NodeId,
    /// Which inputs' gradients are asked for.
    pub wanted: Vec<bool>,
    pub inputs: Vec<ValueId>,
    pub outputs: Vec<ValueId>,
}

impl<'a, O: OpSet> Vjp<'a, O> {
    pub fn new(graph: &'a mut Graph<O>, node: NodeId, wanted: Vec<bool>) -> Self {
        let (inputs, outputs) = (graph.node(node).inputs.clone(), graph.node(node).outputs.clone());
        Vjp { graph, node, wanted, inputs, outputs }
    }

    /// The graph as it is so far.
    pub fn graph(&self) -> &Graph<O> {
        self.graph
    }

    /// Rows of a value as a matrix.
    pub fn rows(&self, v: ValueId) -> usize {
        self.graph.shape(v).as_matrix().0
    }

    /// The gradient of the first output, from those of all; the others must have none.
    ///
    /// # Errors
    /// Where another one has, or it has none.
    pub fn only_first(&self, douts: &[Option<ValueId>]) -> Result<ValueId> {
        if douts.iter().skip(1).any(Option::is_some) {
            return self.refuse("only its first output can be differentiated");
        }
        match douts.first() {
            Some(Some(d)) => Ok(*d),
            _ => self.refuse("no gradient reached its first output"),
        }
    }

    pub fn refuse<T>(&self, why: &str) -> Result<T> {
        let node = self.graph.node(self.node);
        Err(Error::shape(&node.path, node.op.name(), why))
    }

    /// Operand `input` must not need a gradient.
    pub fn not_differentiable(&self, input: usize) -> Result<()> {
        if self.wanted[input] {
            return self.refuse(&format!("operand {input} is a target and has no derivative"));
        }
        Ok(())
    }

    pub fn push(&mut self, op: impl Into<O>, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let path = format!("{}/grad", self.graph.node(self.node).path);
        self.graph.push(path, op, inputs)
    }

    /// A gradient for each of the first inputs, by one op.
    pub fn all(&mut self, op: impl Into<O>, inputs: &[ValueId]) -> Gradients {
        Ok(self.push(op, inputs)?.into_iter().map(Some).collect())
    }

    /// The gradient of a single input.
    pub fn one(&mut self, op: impl Into<O>, inputs: &[ValueId]) -> Gradients {
        Ok(vec![Some(self.push(op, inputs)?[0])])
    }

    /// The gradient of the first input by `op`, if it is wanted.
    pub fn wanted_input(&mut self, op: impl Into<O>, inputs: &[ValueId]) -> Result<Option<ValueId>> {
        if !self.wanted[0] {
            return Ok(None);
        }
        Ok(Some(self.push(op, inputs)?[0]))
    }

    /// An op whose second input is an index.
    pub fn indexed(&mut self, op: impl Into<O>, dy: ValueId, index: ValueId) -> Gradients {
        Ok(vec![Some(self.push(op, &[dy, index])?[0]), None])
    }

    /// `dx`, and the gradients of weight and bias by `op` where one of them is wanted.
    pub fn with_weight(&mut self, dx: Option<ValueId>, op: impl Into<O>, dy: ValueId) -> Gradients {
        if !self.wanted[1] && !self.wanted[2] {
            return Ok(vec![dx, None, None]);
        }
        let d = self.push(op, &[dy, self.inputs[0]])?;
        Ok(vec![dx, Some(d[0]), Some(d[1])])
    }
}
