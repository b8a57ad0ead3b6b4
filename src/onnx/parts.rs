//! What every encoder takes and gives.

use super::builder::{Builder, Value};

/// Stage of hierarchical encoders whose map has stride 16.
pub const TAP_STAGE: usize = 2;

/// Patches along height and width.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    pub height: usize,
    pub width: usize,
}

/// An encoder's results: `[batch, image_dim]`, `[batch, patches, patch_dim]`.
pub struct OnnxTokens {
    pub image: Value,
    pub patch: Value,
    pub image_dim: usize,
    pub patch_dim: usize,
}

/// `[batch, channels, height, width]` as `[batch, height * width, channels]`.
pub fn tokens_of(b: &mut Builder<'_>, x: &Value, channels: usize, grid: Grid) -> Value {
    let rows = b.reshape(x, &[0, channels as i64, (grid.height * grid.width) as i64]);
    b.transpose(&rows, &[0, 2, 1])
}
