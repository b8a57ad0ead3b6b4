//! Batch normalisation, and the running statistics it leaves.

use crate::error::Result;
use crate::ir::graph::ValueId;
use crate::ir::rules::{Activation, Cx, Facts, OpSet, Rules, Shapes, Slots};
use crate::ir::vjp::{Gradient, Gradients, Vjp};

/// `x: [M, C]`, `gamma: [C]`, `beta: [C]` -> `y: [M, C]`, `mean: [G, C]`, `var: [G, C]` (biased): each channel
/// normalised by its statistics over the rows of its group; `groups` are their row counts, in order. With `then`, `y` is
/// that of the normalised value, which is not stored: the backward op has it from `x` again.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchNorm {
    pub eps: f64,
    pub groups: Vec<usize>,
    pub then: Option<Activation>,
}

impl Rules for BatchNorm {
    fn facts(&self) -> Facts {
        Facts::new(Slots::from(1), Slots::from(1))
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let BatchNorm { groups, .. } = self;
        cx.arity(3)?;
        let c = grouped(cx, 0, "x", groups)?;
        cx.vector(1, "gamma", c)?;
        cx.vector(2, "beta", c)?;
        Ok(vec![cx.dims(0), vec![groups.len(), c], vec![groups.len(), c]])
    }

    fn activated(&self, then: Activation) -> Option<Self> {
        let BatchNorm { eps, groups, then: none } = self.clone();
        none.is_none().then_some(BatchNorm { eps, groups, then: Some(then) })
    }
}

impl<O: OpSet + From<BatchNormBackward>> Gradient<O> for BatchNorm {
    fn gradient(&self, vjp: &mut Vjp<'_, O>, dy: ValueId) -> Gradients {
        let BatchNorm { eps, groups, then } = self.clone();
        if then.is_some() {
            return vjp.refuse("differentiate before fusing");
        }
        let inputs = [dy, vjp.inputs[0], vjp.inputs[1], vjp.outputs[1], vjp.outputs[2]];
        vjp.all(BatchNormBackward { eps, groups, behind: None }, &inputs)
    }
}

/// `dy`, `x`, `gamma`, `mean`, `var` -> `dx`, `dgamma`, `dbeta`; with `behind`, that follows the normalisation, `dy` is
/// its output's, and `beta` is one more operand.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchNormBackward {
    pub eps: f64,
    pub groups: Vec<usize>,
    pub behind: Option<Activation>,
}

impl Rules for BatchNormBackward {
    fn facts(&self) -> Facts {
        Facts::new(Slots::from(2), Slots::from(1))
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let BatchNormBackward { groups, behind, .. } = self;
        cx.arity(if behind.is_some() { 6 } else { 5 })?;
        let c = grouped(cx, 0, "dy", groups)?;
        cx.same(0, 1)?;
        cx.vector(2, "gamma", c)?;
        cx.matrix(3, "mean", groups.len(), c)?;
        cx.matrix(4, "var", groups.len(), c)?;
        if behind.is_some() {
            cx.vector(5, "beta", c)?;
        }
        Ok(vec![cx.dims(0), vec![c], vec![c]])
    }

    fn activated(&self, behind: Activation) -> Option<Self> {
        let BatchNormBackward { eps, groups, behind: none } = self.clone();
        none.is_none().then_some(BatchNormBackward { eps, groups, behind: Some(behind) })
    }
}

impl<O: OpSet> Gradient<O> for BatchNormBackward {}

/// `x: [M, C]`, `gamma`, `beta`, `mean`, `var`, each `[C]` -> `y: [M, C]`: normalised by given statistics.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchNormInference {
    pub eps: f64,
}

impl Rules for BatchNormInference {
    fn facts(&self) -> Facts {
        Facts::new(Slots::from(1), Slots::NONE)
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        cx.arity(5)?;
        let c = cx.rows_cols(0).1;
        for (i, what) in [(1, "gamma"), (2, "beta"), (3, "mean"), (4, "var")] {
            cx.vector(i, what, c)?;
        }
        Ok(vec![cx.dims(0)])
    }
}

impl<O: OpSet> Gradient<O> for BatchNormInference {}

/// `running_mean: [C]`, `running_var: [C]`, `mean: [G, C]`, `var: [G, C]` (biased) -> `running_mean`, `running_var`, in
/// place: one group after the other, `(1 - momentum) running + momentum new`, the variance made unbiased. A channel
/// whose statistics are not finite keeps its running ones.
#[derive(Clone, Debug, PartialEq)]
pub struct RunningStatistics {
    pub momentum: f64,
    pub groups: Vec<usize>,
}

impl Rules for RunningStatistics {
    fn facts(&self) -> Facts {
        Facts::new(Slots::ALL, Slots::ALL).updates(&[(0, 0), (1, 1)])
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let RunningStatistics { groups, .. } = self;
        cx.arity(4)?;
        let c = cx.shape(0).count();
        cx.vector(1, "the running variance", c)?;
        cx.matrix(2, "mean", groups.len(), c)?;
        cx.matrix(3, "var", groups.len(), c)?;
        spread(cx, groups)?;
        Ok(vec![cx.dims(0), cx.dims(1)])
    }
}

impl<O: OpSet> Gradient<O> for RunningStatistics {}

/// Operand `i` must have the rows of all groups; its channels.
fn grouped(cx: &Cx<'_>, i: usize, what: &str, groups: &[usize]) -> Result<usize> {
    let c = cx.rows_cols(i).1;
    cx.matrix(i, what, groups.iter().sum(), c)?;
    spread(cx, groups)?;
    Ok(c)
}

/// One row has no variance.
fn spread(cx: &Cx<'_>, groups: &[usize]) -> Result<()> {
    if groups.is_empty() || groups.iter().any(|&rows| rows < 2) {
        return cx.err(format!(
            "statistics need at least 2 rows in every group, got {groups:?}: use a larger batch or larger views"
        ));
    }
    Ok(())
}
