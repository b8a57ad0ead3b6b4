//! The encoders that files hold.

use std::fmt;

/// An encoder and its sizes, as far as tensors tell them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    Vit(Vit),
    TinyVit(TinyVit),
    StarNet(StarNet),
}

/// timm's `VisionTransformer`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Vit {
    /// Width of a token.
    pub dim: usize,
    pub depth: usize,
    /// Width inside the feed-forward.
    pub hidden: usize,
    /// Height and width of a patch in pixels.
    pub patch: [usize; 2],
    /// Channels of the image.
    pub channels: usize,
    /// Rows of the position table: those of the patches and, usually, of the class token.
    pub positions: usize,
    pub class_token: bool,
    /// A second token beside it, as in DeiT's distilled models.
    pub distillation_token: bool,
    /// Register tokens.
    pub registers: usize,
    /// LayerScale behind each branch, as in DINOv2.
    pub layer_scale: bool,
}

impl Vit {
    /// Attention heads do not show in any shape. This is what the published models of this width have: 64 columns a head, and
    /// 16 heads from the huge model on.
    pub fn usual_heads(&self) -> usize {
        match self.dim {
            1280 | 1408 | 1664 => 16,
            dim => (dim / 64).max(1),
        }
    }

    /// Rows of the position table before those of the patches: as many as leave a square grid (timm's tables cover the class
    /// token, or all prefix tokens, or none), else that of the class token.
    pub fn prefix_rows(&self) -> usize {
        let class = usize::from(self.class_token) + usize::from(self.distillation_token);
        let square = |prefix: &usize| {
            self.positions.checked_sub(*prefix).is_some_and(|n| n > 0 && n.isqrt() * n.isqrt() == n)
        };
        [class, class.saturating_add(self.registers), 0].into_iter().find(square).unwrap_or(class)
    }
}

/// timm's `TinyVit`: four stages, of which the first is convolutional.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TinyVit {
    /// Channels behind the first of the two stem convolutions.
    pub stem: usize,
    /// Channels per stage.
    pub widths: Vec<usize>,
    /// Blocks per stage.
    pub depths: Vec<usize>,
    /// Channels inside the blocks of the first stage.
    pub expanded: usize,
    /// Attention heads of the stages behind the first.
    pub heads: Vec<usize>,
    /// Side of their windows.
    pub windows: Vec<usize>,
    /// Width inside their feed-forwards.
    pub hidden: Vec<usize>,
    /// Side of the kernel of their local convolution.
    pub local: usize,
}

/// timm's `StarNet`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StarNet {
    /// Channels of the stem.
    pub stem: usize,
    /// Channels per stage.
    pub widths: Vec<usize>,
    /// Blocks per stage.
    pub depths: Vec<usize>,
    /// Channels of the two multiplied branches over those of their stage.
    pub expansion: usize,
    /// Side of the depthwise kernels.
    pub kernel: usize,
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Architecture::Vit(v) => {
                let [h, w] = v.patch;
                write!(
                    f,
                    "ViT, width {}, {} blocks, patches {h}x{w}, {} positions",
                    v.dim, v.depth, v.positions
                )?;
                if v.layer_scale {
                    f.write_str(", LayerScale")?;
                }
                if v.registers > 0 {
                    write!(f, ", {} registers", v.registers)?;
                }
                if v.distillation_token {
                    f.write_str(", a distillation token")?;
                }
                if !v.class_token {
                    f.write_str(", no class token")?;
                }
                Ok(())
            }
            Architecture::TinyVit(t) => write!(f, "TinyViT, widths {:?}, depths {:?}", t.widths, t.depths),
            Architecture::StarNet(s) => write!(f, "StarNet, widths {:?}, depths {:?}", s.widths, s.depths),
        }
    }
}
