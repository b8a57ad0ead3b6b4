//! Which encoder.

use serde::{Deserialize, Serialize};

/// Which encoder, under timm's argument names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum EncoderConfig {
    /// timm `VisionTransformer` with 16x16 patches. `img_size` is `[height, width]` of the position table;
    /// `tap` is the 0-based block whose output gives the patch tokens.
    Vit { img_size: [usize; 2], embed_dim: usize, depth: usize, num_heads: usize, tap: usize },
    /// timm `TinyVit`.
    TinyVit { embed_dims: [usize; 4], depths: [usize; 4], num_heads: [usize; 4], window_sizes: [usize; 4] },
    /// timm `StarNet`.
    StarNet { base_dim: usize, depths: [usize; 4], mlp_ratio: usize },
    /// timm `ResNet` of basic blocks: `layers` of each stage, and their `channels`.
    ResNet { layers: [usize; 4], channels: [usize; 4] },
}
