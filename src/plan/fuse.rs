//! Fusion of neighbouring ops into one kernel's work, after differentiation.

use super::activate::activate;
use crate::ir::{Fusion, Graph, Node, Op, Rules, ValueId};

/// Removes nodes none of whose outputs is read or lives in a region.
pub fn eliminate_dead(graph: &mut Graph) {
    let mut uses = graph.use_counts();
    let mut keep = vec![true; graph.nodes.len()];
    for (n, node) in graph.nodes.iter().enumerate().rev() {
        let needed = node.outputs.iter().any(|o| uses[o.index()] > 0 || graph.value(*o).binding.is_some());
        if !needed {
            keep[n] = false;
            for i in &node.inputs {
                uses[i.index()] -= 1;
            }
        }
    }
    let mut kept = keep.iter();
    graph.nodes.retain(|_| *kept.next().unwrap_or(&true));
    graph.relink();
}

/// Fuses, wherever the intermediate value has no other reader: normalisation + activation, forward and backward; then
/// linear or conv2d + GELU (the value before GELU stays an output for the backward pass), linear + residual add,
/// backward input + GELU backward, layer norm backward + add of the residual's gradient, scatter of rows + add, depthwise
/// conv2d or its backward input + add.
pub fn fuse(graph: &mut Graph) {
    eliminate_dead(graph);
    activate(graph);
    let mut f = Fuser::new(graph);
    for n in 0..f.graph.nodes.len() {
        f.visit(n);
    }
    let mut removed = f.removed.into_iter();
    graph.nodes.retain(|_| !removed.next().unwrap_or(false));
    graph.relink();
}

struct Fuser<'a> {
    graph: &'a mut Graph,
    uses: Vec<usize>,
    /// First node that reads each value.
    first_use: Vec<usize>,
    /// Node that computes each value, kept up to date while nodes are fused.
    producer: Vec<Option<usize>>,
    removed: Vec<bool>,
}

impl<'a> Fuser<'a> {
    fn new(graph: &'a mut Graph) -> Self {
        let mut first_use = vec![usize::MAX; graph.values.len()];
        for (n, node) in graph.nodes.iter().enumerate().rev() {
            for i in &node.inputs {
                first_use[i.index()] = n;
            }
        }
        let producer = graph.values.iter().map(|v| v.producer.map(|p| p.0.index())).collect();
        let (uses, removed) = (graph.use_counts(), vec![false; graph.nodes.len()]);
        Fuser { graph, uses, first_use, producer, removed }
    }

    fn visit(&mut self, n: usize) {
        match self.graph.nodes[n].op.facts().fusion {
            Some(Fusion::Gelu) => self.gelu(n),
            Some(Fusion::GeluBackward) => {
                let [dy, pre] = [self.graph.nodes[n].inputs[0], self.graph.nodes[n].inputs[1]];
                self.take_over(n, Fusion::GeluBackward, pre, dy);
            }
            Some(Fusion::Add) => {
                let [a, b] = [self.graph.nodes[n].inputs[0], self.graph.nodes[n].inputs[1]];
                if !self.take_over(n, Fusion::Add, a, b) {
                    self.take_over(n, Fusion::Add, b, a);
                }
            }
            None => {}
        }
    }

    /// The node computing `v`, when its first output is `v`, unbound, and `readers` is all that reads it.
    fn sole_producer(&self, v: ValueId, readers: Option<usize>) -> Option<usize> {
        let p = self.producer[v.index()]?;
        let bound = self.graph.value(v).binding.is_some();
        let first = self.graph.nodes[p].outputs[0] == v;
        (first && !bound && readers.is_none_or(|r| self.uses[v.index()] == r)).then_some(p)
    }

    /// The Gelu at `n` moves into the epilogue of the node before it, which stays in place.
    fn gelu(&mut self, n: usize) {
        let (pre, out) = (self.graph.nodes[n].inputs[0], self.graph.nodes[n].outputs[0]);
        let Some(p) = self.sole_producer(pre, None) else { return };
        let Some(op) = self.graph.nodes[p].op.fused(Fusion::Gelu) else { return };
        let node = &mut self.graph.nodes[p];
        node.op = op;
        node.outputs = vec![out, pre];
        self.producer[out.index()] = Some(p);
        self.uses[pre.index()] -= 1;
        self.removed[n] = true;
    }

    /// The op at `n`, of `v` and the other operand `extra`, moves into the node that computes `v`.
    fn take_over(&mut self, n: usize, fusion: Fusion, extra: ValueId, v: ValueId) -> bool {
        let Some(p) = self.sole_producer(v, Some(1)) else { return false };
        let Some(op) = self.graph.nodes[p].op.fused(fusion) else { return false };
        let others_later = self.graph.nodes[p].outputs[1..].iter().all(|o| self.first_use[o.index()] > n);
        if others_later {
            self.merge(p, n, op, extra);
        }
        others_later
    }

    /// Node `p` and its only reader `n` become one node at `n`'s place with `n`'s output.
    fn merge(&mut self, p: usize, n: usize, op: Op, extra: ValueId) {
        let Node { mut inputs, mut outputs, path, block, .. } = self.graph.nodes[p].clone();
        inputs.push(extra);
        outputs[0] = self.graph.nodes[n].outputs[0];
        for o in &outputs {
            self.producer[o.index()] = Some(n);
        }
        self.graph.nodes[n] = Node { op, inputs, outputs, path, block };
        self.removed[p] = true;
    }
}
