//! What happens to gradients: accumulation, health, AdamW with the expert's moving average.

use crate::ir::rules::{Cx, Facts, OpSet, Rules, Shapes, Slots};
use crate::ir::vjp::Gradient;

/// A parameter in the flat buffers, as the optimizer sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ParamSegment {
    pub start: usize,
    pub len: usize,
    pub decay: bool,
    /// Whether it begins late: it has a bias correction of its own, and while that is 0 it is held at its value.
    pub late: bool,
    /// Where the expert keeps its moving average of it.
    pub expert: Option<usize>,
}

/// `total: [P]`, `grads: [P]`, `scalars` -> `total`, in place: overwritten at micro step 0, else added to; grads are
/// weighted by `1 / micro steps`.
#[derive(Clone, Debug, PartialEq)]
pub struct AccumulateGrads;

impl Rules for AccumulateGrads {
    fn facts(&self) -> Facts {
        Facts::new(Slots::ALL, Slots::ALL).updates(&[(0, 0)])
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        cx.arity(3)?;
        cx.same(0, 1)?;
        cx.scalars(2)?;
        Ok(vec![cx.dims(0)])
    }
}

impl<O: OpSet> Gradient<O> for AccumulateGrads {}

/// `grads: [P]`, `loss: [1]`, `scalars` -> `health: [3]`: norm of the gradients, clip factor
/// `min(1, clip / (norm + 1e-6))` (1 without clipping), and 1 if loss and norm are finite, else 0 (then the step is
/// skipped).
#[derive(Clone, Debug, PartialEq)]
pub struct GradHealth;

impl Rules for GradHealth {
    fn facts(&self) -> Facts {
        Facts::new(Slots::ALL, Slots::ALL)
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        cx.arity(3)?;
        cx.vector(1, "the loss", 1)?;
        cx.scalars(2)?;
        Ok(vec![vec![3]])
    }
}

impl<O: OpSet> Gradient<O> for GradHealth {}

/// `params: [P]`, `grads: [P]`, `m: [P]`, `v: [P]`, `expert: [E]`, `scalars`, `health`
/// (with `copies` also `weights: [P]`, `expert_weights: [E]`) -> `params`, `m`, `v`, `expert` (`weights`,
/// `expert_weights`), in place: AdamW on `grads * clip factor`, then the expert's moving
/// average; late segments that are held keep parameters and moments, the average goes on; copies hold parameters and expert in the type that the step computes in. A skipped step leaves
/// everything, the expert too, unchanged; so are elements outside of `segments`.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamW {
    pub segments: Vec<ParamSegment>,
    pub copies: bool,
}

impl Rules for AdamW {
    fn facts(&self) -> Facts {
        Facts::new(Slots::ALL.except(&[7, 8]), Slots::ALL.except(&[4, 5])).updates(if self.copies {
            &[(0, 0), (2, 1), (3, 2), (4, 3), (7, 4), (8, 5)]
        } else {
            &[(0, 0), (2, 1), (3, 2), (4, 3)]
        })
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let AdamW { segments, copies } = self;
        cx.arity(if *copies { 9 } else { 7 })?;
        (1..4).try_for_each(|i| cx.same(0, i))?;
        cx.scalars(5)?;
        cx.vector(6, "health", 3)?;
        let (params, expert) = (cx.shape(0).count(), cx.shape(4).count());
        let leaves = |start: usize, len, all| start.checked_add(len).is_none_or(|end| end > all);
        for s in segments {
            if leaves(s.start, s.len, params) || s.expert.is_some_and(|e| leaves(e, s.len, expert)) {
                return cx.err(format!("segment {s:?} leaves the buffers of {params} and {expert} elements"));
            }
        }
        if *copies {
            cx.same(0, 7)?;
            cx.same(4, 8)?;
        }
        let slots: &[usize] = if *copies { &[0, 2, 3, 4, 7, 8] } else { &[0, 2, 3, 4] };
        Ok(slots.iter().map(|&i| cx.dims(i)).collect())
    }
}

impl<O: OpSet> Gradient<O> for AdamW {}

/// `grads: [P]`, `scalars` -> `grads`, in place: each of `tensors`, `(first element, elements)`, times
/// `min(1, c / (norm + 1e-6))` of its own norm, with `c` the tensors' clip norm; unchanged where that is 0.
#[derive(Clone, Debug, PartialEq)]
pub struct ClipTensors {
    pub tensors: Vec<(usize, usize)>,
}

impl Rules for ClipTensors {
    fn facts(&self) -> Facts {
        Facts::new(Slots::ALL, Slots::ALL).updates(&[(0, 0)])
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        cx.arity(2)?;
        cx.scalars(1)?;
        let all = cx.shape(0).count();
        match self.tensors.iter().find(|t| t.0.checked_add(t.1).is_none_or(|end| end > all)) {
            Some((start, len)) => {
                cx.err(format!("a tensor of {len} elements from {start} on leaves the {all} gradients"))
            }
            None => Ok(vec![cx.dims(0)]),
        }
    }
}

impl<O: OpSet> Gradient<O> for ClipTensors {}
