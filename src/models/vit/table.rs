//! The tensors of timm's `VisionTransformer`, and what they tell of it.

use std::fmt;

use super::config::VitConfig;
use crate::ir::PATCH;
use crate::models::config::EncoderConfig;
use crate::models::layers::Layers;
use crate::models::shapes::Shapes;
use crate::nn::Init;

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

    /// timm's tensors.
    pub fn layers(&self) -> Layers {
        let (d, trunc) = (self.dim, Init::TruncNormal { std: 0.02 });
        let mut all = Layers::default();
        if self.class_token {
            all.parameter("cls_token", &[1, 1, d], Init::Normal { std: 1e-6 });
        }
        if self.distillation_token {
            all.parameter("dist_token", &[1, 1, d], trunc);
        }
        if self.registers > 0 {
            all.parameter("reg_token", &[1, self.registers, d], trunc);
        }
        all.parameter("pos_embed", &[1, self.positions, d], trunc);
        all.conv("patch_embed.proj", [d, self.channels, self.patch[0], self.patch[1]], None, true);
        for i in 0..self.depth {
            self.block(&mut all, &format!("blocks.{i}"));
        }
        all.layer_norm("norm", d);
        all
    }

    fn block(&self, all: &mut Layers, b: &str) {
        let d = self.dim;
        all.layer_norm(&format!("{b}.norm1"), d);
        all.linear(&format!("{b}.attn.qkv"), 3 * d, d);
        all.linear(&format!("{b}.attn.proj"), d, d);
        if self.layer_scale {
            all.parameter(format!("{b}.ls1.gamma"), &[d], Init::Ones);
        }
        all.layer_norm(&format!("{b}.norm2"), d);
        all.linear(&format!("{b}.mlp.fc1"), self.hidden, d);
        all.linear(&format!("{b}.mlp.fc2"), d, self.hidden);
        if self.layer_scale {
            all.parameter(format!("{b}.ls2.gamma"), &[d], Init::Ones);
        }
    }

    /// The encoder of these sizes. Heads, the tapped block and the sides of the grid do not show: they are placeholders.
    pub fn config(&self) -> Result<EncoderConfig, String> {
        Ok(EncoderConfig::Vit(VitConfig {
            // Any grid of as many patches has the same shapes.
            img_size: [PATCH, self.positions.saturating_sub(1).max(1).saturating_mul(PATCH)],
            embed_dim: self.dim,
            depth: self.depth,
            num_heads: 1,
            tap: 0,
        }))
    }
}

/// The sizes of a ViT with these tensors.
pub fn recognise(shapes: Shapes<'_>) -> Option<Vit> {
    let [dim, channels, ph, pw] = shapes.of("patch_embed.proj.weight")?;
    let [_, positions, _] = shapes.of("pos_embed")?;
    let [hidden, _] = shapes.of("blocks.0.mlp.fc1.weight")?;
    let registers = if shapes.has("reg_token") { shapes.of::<3>("reg_token")?[1] } else { 0 };
    Some(Vit {
        dim,
        depth: shapes.count(0, |i| format!("blocks.{i}.norm1.weight")),
        hidden,
        patch: [ph, pw],
        channels,
        positions,
        class_token: shapes.has("cls_token"),
        distillation_token: shapes.has("dist_token"),
        registers,
        layer_scale: shapes.has("blocks.0.ls1.gamma"),
    })
}

impl fmt::Display for Vit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [h, w] = self.patch;
        let Vit { dim, depth, positions, .. } = self;
        write!(f, "ViT, width {dim}, {depth} blocks, patches {h}x{w}, {positions} positions")?;
        if self.layer_scale {
            f.write_str(", LayerScale")?;
        }
        if self.registers > 0 {
            write!(f, ", {} registers", self.registers)?;
        }
        if self.distillation_token {
            f.write_str(", a distillation token")?;
        }
        if !self.class_token {
            f.write_str(", no class token")?;
        }
        Ok(())
    }
}
