//! The order of nodes: the one given, or one that keeps less alive.

use crate::ir::{Graph, Node, Op};
use std::collections::BTreeSet;

/// What must precede what: operands before their readers, and accesses to one stretch of a region in the given order.
struct Dependencies {
    successors: Vec<Vec<usize>>,
    waiting: Vec<usize>,
}

impl Dependencies {
    fn of(graph: &Graph) -> Self {
        let n = graph.nodes.len();
        let mut edges = crate::ir::region_order(graph);
        for (i, node) in graph.nodes.iter().enumerate() {
            edges.extend(
                node.inputs.iter().filter_map(|v| graph.value(*v).producer).map(|(p, _)| (p.index(), i)),
            );
        }
        edges.sort_unstable();
        edges.dedup();
        let (mut successors, mut waiting) = (vec![Vec::new(); n], vec![0; n]);
        for (a, b) in edges {
            successors[a].push(b);
            waiting[b] += 1;
        }
        Dependencies { successors, waiting }
    }
}

/// An order found greedily: of the nodes that could run next, the one after which the fewest bytes are live (the given
/// order breaks ties). Lets the backward pass of one decoder run before the forward pass of the next.
fn greedy(graph: &Graph) -> Vec<usize> {
    let mut deps = Dependencies::of(graph);
    let mut uses = graph.use_counts();
    let mut ready: BTreeSet<usize> = (0..graph.nodes.len()).filter(|&i| deps.waiting[i] == 0).collect();
    let mut order = Vec::with_capacity(graph.nodes.len());
    while !ready.is_empty() {
        let Some(next) = ready.iter().copied().min_by_key(|&i| (growth(graph, &graph.nodes[i], &uses), i))
        else {
            break;
        };
        ready.remove(&next);
        order.push(next);
        for v in &graph.nodes[next].inputs {
            uses[v.index()] -= 1;
        }
        for &s in &deps.successors[next] {
            deps.waiting[s] -= 1;
            if deps.waiting[s] == 0 {
                ready.insert(s);
            }
        }
    }
    order
}

/// Bytes that become live minus bytes that die when `node` runs.
fn growth(graph: &Graph, node: &Node, uses: &[usize]) -> i64 {
    let bytes = |v: &crate::ir::ValueId| {
        let v = graph.value(*v);
        if v.binding.is_some() { 0 } else { (v.shape.count() * v.dtype.bytes()) as i64 }
    };
    let born: i64 = node.outputs.iter().filter(|o| uses[o.index()] > 0).map(bytes).sum();
    let mut seen = Vec::with_capacity(node.inputs.len());
    let mut dying = 0;
    for v in &node.inputs {
        if !seen.contains(v) {
            seen.push(*v);
            let reads = node.inputs.iter().filter(|w| *w == v).count();
            if uses[v.index()] == reads {
                dying += bytes(v);
            }
        }
    }
    born - dying
}

/// `order` with every sum of gradients right behind what it adds: what waits for a piece of them need not wait for the rest.
/// Such a sum touches regions alone, so it keeps nothing alive.
fn early_sums(graph: &Graph, order: Vec<usize>) -> Vec<usize> {
    let sums = |i: &usize| matches!(graph.nodes[*i].op, Op::AccumulateGrads(_));
    if order.iter().filter(|i| sums(i)).count() < 2 {
        return order;
    }
    let mut deps = Dependencies::of(graph);
    let mut ready: Vec<usize> = (0..graph.nodes.len()).filter(|i| deps.waiting[*i] == 0 && sums(i)).collect();
    let mut out = Vec::with_capacity(order.len());
    let mut others = order.into_iter().filter(|i| !sums(i));
    while let Some(i) = ready.pop().or_else(|| others.next()) {
        out.push(i);
        for &s in &deps.successors[i] {
            deps.waiting[s] -= 1;
            if deps.waiting[s] == 0 && sums(&s) {
                ready.push(s);
            }
        }
    }
    out
}

/// Candidate orders of the nodes, the given one first.
pub(super) fn candidates(graph: &Graph) -> Vec<Vec<usize>> {
    let given: Vec<usize> = (0..graph.nodes.len()).collect();
    let found = greedy(graph);
    let orders = if found.len() == given.len() && found != given { vec![given, found] } else { vec![given] };
    orders.into_iter().map(|order| early_sums(graph, order)).collect()
}
