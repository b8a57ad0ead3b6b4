//! What a configuration says of it, under timm's argument names.

use crate::keys::{MAX_DEPTH, MAX_EDGE, MAX_WIDTH, Range, section};

section! {
    /// timm `TinyVit`, by default TinyViT-5M.
    pub struct TinyVitConfig {
        /// Width of each stage.
        pub embed_dims: [usize; 4] = [64, 128, 160, 320], Range::Whole(1, MAX_WIDTH);
        /// Blocks of each stage.
        pub depths: [usize; 4] = [2, 2, 6, 2], Range::Whole(1, MAX_DEPTH);
        /// Attention heads of each stage.
        pub num_heads: [usize; 4] = [2, 4, 5, 10], Range::Divides("embed_dims");
        /// Attention window of each stage, in positions.
        pub window_sizes: [usize; 4] = [7, 7, 14, 7], Range::Whole(1, MAX_EDGE);
    }
}
