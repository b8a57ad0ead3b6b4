//! Reconvergence points: the immediate post-dominator of every branch.
//!
//! Post-dominators are found with the iterative algorithm of Cooper, Harvey and Kennedy on the reversed control-flow
//! graph, whose root is a virtual node that every `ret`, `exit` and `trap` leads to.

use crate::ir::{Inst, NO_PC, Op};

/// Successors of the instruction at `pc`; the virtual exit is `len`.
fn successors(code: &[Inst], pc: usize) -> Vec<usize> {
    let next = pc + 1;
    let guarded = code[pc].guard.is_some();
    let mut out: Vec<usize> = match &code[pc].op {
        Op::Bra { target } => vec![*target as usize],
        Op::Brx { targets, .. } => targets.iter().map(|&t| t as usize).collect(),
        Op::Ret | Op::Exit | Op::Trap => vec![code.len()],
        _ => return vec![next],
    };
    if guarded {
        out.push(next);
    }
    out
}

/// Basic blocks: the first pc of each, and the block of each pc.
fn blocks(code: &[Inst]) -> (Vec<usize>, Vec<usize>) {
    let mut leader = vec![false; code.len() + 1];
    leader[0] = true;
    for pc in 0..code.len() {
        if matches!(code[pc].op, Op::Bra { .. } | Op::Brx { .. } | Op::Ret | Op::Exit | Op::Trap) {
            leader[pc + 1] = true;
            for s in successors(code, pc) {
                leader[s] = true;
            }
        }
    }
    let starts: Vec<usize> = (0..code.len()).filter(|&pc| leader[pc]).collect();
    let mut of = vec![0; code.len()];
    for (b, &start) in starts.iter().enumerate() {
        let end = starts.get(b + 1).copied().unwrap_or(code.len());
        of[start..end].fill(b);
    }
    (starts, of)
}

/// For every instruction that branches: where its lanes meet again ([`NO_PC`]: not before the function ends).
pub(crate) fn reconvergence(code: &[Inst]) -> Vec<u32> {
    let mut out = vec![NO_PC; code.len()];
    if code.is_empty() {
        return out;
    }
    let (starts, of) = blocks(code);
    let exit = starts.len();
    let last = |b: usize| starts.get(b + 1).copied().unwrap_or(code.len()) - 1;
    let succ: Vec<Vec<usize>> = (0..exit)
        .map(|b| successors(code, last(b)).iter().map(|&pc| of.get(pc).copied().unwrap_or(exit)).collect())
        .collect();
    let ipdom = post_dominators(&succ, exit);
    for b in 0..exit {
        let pc = last(b);
        if matches!(code[pc].op, Op::Bra { .. } | Op::Brx { .. })
            && let Some(&meet) = ipdom.get(b)
            && meet < exit
        {
            out[pc] = starts[meet] as u32;
        }
    }
    out
}

/// Immediate post-dominator of every block; `usize::MAX` where the exit cannot be reached.
fn post_dominators(succ: &[Vec<usize>], exit: usize) -> Vec<usize> {
    let mut pred = vec![Vec::new(); exit + 1];
    for (b, list) in succ.iter().enumerate() {
        for &s in list {
            pred[s].push(b);
        }
    }
    // Post-order of the reversed graph, by an explicit stack: PTX of unrolled kernels has thousands of blocks.
    let mut order = vec![usize::MAX; exit + 1];
    let mut sequence = Vec::new();
    let mut seen = vec![false; exit + 1];
    let mut stack = vec![(exit, 0)];
    seen[exit] = true;
    while let Some((node, next)) = stack.pop() {
        if let Some(&p) = pred[node].get(next) {
            stack.push((node, next + 1));
            if !seen[p] {
                seen[p] = true;
                stack.push((p, 0));
            }
        } else {
            order[node] = sequence.len();
            sequence.push(node);
        }
    }
    let mut idom = vec![usize::MAX; exit + 1];
    idom[exit] = exit;
    let mut changed = true;
    while changed {
        changed = false;
        for &b in sequence.iter().rev().filter(|&&b| b != exit) {
            let mut meet = usize::MAX;
            for &s in succ[b].iter().filter(|&&s| idom[s] != usize::MAX) {
                meet = if meet == usize::MAX { s } else { intersect(&idom, &order, meet, s) };
            }
            if meet != idom[b] {
                idom[b] = meet;
                changed = true;
            }
        }
    }
    idom
}

fn intersect(idom: &[usize], order: &[usize], mut a: usize, mut b: usize) -> usize {
    while a != b {
        while order[a] < order[b] {
            a = idom[a];
        }
        while order[b] < order[a] {
            b = idom[b];
        }
    }
    a
}
