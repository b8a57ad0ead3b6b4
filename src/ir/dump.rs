//! A stable text form of a graph, for tests, differences and reading.

use super::graph::{Graph, ValueId};
use super::op::Op;
use std::fmt::Write;

/// One line per source that is read and one per node, in order.
pub fn dump(graph: &Graph<Op>) -> String {
    let uses = graph.use_counts();
    let mut text = String::new();
    for (i, v) in graph.values.iter().enumerate() {
        if let (None, Some(b), true) = (v.producer, v.binding, uses[i] > 0) {
            let _ = writeln!(
                text,
                "%{i}: {}{} @{}+{} \"{}\"",
                v.dtype,
                v.shape,
                b.region.name(),
                b.offset,
                v.name
            );
        }
    }
    for node in &graph.nodes {
        let outputs: Vec<String> = node.outputs.iter().map(|o| output(graph, *o)).collect();
        let inputs: Vec<String> = node.inputs.iter().map(|i| format!("%{}", i.0)).collect();
        let block = node.block.map_or(String::new(), |b| format!(" block {b}"));
        let _ = writeln!(
            text,
            "{} = {:?}({}){block} \"{}\"",
            outputs.join(", "),
            node.op,
            inputs.join(", "),
            node.path
        );
    }
    text
}

fn output(graph: &Graph<Op>, id: ValueId) -> String {
    let v = graph.value(id);
    let place = v.binding.map_or(String::new(), |b| format!(" @{}+{}", b.region.name(), b.offset));
    format!("%{}: {}{}{place}", id.0, v.dtype, v.shape)
}
