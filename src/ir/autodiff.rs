//! Reverse-mode differentiation as a graph-to-graph pass, on unfused ops.

use super::graph::{Graph, NodeId, ValueId};
use super::op::{Epilogue, Op};
use crate::error::{Error, Result};

/// Appends to `graph` the nodes that compute the derivative of the scalar `loss` (shape `[1]`) with respect to each
/// value of `wrt`; None where the loss does not depend on it. Contributions to one value are added in reverse order of
/// the nodes that read it, so the result is deterministic.
///
/// # Errors
/// When the loss is no scalar, or depends on `wrt` through something that has no derivative (an update, a backward op,
/// a fused epilogue: differentiate first, fuse afterwards).
pub fn differentiate(graph: &mut Graph, loss: ValueId, wrt: &[ValueId]) -> Result<Vec<Option<ValueId>>> {
    if graph.shape(loss).count() != 1 {
        return Err(Error::shape(&graph.value(loss).name, "differentiate", "the loss must be a scalar"));
    }
    let active = reachable_from(graph, wrt);
    let mut grads: Vec<Option<ValueId>> = vec![None; graph.values.len()];
    if active[loss.index()] {
        let v = graph.value(loss);
        let seed = Op::Fill { shape: v.shape.dims().to_vec(), value: 1.0, dtype: v.dtype };
        grads[loss.index()] = Some(graph.push1("seed", seed, &[])?);
    }
    let last = graph.value(loss).producer.map_or(0, |(n, _)| n.index() + 1);
    for n in (0..last).rev() {
        let node = graph.node(NodeId(n as u32));
        let (inputs, outputs) = (node.inputs.clone(), node.outputs.clone());
        let douts: Vec<Option<ValueId>> = outputs.iter().map(|o| grads[o.index()]).collect();
        if douts.iter().all(Option::is_none) || !inputs.iter().any(|i| active[i.index()]) {
            continue;
        }
        let wanted: Vec<bool> = inputs.iter().map(|i| active[i.index()]).collect();
        let contributions = Vjp { graph, node: NodeId(n as u32), wanted: &wanted }.apply(&douts)?;
        for (input, contribution) in inputs.iter().zip(contributions) {
            let Some(d) = contribution.filter(|_| active[input.index()]) else { continue };
            grads[input.index()] = Some(match grads[input.index()] {
                None => d,
                Some(sum) => {
                    let path = format!("{}/grad", graph.value(*input).name);
                    graph.push1(path, Op::Add, &[sum, d])?
                }
            });
        }
    }
    Ok(wrt.iter().map(|v| grads[v.index()]).collect())
}

/// Which values depend on any of `roots`.
fn reachable_from(graph: &Graph, roots: &[ValueId]) -> Vec<bool> {
    let mut active = vec![false; graph.values.len()];
    for r in roots {
        active[r.index()] = true;
    }
    for node in &graph.nodes {
        if node.inputs.iter().any(|i| active[i.index()]) {
            for o in &node.outputs {
                active[o.index()] = true;
            }
        }
    }
    active
}

/// The vector-Jacobian product of one node.
struct Vjp<'a> {
    graph: &'a mut Graph,
    node: NodeId,
    wanted: &'a [bool],
}

impl Vjp<'_> {
    fn push(&mut self, op: Op, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let path = format!("{}/grad", self.graph.node(self.node).path);
        self.graph.push(path, op, inputs)
    }

    fn refuse<T>(&self, why: &str) -> Result<T> {
        let node = self.graph.node(self.node);
        Err(Error::shape(&node.path, node.op.name(), why))
    }

    /// The gradient of output `slot`; the others must have none.
    fn only(&self, douts: &[Option<ValueId>], slot: usize) -> Result<ValueId> {
        if douts.iter().enumerate().any(|(i, d)| i != slot && d.is_some()) {
            return self.refuse("only its first output can be differentiated");
        }
        match douts.get(slot) {
            Some(Some(d)) => Ok(*d),
            _ => self.refuse("no gradient reached its first output"),
        }
    }

    /// The gradient of each input, None where there is none or it is not wanted.
    fn apply(&mut self, douts: &[Option<ValueId>]) -> Result<Vec<Option<ValueId>>> {
        let node = self.graph.node(self.node).clone();
        let dy = self.only(douts, 0)?;
        let (x, out) = (&node.inputs, &node.outputs);
        let rows = |g: &Graph, v: ValueId| g.shape(v).as_matrix().0;
        match node.op {
            Op::EmbedTokens { layout } => {
                let tables: Vec<usize> = match layout.positions {
                    true => (0..layout.views.len()).map(|v| rows(self.graph, x[3 + v])).collect(),
                    false => Vec::new(),
                };
                let views = tables.len();
                let mut inputs = vec![dy];
                if layout.kept.is_some() {
                    inputs.extend(x.last());
                }
                let positions = layout.positions;
                let d = self.push(Op::EmbedTokensBackward { layout, tables }, &inputs)?;
                let mut grads = vec![Some(d[0]), Some(d[1])];
                if positions {
                    grads.push(Some(d[1]));
                    grads.extend((0..views).map(|v| Some(d[2 + v])));
                }
                grads.resize(x.len(), None);
                Ok(grads)
            }
            Op::ResizePositions { prefix, from, to } => {
                self.one(Op::ResizePositionsBackward { prefix, from, to }, &[dy])
            }
            Op::Linear { epilogue: Epilogue::None } => {
                let dx = self.wanted_input(Op::LinearBackwardInput { gelu: false }, &[dy, x[1]])?;
                let weight = self.graph.shape(x[1]).dims().to_vec();
                self.with_weight(dx, Op::LinearBackwardWeight { weight }, dy, x[0])
            }
            Op::Conv2d { geometry, epilogue: Epilogue::None } => {
                let input = Op::Conv2dBackwardInput { geometry: geometry.clone(), gelu: false };
                let dx = self.wanted_input(input, &[dy, x[1]])?;
                self.with_weight(dx, Op::Conv2dBackwardWeight { geometry }, dy, x[0])
            }
            Op::DepthwiseConv2d { geometry } => {
                let input = Op::DepthwiseConv2dBackwardInput { geometry: geometry.clone() };
                let dx = self.wanted_input(input, &[dy, x[1]])?;
                self.with_weight(dx, Op::DepthwiseConv2dBackwardWeight { geometry }, dy, x[0])
            }
            Op::BatchNorm { eps, groups } => {
                let inputs = [dy, x[0], x[1], out[1], out[2]];
                let d = self.push(Op::BatchNormBackward { eps, groups }, &inputs)?;
                Ok(d.into_iter().map(Some).collect())
            }
            Op::Relu6 => self.one(Op::Relu6Backward, &[dy, x[0]]),
            Op::Relu6Gate => {
                let d = self.push(Op::Relu6GateBackward, &[dy, x[0], x[1]])?;
                Ok(d.into_iter().map(Some).collect())
            }
            Op::GlobalAveragePool { images } => self.one(Op::GlobalAveragePoolBackward { images }, &[dy]),
            Op::WindowAttention { heads, window, maps } => {
                let inputs = [dy, out[0], out[1], x[0], x[1], x[2]];
                let d = self.push(Op::WindowAttentionBackward { heads, window, maps }, &inputs)?;
                Ok(d.into_iter().map(Some).collect())
            }
            Op::Linear { .. } | Op::Conv2d { .. } => self.refuse("differentiate before fusing"),
            Op::Gelu => self.one(Op::GeluBackward, &[dy, x[0]]),
            Op::Add => Ok(vec![Some(dy), Some(dy)]),
            Op::Scale { factor } => self.one(Op::Scale { factor }, &[dy]),
            Op::Fill { .. } => Ok(vec![]),
            Op::Cast { .. } => {
                let dtype = self.graph.value(x[0]).dtype;
                self.one(Op::Cast { dtype }, &[dy])
            }
            Op::ScaleSegments { segments } => {
                self.not_differentiable(1)?;
                let d = self.push(Op::ScaleSegments { segments }, &[dy, x[1]])?[0];
                Ok(vec![Some(d), None])
            }
            Op::LayerNorm { .. } => {
                let d =
                    self.push(Op::LayerNormBackward { residual: false }, &[dy, x[0], x[1], out[1], out[2]])?;
                Ok(d.into_iter().map(Some).collect())
            }
            Op::Attention { heads, layout, segments } => {
                let mut inputs = vec![dy, out[0], out[1]];
                inputs.extend(x);
                let d = self.push(Op::AttentionBackward { heads, layout, segments }, &inputs)?;
                Ok(d.into_iter().map(Some).collect())
            }
            Op::SelectRows { runs } => {
                let rows = rows(self.graph, x[0]);
                self.one(Op::ScatterRows { runs, rows, accumulate: false }, &[dy])
            }
            Op::ScatterRows { runs, accumulate, .. } => {
                let d = self.push(Op::SelectRows { runs }, &[dy])?[0];
                Ok(if accumulate { vec![Some(d), Some(dy)] } else { vec![Some(d)] })
            }
            Op::GatherTokens { tokens } => self.indexed(Op::ScatterTokens { tokens }, dy, x[1]),
            Op::ScatterTokens { tokens } => self.indexed(Op::GatherTokens { tokens }, dy, x[1]),
            Op::RestoreTokens => {
                let d = self.push(Op::RestoreTokensBackward, &[dy, x[1]])?;
                Ok(vec![Some(d[0]), None, Some(d[1]), Some(d[2])])
            }
            Op::AddPositions => {
                let tokens = rows(self.graph, x[1]);
                let dpos = match self.wanted[1] {
                    true => Some(self.push(Op::SumImages { tokens }, &[dy])?[0]),
                    false => None,
                };
                Ok(vec![Some(dy), dpos])
            }
            Op::SumImages { .. } => {
                let v = self.graph.value(x[0]);
                let zero = Op::Fill { shape: v.shape.dims().to_vec(), value: 0.0, dtype: v.dtype };
                let zero = self.push(zero, &[])?[0];
                self.one(Op::AddPositions, &[zero, dy])
            }
            Op::DynamicConv { tokens } => {
                let d = self.push(Op::DynamicConvBackward { tokens }, &[dy, x[0], x[1]])?;
                Ok(d.into_iter().map(Some).collect())
            }
            Op::L2Normalize { eps } => self.one(Op::L2NormalizeBackward { eps }, &[dy, out[0], out[1]]),
            Op::PrototypeCrossEntropy { batch } => {
                (2..x.len()).try_for_each(|i| self.not_differentiable(i))?;
                let inputs = [dy, x[0], x[1], x[2], x[3], x[4], x[5], out[1], out[2]];
                let d = self.push(Op::PrototypeCrossEntropyBackward { batch }, &inputs)?;
                Ok(vec![Some(d[0]), Some(d[1]), None, None, None, None])
            }
            Op::MaskedMse => {
                (1..x.len()).try_for_each(|i| self.not_differentiable(i))?;
                let d = self.push(Op::MaskedMseBackward, &[dy, x[0], x[1], x[2]])?[0];
                Ok(vec![Some(d), None, None])
            }
            Op::BceWithLogits { groups } => {
                self.not_differentiable(1)?;
                let d = self.push(Op::BceWithLogitsBackward { groups }, &[dy, x[0], x[1]])?[0];
                Ok(vec![Some(d), None])
            }
            Op::WeightedSum { weights } => weights
                .into_iter()
                .zip(self.wanted.to_vec())
                .map(|(factor, wanted)| match wanted {
                    true => Ok(Some(self.push(Op::Scale { factor }, &[dy])?[0])),
                    false => Ok(None),
                })
                .collect(),
            Op::PatchRows { .. }
            | Op::EmbedTokensBackward { .. }
            | Op::ResizePositionsBackward { .. }
            | Op::LinearBackwardInput { .. }
            | Op::LinearBackwardWeight { .. }
            | Op::GeluBackward
            | Op::LayerNormBackward { .. }
            | Op::AttentionBackward { .. }
            | Op::RestoreTokensBackward
            | Op::Conv2dBackwardInput { .. }
            | Op::Conv2dBackwardWeight { .. }
            | Op::DepthwiseConv2dBackwardInput { .. }
            | Op::DepthwiseConv2dBackwardWeight { .. }
            | Op::PixelRows { .. }
            | Op::BatchNormBackward { .. }
            | Op::BatchNormInference { .. }
            | Op::RunningStatistics { .. }
            | Op::Relu6Backward
            | Op::Relu6GateBackward
            | Op::GlobalAveragePoolBackward { .. }
            | Op::WindowAttentionBackward { .. }
            | Op::DynamicConvBackward { .. }
            | Op::L2NormalizeBackward { .. }
            | Op::PrototypeCrossEntropyBackward { .. }
            | Op::ExpertStatistics
            | Op::CenterUpdate
            | Op::MaskedMseBackward
            | Op::BceWithLogitsBackward { .. }
            | Op::AccumulateGrads
            | Op::GradHealth
            | Op::AdamW { .. } => self.refuse("has no derivative"),
        }
    }

    /// A single-input op.
    fn one(&mut self, op: Op, inputs: &[ValueId]) -> Result<Vec<Option<ValueId>>> {
        Ok(vec![Some(self.push(op, inputs)?[0])])
    }

    /// The gradient of the first input by `op`, if it is wanted.
    fn wanted_input(&mut self, op: Op, inputs: &[ValueId]) -> Result<Option<ValueId>> {
        if !self.wanted[0] {
            return Ok(None);
        }
        Ok(Some(self.push(op, inputs)?[0]))
    }

    /// An op whose second input is an index.
    fn indexed(&mut self, op: Op, dy: ValueId, index: ValueId) -> Result<Vec<Option<ValueId>>> {
        Ok(vec![Some(self.push(op, &[dy, index])?[0]), None])
    }

    fn with_weight(
        &mut self,
        dx: Option<ValueId>,
        op: Op,
        dy: ValueId,
        x: ValueId,
    ) -> Result<Vec<Option<ValueId>>> {
        if !self.wanted[1] && !self.wanted[2] {
            return Ok(vec![dx, None, None]);
        }
        let d = self.push(op, &[dy, x])?;
        Ok(vec![dx, Some(d[0]), Some(d[1])])
    }

    fn not_differentiable(&self, input: usize) -> Result<()> {
        if self.wanted[input] {
            return self.refuse(&format!("operand {input} is a target and has no derivative"));
        }
        Ok(())
    }
}
