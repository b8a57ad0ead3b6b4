//! Classes as targets: images mixed with their partners, soft targets, and cross-entropy against them.
//!
//! The partner of image `i` of `B` is `B - 1 - i`. `box: [B, 4]` holds `top, bottom, left, right` of every image in pixels,
//! ends excluded, from 0 to its size; where it is empty the two are blended by `lam: [B]` (mixup, Zhang et al. 2018), else
//! the box comes from the partner and lam is 1 less its share of the image (cutmix, Yun et al. 2019).

use crate::error::Result;
use crate::ir::graph::ValueId;
use crate::ir::rules::{Cx, Facts, OpSet, Rules, Shapes, Slots};
use crate::ir::vjp::{Gradient, Gradients, Vjp};
use crate::tensor::DType;

/// `image: [B, 3, H, W]`, `lam: [B]`, `box: [B, 4]` -> `[B, 3, H, W]`: `lam x + (1 - lam) partner`, or the image with the box of its
/// partner.
#[derive(Clone, Debug, PartialEq)]
pub struct MixImages;

impl Rules for MixImages {
    fn facts(&self) -> Facts {
        Facts::new(Slots::ALL, Slots::ALL)
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        cx.arity(3)?;
        let b = match *cx.shape(0).dims() {
            [b, 3, _, _] => b,
            _ => return cx.err(format!("images must be [B, 3, H, W], got {}", cx.shape(0))),
        };
        pairs(cx, 1, b)?;
        Ok(vec![cx.dims(0)])
    }
}

impl<O: OpSet> Gradient<O> for MixImages {}

/// `lam: [B]`, `box: [B, 4]`, `label: [B]` -> `[B, C]`: `lam y + (1 - lam) y of the partner`, with `y` the label as a distribution:
/// `smoothing / C` everywhere and `1 - smoothing` more at the label. `size` is that of the images, `[H, W]`.
#[derive(Clone, Debug, PartialEq)]
pub struct SoftTargets {
    pub classes: usize,
    pub smoothing: f64,
    pub size: [usize; 2],
}

impl Rules for SoftTargets {
    fn facts(&self) -> Facts {
        Facts::new(Slots::ALL, Slots::ALL)
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        cx.arity(3)?;
        let b = cx.shape(0).count();
        pairs(cx, 0, b)?;
        if cx.inputs[2].dtype != DType::I32 || cx.shape(2).count() != b {
            return cx.err(format!("labels must be i32 [{b}], got {} {}", cx.inputs[2].dtype, cx.shape(2)));
        }
        if self.classes == 0 || self.size.contains(&0) {
            return cx.err(format!("needs classes and pixels, got {} and {:?}", self.classes, self.size));
        }
        Ok(vec![vec![b, self.classes]])
    }
}

impl<O: OpSet> Gradient<O> for SoftTargets {}

/// `logits: [B, C]`, `target: [B, C]` -> `loss: [1]`, `lse: [B]`: mean over rows of `sum of target * (lse - logits)`, with `lse` the
/// logarithm of the sum of the row's exponentials.
#[derive(Clone, Debug, PartialEq)]
pub struct SoftCrossEntropy;

impl Rules for SoftCrossEntropy {
    fn facts(&self) -> Facts {
        Facts::new(Slots::from(1), Slots::ALL)
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        cx.arity(2)?;
        let rows = logit_operands(cx, 0)?;
        Ok(vec![vec![1], vec![rows]])
    }
}

impl<O: OpSet + From<SoftCrossEntropyBackward>> Gradient<O> for SoftCrossEntropy {
    fn gradient(&self, vjp: &mut Vjp<'_, O>, dy: ValueId) -> Gradients {
        vjp.not_differentiable(1)?;
        let operands = [dy, vjp.inputs[0], vjp.inputs[1], vjp.outputs[1]];
        let d = vjp.push(SoftCrossEntropyBackward, &operands)?[0];
        Ok(vec![Some(d), None])
    }
}

/// `dloss`, `logits: [B, C]`, `target: [B, C]`, `lse: [B]` -> `dlogits: [B, C]`.
#[derive(Clone, Debug, PartialEq)]
pub struct SoftCrossEntropyBackward;

impl Rules for SoftCrossEntropyBackward {
    fn facts(&self) -> Facts {
        Facts::new(Slots::ALL.except(&[1]), Slots::NONE).in_place(&[1])
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        cx.arity(4)?;
        let rows = logit_operands(cx, 1)?;
        cx.vector(0, "dloss", 1)?;
        cx.vector(3, "lse", rows)?;
        Ok(vec![cx.dims(1)])
    }
}

impl<O: OpSet> Gradient<O> for SoftCrossEntropyBackward {}

/// Checks lam and boxes of `b` images from operand `first` on.
fn pairs(cx: &Cx<'_>, first: usize, b: usize) -> Result<()> {
    cx.vector(first, "lam", b)?;
    match cx.index(first + 1)? {
        (rows, 4) if rows == b => Ok(()),
        _ => cx.err(format!("boxes must be i32 [{b}, 4], got {}", cx.shape(first + 1))),
    }
}

/// Checks logits and target from operand `first` on; gives the rows.
fn logit_operands(cx: &Cx<'_>, first: usize) -> Result<usize> {
    let (rows, classes) = cx.rows_cols(first);
    if rows == 0 || classes == 0 {
        return cx.err(format!("logits {} have no row or no class", cx.shape(first)));
    }
    cx.matrix(first + 1, "target", rows, classes)?;
    Ok(rows)
}
