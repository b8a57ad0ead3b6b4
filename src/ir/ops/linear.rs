//! Linear layers.

use crate::ir::graph::ValueId;
use crate::ir::rules::{Cx, Facts, Fusion, OpSet, Rules, Shapes, Slots};
use crate::ir::vjp::{Gradient, Gradients, Vjp};
use crate::tensor::Shape;

/// What a linear layer or a convolution does to its result before storing it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Epilogue {
    None,
    /// Outputs `gelu(y)` and `y`.
    Gelu,
    /// One more input `r: [M, N]`; outputs `r + y`.
    Residual,
    /// Three more inputs `r: [M, N]`, `gamma: [N]`, `beta: [N]`; outputs `r + y`, and its layer normalisation `[M, N]` with
    /// `mean: [M]` and `rstd: [M]`.
    Norm {
        eps: f64,
    },
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
            Epilogue::Norm { .. } => Facts::new(Slots::only(&[2, 4, 5]), Slots::from(2)).in_place(&[3]),
        }
    }

    /// Operands of a product with it.
    pub(super) fn operands(self) -> usize {
        match self {
            Epilogue::None | Epilogue::Gelu => 3,
            Epilogue::Residual => 4,
            Epilogue::Norm { .. } => 6,
        }
    }

    /// The epilogue that does `next` as well.
    pub(super) fn fused(self, next: Fusion) -> Option<Epilogue> {
        match (self, next) {
            (Epilogue::None, Fusion::Gelu) => Some(Epilogue::Gelu),
            (Epilogue::None, Fusion::Add) => Some(Epilogue::Residual),
            (Epilogue::Residual, Fusion::Norm { eps }) => Some(Epilogue::Norm { eps }),
            (Epilogue::None, Fusion::GeluBackward | Fusion::Norm { .. } | Fusion::NormBackward)
            | (Epilogue::Gelu | Epilogue::Residual | Epilogue::Norm { .. }, _) => None,
        }
    }
}

/// `x: [M, K]`, `w: [N, K..]`, `b: [N]`, and what the epilogue reads -> `y: [M, N]`, and what the epilogue gives besides (the
/// value before GELU is not stored, its memory empty, when nothing reads it).
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
        cx.arity(epilogue.operands())?;
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

        let op = LinearBackwardInput { epilogue: InputEpilogue::None };
        let dx = vjp.wanted_input(op, &[dy, vjp.inputs[1]])?;
        let weight = vjp.graph().shape(vjp.inputs[1]).dims().to_vec();
        vjp.with_weight(dx, LinearBackwardWeight { weight }, dy)
    }
}

/// What is done to the gradient of a linear layer's input before it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputEpilogue {
    None,
    /// One more input `pre: [M, K]`; times `gelu'(pre)`.
    Gelu,
    /// One more input `r: [M, K]`; plus `r`, what the input's other readers gave.
    Add,
    /// The input is a layer normalisation's output, of which this is the gradient as well: inputs `x: [M, K]`, `gamma: [K]`,
    /// `mean: [M]`, `rstd: [M]`, (`r: [M, K]`, added to dx); outputs the gradient of `x`, `dgamma: [K]`, `dbeta: [K]`.
    Norm {
        residual: bool,
    },
}

/// `dy: [M, N]`, `w: [N, K..]`, and what the epilogue reads -> `dx: [M, K] = dy w`, and what the epilogue does and gives.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearBackwardInput {
    pub epilogue: InputEpilogue,
}

impl Rules for LinearBackwardInput {
    fn facts(&self) -> Facts {
        match self.epilogue {
            InputEpilogue::Norm { residual } => {
                let facts = Facts::new(Slots::only(&[3, 4, 5]), Slots::from(1));
                facts.in_place(if residual { &[6] } else { &[] })
            }
            _ => Facts::new(Slots::NONE, Slots::NONE),
        }
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let LinearBackwardInput { epilogue } = *self;
        cx.arity(match epilogue {
            InputEpilogue::None => 2,
            InputEpilogue::Gelu | InputEpilogue::Add => 3,
            InputEpilogue::Norm { residual } => 6 + usize::from(residual),
        })?;
        let (m, n) = cx.rows_cols(0);
        let (wn, k) = cx.shape(1).as_weight();
        if n != wn {
            return cx.err(format!("dy {} does not fit the weight {}", cx.shape(0), cx.shape(1)));
        }
        match epilogue {
            InputEpilogue::None => {}
            InputEpilogue::Gelu => cx.matrix(2, "the value before GELU", m, k)?,
            InputEpilogue::Add => cx.matrix(2, "the other gradient", m, k)?,
            InputEpilogue::Norm { residual } => {
                cx.matrix(2, "x", m, k)?;
                cx.vector(3, "gamma", k)?;
                cx.vector(4, "mean", m)?;
                cx.vector(5, "rstd", m)?;
                if residual {
                    cx.matrix(6, "the residual", m, k)?;
                }
                return Ok(vec![vec![m, k], vec![k], vec![k]]);
            }
        }
        Ok(vec![vec![m, k]])
    }

    fn products(&self, inputs: &[&Shape], _: &[&Shape]) -> usize {
        inputs[0].as_matrix().0 * inputs[1].count()
    }

    fn fused(&self, next: Fusion) -> Option<Self> {
        let epilogue = match (self.epilogue, next) {
            (InputEpilogue::None, Fusion::GeluBackward) => InputEpilogue::Gelu,
            (InputEpilogue::None, Fusion::Add) => InputEpilogue::Add,
            (InputEpilogue::None, Fusion::NormBackward) => InputEpilogue::Norm { residual: false },
            (InputEpilogue::Norm { residual: false }, Fusion::Add) => InputEpilogue::Norm { residual: true },
            _ => return None,
        };
        Some(LinearBackwardInput { epilogue })
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
        Epilogue::Norm { .. } => {
            cx.matrix(3, "the residual", m, n)?;
            cx.vector(4, "gamma", n)?;
            cx.vector(5, "beta", n)?;
            vec![vec![m, n], vec![m, n], vec![m], vec![m]]
        }
    })
}
