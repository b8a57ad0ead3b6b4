//! timm's `VisionTransformer` with 16x16 patches over one token stream of all views.
//!
//! Only what is read is computed: rows that feed the tap alone leave the stream behind it, and the last block computes
//! the class rows only.

use super::tokens::{DropPath, TapGroup, Tokens, View, scale_branch};
use crate::error::{Error, Result};
use crate::ir::PATCH;
use crate::ir::{AttentionLayout, RowRun, Segments, TokenLayout, TokenView, ValueId, ops};
use crate::nn::layers::{Net, first_rows, range};
use crate::nn::params::{Init, ParamRegistry};

/// A vision transformer.
#[derive(Clone, Debug)]
pub(super) struct Vit {
    /// Patches along height and width of the position table.
    grid: [usize; 2],
    dim: usize,
    depth: usize,
    heads: usize,
    /// The block whose output gives the patch tokens; None where nothing reads them.
    tap: Option<usize>,
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

impl Vit {
    pub fn new(
        img_size: [usize; 2],
        dim: usize,
        depth: usize,
        heads: usize,
        tap: usize,
        key: &str,
    ) -> Result<Self> {
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
        Ok(Vit { grid: img_size.map(|s| s / PATCH), dim, depth, heads, tap: Some(tap) })
    }

    /// The same without the norm of the tapped block: it gives no patch tokens.
    pub fn without_tap(self) -> Self {
        Vit { tap: None, ..self }
    }

    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The block of every residual branch: two each.
    pub fn branch_blocks(&self) -> Vec<usize> {
        (0..self.depth).flat_map(|b| [b, b]).collect()
    }

    pub fn register(&self, reg: &mut ParamRegistry) -> Result<()> {
        let (d, p) = (self.dim, "encoder.vit");
        let trunc = Init::TruncNormal { std: 0.02 };
        reg.register(format!("{p}.cls_token"), &[1, 1, d], Init::Normal { std: 1e-6 })?;
        reg.register(format!("{p}.pos_embed"), &[1, 1 + self.grid[0] * self.grid[1], d], trunc)?;
        reg.conv(&format!("{p}.patch_embed.proj"), d, 3, PATCH)?;
        for i in 0..self.depth {
            let b = format!("{p}.blocks.{i}");
            let linear = |reg: &mut ParamRegistry, name: &str, outputs, inputs| {
                reg.linear_with(&format!("{b}.{name}"), outputs, inputs, trunc, Init::Zeros)
            };
            reg.norm(&format!("{b}.norm1"), d)?;
            linear(reg, "attn.qkv", 3 * d, d)?;
            linear(reg, "attn.proj", d, d)?;
            reg.norm(&format!("{b}.norm2"), d)?;
            linear(reg, "mlp.fc1", 4 * d, d)?;
            linear(reg, "mlp.fc2", d, 4 * d)?;
        }
        reg.norm(&format!("{p}.norm"), d)?;
        self.tap.map_or(Ok(()), |_| reg.norm("encoder.tap_norm", d))
    }

    pub fn build(
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
        if self.tap.is_none() && !taps.is_empty() {
            return Err(Error::invariant("model building", "patch tokens of an encoder without a tap"));
        }
        let mut stream = self.embed(net, views)?;
        let mut tokens = Tokens::default();
        for i in 0..self.depth {
            if self.tap.is_some_and(|tap| i > tap) && with_image == 0 {
                break;
            }
            let class_rows_only = i + 1 == self.depth && (self.tap != Some(i) || taps.is_empty());
            let drop = drop_path.filter(|_| i > 0).map(|d| (d, 2 * i));
            let (next, qkv) = net.block(|net| self.block(net, i, &stream, class_rows_only, drop))?;
            stream = next;
            tokens.last_qkv = (i + 1 == self.depth).then_some(qkv);
            if self.tap == Some(i) {
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
