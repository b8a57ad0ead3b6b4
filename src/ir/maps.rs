//! Streams of feature maps, and convolutions over them.

use super::rules::Cx;
use crate::error::Result;

/// `count` feature maps of one size, each stored as rows of channels in row-major order of its positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FeatureMap {
    pub count: usize,
    pub height: usize,
    pub width: usize,
}

impl FeatureMap {
    /// Positions of one map.
    pub fn positions(&self) -> usize {
        self.height * self.width
    }

    /// Rows of all of them.
    pub fn rows(&self) -> usize {
        self.count * self.positions()
    }

    /// What a convolution of stride `stride` with a padding of half its kernel makes of them.
    pub fn strided(&self, stride: usize) -> FeatureMap {
        let [height, width] = [self.height, self.width].map(|n| n.div_ceil(stride.max(1)));
        FeatureMap { count: self.count, height, width }
    }
}

/// A square convolution over a stream of feature maps, `[sum of count * height * width, channels]`. The padding is half
/// the kernel, so that a stride of 1 keeps the size.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConvGeometry {
    /// What is read, in stream order.
    pub maps: Vec<FeatureMap>,
    /// Edge of the kernel, odd.
    pub kernel: usize,
    pub stride: usize,
}

impl ConvGeometry {
    /// Over `batch` maps of one size, with stride 1.
    pub fn same(batch: usize, height: usize, width: usize, kernel: usize) -> Self {
        ConvGeometry { maps: vec![FeatureMap { count: batch, height, width }], kernel, stride: 1 }
    }

    /// Rows that are read.
    pub fn rows(&self) -> usize {
        self.maps.iter().map(FeatureMap::rows).sum()
    }

    /// Rows that are written.
    pub fn output_rows(&self) -> usize {
        self.outputs().map(|m| m.rows()).sum()
    }

    /// What is written, in stream order.
    pub fn outputs(&self) -> impl Iterator<Item = FeatureMap> + '_ {
        self.maps.iter().map(|m| m.strided(self.stride))
    }
}

pub fn check_geometry(cx: &Cx<'_>, g: &ConvGeometry) -> Result<()> {
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

pub fn positive(cx: &Cx<'_>, maps: &[FeatureMap]) -> Result<()> {
    match maps.iter().find(|m| m.count == 0 || m.height == 0 || m.width == 0) {
        Some(m) => {
            cx.err(format!("a feature map must have positions, got {} of {}x{}", m.count, m.height, m.width))
        }
        None => Ok(()),
    }
}

pub fn conv_weight(cx: &Cx<'_>, i: usize, g: &ConvGeometry) -> Result<[usize; 2]> {
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

/// Channels of `dy` and `x`.
pub fn conv_gradients(cx: &Cx<'_>, g: &ConvGeometry) -> Result<[usize; 2]> {
    cx.arity(2)?;
    check_geometry(cx, g)?;
    let (o, c) = (cx.rows_cols(0).1, cx.rows_cols(1).1);
    cx.matrix(0, "dy", g.output_rows(), o)?;
    cx.matrix(1, "x", g.rows(), c)?;
    Ok([o, c])
}
