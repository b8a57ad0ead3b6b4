//! Recomputation (activation checkpointing): trades activations for time.

use crate::ir::{Graph, Node, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// For every block of nodes, the values that only its own backward pass needs are computed again just before it instead
/// of being kept: only what flows between blocks stays alive (Chen et al., "Training Deep Nets with Sublinear Memory
/// Cost", 2016). Results agree up to rounding: other lifetimes let other ops work in place. Runs after differentiation
/// and before fusion.
pub fn recompute(graph: &mut Graph) {
    let mut before: BTreeMap<usize, Vec<Node>> = BTreeMap::new();
    for members in blocks(graph).values() {
        if let Some((at, clones)) = recompute_block(graph, members) {
            before.entry(at).or_default().extend(clones);
        }
    }
    let nodes = std::mem::take(&mut graph.nodes);
    for (n, node) in nodes.into_iter().enumerate() {
        graph.nodes.extend(before.remove(&n).unwrap_or_default());
        graph.nodes.push(node);
    }
    graph.relink();
}

fn blocks(graph: &Graph) -> BTreeMap<u32, Vec<usize>> {
    let mut blocks: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (n, node) in graph.nodes.iter().enumerate() {
        if let Some(b) = node.block {
            blocks.entry(b).or_default().push(n);
        }
    }
    blocks
}

/// Redirects the backward readers of one block to clones; returns where the clones go and the clones, in order.
fn recompute_block(graph: &mut Graph, members: &[usize]) -> Option<(usize, Vec<Node>)> {
    let last = *members.last()?;
    let inside: BTreeSet<usize> = members.iter().copied().collect();
    let produced: BTreeSet<ValueId> = members.iter().flat_map(|&n| graph.nodes[n].outputs.clone()).collect();
    // What a later forward node reads is kept anyway.
    let kept: BTreeSet<ValueId> =
        readers(graph, &produced, |n, node| !inside.contains(&n) && node.block.is_some());
    let backward = |n: usize, node: &Node| n > last && node.block.is_none() && !inside.contains(&n);
    let saved: BTreeSet<ValueId> = readers(graph, &produced, backward)
        .into_iter()
        .filter(|v| {
            !kept.contains(v)
                && graph.value(*v).binding.is_none()
                && graph.nodes[last].outputs.first() != Some(v)
        })
        .collect();
    let first =
        (last + 1..graph.nodes.len()).find(|&n| graph.nodes[n].inputs.iter().any(|i| saved.contains(i)))?;
    let mut needed: BTreeSet<ValueId> = saved.clone();
    let mut again = Vec::new();
    for &n in members.iter().rev() {
        if graph.nodes[n].outputs.iter().any(|o| needed.contains(o)) {
            needed.extend(graph.nodes[n].inputs.iter().filter(|i| produced.contains(i) && !kept.contains(i)));
            again.push(n);
        }
    }
    again.reverse();
    let mut clone_of: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    let mut clones = Vec::with_capacity(again.len());
    for n in again {
        let mut node = graph.nodes[n].clone();
        node.inputs.iter_mut().for_each(|i| *i = clone_of.get(i).copied().unwrap_or(*i));
        for o in &mut node.outputs {
            let mut v = graph.value(*o).clone();
            v.name.push_str("/again");
            let id = graph.add_value(v);
            clone_of.insert(*o, id);
            *o = id;
        }
        node.path.push_str("/again");
        node.block = None;
        clones.push(node);
    }
    for node in &mut graph.nodes[first..] {
        if node.block.is_none() {
            node.inputs.iter_mut().filter(|i| saved.contains(i)).for_each(|i| *i = clone_of[i]);
        }
    }
    Some((first, clones))
}

/// The values of `of` that some node chosen by `which` reads.
fn readers(graph: &Graph, of: &BTreeSet<ValueId>, which: impl Fn(usize, &Node) -> bool) -> BTreeSet<ValueId> {
    let nodes = graph.nodes.iter().enumerate().filter(|(n, node)| which(*n, node));
    nodes.flat_map(|(_, node)| &node.inputs).filter(|i| of.contains(i)).copied().collect()
}
