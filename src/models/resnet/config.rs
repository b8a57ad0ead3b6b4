//! What a configuration says of it, under timm's argument names.

use crate::keys::{MAX_DEPTH, MAX_WIDTH, Range, section};

section! {
    /// timm `ResNet` of basic blocks, by default ResNet-18.
    pub struct ResNetConfig {
        /// Basic blocks of each stage.
        pub layers: [usize; 4] = [2, 2, 2, 2], Range::Whole(1, MAX_DEPTH);
        /// Width of each stage; the stem has 64.
        pub channels: [usize; 4] = [64, 128, 256, 512], Range::Whole(1, MAX_WIDTH);
    }
}
