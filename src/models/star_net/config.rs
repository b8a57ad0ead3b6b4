//! What a configuration says of it, under timm's argument names.

use crate::keys::{MAX_DEPTH, MAX_WIDTH, Range, section};

section! {
    /// timm `StarNet`, by default StarNet-S3.
    pub struct StarNetConfig {
        /// Width of the first stage, doubled by each further one.
        pub base_dim: usize = 32, Range::Whole(1, MAX_WIDTH);
        /// Blocks of each stage.
        pub depths: [usize; 4] = [2, 2, 8, 4], Range::Whole(1, MAX_DEPTH);
        /// Expansion of the star branches.
        pub mlp_ratio: usize = 4, Range::Whole(1, 64);
    }
}
