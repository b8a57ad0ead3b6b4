//! Windows of feature maps, and what attention inside of them needs.

use super::par::Slots;
use crate::ir::FeatureMap;

/// Widths shared by both passes.
#[derive(Clone, Copy)]
pub struct Geometry<'a> {
    pub heads: usize,
    /// `D`.
    pub width: usize,
    /// Edge of a window.
    pub window: usize,
    pub maps: &'a [FeatureMap],
}

/// One window of one map: its place and its part inside the map.
#[derive(Clone, Copy)]
pub struct Window {
    /// First row in its band, and rows between two of its lines.
    pub first: usize,
    pub stride: usize,
    pub height: usize,
    pub width: usize,
}

impl Window {
    pub fn rows(&self) -> usize {
        self.height * self.width
    }

    /// The row in the band of position `i`.
    pub fn row(&self, i: usize) -> usize {
        self.first + i / self.width * self.stride + i % self.width
    }
}

impl Geometry<'_> {
    pub fn head_width(&self) -> usize {
        self.width / self.heads
    }

    pub fn positions(&self) -> usize {
        self.window * self.window
    }

    pub fn bands(&self, map: &FeatureMap) -> usize {
        map.height.div_ceil(self.window)
    }

    /// The windows of a band of `rows` rows.
    pub fn windows(&self, map: &FeatureMap, rows: usize) -> impl Iterator<Item = Window> {
        let (stride, size) = (map.width, self.window);
        (0..stride.div_ceil(size)).map(move |w| Window {
            first: w * size,
            stride,
            height: rows / stride,
            width: size.min(stride - w * size),
        })
    }

    /// Elements of the biases of all pairs of positions and their exponentials.
    pub fn table(&self) -> usize {
        2 * self.heads * self.positions() * self.positions()
    }

    pub fn scratch(&self) -> usize {
        let n = self.positions();
        (n + 1) * (4 * self.head_width() + n) + 2 * n
    }

    pub fn backward_scratch(&self) -> usize {
        let n = self.positions();
        (n + 1) * (7 * self.head_width() + 2 * n) + 3 * n
    }

    /// Gradients that bands share: of the biases and of the position outside.
    pub fn shared(&self) -> usize {
        self.heads * self.positions() + 3 * self.width
    }

    /// Elements of workspace of the forward pass.
    pub fn workspace(&self, threads: usize) -> usize {
        self.table() + Slots::<f64>::elements(self.scratch(), threads)
    }

    /// Elements of workspace of the backward pass.
    pub fn backward_workspace(&self, threads: usize) -> usize {
        let bands: usize = self.maps.iter().map(|m| m.count * self.bands(m)).sum();
        let sums = (bands + 1) * self.shared();
        self.table() + sums + Slots::<f64>::elements(self.backward_scratch(), threads)
    }
}
