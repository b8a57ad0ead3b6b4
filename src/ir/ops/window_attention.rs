//! Attention inside the windows of feature maps.

use crate::error::Result;
use crate::ir::graph::ValueId;
use crate::ir::maps::{FeatureMap, positive};
use crate::ir::rules::{Cx, Facts, OpSet, Rules, Shapes, Slots};
use crate::ir::vjp::{Gradient, Gradients, Vjp};
use crate::tensor::Shape;

/// `qkv: [R, 3D]`, columns q, k, v of head 0, then of head 1, ...; `pad: [1, 3D]`, the same of a position outside of
/// the map; `biases: [heads, window^2]` -> `o: [R, D]`, `lse: [R, heads]`. Attention inside square windows that tile
/// each map from its upper left corner; positions of a window that lie outside of the map are keys with the values of
/// `pad`. Scores are `q k (D / heads)^-0.5` plus the bias at `|dy| * window + |dx|`.
#[derive(Clone, Debug, PartialEq)]
pub struct WindowAttention {
    pub heads: usize,
    pub window: usize,
    pub maps: Vec<FeatureMap>,
}

impl Rules for WindowAttention {
    fn facts(&self) -> Facts {
        Facts::new(Slots::only(&[2]), Slots::from(1))
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let WindowAttention { heads, window, maps } = self;
        cx.arity(3)?;
        let (rows, d) = window_operands(cx, 0, *heads, *window, maps)?;
        Ok(vec![vec![rows, d], vec![rows, *heads]])
    }

    fn products(&self, _: &[&Shape], outputs: &[&Shape]) -> usize {
        2 * outputs[0].count() * self.window * self.window
    }
}

impl<O: OpSet + From<WindowAttentionBackward>> Gradient<O> for WindowAttention {
    fn gradient(&self, vjp: &mut Vjp<'_, O>, dy: ValueId) -> Gradients {
        let WindowAttention { heads, window, maps } = self.clone();
        let inputs = [dy, vjp.outputs[0], vjp.outputs[1], vjp.inputs[0], vjp.inputs[1], vjp.inputs[2]];
        vjp.all(WindowAttentionBackward { heads, window, maps }, &inputs)
    }
}

/// `do`, `o`, `lse`, `qkv`, `pad`, `biases` -> `dqkv`, `dpad`, `dbiases`.
#[derive(Clone, Debug, PartialEq)]
pub struct WindowAttentionBackward {
    pub heads: usize,
    pub window: usize,
    pub maps: Vec<FeatureMap>,
}

impl Rules for WindowAttentionBackward {
    fn facts(&self) -> Facts {
        Facts::new(Slots::only(&[2, 5]), Slots::only(&[2]))
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let WindowAttentionBackward { heads, window, maps } = self;
        cx.arity(6)?;
        let (rows, d) = window_operands(cx, 3, *heads, *window, maps)?;
        cx.matrix(0, "do", rows, d)?;
        cx.matrix(1, "o", rows, d)?;
        cx.matrix(2, "lse", rows, *heads)?;
        Ok((3..6).map(|i| cx.dims(i)).collect())
    }

    fn products(&self, inputs: &[&Shape], _: &[&Shape]) -> usize {
        4 * inputs[0].count() * self.window * self.window
    }
}

impl<O: OpSet> Gradient<O> for WindowAttentionBackward {}

/// Rows and width of windowed attention whose `qkv`, `pad` and `biases` begin at `first`.
fn window_operands(
    cx: &Cx<'_>,
    first: usize,
    heads: usize,
    window: usize,
    maps: &[FeatureMap],
) -> Result<(usize, usize)> {
    positive(cx, maps)?;
    if window == 0 || maps.is_empty() {
        return cx.err("needs feature maps and a window".into());
    }
    let d = cx.divides("the width of qkv", cx.rows_cols(first).1, 3)?;
    cx.divides("width over heads", d, heads)?;
    let rows = maps.iter().map(FeatureMap::rows).sum();
    cx.matrix(first, "qkv", rows, 3 * d)?;
    cx.vector(first + 1, "the padded position", 3 * d)?;
    cx.matrix(first + 2, "the biases", heads, window * window)?;
    Ok((rows, d))
}
