//! What goes into an encoder and what comes out of it, whatever its kind.

use crate::error::Result;
use crate::ir::{Binding, PATCH, Region, ValueId, ops};
use crate::nn::layers::Net;
use crate::tensor::DType;

/// Widths of an encoder's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncoderDims {
    /// Image token.
    pub image: usize,
    /// Patch tokens.
    pub tap: usize,
}

/// The images of one view.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// `[count, 3, H, W]`
    pub image: ValueId,
    pub count: usize,
    /// `[H, W]` in pixels.
    pub size: [usize; 2],
    /// Whether image tokens are wanted. Views that want one come before those that do not.
    pub image_token: bool,
    /// Positions of the visible patches `[count, k]`, with their number `k`: the others are not encoded. At most one
    /// view of a stream is masked.
    pub keep: Option<(ValueId, usize)>,
}

impl View {
    /// Patches along height and width.
    pub fn grid(&self) -> [usize; 2] {
        self.size.map(|s| s / PATCH)
    }

    /// Patch tokens that are encoded, per image.
    pub fn tokens(&self) -> usize {
        let [h, w] = self.grid();
        self.keep.map_or(h * w, |(_, k)| k)
    }
}

/// Patch tokens wanted as one value: of each named view (by index, ascending) those of its first `images` images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapGroup {
    pub parts: Vec<TapPart>,
}

/// One view's share of a [`TapGroup`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TapPart {
    pub view: usize,
    pub images: usize,
}

impl TapGroup {
    /// `parts` are `(view, images)`.
    pub fn new(parts: impl IntoIterator<Item = (usize, usize)>) -> Self {
        TapGroup { parts: parts.into_iter().map(|(view, images)| TapPart { view, images }).collect() }
    }
}

/// What an encoder gives.
#[derive(Clone, Debug, Default)]
pub struct Tokens {
    /// `[images, D]`: the image tokens of all views that want them, in stream order.
    pub image: Option<ValueId>,
    /// `[rows, T]` per tap group.
    pub taps: Vec<ValueId>,
    /// A ViT's last block's packed queries, keys and values `[rows, 3D]` over the views that want image tokens.
    pub last_qkv: Option<ValueId>,
}

/// Stochastic depth: factors written by the host, `[branches, segments]`, 0 or `1 / (1 - p)` where `p` rises linearly
/// from 0 in the first block to `rate` in the last; one row per residual branch, in order (a ViT's block has two:
/// attention, then feed-forward).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DropPath {
    pub region: Region,
    /// Place of the first factor.
    pub offset: usize,
    /// Images of the stream.
    pub segments: usize,
    pub dtype: DType,
}

/// Multiplies each image's rows by its factor of row `row` of the table.
pub(super) fn scale_branch(
    net: &mut Net<'_, '_>,
    path: &str,
    y: ValueId,
    lengths: &[(usize, usize)],
    drop: Option<(DropPath, usize)>,
) -> Result<ValueId> {
    let Some((table, row)) = drop else { return Ok(y) };
    // Views that left the stream behind the tap were its last ones: the others are a prefix of the row.
    let images: usize = lengths.iter().map(|l| l.0).sum();
    let binding = Binding { region: table.region, offset: table.offset + row * table.segments };
    let factors = net.graph.source(format!("drop_path.{row}"), [images], table.dtype, binding);
    net.push(path, ops::ScaleSegments { segments: lengths.to_vec() }, &[y, factors])
}
