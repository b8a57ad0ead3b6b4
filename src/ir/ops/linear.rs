//! Linear layers.

use crate::ir::graph::ValueId;
use crate::ir::rules::{Cx, Facts, Fusion, OpSet, Rules, Shapes, Slots};
use crate::ir::vjp::{Gradient, Gradients, Vjp};
use crate::tensor::Shape;

/// What a linear layer or a convolution does to its result before storing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Epilogue {
    None,
    /// Outputs `gelu(y)` and `y`.
    Gelu,
    /// One more input `r: [M, N]`; outputs `r + y`.
    Residual,
}

impl Epilogue {
    /// What is true of a product with it: operands are x, w, the bias, and what the epilogue adds.
    pub(super) fn facts(self) -> Facts {
        let facts = Facts::new(Slots::only(&[2]), Slots::NONE);
        match self {
            Epilogue::None => facts,
            // The value before GELU is for the backward pass.
            Epilogue::Gelu => facts.droppable(&[1]),
            Epilogue::Residual => facts.in_place(&[3]),
        }
    }

    /// The epilogue that does `next` as well.
    pub(super) fn fused(self, next: Fusion) -> Option<Epilogue> {
        match (self, next) {
            (Epilogue::None, Fusion::Gelu) => Some(Epilogue::Gelu),
            (Epilogue::None, Fusion::Add) => Some(Epilogue::Residual),
            (Epilogue::None, Fusion::GeluBackward) | (Epilogue::Gelu | Epilogue::Residual, _) => None,
        }
    }
}

/// `x: [M, K]`, `w: [N, K..]`, `b: [N]`, (`r: [M, N]` with a residual) -> `y: [M, N]` (and the value before GELU; it is
/// not stored, its memory empty, when nothing reads it).
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    pub epilogue: Epilogue,
}

impl Rules for Linear {
    fn facts(&self) -> Facts {
        self.epilogue.facts()
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let epilogue = self.epilogue;
        cx.arity(if epilogue == Epilogue::Residual { 4 } else { 3 })?;
        let (m, k) = cx.rows_cols(0);
        let (n, wk) = cx.shape(1).as_weight();
        if k != wk {
            return cx.err(format!("x {} has width {k}, the weight {} takes {wk}", cx.shape(0), cx.shape(1)));
        }
        cx.vector(2, "the bias", n)?;
        epilogue_outputs(cx, epilogue, m, n)
    }

    fn products(&self, inputs: &[&Shape], _: &[&Shape]) -> usize {
        inputs[0].as_matrix().0 * inputs[1].count()
    }

    fn fused(&self, next: Fusion) -> Option<Self> {
        Some(Linear { epilogue: self.epilogue.fused(next)? })
    }
}

impl<O: OpSet + From<LinearBackwardInput> + From<LinearBackwardWeight>> Gradient<O> for Linear {
    fn gradient(&self, vjp: &mut Vjp<'_, O>, dy: ValueId) -> Gradients {
        if self.epilogue != Epilogue::None {
            return vjp.refuse("differentiate before fusing");
        }

        let dx = vjp.wanted_input(LinearBackwardInput { gelu: false }, &[dy, vjp.inputs[1]])?;
        let weight = vjp.graph().shape(vjp.inputs[1]).dims().to_vec();
        vjp.with_weight(dx, LinearBackwardWeight { weight }, dy)
    }
}

/// `dy: [M, N]`, `w: [N, K..]`, (`pre: [M, K]`) -> `dx: [M, K] = dy w`, with `gelu` times `gelu'(pre)`.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearBackwardInput {
    pub gelu: bool,
}

impl Rules for LinearBackwardInput {
    fn facts(&self) -> Facts {
        Facts::new(Slots::NONE, Slots::NONE)
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let LinearBackwardInput { gelu } = self;
        cx.arity(if *gelu { 3 } else { 2 })?;
        let (m, n) = cx.rows_cols(0);
        let (wn, k) = cx.shape(1).as_weight();
        if n != wn {
            return cx.err(format!("dy {} does not fit the weight {}", cx.shape(0), cx.shape(1)));
        }
        if *gelu {
            cx.matrix(2, "the value before GELU", m, k)?;
        }
        Ok(vec![vec![m, k]])
    }

    fn products(&self, inputs: &[&Shape], _: &[&Shape]) -> usize {
        inputs[0].as_matrix().0 * inputs[1].count()
    }

    fn fused(&self, next: Fusion) -> Option<Self> {
        (!self.gelu && next == Fusion::GeluBackward).then_some(LinearBackwardInput { gelu: true })
    }
}

impl<O: OpSet> Gradient<O> for LinearBackwardInput {}

/// `dy: [M, N]`, `x: [M, K]` -> `dw: weight`, `db: [N]` (not stored when nothing reads it).
#[derive(Clone, Debug, PartialEq)]
pub struct LinearBackwardWeight {
    pub weight: Vec<usize>,
}

impl Rules for LinearBackwardWeight {
    fn facts(&self) -> Facts {
        Facts::new(Slots::NONE, Slots::ALL)
            // The bias of a layer without one.
            .droppable(&[1])
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let LinearBackwardWeight { weight } = self;
        cx.arity(2)?;
        let ((m, n), (mx, k)) = (cx.rows_cols(0), cx.rows_cols(1));
        if m != mx || Shape::new(weight.clone()).as_weight() != (n, k) {
            return cx.err(format!(
                "dy {} and x {} do not give a weight {}",
                cx.shape(0),
                cx.shape(1),
                Shape::new(weight.clone())
            ));
        }
        Ok(vec![weight.clone(), vec![n]])
    }

    fn products(&self, inputs: &[&Shape], _: &[&Shape]) -> usize {
        inputs[0].as_matrix().0 * self.weight.iter().product::<usize>()
    }
}

impl<O: OpSet> Gradient<O> for LinearBackwardWeight {}

/// Outputs of a product of `m` rows and `n` columns.
pub(super) fn epilogue_outputs(cx: &Cx<'_>, epilogue: Epilogue, m: usize, n: usize) -> Shapes {
    Ok(match epilogue {
        Epilogue::None => vec![vec![m, n]],
        Epilogue::Gelu => vec![vec![m, n], vec![m, n]],
        Epilogue::Residual => {
            cx.matrix(3, "the residual", m, n)?;
            vec![vec![m, n]]
        }
    })
}
