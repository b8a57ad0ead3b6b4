//! timm's `VisionTransformer` with 16x16 patches over one token stream of all views.
//!
//! Only what is read is computed: rows that feed the tap alone leave the stream behind it, and the last block computes
//! the class rows only.

mod config;
mod onnx;
mod table;

pub use config::VitConfig;
pub use table::{Vit, recognise};

use super::config::EncoderConfig;
use super::encoder::{Encoder, HEADS_KEY, TAP_KEY, TimmModel};
use super::layers::Layers;
use super::tokens::{DropPath, EncoderDims, TapGroup, Tokens, View, scale_branch};
use crate::error::{Error, Result};
use crate::ir::PATCH;
use crate::ir::{AttentionLayout, RowRun, Segments, TokenLayout, TokenView, ValueId, ops};
use crate::nn::layers::{Net, first_rows, range};
use crate::onnx::{Builder, Grid, OnnxTokens, Value};
use serde_json::{Map, json};
use std::sync::Arc;

/// A vision transformer.
#[derive(Clone, Debug)]
pub(super) struct VitEncoder {
    /// `[height, width]` of the images of the position table.
    img_size: [usize; 2],
    /// Patches along height and width of the position table.
    grid: [usize; 2],
    dim: usize,
    depth: usize,
    heads: usize,
    /// The block whose output gives the patch tokens.
    tap: usize,
    /// Whether anything reads those.
    tapped: bool,
}

/// The stream between two blocks: its rows and `(images, rows per image)` of its views.
struct Stream {
    x: ValueId,
    lengths: Vec<(usize, usize)>,
}

impl Stream {
    /// `(first row, rows per image)` of view `v`.
    fn place(&self, v: usize) -> (usize, usize) {
        (self.lengths[..v].iter().map(|(c, n)| c * n).sum(), self.lengths[v].1)
    }
}

impl VitEncoder {
    pub fn new(config: &VitConfig) -> Self {
        let VitConfig { img_size, embed_dim: dim, depth, num_heads: heads, tap } = *config;
        VitEncoder { img_size, grid: img_size.map(|s| s / PATCH), dim, depth, heads, tap, tapped: true }
    }

    /// Its sizes as a file's tensors tell them.
    fn sizes(&self) -> Vit {
        Vit {
            dim: self.dim,
            depth: self.depth,
            hidden: 4 * self.dim,
            patch: [PATCH; 2],
            channels: 3,
            positions: 1 + self.grid[0] * self.grid[1],
            class_token: true,
            distillation_token: false,
            registers: 0,
            layer_scale: false,
        }
    }
}

impl Encoder for VitEncoder {
    fn check(&self, key: &str) -> Result<()> {
        let VitEncoder { img_size, dim, depth, heads, tap, .. } = *self;
        let bad = |name: &str, message: String| Err(Error::config(format!("{key}.{name}"), message));
        if img_size.iter().any(|s| *s == 0 || !s.is_multiple_of(PATCH)) {
            return bad("img_size", format!("must be positive multiples of {PATCH}, got {img_size:?}"));
        }
        if dim == 0 || heads == 0 || !dim.is_multiple_of(heads) {
            return bad("num_heads", format!("must divide embed_dim {dim}, got {heads}"));
        }
        if depth == 0 || tap >= depth {
            return bad("tap", format!("must be a block below depth {depth}, got {tap}"));
        }
        Ok(())
    }

    fn without_tap(&self) -> Option<Arc<dyn Encoder>> {
        Some(Arc::new(VitEncoder { tapped: false, ..self.clone() }))
    }

    fn dims(&self) -> EncoderDims {
        EncoderDims { image: self.dim, tap: self.dim }
    }

    /// Two each.
    fn branch_blocks(&self) -> Vec<usize> {
        (0..self.depth).flat_map(|b| [b, b]).collect()
    }

    fn layers(&self) -> Layers {
        self.sizes().layers()
    }

    fn prefix(&self) -> &'static str {
        "encoder.vit."
    }

    /// The norm of the tapped block.
    fn extra_layers(&self) -> Layers {
        let mut all = Layers::default();
        if self.tapped {
            all.layer_norm("tap_norm", self.dim);
        }
        all
    }

    fn build(
        &self,
        net: &mut Net<'_, '_>,
        views: &[View],
        taps: &[TapGroup],
        drop_path: Option<DropPath>,
    ) -> Result<Tokens> {
        let with_image = views.iter().take_while(|v| v.image_token).count();
        if views[with_image..].iter().any(|v| v.image_token) {
            return Err(Error::invariant(
                "model building",
                "views without an image token must come last in the stream",
            ));
        }
        let tap = self.tapped.then_some(self.tap);
        if tap.is_none() && !taps.is_empty() {
            return Err(Error::invariant("model building", "patch tokens of an encoder without a tap"));
        }
        let mut stream = self.embed(net, views)?;
        let mut tokens = Tokens::default();
        for i in 0..self.depth {
            if tap.is_some_and(|tap| i > tap) && with_image == 0 {
                break;
            }
            let class_rows_only = i + 1 == self.depth && (tap != Some(i) || taps.is_empty());
            let drop = drop_path.filter(|_| i > 0).map(|d| (d, 2 * i));
            let (next, qkv) = net.block(|net| self.block(net, i, &stream, class_rows_only, drop))?;
            stream = next;
            tokens.last_qkv = (i + 1 == self.depth).then_some(qkv);
            if tap == Some(i) {
                tokens.taps = taps.iter().map(|t| self.tap_tokens(net, &stream, t)).collect::<Result<_>>()?;
                stream = self.cut(net, stream, with_image)?;
            }
        }
        if with_image > 0 {
            if stream.lengths.iter().any(|&(_, n)| n > 1) {
                let runs = first_rows(stream.lengths.iter().copied());
                stream.x = net.select("encoder.vit.class_rows", stream.x, runs)?;
            }
            tokens.image = Some(net.layer_norm("encoder.vit.norm", stream.x)?);
        } else {
            tokens.last_qkv = None;
        }
        Ok(tokens)
    }

    fn onnx(&self, b: &mut Builder<'_>, images: &Value, grid: Grid) -> Result<OnnxTokens> {
        let VitEncoder { dim, depth, heads, tap, .. } = *self;
        onnx::build(b, images, grid, &onnx::Sizes { dim, depth, heads, tap })
    }

    fn timm(&self) -> TimmModel {
        let VitEncoder { dim, depth, heads, .. } = *self;
        let (name, known) = match (dim, depth, heads) {
            (192, 12, 3) => ("vit_tiny_patch16_224", true),
            (384, 12, 6) => ("vit_small_patch16_224", true),
            (768, 12, 12) => ("vit_base_patch16_224", true),
            (1024, 24, 16) => ("vit_large_patch16_224", true),
            _ => ("vit_tiny_patch16_224", false),
        };
        let mut args = Map::new();
        if !known {
            args.insert("embed_dim".into(), json!(dim));
            args.insert("depth".into(), json!(depth));
            args.insert("num_heads".into(), json!(heads));
        }
        args.insert("img_size".into(), json!(self.img_size));
        let (first_conv, classifier) = ("patch_embed.proj", "head");
        TimmModel { name, args, first_conv, classifier, fixed_size: true }
    }

    fn told(&self) -> Vec<(&'static str, String)> {
        vec![(HEADS_KEY, self.heads.to_string()), (TAP_KEY, self.tap.to_string())]
    }

    fn described(&self) -> Vec<(&'static str, String)> {
        let tap = format!("block {} (from 0), behind a norm of its own in ONNX and `embed`", self.tap);
        vec![("attention heads", self.heads.to_string()), ("patch tokens from", tap)]
    }

    fn small(&self, img_size: [usize; 2]) -> EncoderConfig {
        let (num_heads, depth) = (self.heads, self.depth.min(2));
        EncoderConfig::Vit(VitConfig { img_size, embed_dim: 8 * num_heads, depth, num_heads, tap: depth - 1 })
    }
}

impl VitEncoder {
    /// Patches of all views through one linear layer, class tokens before them, positions added.
    fn embed(&self, net: &mut Net<'_, '_>, views: &[View]) -> Result<Stream> {
        let p = "encoder.vit";
        let kept = views.iter().position(|v| v.keep.is_some());
        let mut images: Vec<ValueId> = views.iter().map(|v| v.image).collect();
        let keep = views.iter().find_map(|v| v.keep.map(|(id, _)| id));
        images.extend(keep);
        let dtype = net.weights.compute();
        let rows = net.push(&format!("{p}.patch_embed"), ops::PatchRows { kept, dtype }, &images)?;
        let rows = net.linear(&format!("{p}.patch_embed.proj"), rows)?;

        let table = net.param(&format!("{p}.pos_embed"))?;
        let token = net.param(&format!("{p}.cls_token"))?;
        let token_pos = net.select(&format!("{p}.pos_embed.cls"), table, vec![range(0, 1)])?;
        let mut operands = vec![rows, token, token_pos];
        let mut grids: Vec<([usize; 2], ValueId)> = Vec::new();
        for view in views {
            let to = view.grid();
            let known = grids.iter().find(|(g, _)| *g == to).map(|&(_, id)| id);
            let pos = match known {
                Some(id) => id,
                None => {
                    let op = ops::ResizePositions { prefix: 1, from: self.grid, to };
                    let path = format!("{p}.pos_embed.{}x{}", to[0], to[1]);
                    let id = net.push(&path, op, &[table])?;
                    grids.push((to, id));
                    id
                }
            };
            operands.push(pos);
        }
        operands.extend(keep);
        let layout = TokenLayout {
            views: views.iter().map(|v| TokenView { count: v.count, tokens: v.tokens() }).collect(),
            positions: true,
            kept,
        };
        let lengths = layout.lengths().collect();
        let x = net.push(&format!("{p}.embed"), ops::EmbedTokens { layout }, &operands)?;
        Ok(Stream { x, lengths })
    }

    /// One pre-norm block; with `class_rows_only` its output has one row per image. Also gives the packed qkv.
    fn block(
        &self,
        net: &mut Net<'_, '_>,
        i: usize,
        stream: &Stream,
        class_rows_only: bool,
        drop: Option<(DropPath, usize)>,
    ) -> Result<(Stream, ValueId)> {
        let p = format!("encoder.vit.blocks.{i}");
        let lengths = stream.lengths.iter().copied();
        let n = net.layer_norm(&format!("{p}.norm1"), stream.x)?;
        let qkv = net.linear(&format!("{p}.attn.qkv"), n)?;
        let segments = if class_rows_only {
            Segments::first_row(lengths.clone())
        } else {
            Segments::full(lengths.clone())
        };
        let op = ops::Attention { heads: self.heads, layout: AttentionLayout::Packed, segments };
        let o = net.push(&format!("{p}.attn"), op, &[qkv])?;
        let y = net.linear(&format!("{p}.attn.proj"), o)?;
        let mut out = Stream { x: stream.x, lengths: stream.lengths.clone() };
        if class_rows_only {
            out.x = net.select(&format!("{p}.class_rows"), stream.x, first_rows(lengths))?;
            out.lengths.iter_mut().for_each(|(_, n)| *n = 1);
        }
        let y = scale_branch(net, &format!("{p}.drop_path1"), y, &out.lengths, drop)?;
        out.x = net.residual(&format!("{p}.add1"), out.x, y)?;
        let n = net.layer_norm(&format!("{p}.norm2"), out.x)?;
        let y = net.mlp(&format!("{p}.mlp"), n)?;
        let drop = drop.map(|(d, row)| (d, row + 1));
        let y = scale_branch(net, &format!("{p}.drop_path2"), y, &out.lengths, drop)?;
        out.x = net.residual(&format!("{p}.add2"), out.x, y)?;
        Ok((out, qkv))
    }

    /// The wanted patch rows, through the tap's own normalisation.
    fn tap_tokens(&self, net: &mut Net<'_, '_>, stream: &Stream, group: &TapGroup) -> Result<ValueId> {
        let runs = group
            .parts
            .iter()
            .map(|part| {
                let (start, len) = stream.place(part.view);
                RowRun { start: start + 1, len: len - 1, stride: len, count: part.images }
            })
            .collect();
        let rows = net.select("encoder.tap", stream.x, runs)?;
        net.layer_norm("encoder.tap_norm", rows)
    }

    /// The stream of the first `views` views.
    fn cut(&self, net: &mut Net<'_, '_>, mut stream: Stream, views: usize) -> Result<Stream> {
        if views == 0 || views == stream.lengths.len() {
            return Ok(stream);
        }
        stream.lengths.truncate(views);
        let rows = stream.lengths.iter().map(|(c, n)| c * n).sum();
        stream.x = net.select("encoder.after_tap", stream.x, vec![range(0, rows)])?;
        Ok(stream)
    }
}
