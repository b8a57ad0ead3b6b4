//! Convolutions over streams of feature maps.

use super::linear::{Epilogue, epilogue_outputs};
use crate::ir::graph::ValueId;
use crate::ir::maps::{ConvGeometry, conv_gradients, conv_weight};
use crate::ir::rules::{Cx, Facts, Fusion, OpSet, Rules, Shapes, Slots};
use crate::ir::vjp::{Gradient, Gradients, Vjp};
use crate::tensor::Shape;

/// `x: [R, C]`, `w: [O, C, k, k]`, `b: [O]`, (`r: [Ro, O]` with a residual) -> `y: [Ro, O]` (and the value before
/// GELU; it is not stored, its memory empty, when nothing reads it). `R` rows are read, `Ro` are written.
#[derive(Clone, Debug, PartialEq)]
pub struct Conv2d {
    pub geometry: ConvGeometry,
    pub epilogue: Epilogue,
}

impl Rules for Conv2d {
    fn facts(&self) -> Facts {
        self.epilogue.facts()
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let Conv2d { geometry: g, epilogue } = self;
        let epilogue = *epilogue;
        if let Epilogue::Norm { .. } = epilogue {
            return cx.err("has no normalisation behind it".into());
        }
        cx.arity(epilogue.operands())?;
        let [o, c] = conv_weight(cx, 1, g)?;
        cx.matrix(0, "x", g.rows(), c)?;
        cx.vector(2, "the bias", o)?;
        epilogue_outputs(cx, epilogue, g.output_rows(), o)
    }

    fn products(&self, inputs: &[&Shape], _: &[&Shape]) -> usize {
        self.geometry.output_rows() * inputs[1].count()
    }

    fn fused(&self, next: Fusion) -> Option<Self> {
        // A sum behind a convolution stays an op of its own.
        let epilogue = self.epilogue.fused(next).filter(|_| next == Fusion::Gelu)?;
        Some(Conv2d { geometry: self.geometry.clone(), epilogue })
    }
}

impl<O: OpSet + From<Conv2dBackwardInput> + From<Conv2dBackwardWeight>> Gradient<O> for Conv2d {
    fn gradient(&self, vjp: &mut Vjp<'_, O>, dy: ValueId) -> Gradients {
        let Conv2d { geometry, .. } = self.clone();
        if self.epilogue != Epilogue::None {
            return vjp.refuse("differentiate before fusing");
        }

        let input = Conv2dBackwardInput { geometry: geometry.clone(), gelu: false };
        let dx = vjp.wanted_input(input, &[dy, vjp.inputs[1]])?;
        vjp.with_weight(dx, Conv2dBackwardWeight { geometry }, dy)
    }
}

/// `dy: [Ro, O]`, `w: [O, C, k, k]`, (`pre: [R, C]`) -> `dx: [R, C]`, with `gelu` times `gelu'(pre)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Conv2dBackwardInput {
    pub geometry: ConvGeometry,
    pub gelu: bool,
}

impl Rules for Conv2dBackwardInput {
    fn facts(&self) -> Facts {
        Facts::new(Slots::NONE, Slots::NONE)
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let Conv2dBackwardInput { geometry, gelu } = self;
        cx.arity(if *gelu { 3 } else { 2 })?;
        let [o, c] = conv_weight(cx, 1, geometry)?;
        cx.matrix(0, "dy", geometry.output_rows(), o)?;
        if *gelu {
            cx.matrix(2, "the value before GELU", geometry.rows(), c)?;
        }
        Ok(vec![vec![geometry.rows(), c]])
    }

    fn products(&self, inputs: &[&Shape], _: &[&Shape]) -> usize {
        self.geometry.output_rows() * inputs[1].count()
    }

    fn fused(&self, next: Fusion) -> Option<Self> {
        let fits = !self.gelu && next == Fusion::GeluBackward;
        fits.then(|| Conv2dBackwardInput { geometry: self.geometry.clone(), gelu: true })
    }
}

impl<O: OpSet> Gradient<O> for Conv2dBackwardInput {}

/// `dy: [Ro, O]`, `x: [R, C]` -> `dw: [O, C, k, k]`, `db: [O]` (not stored when nothing reads it).
#[derive(Clone, Debug, PartialEq)]
pub struct Conv2dBackwardWeight {
    pub geometry: ConvGeometry,
}

impl Rules for Conv2dBackwardWeight {
    fn facts(&self) -> Facts {
        Facts::new(Slots::NONE, Slots::ALL)
            // The bias of a layer without one.
            .droppable(&[1])
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let Conv2dBackwardWeight { geometry } = self;
        let [o, c] = conv_gradients(cx, geometry)?;
        Ok(vec![vec![o, c, geometry.kernel, geometry.kernel], vec![o]])
    }

    fn products(&self, _: &[&Shape], outputs: &[&Shape]) -> usize {
        self.geometry.output_rows() * outputs[0].count()
    }
}

impl<O: OpSet> Gradient<O> for Conv2dBackwardWeight {}
