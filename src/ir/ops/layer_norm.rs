//! Layer normalisation.

use crate::ir::graph::ValueId;
use crate::ir::rules::{Cx, Facts, Fusion, OpSet, Rules, Shapes, Slots};
use crate::ir::vjp::{Gradient, Gradients, Vjp};

/// `x: [M, D]`, `gamma: [D]`, `beta: [D]` -> `y: [M, D]`, `mean: [M]`, `rstd: [M]`.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerNorm {
    pub eps: f64,
}

impl Rules for LayerNorm {
    fn facts(&self) -> Facts {
        Facts::new(Slots::from(1), Slots::from(1)).fusion(Fusion::Norm { eps: self.eps })
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        cx.arity(3)?;
        let (m, d) = cx.rows_cols(0);
        cx.vector(1, "gamma", d)?;
        cx.vector(2, "beta", d)?;
        Ok(vec![vec![m, d], vec![m], vec![m]])
    }
}

impl<O: OpSet + From<LayerNormBackward>> Gradient<O> for LayerNorm {
    fn gradient(&self, vjp: &mut Vjp<'_, O>, dy: ValueId) -> Gradients {
        vjp.all(
            LayerNormBackward { residual: false },
            &[dy, vjp.inputs[0], vjp.inputs[1], vjp.outputs[1], vjp.outputs[2]],
        )
    }
}

/// `dy`, `x`, `gamma`, `mean`, `rstd`, (`r: [M, D]`) -> `dx` (plus `r` with a residual), `dgamma`, `dbeta`.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerNormBackward {
    pub residual: bool,
}

impl Rules for LayerNormBackward {
    fn facts(&self) -> Facts {
        let facts = Facts::new(Slots::only(&[2, 3, 4]), Slots::from(1));
        match self.residual {
            true => facts.in_place(&[5]),
            false => facts.fusion(Fusion::NormBackward),
        }
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let LayerNormBackward { residual } = self;
        cx.arity(if *residual { 6 } else { 5 })?;
        let (m, d) = cx.rows_cols(0);
        cx.matrix(1, "x", m, d)?;
        cx.vector(2, "gamma", d)?;
        cx.vector(3, "mean", m)?;
        cx.vector(4, "rstd", m)?;
        if *residual {
            cx.matrix(5, "the residual", m, d)?;
        }
        Ok(vec![vec![m, d], vec![d], vec![d]])
    }

    fn fused(&self, next: Fusion) -> Option<Self> {
        (!self.residual && next == Fusion::Add).then_some(LayerNormBackward { residual: true })
    }
}

impl<O: OpSet> Gradient<O> for LayerNormBackward {}
