//! Reverse-mode differentiation as a graph-to-graph pass, on unfused ops.

use super::graph::{Graph, NodeId, ValueId};
use super::op::Op;
use super::ops::pointwise::{Add, Fill};
use super::vjp::{Gradient, Vjp};
use crate::error::{Error, Result};

/// Appends to `graph` the nodes that compute the derivative of the scalar `loss` (shape `[1]`) with respect to each
/// value of `wrt`; None where the loss does not depend on it. Contributions to one value are added in reverse order of
/// the nodes that read it, so the result is deterministic.
///
/// # Errors
/// When the loss is no scalar, or depends on `wrt` through something that has no derivative (an update, a backward op,
/// a fused epilogue: differentiate first, fuse afterwards).
pub fn differentiate(graph: &mut Graph<Op>, loss: ValueId, wrt: &[ValueId]) -> Result<Vec<Option<ValueId>>> {
    if graph.shape(loss).count() != 1 {
        return Err(Error::shape(&graph.value(loss).name, "differentiate", "the loss must be a scalar"));
    }
    let active = reachable_from(graph, wrt);
    let mut grads: Vec<Option<ValueId>> = vec![None; graph.values.len()];
    if active[loss.index()] {
        let v = graph.value(loss);
        let seed = Fill { shape: v.shape.dims().to_vec(), value: 1.0, dtype: v.dtype };
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
        let op = node.op.clone();
        let mut vjp = Vjp::new(graph, NodeId(n as u32), wanted);
        let dy = vjp.only_first(&douts)?;
        let contributions = op.gradient(&mut vjp, dy)?;
        for (input, contribution) in inputs.iter().zip(contributions) {
            let Some(d) = contribution.filter(|_| active[input.index()]) else { continue };
            grads[input.index()] = Some(match grads[input.index()] {
                None => d,
                Some(sum) => {
                    let path = format!("{}/grad", graph.value(*input).name);
                    graph.push1(path, Add, &[sum, d])?
                }
            });
        }
    }
    Ok(wrt.iter().map(|v| grads[v.index()]).collect())
}

/// Which values depend on any of `roots`.
fn reachable_from(graph: &Graph<Op>, roots: &[ValueId]) -> Vec<bool> {
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
