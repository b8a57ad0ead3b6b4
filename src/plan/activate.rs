//! Activations behind normalisations, after differentiation.

use crate::ir::{Applies, Graph, Op, Rules, ValueId};

/// Moves activations into the normalisation before them, which then stores their output alone, and their slopes into its
/// backward op, which has the normalised value from `x` again: a pass over the rows each less, and one value less to keep.
/// A normalisation stays as it is where its value has other readers.
pub fn activate(graph: &mut Graph) {
    let readers = readers(graph);
    let mut removed = vec![false; graph.nodes.len()];
    for n in 0..graph.nodes.len() {
        let Some(found) = find(graph, &readers, n) else { continue };
        let (out, beta) = (graph.nodes[n].outputs[0], graph.nodes[found.norm].inputs.last().copied());
        let norm = &mut graph.nodes[found.norm];
        norm.op = found.op;
        norm.outputs[0] = out;
        removed[n] = true;
        for Backward { slope, norm, op } in found.backward {
            let dy = graph.nodes[slope].inputs[0];
            let node = &mut graph.nodes[norm];
            node.op = op;
            node.inputs[0] = dy;
            node.inputs.extend(beta);
            removed[slope] = true;
        }
    }
    let mut removed = removed.into_iter();
    graph.nodes.retain(|_| !removed.next().unwrap_or(false));
    graph.relink();
}

/// A normalisation, and what it becomes with the activation behind it.
struct Found {
    norm: usize,
    op: Op,
    backward: Vec<Backward>,
}

/// The activation's slope, and the backward op of the normalisation with what it becomes.
struct Backward {
    slope: usize,
    norm: usize,
    op: Op,
}

/// Nodes that read each value, once for each time.
fn readers(graph: &Graph) -> Vec<Vec<usize>> {
    let mut readers = vec![Vec::new(); graph.values.len()];
    for (n, node) in graph.nodes.iter().enumerate() {
        for i in &node.inputs {
            readers[i.index()].push(n);
        }
    }
    readers
}

/// The normalisation before the activation at `n`, if there is one that may take it over.
fn find(graph: &Graph, readers: &[Vec<usize>], n: usize) -> Option<Found> {
    let node = &graph.nodes[n];
    let Some(Applies::Forward(activation)) = node.op.facts().applies else { return None };
    let (before, out) = (node.inputs[0], node.outputs[0]);
    let norm = graph.value(before).producer?.0.index();
    if graph.nodes[norm].outputs[0] != before || graph.value(before).binding.is_some() {
        return None;
    }
    let op = graph.nodes[norm].op.activated(activation)?;
    let mut backward = Vec::new();
    for &slope in readers[before.index()].iter().filter(|&&r| r != n) {
        backward.push(find_backward(graph, readers, (norm, slope), Applies::Slope(activation), before)?);
    }
    // What reads the output finds it as before.
    let by_output = readers[out.index()].iter();
    backward.extend(by_output.filter_map(|&slope| {
        find_backward(graph, readers, (norm, slope), Applies::SlopeByOutput(activation), out)
    }));
    Some(Found { norm, op, backward })
}

/// The backward op of `norm` behind the node `slope`, which must be `applies` of `value`, if it may take that over.
fn find_backward(
    graph: &Graph,
    readers: &[Vec<usize>],
    (norm, slope): (usize, usize),
    applies: Applies,
    value: ValueId,
) -> Option<Backward> {
    let (forward, node) = (&graph.nodes[norm], &graph.nodes[slope]);
    let is_slope = node.op.facts().applies == Some(applies) && node.inputs[1] == value;
    let d = node.outputs[0];
    let &[reader] = readers[d.index()].as_slice() else { return None };
    if !is_slope || node.inputs[0] == value || graph.value(d).binding.is_some() {
        return None;
    }
    let activation = match applies {
        Applies::Forward(a) | Applies::Slope(a) | Applies::SlopeByOutput(a) => a,
    };
    let op = graph.nodes[reader].op.activated(activation)?;
    let saved = [&[d], &forward.inputs[..2], &forward.outputs[1..]].concat();
    (graph.nodes[reader].inputs == saved).then_some(Backward { slope, norm: reader, op })
}
