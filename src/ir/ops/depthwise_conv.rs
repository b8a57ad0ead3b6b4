//! Convolutions of every channel by itself.

use crate::error::Result;
use crate::ir::graph::ValueId;
use crate::ir::maps::{ConvGeometry, conv_gradients, conv_weight};
use crate::ir::rules::{Cx, Facts, Fusion, OpSet, Rules, Shapes, Slots};
use crate::ir::vjp::{Gradient, Gradients, Vjp};
use crate::tensor::Shape;

/// `x: [R, C]`, `w: [C, 1, k, k]`, `b: [C]`, (`r: [Ro, C]` with a residual) -> `y: [Ro, C]`: every channel by itself, plus
/// the residual.
#[derive(Clone, Debug, PartialEq)]
pub struct DepthwiseConv2d {
    pub geometry: ConvGeometry,
    pub residual: bool,
}

impl Rules for DepthwiseConv2d {
    fn facts(&self) -> Facts {
        Facts::new(Slots::only(&[2]), Slots::NONE)
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let DepthwiseConv2d { geometry, residual } = self;
        cx.arity(if *residual { 4 } else { 3 })?;
        let c = depthwise_weight(cx, 1, geometry)?;
        cx.matrix(0, "x", geometry.rows(), c)?;
        cx.vector(2, "the bias", c)?;
        if *residual {
            cx.matrix(3, "the residual", geometry.output_rows(), c)?;
        }
        Ok(vec![vec![geometry.output_rows(), c]])
    }

    fn fused(&self, next: Fusion) -> Option<Self> {
        let DepthwiseConv2d { geometry, residual } = self.clone();
        (!residual && next == Fusion::Add).then_some(DepthwiseConv2d { geometry, residual: true })
    }

    fn products(&self, inputs: &[&Shape], _: &[&Shape]) -> usize {
        self.geometry.output_rows() * inputs[1].count()
    }
}

impl<O: OpSet + From<DepthwiseConv2dBackwardInput> + From<DepthwiseConv2dBackwardWeight>> Gradient<O>
    for DepthwiseConv2d
{
    fn gradient(&self, vjp: &mut Vjp<'_, O>, dy: ValueId) -> Gradients {
        let DepthwiseConv2d { geometry, residual } = self.clone();
        if residual {
            return vjp.refuse("differentiate before fusing");
        }
        let input = DepthwiseConv2dBackwardInput { geometry: geometry.clone(), residual: false };
        let dx = vjp.wanted_input(input, &[dy, vjp.inputs[1]])?;
        vjp.with_weight(dx, DepthwiseConv2dBackwardWeight { geometry }, dy)
    }
}

/// `dy: [Ro, C]`, `w: [C, 1, k, k]`, (`r: [R, C]` with a residual) -> `dx: [R, C]`, plus the residual.
#[derive(Clone, Debug, PartialEq)]
pub struct DepthwiseConv2dBackwardInput {
    pub geometry: ConvGeometry,
    pub residual: bool,
}

impl Rules for DepthwiseConv2dBackwardInput {
    fn facts(&self) -> Facts {
        Facts::new(Slots::NONE, Slots::NONE)
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let DepthwiseConv2dBackwardInput { geometry, residual } = self;
        cx.arity(if *residual { 3 } else { 2 })?;
        let c = depthwise_weight(cx, 1, geometry)?;
        cx.matrix(0, "dy", geometry.output_rows(), c)?;
        if *residual {
            cx.matrix(2, "the residual", geometry.rows(), c)?;
        }
        Ok(vec![vec![geometry.rows(), c]])
    }

    fn fused(&self, next: Fusion) -> Option<Self> {
        let DepthwiseConv2dBackwardInput { geometry, residual } = self.clone();
        (!residual && next == Fusion::Add)
            .then_some(DepthwiseConv2dBackwardInput { geometry, residual: true })
    }

    fn products(&self, inputs: &[&Shape], _: &[&Shape]) -> usize {
        self.geometry.output_rows() * inputs[1].count()
    }
}

impl<O: OpSet> Gradient<O> for DepthwiseConv2dBackwardInput {}

/// `dy: [Ro, C]`, `x: [R, C]` -> `dw: [C, 1, k, k]`, `db: [C]` (not stored when nothing reads it).
#[derive(Clone, Debug, PartialEq)]
pub struct DepthwiseConv2dBackwardWeight {
    pub geometry: ConvGeometry,
}

impl Rules for DepthwiseConv2dBackwardWeight {
    fn facts(&self) -> Facts {
        Facts::new(Slots::NONE, Slots::ALL)
            // The bias of a layer without one.
            .droppable(&[1])
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let DepthwiseConv2dBackwardWeight { geometry } = self;
        let [o, c] = conv_gradients(cx, geometry)?;
        if o != c {
            return cx.err(format!("dy {} and x {} differ in channels", cx.shape(0), cx.shape(1)));
        }
        Ok(vec![vec![c, 1, geometry.kernel, geometry.kernel], vec![c]])
    }

    fn products(&self, _: &[&Shape], outputs: &[&Shape]) -> usize {
        self.geometry.output_rows() * outputs[0].count()
    }
}

impl<O: OpSet> Gradient<O> for DepthwiseConv2dBackwardWeight {}

fn depthwise_weight(cx: &Cx<'_>, i: usize, g: &ConvGeometry) -> Result<usize> {
    match conv_weight(cx, i, g)? {
        [c, 1] => Ok(c),
        _ => cx.err(format!("the weight must be [C, 1, {0}, {0}], got {1}", g.kernel, cx.shape(i))),
    }
}
