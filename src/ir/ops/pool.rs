//! Pooling: means over whole maps, maxima of windows.

use crate::error::Result;
use crate::ir::graph::ValueId;
use crate::ir::maps::{ConvGeometry, check_geometry};
use crate::ir::rules::{Cx, Facts, OpSet, Rules, Shapes, Slots};
use crate::ir::vjp::{Gradient, Gradients, Vjp};

/// `x: [sum of count * rows, C]` -> `[images, C]`: the mean over each image's rows; `images` lists `(count, rows)`.
#[derive(Clone, Debug, PartialEq)]
pub struct GlobalAveragePool {
    pub images: Vec<(usize, usize)>,
}

impl Rules for GlobalAveragePool {
    fn facts(&self) -> Facts {
        Facts::new(Slots::NONE, Slots::NONE)
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let GlobalAveragePool { images } = self;
        cx.arity(1)?;
        let (count, rows) = pooled(cx, images)?;
        let c = cx.rows_cols(0).1;
        cx.matrix(0, "x", rows, c)?;
        Ok(vec![vec![count, c]])
    }
}

impl<O: OpSet + From<GlobalAveragePoolBackward>> Gradient<O> for GlobalAveragePool {
    fn gradient(&self, vjp: &mut Vjp<'_, O>, dy: ValueId) -> Gradients {
        let GlobalAveragePool { images } = self.clone();
        vjp.one(GlobalAveragePoolBackward { images }, &[dy])
    }
}

/// `dy: [images, C]` -> `[sum of count * rows, C]`.
#[derive(Clone, Debug, PartialEq)]
pub struct GlobalAveragePoolBackward {
    pub images: Vec<(usize, usize)>,
}

impl Rules for GlobalAveragePoolBackward {
    fn facts(&self) -> Facts {
        Facts::new(Slots::NONE, Slots::NONE)
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let GlobalAveragePoolBackward { images } = self;
        cx.arity(1)?;
        let (count, rows) = pooled(cx, images)?;
        let c = cx.rows_cols(0).1;
        cx.matrix(0, "dy", count, c)?;
        Ok(vec![vec![rows, c]])
    }
}

impl<O: OpSet> Gradient<O> for GlobalAveragePoolBackward {}

/// Images and rows of a pooling.
fn pooled(cx: &Cx<'_>, images: &[(usize, usize)]) -> Result<(usize, usize)> {
    if images.is_empty() || images.iter().any(|&(_, rows)| rows == 0) {
        return cx.err(format!("needs images of at least one row, got {images:?}"));
    }
    Ok((images.iter().map(|i| i.0).sum(), images.iter().map(|i| i.0 * i.1).sum()))
}

/// `x: [R, C]` -> `y: [Ro, C]`: the largest value of every window of the maps, channel by channel; what lies outside of a map
/// is no candidate, NaN is larger than anything.
#[derive(Clone, Debug, PartialEq)]
pub struct MaxPool2d {
    pub geometry: ConvGeometry,
}

impl Rules for MaxPool2d {
    fn facts(&self) -> Facts {
        Facts::new(Slots::NONE, Slots::NONE)
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let MaxPool2d { geometry } = self;
        cx.arity(1)?;
        check_geometry(cx, geometry)?;
        let c = cx.rows_cols(0).1;
        cx.matrix(0, "x", geometry.rows(), c)?;
        Ok(vec![vec![geometry.output_rows(), c]])
    }
}

impl<O: OpSet + From<MaxPool2dBackward>> Gradient<O> for MaxPool2d {
    fn gradient(&self, vjp: &mut Vjp<'_, O>, dy: ValueId) -> Gradients {
        let MaxPool2d { geometry } = self.clone();
        vjp.one(MaxPool2dBackward { geometry }, &[dy, vjp.inputs[0]])
    }
}

/// `dy: [Ro, C]`, `x: [R, C]` -> `dx: [R, C]`: the gradient of a window belongs to the first of its largest values, row by row
/// (of several NaN to the last), as in PyTorch.
#[derive(Clone, Debug, PartialEq)]
pub struct MaxPool2dBackward {
    pub geometry: ConvGeometry,
}

impl Rules for MaxPool2dBackward {
    fn facts(&self) -> Facts {
        Facts::new(Slots::NONE, Slots::NONE)
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let MaxPool2dBackward { geometry } = self;
        cx.arity(2)?;
        check_geometry(cx, geometry)?;
        let c = cx.rows_cols(1).1;
        cx.matrix(0, "dy", geometry.output_rows(), c)?;
        cx.matrix(1, "x", geometry.rows(), c)?;
        Ok(vec![vec![geometry.rows(), c]])
    }
}

impl<O: OpSet> Gradient<O> for MaxPool2dBackward {}
