//! What a configuration says of it, under timm's argument names.

use crate::ir::PATCH;
use crate::keys::{MAX_DEPTH, MAX_WIDTH, Range, section};

section! {
    /// timm `VisionTransformer` with 16x16 patches, by default ViT-Tiny for images of persons.
    pub struct VitConfig {
        /// `[height, width]` of the images of the position table; none: views.global_size.
        pub img_size: [usize; 2] = [256, 128], Range::Pixels(PATCH);
        /// Token width.
        pub embed_dim: usize = 192, Range::Whole(1, MAX_WIDTH);
        /// Blocks.
        pub depth: usize = 12, Range::Whole(1, MAX_DEPTH);
        /// Attention heads.
        pub num_heads: usize = 3, Range::Divides("embed_dim");
        /// Block, from 0, whose output gives the patch tokens.
        pub tap: usize = 6, Range::Below("depth");
    }
}
