//! Losses over patches and token maps, and the convolution whose kernel is predicted.

use crate::error::Result;
use crate::ir::graph::ValueId;
use crate::ir::rules::{Cx, Facts, OpSet, PATCH_VALUES, Rules, Shapes, Slots};
use crate::ir::vjp::{Gradient, Gradients, Vjp};
use crate::tensor::Shape;

/// `kernel: [G * B, D]`, `features: [B * m, D]` -> `logits: [G * B, m]`: each kernel against the features of its
/// image (`row % B`).
#[derive(Clone, Debug, PartialEq)]
pub struct DynamicConv {
    pub tokens: usize,
}

impl Rules for DynamicConv {
    fn facts(&self) -> Facts {
        Facts::new(Slots::NONE, Slots::ALL)
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let DynamicConv { tokens } = self;
        cx.arity(2)?;
        let rows = dynamic_conv_operands(cx, 0, *tokens)?;
        Ok(vec![vec![rows, *tokens]])
    }

    fn products(&self, inputs: &[&Shape], _: &[&Shape]) -> usize {
        inputs[0].count() * self.tokens
    }
}

impl<O: OpSet + From<DynamicConvBackward>> Gradient<O> for DynamicConv {
    fn gradient(&self, vjp: &mut Vjp<'_, O>, dy: ValueId) -> Gradients {
        let DynamicConv { tokens } = self.clone();
        vjp.all(DynamicConvBackward { tokens }, &[dy, vjp.inputs[0], vjp.inputs[1]])
    }
}

/// `dlogits`, `kernel`, `features` -> `dkernel`, `dfeatures`.
#[derive(Clone, Debug, PartialEq)]
pub struct DynamicConvBackward {
    pub tokens: usize,
}

impl Rules for DynamicConvBackward {
    fn facts(&self) -> Facts {
        Facts::new(Slots::only(&[0]), Slots::NONE)
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let DynamicConvBackward { tokens } = self;
        cx.arity(3)?;
        let rows = dynamic_conv_operands(cx, 1, *tokens)?;
        cx.matrix(0, "dlogits", rows, *tokens)?;
        Ok(vec![cx.dims(1), cx.dims(2)])
    }

    fn products(&self, inputs: &[&Shape], _: &[&Shape]) -> usize {
        2 * inputs[1].count() * self.tokens
    }
}

impl<O: OpSet> Gradient<O> for DynamicConvBackward {}

/// `pred: [B * h, 3 * 16 * 16]`, `image: [B, 3, H, W]`, `hidden: [B, h]` -> `loss: [1]`: mean squared error against
/// the hidden patches, each normalised by its mean and unbiased variance (+ 1e-6), values ordered
/// (row, column, channel).
#[derive(Clone, Debug, PartialEq)]
pub struct MaskedMse;

impl Rules for MaskedMse {
    fn facts(&self) -> Facts {
        Facts::new(Slots::from(1), Slots::ALL)
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        masked_operands(cx, 0)?;
        Ok(vec![vec![1]])
    }
}

impl<O: OpSet + From<MaskedMseBackward>> Gradient<O> for MaskedMse {
    fn gradient(&self, vjp: &mut Vjp<'_, O>, dy: ValueId) -> Gradients {
        (1..vjp.inputs.len()).try_for_each(|i| vjp.not_differentiable(i))?;
        let d = vjp.push(MaskedMseBackward, &[dy, vjp.inputs[0], vjp.inputs[1], vjp.inputs[2]])?[0];
        Ok(vec![Some(d), None, None])
    }
}

/// `dloss`, `pred`, `image`, `hidden` -> `dpred`.
#[derive(Clone, Debug, PartialEq)]
pub struct MaskedMseBackward;

impl Rules for MaskedMseBackward {
    fn facts(&self) -> Facts {
        Facts::new(Slots::ALL.except(&[1]), Slots::NONE).in_place(&[1])
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        masked_operands(cx, 1)?;
        cx.vector(0, "dloss", 1)?;
        Ok(vec![cx.dims(1)])
    }
}

impl<O: OpSet> Gradient<O> for MaskedMseBackward {}

/// `logits: [G * B, m]`, `target: [G * B, m]` -> `loss: [1]`: mean over images and tokens, summed over the G groups.
#[derive(Clone, Debug, PartialEq)]
pub struct BceWithLogits {
    pub groups: usize,
}

impl Rules for BceWithLogits {
    fn facts(&self) -> Facts {
        Facts::new(Slots::ALL, Slots::ALL)
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        logit_operands(cx, 0, self.groups)?;
        Ok(vec![vec![1]])
    }
}

impl<O: OpSet + From<BceWithLogitsBackward>> Gradient<O> for BceWithLogits {
    fn gradient(&self, vjp: &mut Vjp<'_, O>, dy: ValueId) -> Gradients {
        let BceWithLogits { groups } = self.clone();
        vjp.not_differentiable(1)?;
        let d = vjp.push(BceWithLogitsBackward { groups }, &[dy, vjp.inputs[0], vjp.inputs[1]])?[0];
        Ok(vec![Some(d), None])
    }
}

/// `dloss`, `logits`, `target` -> `dlogits`.
#[derive(Clone, Debug, PartialEq)]
pub struct BceWithLogitsBackward {
    pub groups: usize,
}

impl Rules for BceWithLogitsBackward {
    fn facts(&self) -> Facts {
        Facts::new(Slots::ALL, Slots::ALL).in_place(&[1])
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        logit_operands(cx, 1, self.groups)?;
        cx.vector(0, "dloss", 1)?;
        Ok(vec![cx.dims(1)])
    }
}

impl<O: OpSet> Gradient<O> for BceWithLogitsBackward {}

fn dynamic_conv_operands(cx: &Cx<'_>, first: usize, tokens: usize) -> Result<usize> {
    let ((rows, d), (fr, fd)) = (cx.rows_cols(first), cx.rows_cols(first + 1));
    let images = cx.divides("feature rows per image", fr, tokens)?;
    cx.divides("kernels per image", rows, images)?;
    if d != fd {
        return cx.err(format!(
            "kernels {} and features {} differ in width",
            cx.shape(first),
            cx.shape(first + 1)
        ));
    }
    Ok(rows)
}

/// Checks prediction, image and hidden positions from operand `first` on.
fn masked_operands(cx: &Cx<'_>, first: usize) -> Result<()> {
    cx.arity(first + 3)?;
    let (b, h, w) = cx.image(first + 1)?;
    let (bi, k) = cx.index(first + 2)?;
    if b != bi || k > h * w {
        let hidden = cx.shape(first + 2);
        return cx.err(format!("hidden positions {hidden} do not fit {b} images of {} patches", h * w));
    }
    cx.matrix(first, "pred", b * k, PATCH_VALUES)
}

/// Checks logits and target from operand `first` on.
fn logit_operands(cx: &Cx<'_>, first: usize, groups: usize) -> Result<()> {
    cx.arity(first + 2)?;
    cx.vector(first + 1, "target", cx.shape(first).count())?;
    cx.divides("rows per group", cx.rows_cols(first).0, groups)?;
    Ok(())
}
