//! Cross-entropy against prototypes, and what is known of the expert from them.

use crate::error::Result;
use crate::ir::graph::ValueId;
use crate::ir::rules::{Cx, Facts, OpSet, Rules, Shapes, Slots};
use crate::ir::vjp::{Gradient, Gradients, Vjp};
use crate::tensor::Shape;

/// Places in the vector of temperatures, which is written like an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum Temperature {
    Student = 0,
    Teacher,
    /// Weight of the old center in the new one.
    CenterMomentum,
}

impl Temperature {
    /// Length of the vector.
    pub const COUNT: usize = 3;
}

/// `z: [V * B, d]`, `w: [P, d]`, `zt: [2B, d]`, `wt: [P, d]`, `center: [1, P]`, `temperatures`
/// -> `loss: [1]`, `lse: [V * B]`, `lse_t: [2B]`: cross-entropy of every student view against the expert's two
/// views, the same view skipped, mean over pairs and images. Rows of z and zt are unit vectors; those of w and wt have any length.
#[derive(Clone, Debug, PartialEq)]
pub struct PrototypeCrossEntropy {
    pub batch: usize,
}

impl Rules for PrototypeCrossEntropy {
    fn facts(&self) -> Facts {
        Facts::new(Slots::from(4), Slots::ALL)
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let PrototypeCrossEntropy { batch } = self;
        cx.arity(6)?;
        let (rows, _) = prototype_operands(cx, 0, *batch)?;
        Ok(vec![vec![1], vec![rows], vec![2 * batch]])
    }

    fn products(&self, inputs: &[&Shape], _: &[&Shape]) -> usize {
        // Logits of both sides, the expert's mean prototype.
        (inputs[0].as_matrix().0 + 2 * inputs[2].as_matrix().0) * inputs[1].count()
    }
}

impl<O: OpSet + From<PrototypeCrossEntropyBackward>> Gradient<O> for PrototypeCrossEntropy {
    fn gradient(&self, vjp: &mut Vjp<'_, O>, dy: ValueId) -> Gradients {
        let PrototypeCrossEntropy { batch } = self.clone();
        (2..vjp.inputs.len()).try_for_each(|i| vjp.not_differentiable(i))?;
        let inputs = [
            dy,
            vjp.inputs[0],
            vjp.inputs[1],
            vjp.inputs[2],
            vjp.inputs[3],
            vjp.inputs[4],
            vjp.inputs[5],
            vjp.outputs[1],
            vjp.outputs[2],
        ];
        let d = vjp.push(PrototypeCrossEntropyBackward { batch }, &inputs)?;
        Ok(vec![Some(d[0]), Some(d[1]), None, None, None, None])
    }
}

/// `dloss`, `z`, `w`, `zt`, `wt`, `center`, `temperatures`, `lse`, `lse_t` -> `dz`, `dw`.
#[derive(Clone, Debug, PartialEq)]
pub struct PrototypeCrossEntropyBackward {
    pub batch: usize,
}

impl Rules for PrototypeCrossEntropyBackward {
    fn facts(&self) -> Facts {
        Facts::new(Slots::ALL.except(&[1, 2, 3, 4]), Slots::from(1))
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let PrototypeCrossEntropyBackward { batch } = self;
        cx.arity(9)?;
        cx.vector(0, "dloss", 1)?;
        let (rows, _) = prototype_operands(cx, 1, *batch)?;
        cx.vector(7, "lse", rows)?;
        cx.vector(8, "lse of the expert", 2 * batch)?;
        Ok(vec![cx.dims(1), cx.dims(2)])
    }

    fn products(&self, inputs: &[&Shape], _: &[&Shape]) -> usize {
        // The logits again, dz and dw.
        (3 * inputs[1].as_matrix().0 + 2 * inputs[3].as_matrix().0) * inputs[2].count()
    }
}

impl<O: OpSet> Gradient<O> for PrototypeCrossEntropyBackward {}

/// `zt: [2B, d]`, `wt: [P, d]`, `center`, `temperatures`, `lse_t: [2B]`, `features: [2B, D]` -> `[3]`: mean entropy of the
/// expert's distributions, entropy of their mean (nats), spread of the features, which the op itself scales to unit
/// rows (`sqrt(D)` times the mean over dimensions of the population standard deviation over rows; 1 when isotropic,
/// 0 collapsed).
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertStatistics;

impl Rules for ExpertStatistics {
    fn facts(&self) -> Facts {
        Facts::new(Slots::only(&[2, 3, 4]), Slots::ALL)
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        cx.arity(6)?;
        let ((rows, d), (k, dw)) = (cx.rows_cols(0), cx.rows_cols(1));
        cx.matrix(0, "zt", rows, dw)?;
        cx.matrix(1, "wt", k, d)?;
        cx.vector(2, "the center", k)?;
        temperatures(cx, 3)?;
        cx.vector(4, "lse of the expert", rows)?;
        if cx.rows_cols(5).0 != rows {
            return cx.err(format!("features {} need {rows} rows", cx.shape(5)));
        }
        Ok(vec![vec![3]])
    }
}

impl<O: OpSet> Gradient<O> for ExpertStatistics {}

/// `center: [1, P]`, `zt: [2B, d]`, `wt: [P, d]`, `temperatures`, `health: [3]` -> `center`, updated in place unless
/// the step is skipped: `m center + (1 - m) mean over rows of zt wt^T`.
#[derive(Clone, Debug, PartialEq)]
pub struct CenterUpdate;

impl Rules for CenterUpdate {
    fn facts(&self) -> Facts {
        Facts::new(Slots::ALL.except(&[1, 2]), Slots::ALL).updates(&[(0, 0)])
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        cx.arity(5)?;
        let ((rows, d), (k, _)) = (cx.rows_cols(1), cx.rows_cols(2));
        cx.vector(0, "the center", k)?;
        cx.matrix(2, "wt", k, d)?;
        cx.matrix(1, "zt", rows, d)?;
        temperatures(cx, 3)?;
        cx.vector(4, "health", 3)?;
        Ok(vec![cx.dims(0)])
    }
}

impl<O: OpSet> Gradient<O> for CenterUpdate {}

fn temperatures(cx: &Cx<'_>, i: usize) -> Result<()> {
    cx.vector(i, "the temperatures", Temperature::COUNT)
}

fn prototype_operands(cx: &Cx<'_>, first: usize, batch: usize) -> Result<(usize, usize)> {
    let (rows, d) = cx.rows_cols(first);
    let k = cx.rows_cols(first + 1).0;
    let views = cx.divides("rows of z per image", rows, batch)?;
    if views < 2 {
        return cx.err(format!("needs the two global views, got {views} views"));
    }
    cx.matrix(first + 1, "w", k, d)?;
    cx.matrix(first + 2, "zt", 2 * batch, d)?;
    cx.matrix(first + 3, "wt", k, d)?;
    cx.vector(first + 4, "the center", k)?;
    temperatures(cx, first + 5)?;
    Ok((rows, k))
}
