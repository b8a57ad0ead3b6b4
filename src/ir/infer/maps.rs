//! Ops on feature maps: convolutions, batch normalisation, pooling, windowed attention.

use super::{Cx, epilogue_outputs};
use crate::error::Result;
use crate::ir::op::{ConvGeometry, Epilogue, FeatureMap, Op};
use crate::saip::config::PATCH;

type Shapes = Result<Vec<Vec<usize>>>;

pub(super) fn shapes(cx: &Cx<'_>, op: &Op) -> Shapes {
    match op {
        Op::Conv2d { geometry, epilogue } => conv2d(cx, geometry, *epilogue),
        Op::Conv2dBackwardInput { geometry, gelu } => {
            cx.arity(if *gelu { 3 } else { 2 })?;
            let [o, c] = conv_weight(cx, 1, geometry)?;
            cx.matrix(0, "dy", geometry.output_rows(), o)?;
            if *gelu {
                cx.matrix(2, "the value before GELU", geometry.rows(), c)?;
            }
            Ok(vec![vec![geometry.rows(), c]])
        }
        Op::Conv2dBackwardWeight { geometry } => {
            let [o, c] = conv_gradients(cx, geometry)?;
            Ok(vec![vec![o, c, geometry.kernel, geometry.kernel], vec![o]])
        }
        Op::DepthwiseConv2d { geometry } => {
            cx.arity(3)?;
            let c = depthwise_weight(cx, 1, geometry)?;
            cx.matrix(0, "x", geometry.rows(), c)?;
            cx.vector(2, "the bias", c)?;
            Ok(vec![vec![geometry.output_rows(), c]])
        }
        Op::DepthwiseConv2dBackwardInput { geometry } => {
            cx.arity(2)?;
            let c = depthwise_weight(cx, 1, geometry)?;
            cx.matrix(0, "dy", geometry.output_rows(), c)?;
            Ok(vec![vec![geometry.rows(), c]])
        }
        Op::DepthwiseConv2dBackwardWeight { geometry } => {
            let [o, c] = conv_gradients(cx, geometry)?;
            if o != c {
                return cx.err(format!("dy {} and x {} differ in channels", cx.shape(0), cx.shape(1)));
            }
            Ok(vec![vec![c, 1, geometry.kernel, geometry.kernel], vec![c]])
        }
        Op::PixelRows { masked, .. } => pixel_rows(cx, *masked),
        Op::BatchNorm { groups, .. } => {
            cx.arity(3)?;
            let c = grouped(cx, 0, "x", groups)?;
            cx.vector(1, "gamma", c)?;
            cx.vector(2, "beta", c)?;
            Ok(vec![cx.shape(0).dims().to_vec(), vec![groups.len(), c], vec![groups.len(), c]])
        }
        Op::BatchNormBackward { groups, .. } => {
            cx.arity(5)?;
            let c = grouped(cx, 0, "dy", groups)?;
            cx.same(0, 1)?;
            cx.vector(2, "gamma", c)?;
            cx.matrix(3, "mean", groups.len(), c)?;
            cx.matrix(4, "var", groups.len(), c)?;
            Ok(vec![cx.shape(0).dims().to_vec(), vec![c], vec![c]])
        }
        Op::BatchNormInference { .. } => {
            cx.arity(5)?;
            let c = cx.rows_cols(0).1;
            for (i, what) in [(1, "gamma"), (2, "beta"), (3, "mean"), (4, "var")] {
                cx.vector(i, what, c)?;
            }
            Ok(vec![cx.shape(0).dims().to_vec()])
        }
        Op::RunningStatistics { groups, .. } => {
            cx.arity(4)?;
            let c = cx.shape(0).count();
            cx.vector(1, "the running variance", c)?;
            cx.matrix(2, "mean", groups.len(), c)?;
            cx.matrix(3, "var", groups.len(), c)?;
            spread(cx, groups)?;
            Ok(vec![cx.shape(0).dims().to_vec(), cx.shape(1).dims().to_vec()])
        }
        Op::GlobalAveragePool { images } => {
            cx.arity(1)?;
            let (count, rows) = pooled(cx, images)?;
            let c = cx.rows_cols(0).1;
            cx.matrix(0, "x", rows, c)?;
            Ok(vec![vec![count, c]])
        }
        Op::GlobalAveragePoolBackward { images } => {
            cx.arity(1)?;
            let (count, rows) = pooled(cx, images)?;
            let c = cx.rows_cols(0).1;
            cx.matrix(0, "dy", count, c)?;
            Ok(vec![vec![rows, c]])
        }
        Op::WindowAttention { heads, window, maps } => {
            cx.arity(3)?;
            let (rows, d) = window_operands(cx, 0, *heads, *window, maps)?;
            Ok(vec![vec![rows, d], vec![rows, *heads]])
        }
        Op::WindowAttentionBackward { heads, window, maps } => {
            cx.arity(6)?;
            let (rows, d) = window_operands(cx, 3, *heads, *window, maps)?;
            cx.matrix(0, "do", rows, d)?;
            cx.matrix(1, "o", rows, d)?;
            cx.matrix(2, "lse", rows, *heads)?;
            Ok((3..6).map(|i| cx.shape(i).dims().to_vec()).collect())
        }
        _ => cx.err("is no op on feature maps".into()),
    }
}

fn check_geometry(cx: &Cx<'_>, g: &ConvGeometry) -> Result<()> {
    if g.stride == 0 || g.kernel.is_multiple_of(2) || g.maps.is_empty() {
        return cx.err(format!(
            "needs feature maps, an odd kernel and a stride of at least 1, got {} maps, kernel {}, stride {}",
            g.maps.len(),
            g.kernel,
            g.stride
        ));
    }
    positive(cx, &g.maps)
}

fn positive(cx: &Cx<'_>, maps: &[FeatureMap]) -> Result<()> {
    match maps.iter().find(|m| m.count == 0 || m.height == 0 || m.width == 0) {
        Some(m) => {
            cx.err(format!("a feature map must have positions, got {} of {}x{}", m.count, m.height, m.width))
        }
        None => Ok(()),
    }
}

fn conv_weight(cx: &Cx<'_>, i: usize, g: &ConvGeometry) -> Result<[usize; 2]> {
    match *cx.shape(i).dims() {
        [o, c, kh, kw] if kh == g.kernel && kw == g.kernel && kh % 2 == 1 => {
            check_geometry(cx, g)?;
            Ok([o, c])
        }
        _ => cx.err(format!(
            "the weight must be [O, C, {0}, {0}] with odd {0}, got {1}",
            g.kernel,
            cx.shape(i)
        )),
    }
}

fn depthwise_weight(cx: &Cx<'_>, i: usize, g: &ConvGeometry) -> Result<usize> {
    match conv_weight(cx, i, g)? {
        [c, 1] => Ok(c),
        _ => cx.err(format!("the weight must be [C, 1, {0}, {0}], got {1}", g.kernel, cx.shape(i))),
    }
}

fn conv2d(cx: &Cx<'_>, g: &ConvGeometry, epilogue: Epilogue) -> Shapes {
    cx.arity(if epilogue == Epilogue::Residual { 4 } else { 3 })?;
    let [o, c] = conv_weight(cx, 1, g)?;
    cx.matrix(0, "x", g.rows(), c)?;
    cx.vector(2, "the bias", o)?;
    epilogue_outputs(cx, epilogue, g.output_rows(), o)
}

/// Channels of `dy` and `x`.
fn conv_gradients(cx: &Cx<'_>, g: &ConvGeometry) -> Result<[usize; 2]> {
    cx.arity(2)?;
    check_geometry(cx, g)?;
    let (o, c) = (cx.rows_cols(0).1, cx.rows_cols(1).1);
    cx.matrix(0, "dy", g.output_rows(), o)?;
    cx.matrix(1, "x", g.rows(), c)?;
    Ok([o, c])
}

fn pixel_rows(cx: &Cx<'_>, masked: Option<usize>) -> Shapes {
    let images = cx.inputs.len() - usize::from(masked.is_some() && !cx.inputs.is_empty());
    if images == 0 || masked.is_some_and(|m| m >= images) {
        return cx.err("needs at least one image, and the masked view among them".into());
    }
    let mut rows = 0;
    for i in 0..images {
        let (b, h, w) = cx.image(i)?;
        rows += b * h * w * PATCH * PATCH;
        if masked == Some(i) {
            let (of, _) = cx.kept(images, h * w)?;
            if of != b {
                return cx.err(format!("kept positions {} do not fit {}", cx.shape(images), cx.shape(i)));
            }
        }
    }
    Ok(vec![vec![rows, 3]])
}

/// Operand `i` must have the rows of all groups; its channels.
fn grouped(cx: &Cx<'_>, i: usize, what: &str, groups: &[usize]) -> Result<usize> {
    let c = cx.rows_cols(i).1;
    cx.matrix(i, what, groups.iter().sum(), c)?;
    spread(cx, groups)?;
    Ok(c)
}

/// One row has no variance.
fn spread(cx: &Cx<'_>, groups: &[usize]) -> Result<()> {
    if groups.is_empty() || groups.iter().any(|&rows| rows < 2) {
        return cx.err(format!(
            "statistics need at least 2 rows in every group, got {groups:?}: use a larger batch or larger views"
        ));
    }
    Ok(())
}

/// Images and rows of a pooling.
fn pooled(cx: &Cx<'_>, images: &[(usize, usize)]) -> Result<(usize, usize)> {
    if images.is_empty() || images.iter().any(|&(_, rows)| rows == 0) {
        return cx.err(format!("needs images of at least one row, got {images:?}"));
    }
    Ok((images.iter().map(|i| i.0).sum(), images.iter().map(|i| i.0 * i.1).sum()))
}

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
