//! Fusion of neighbouring ops into one kernel's work, after differentiation.

use super::activate::activate;
use super::target::Target;
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
/// linear or conv2d + GELU (the value before GELU stays an output for the backward pass), linear + residual add (+ layer norm,
/// of which the sum stays an output), backward input + GELU backward or + add of another reader's gradient, layer norm
/// backward + add of the residual's gradient, scatter of rows + add, depthwise conv2d or its backward input + add. What is done
/// to whole rows only where `target` does it within the product: layer norm behind a linear layer, layer norm backward behind
/// backward input.
pub fn fuse(graph: &mut Graph, target: &dyn Target) {
    eliminate_dead(graph);
    activate(graph);
    let mut f = Fuser::new(graph, target);
    for n in 0..f.graph.nodes.len() {
        f.visit(n);
    }
    let mut removed = f.removed.into_iter();
    graph.nodes.retain(|_| !removed.next().unwrap_or(false));
    graph.relink();
}

struct Fuser<'a> {
    graph: &'a mut Graph,
    target: &'a dyn Target,
    uses: Vec<usize>,
    /// First node that reads each value.
    first_use: Vec<usize>,
    /// Node that computes each value, kept up to date while nodes are fused.
    producer: Vec<Option<usize>>,
    removed: Vec<bool>,
}

impl<'a> Fuser<'a> {
    fn new(graph: &'a mut Graph, target: &'a dyn Target) -> Self {
        let mut first_use = vec![usize::MAX; graph.values.len()];
        for (n, node) in graph.nodes.iter().enumerate().rev() {
            for i in &node.inputs {
                first_use[i.index()] = n;
            }
        }
        let producer = graph.values.iter().map(|v| v.producer.map(|p| p.0.index())).collect();
        let (uses, removed) = (graph.use_counts(), vec![false; graph.nodes.len()]);
        Fuser { graph, target, uses, first_use, producer, removed }
    }

    fn visit(&mut self, n: usize) {
        match self.graph.nodes[n].op.facts().fusion {
            Some(Fusion::Gelu) => self.gelu(n),
            Some(fusion @ Fusion::Norm { .. }) if self.finishes_rows(n) => self.norm(n, fusion),
            Some(Fusion::NormBackward) if self.finishes_rows(n) => {
                let (dy, extra) = (self.graph.nodes[n].inputs[0], self.graph.nodes[n].inputs[1..].to_vec());
                self.take_over(n, Fusion::NormBackward, &extra, dy);
            }
            Some(Fusion::Norm { .. } | Fusion::NormBackward) => {}
            Some(Fusion::GeluBackward) => {
                let [dy, pre] = [self.graph.nodes[n].inputs[0], self.graph.nodes[n].inputs[1]];
                self.take_over(n, Fusion::GeluBackward, &[pre], dy);
            }
            Some(Fusion::Add) => {
                let [a, b] = [self.graph.nodes[n].inputs[0], self.graph.nodes[n].inputs[1]];
                if !self.take_over(n, Fusion::Add, &[a], b) {
                    self.take_over(n, Fusion::Add, &[b], a);
                }
            }
            None => {}
        }
    }

    /// Whether a product does what the node at `n` does to whole rows.
    fn finishes_rows(&self, n: usize) -> bool {
        self.target.finishes_rows(self.graph.shape(self.graph.nodes[n].inputs[0]).as_matrix().1)
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

    /// The normalisation at `n` moves into the epilogue of the node before it, which stays in place with all its readers.
    fn norm(&mut self, n: usize, fusion: Fusion) {
        let node = self.graph.nodes[n].clone();
        let &[x, gamma, beta] = &node.inputs[..] else { return };
        let given = |v: &ValueId| self.producer[v.index()].is_none();
        let Some(p) = self.sole_producer(x, None).filter(|_| given(&gamma) && given(&beta)) else { return };
        let Some(op) = self.graph.nodes[p].op.fused(fusion) else { return };
        let at = &mut self.graph.nodes[p];
        at.op = op;
        at.inputs.extend([gamma, beta]);
        at.outputs.extend(&node.outputs);
        for o in &node.outputs {
            self.producer[o.index()] = Some(p);
        }
        self.uses[x.index()] -= 1;
        self.removed[n] = true;
    }

    /// The op at `n`, of `v` and the other operands `extra`, moves into the node that computes `v`.
    fn take_over(&mut self, n: usize, fusion: Fusion, extra: &[ValueId], v: ValueId) -> bool {
        let Some(p) = self.sole_producer(v, Some(1)) else { return false };
        let Some(op) = self.graph.nodes[p].op.fused(fusion) else { return false };
        let others_later = self.graph.nodes[p].outputs[1..].iter().all(|o| self.first_use[o.index()] > n);
        if others_later {
            self.merge(p, n, op, extra);
        }
        others_later
    }

    /// Node `p` and its only reader `n` become one node at `n`'s place, with `n`'s outputs for the first of `p`'s.
    fn merge(&mut self, p: usize, n: usize, op: Op, extra: &[ValueId]) {
        let Node { mut inputs, mut outputs, path, block, .. } = self.graph.nodes[p].clone();
        inputs.extend(extra);
        outputs.splice(..1, self.graph.nodes[n].outputs.iter().copied());
        for o in &outputs {
            self.producer[o.index()] = Some(n);
        }
        self.graph.nodes[n] = Node { op, inputs, outputs, path, block };
        self.removed[p] = true;
    }
}
