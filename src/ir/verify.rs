//! The invariants of a graph, checked after every pass.

use super::graph::{Binding, Graph, NodeId, Region, ValueId};
use super::infer::infer;
use super::op::Op;
use super::rules::{Operand, Rules};
use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// Checks that operands exist before they are used, that shapes and types are what the ops give, that every value has one
/// producer, and that nothing bound is read on both sides of an overwrite. `pass` names the pass that just ran.
pub fn verify(graph: &Graph<Op>, pass: &'static str) -> Result<()> {
    let fail = |message: String| Err(Error::invariant(pass, message));
    let mut defined: Vec<bool> =
        graph.values.iter().map(|v| v.producer.is_none() && v.binding.is_some()).collect();
    for (n, node) in graph.nodes.iter().enumerate() {
        let mut operands = Vec::with_capacity(node.inputs.len());
        for id in &node.inputs {
            match graph.values.get(id.index()) {
                Some(v) if defined[id.index()] => operands.push(Operand { shape: &v.shape, dtype: v.dtype }),
                Some(v) => {
                    return fail(format!(
                        "{}: operand %{} ({}) is not computed before",
                        node.path, id.0, v.name
                    ));
                }
                None => return fail(format!("{}: operand %{} does not exist", node.path, id.0)),
            }
        }
        let inferred = infer(&node.path, &node.op, &operands)?;
        if inferred.len() != node.outputs.len() {
            return fail(format!(
                "{}: {} outputs, the op gives {}",
                node.path,
                node.outputs.len(),
                inferred.len()
            ));
        }
        for (slot, (id, (shape, dtype))) in node.outputs.iter().zip(inferred).enumerate() {
            let Some(v) = graph.values.get(id.index()) else {
                return fail(format!("{}: output %{} does not exist", node.path, id.0));
            };
            if defined[id.index()] {
                return fail(format!("{}: output %{} has a value already", node.path, id.0));
            }
            defined[id.index()] = true;
            if v.producer != Some((NodeId(n as u32), slot)) {
                return fail(format!("{}: output %{} is not linked to its producer", node.path, id.0));
            }
            if v.shape.count() != shape.count() || v.dtype != dtype {
                return fail(format!(
                    "{}: output {slot} is {}{}, the op gives {dtype}{shape}",
                    node.path, v.dtype, v.shape
                ));
            }
        }
    }
    verify_bindings(graph, pass)
}

/// A read or a write of a stretch of a region.
struct Access {
    node: usize,
    value: ValueId,
    range: std::ops::Range<usize>,
    write: bool,
}

fn accesses(graph: &Graph<Op>) -> BTreeMap<Region, Vec<Access>> {
    let mut all: BTreeMap<Region, Vec<Access>> = BTreeMap::new();
    for (n, node) in graph.nodes.iter().enumerate() {
        let operands = node.inputs.iter().map(|i| (*i, false)).chain(node.outputs.iter().map(|o| (*o, true)));
        for (value, write) in operands {
            let v = graph.value(value);
            if let Some(Binding { region, offset }) = v.binding {
                let range = offset..offset + v.shape.count();
                all.entry(region).or_default().push(Access { node: n, value, range, write });
            }
        }
    }
    all
}

/// Pairs of nodes `(earlier, later)` that touch the same stretch of a region, at least one of them writing: their order
/// is part of the graph's meaning.
pub(crate) fn region_order(graph: &Graph<Op>) -> Vec<(usize, usize)> {
    let mut edges = Vec::new();
    for list in accesses(graph).values() {
        for w in list.iter().filter(|a| a.write) {
            for a in list.iter().filter(|a| a.node != w.node && overlap(&a.range, &w.range)) {
                edges.push((a.node.min(w.node), a.node.max(w.node)));
            }
        }
    }
    edges.sort_unstable();
    edges.dedup();
    edges
}

fn overlap(a: &std::ops::Range<usize>, b: &std::ops::Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

fn verify_bindings(graph: &Graph<Op>, pass: &'static str) -> Result<()> {
    for (region, list) in accesses(graph) {
        for w in list.iter().filter(|a| a.write) {
            let node = &graph.nodes[w.node];
            let updates = !node.op.facts().updates.is_empty();
            for a in list.iter().filter(|a| a.value != w.value && overlap(&a.range, &w.range)) {
                let older = graph.value(a.value).producer.is_none_or(|(n, _)| n.index() < w.node);
                let stale = !a.write && older && a.node > w.node && read_before(&list, a.value, w.node);
                let clash = a.write && a.node < w.node && !updates;
                let hazard = !a.write && a.node == w.node && !updates;
                if stale || clash || hazard {
                    return Err(Error::invariant(
                        pass,
                        format!(
                            "{} writes {} {:?}, which `{}` still needs",
                            node.path,
                            region.name(),
                            w.range,
                            graph.value(a.value).name
                        ),
                    ));
                }
            }
        }
    }
    Ok(())
}

fn read_before(list: &[Access], value: ValueId, node: usize) -> bool {
    list.iter().any(|a| !a.write && a.value == value && a.node < node)
}
