//! Element by element and row by row.

use crate::ir::graph::ValueId;
use crate::ir::rules::{Activation, Applies, Cx, Facts, Fusion, OpSet, Rules, Shapes, Slots};
use crate::ir::vjp::{Gradient, Gradients, Vjp};
use crate::tensor::DType;

/// `x` -> `x * Phi(x)` with the exact normal distribution function.
#[derive(Clone, Debug, PartialEq)]
pub struct Gelu;

impl Rules for Gelu {
    fn facts(&self) -> Facts {
        Facts::new(Slots::NONE, Slots::NONE)
            .in_place(&[0])
            .fusion(Fusion::Gelu)
            .applies(Applies::Forward(Activation::Gelu))
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        cx.elementwise(1)
    }
}

impl<O: OpSet + From<GeluBackward>> Gradient<O> for Gelu {
    fn gradient(&self, vjp: &mut Vjp<'_, O>, dy: ValueId) -> Gradients {
        vjp.one(GeluBackward, &[dy, vjp.inputs[0]])
    }
}

/// `dy`, `x` -> `dy * gelu'(x)`.
#[derive(Clone, Debug, PartialEq)]
pub struct GeluBackward;

impl Rules for GeluBackward {
    fn facts(&self) -> Facts {
        Facts::new(Slots::NONE, Slots::NONE)
            .in_place(&[0])
            .fusion(Fusion::GeluBackward)
            .applies(Applies::Slope(Activation::Gelu))
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        cx.elementwise(2)
    }
}

impl<O: OpSet> Gradient<O> for GeluBackward {}

/// `x` -> `max(x, 0)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Relu;

impl Rules for Relu {
    fn facts(&self) -> Facts {
        Facts::new(Slots::NONE, Slots::NONE).in_place(&[0]).applies(Applies::Forward(Activation::Relu))
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        cx.elementwise(1)
    }
}

impl<O: OpSet + From<ReluBackward>> Gradient<O> for Relu {
    /// From the output, which is kept for the layer behind it anyway, so that the input may make room for it.
    fn gradient(&self, vjp: &mut Vjp<'_, O>, dy: ValueId) -> Gradients {
        vjp.one(ReluBackward, &[dy, vjp.outputs[0]])
    }
}

/// `dy`, `y` -> `dy` where `y > 0`, else 0.
#[derive(Clone, Debug, PartialEq)]
pub struct ReluBackward;

impl Rules for ReluBackward {
    fn facts(&self) -> Facts {
        Facts::new(Slots::NONE, Slots::NONE).in_place(&[0]).applies(Applies::SlopeByOutput(Activation::Relu))
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        cx.elementwise(2)
    }
}

impl<O: OpSet> Gradient<O> for ReluBackward {}

/// `x` -> `min(max(x, 0), 6)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Relu6;

impl Rules for Relu6 {
    fn facts(&self) -> Facts {
        Facts::new(Slots::NONE, Slots::NONE).in_place(&[0]).applies(Applies::Forward(Activation::Relu6))
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        cx.elementwise(1)
    }
}

impl<O: OpSet + From<Relu6Backward>> Gradient<O> for Relu6 {
    fn gradient(&self, vjp: &mut Vjp<'_, O>, dy: ValueId) -> Gradients {
        vjp.one(Relu6Backward, &[dy, vjp.inputs[0]])
    }
}

/// `dy`, `x` -> `dy` where `0 < x < 6`, else 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Relu6Backward;

impl Rules for Relu6Backward {
    fn facts(&self) -> Facts {
        Facts::new(Slots::NONE, Slots::NONE).in_place(&[0]).applies(Applies::Slope(Activation::Relu6))
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        cx.elementwise(2)
    }
}

impl<O: OpSet> Gradient<O> for Relu6Backward {}

/// `a`, `b` of one shape -> `relu6(a) * b`.
#[derive(Clone, Debug, PartialEq)]
pub struct Relu6Gate;

impl Rules for Relu6Gate {
    fn facts(&self) -> Facts {
        Facts::new(Slots::NONE, Slots::NONE).in_place(&[0, 1])
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        cx.elementwise(2)
    }
}

impl<O: OpSet + From<Relu6GateBackward>> Gradient<O> for Relu6Gate {
    fn gradient(&self, vjp: &mut Vjp<'_, O>, dy: ValueId) -> Gradients {
        vjp.all(Relu6GateBackward, &[dy, vjp.inputs[0], vjp.inputs[1]])
    }
}

/// `dy`, `a`, `b` -> `da`, `db`.
#[derive(Clone, Debug, PartialEq)]
pub struct Relu6GateBackward;

impl Rules for Relu6GateBackward {
    fn facts(&self) -> Facts {
        Facts::new(Slots::NONE, Slots::NONE)
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        cx.arity(3)?;
        cx.same(0, 1)?;
        cx.same(0, 2)?;
        Ok(vec![cx.dims(0); 2])
    }
}

impl<O: OpSet> Gradient<O> for Relu6GateBackward {}

/// `a`, `b` of one shape -> `a + b`.
#[derive(Clone, Debug, PartialEq)]
pub struct Add;

impl Rules for Add {
    fn facts(&self) -> Facts {
        Facts::new(Slots::NONE, Slots::NONE).in_place(&[0, 1]).fusion(Fusion::Add)
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        // A vector and a matrix of one row are the same rows.
        if cx.inputs.len() == 2 && cx.rows_cols(0) == cx.rows_cols(1) {
            return Ok(vec![cx.dims(0)]);
        }
        cx.elementwise(2)
    }
}

impl<O: OpSet> Gradient<O> for Add {
    fn gradient(&self, _: &mut Vjp<'_, O>, dy: ValueId) -> Gradients {
        Ok(vec![Some(dy), Some(dy)])
    }
}

/// `x: [1]` -> `x * factor`.
#[derive(Clone, Debug, PartialEq)]
pub struct Scale {
    pub factor: f64,
}

impl Rules for Scale {
    fn facts(&self) -> Facts {
        Facts::new(Slots::NONE, Slots::NONE).in_place(&[0])
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        cx.elementwise(1)
    }
}

impl<O: OpSet + From<Scale>> Gradient<O> for Scale {
    fn gradient(&self, vjp: &mut Vjp<'_, O>, dy: ValueId) -> Gradients {
        let Scale { factor } = self.clone();
        vjp.one(Scale { factor }, &[dy])
    }
}

/// No input -> a value of shape `shape`, every element `value`.
#[derive(Clone, Debug, PartialEq)]
pub struct Fill {
    pub shape: Vec<usize>,
    pub value: f64,
    pub dtype: DType,
}

impl Rules for Fill {
    fn facts(&self) -> Facts {
        Facts::new(Slots::NONE, Slots::NONE).gives(self.dtype)
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let Fill { shape, .. } = self;
        cx.arity(0)?;
        Ok(vec![shape.clone()])
    }
}

impl<O: OpSet> Gradient<O> for Fill {
    fn gradient(&self, _: &mut Vjp<'_, O>, _: ValueId) -> Gradients {
        Ok(vec![])
    }
}

/// `x` -> the same values in another type.
#[derive(Clone, Debug, PartialEq)]
pub struct Cast {
    pub dtype: DType,
}

impl Rules for Cast {
    fn facts(&self) -> Facts {
        Facts::new(Slots::NONE, Slots::NONE).gives(self.dtype)
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        cx.elementwise(1)
    }
}

impl<O: OpSet + From<Cast>> Gradient<O> for Cast {
    fn gradient(&self, vjp: &mut Vjp<'_, O>, dy: ValueId) -> Gradients {
        let dtype = vjp.graph().value(vjp.inputs[0]).dtype;
        vjp.one(Cast { dtype }, &[dy])
    }
}

/// `x: [T, D]`, `factors: [S]` -> every row times its segment's factor (stochastic depth); `segments` lists
/// `(count, rows)`.
#[derive(Clone, Debug, PartialEq)]
pub struct ScaleSegments {
    pub segments: Vec<(usize, usize)>,
}

impl Rules for ScaleSegments {
    fn facts(&self) -> Facts {
        Facts::new(Slots::from(1), Slots::NONE).in_place(&[0])
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let ScaleSegments { segments } = self;
        cx.arity(2)?;
        let (rows, d) = cx.rows_cols(0);
        cx.matrix(0, "x", segments.iter().map(|(c, n)| c * n).sum(), d)?;
        cx.vector(1, "the factors", segments.iter().map(|s| s.0).sum())?;
        Ok(vec![vec![rows, d]])
    }
}

impl<O: OpSet + From<ScaleSegments>> Gradient<O> for ScaleSegments {
    fn gradient(&self, vjp: &mut Vjp<'_, O>, dy: ValueId) -> Gradients {
        let ScaleSegments { segments } = self.clone();
        vjp.not_differentiable(1)?;
        let d = vjp.push(ScaleSegments { segments }, &[dy, vjp.inputs[1]])?[0];
        Ok(vec![Some(d), None])
    }
}

/// `x: [M, D]`, `factors: [M]` -> every row times its factor.
#[derive(Clone, Debug, PartialEq)]
pub struct ScaleRows;

impl Rules for ScaleRows {
    fn facts(&self) -> Facts {
        Facts::new(Slots::from(1), Slots::NONE).in_place(&[0])
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        cx.arity(2)?;
        cx.vector(1, "the factors", cx.rows_cols(0).0)?;
        Ok(vec![cx.dims(0)])
    }
}

impl<O: OpSet + From<ScaleRowsBackward>> Gradient<O> for ScaleRows {
    fn gradient(&self, vjp: &mut Vjp<'_, O>, dy: ValueId) -> Gradients {
        vjp.all(ScaleRowsBackward, &[dy, vjp.inputs[0], vjp.inputs[1]])
    }
}

/// `dy`, `x`, `factors` -> `dx`, `dfactors`.
#[derive(Clone, Debug, PartialEq)]
pub struct ScaleRowsBackward;

impl Rules for ScaleRowsBackward {
    fn facts(&self) -> Facts {
        Facts::new(Slots::only(&[2]), Slots::from(1)).in_place(&[0]).follows(0)
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        cx.arity(3)?;
        cx.same(0, 1)?;
        cx.vector(2, "the factors", cx.rows_cols(0).0)?;
        Ok(vec![cx.dims(0), cx.dims(2)])
    }
}

impl<O: OpSet> Gradient<O> for ScaleRowsBackward {}

/// `x: [M, D]` -> `y = x / max(||x||, eps)`, `norm: [M]` (the denominator).
#[derive(Clone, Debug, PartialEq)]
pub struct L2Normalize {
    pub eps: f64,
}

impl Rules for L2Normalize {
    fn facts(&self) -> Facts {
        Facts::new(Slots::NONE, Slots::from(1))
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        cx.arity(1)?;
        let (m, d) = cx.rows_cols(0);
        Ok(vec![vec![m, d], vec![m]])
    }
}

impl<O: OpSet + From<L2NormalizeBackward>> Gradient<O> for L2Normalize {
    fn gradient(&self, vjp: &mut Vjp<'_, O>, dy: ValueId) -> Gradients {
        let L2Normalize { eps } = self.clone();
        vjp.one(L2NormalizeBackward { eps }, &[dy, vjp.outputs[0], vjp.outputs[1]])
    }
}

/// `dy`, `y`, `norm` -> `dx`.
#[derive(Clone, Debug, PartialEq)]
pub struct L2NormalizeBackward {
    pub eps: f64,
}

impl Rules for L2NormalizeBackward {
    fn facts(&self) -> Facts {
        Facts::new(Slots::only(&[2]), Slots::NONE).in_place(&[0]).follows(0)
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        cx.arity(3)?;
        cx.same(0, 1)?;
        cx.vector(2, "the norms", cx.rows_cols(0).0)?;
        Ok(vec![cx.dims(0)])
    }
}

impl<O: OpSet> Gradient<O> for L2NormalizeBackward {}

/// `losses...`, each of shape `[1]` -> `[1]`: their weighted sum.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightedSum {
    pub weights: Vec<f64>,
}

impl Rules for WeightedSum {
    fn facts(&self) -> Facts {
        Facts::new(Slots::ALL, Slots::ALL)
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let WeightedSum { weights } = self;
        cx.arity(weights.len())?;
        // The derivative has the shape of the sum, so the losses must have it too.
        match (0..weights.len()).find(|i| cx.shape(*i).dims() != [1]) {
            Some(i) => cx.err(format!("a loss must have shape [1], got {}", cx.shape(i))),
            None => Ok(vec![vec![1]]),
        }
    }
}

impl<O: OpSet + From<Scale>> Gradient<O> for WeightedSum {
    fn gradient(&self, vjp: &mut Vjp<'_, O>, dy: ValueId) -> Gradients {
        let WeightedSum { weights } = self.clone();
        weights
            .into_iter()
            .zip(vjp.wanted.clone())
            .map(|(factor, wanted)| match wanted {
                true => Ok(Some(vjp.push(Scale { factor }, &[dy])?[0])),
                false => Ok(None),
            })
            .collect()
    }
}
