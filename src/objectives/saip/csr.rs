//! Pixel-level decoder for reconstruction (CSR): the masked image's visible tokens read the anchor's tokens and predict
//! the hidden patches.

use crate::error::{Error, Result};
use crate::ir::PATCH;
use crate::ir::{SegmentRun, Segments, ValueId, ops};
use crate::nn::layers::{Net, register_attention, register_mlp};
use crate::nn::params::{Init, ParamRegistry};
use crate::objectives::saip::config::CsrConfig;

/// The decoder; `tap` and `expert_tap` are the widths of the student's and the expert's patch tokens.
#[derive(Clone, Debug)]
pub struct CsrDecoder {
    tap: usize,
    expert_tap: usize,
    /// Grid of the position table: that of the global view.
    grid: [usize; 2],
    config: CsrConfig,
}

/// What the decoder reads.
#[derive(Clone, Copy, Debug)]
pub struct CsrInputs {
    pub batch: usize,
    /// `[B * N, T]`: the anchor's patch tokens, from the student.
    pub anchor: ValueId,
    pub anchor_grid: [usize; 2],
    /// `[B * k, T]`: the visible patch tokens of the masked image, from the expert.
    pub visible: ValueId,
    /// `[B, k]`: their positions.
    pub keep: ValueId,
    /// `[B, n - k]`: all other positions.
    pub hidden: ValueId,
    /// Number of hidden patches per image.
    pub hidden_tokens: usize,
    pub masked_grid: [usize; 2],
}

impl CsrDecoder {
    /// # Errors
    /// [`Error::Config`] when the configuration is no valid decoder.
    pub fn new(tap: usize, expert_tap: usize, grid: [usize; 2], config: &CsrConfig) -> Result<Self> {
        check_block(config.dim, config.depth, config.heads, "csr")?;
        Ok(CsrDecoder { tap, expert_tap, grid, config: config.clone() })
    }

    /// Appends the parameters, named `csr.*`.
    pub fn register(&self, reg: &mut ParamRegistry) -> Result<()> {
        let (e, token) = (self.config.dim, Init::Normal { std: 0.02 });
        reg.linear("csr.embed_masked", e, self.expert_tap)?;
        reg.linear("csr.embed_anchor", e, self.tap)?;
        reg.register("csr.mask_token", &[1, 1, e], token)?;
        reg.register("csr.pos_embed", &[1, self.grid[0] * self.grid[1], e], token)?;
        for i in 0..self.config.depth {
            let b = format!("csr.blocks.{i}");
            reg.norm(&format!("{b}.norm_self"), e)?;
            register_attention(reg, &format!("{b}.attn_self"), e)?;
            reg.norm(&format!("{b}.norm_cross"), e)?;
            register_attention(reg, &format!("{b}.attn_cross"), e)?;
            reg.norm(&format!("{b}.norm_mlp"), e)?;
            register_mlp(reg, &format!("{b}.mlp"), e)?;
        }
        reg.norm("csr.norm", e)?;
        reg.linear("csr.pred", 3 * PATCH * PATCH, e)
    }

    /// `-> [B * hidden, 3 * 16 * 16]`: the predicted pixels of the hidden patches, values ordered (row, column,
    /// channel).
    pub fn build(&self, net: &mut Net<'_, '_>, inputs: &CsrInputs) -> Result<ValueId> {
        let visible = net.linear("csr.embed_masked", inputs.visible)?;
        let token = net.param("csr.mask_token")?;
        let pos = self.positions(net, inputs.masked_grid)?;
        let mut x = net.push("csr.restore", ops::RestoreTokens, &[visible, inputs.keep, token, pos])?;
        let anchor = net.linear("csr.embed_anchor", inputs.anchor)?;
        let pos = self.positions(net, inputs.anchor_grid)?;
        let ctx = net.push("csr.add_positions", ops::AddPositions, &[anchor, pos])?;
        for i in 0..self.config.depth {
            x = net.block(|net| self.block(net, i, x, ctx, inputs))?;
        }
        let x = net.layer_norm("csr.norm", x)?;
        net.linear("csr.pred", x)
    }

    /// One interactive block. The last one goes on with the hidden rows alone: nothing reads the others behind its
    /// self-attention, where they still serve as keys and values.
    fn block(
        &self,
        net: &mut Net<'_, '_>,
        i: usize,
        x: ValueId,
        ctx: ValueId,
        inputs: &CsrInputs,
    ) -> Result<ValueId> {
        let (b, heads) = (format!("csr.blocks.{i}"), self.config.heads);
        let tokens = inputs.masked_grid[0] * inputs.masked_grid[1];
        let context = inputs.anchor_grid[0] * inputs.anchor_grid[1];
        let n = net.layer_norm(&format!("{b}.norm_self"), x)?;
        let (mut x, mut query, mut queries) = (x, n, tokens);
        if i + 1 == self.config.depth {
            let gather = || ops::GatherTokens { tokens };
            query = net.push(&format!("{b}.hidden_queries"), gather(), &[n, inputs.hidden])?;
            x = net.push(&format!("{b}.hidden_rows"), gather(), &[x, inputs.hidden])?;
            queries = inputs.hidden_tokens;
        }
        let run =
            |keys| Segments { runs: vec![SegmentRun { count: inputs.batch, queries, keys }], kv_groups: 1 };
        let y = net.attention(&format!("{b}.attn_self"), query, n, heads, run(tokens))?;
        x = net.residual(&format!("{b}.add_self"), x, y)?;
        let n = net.layer_norm(&format!("{b}.norm_cross"), x)?;
        let y = net.attention(&format!("{b}.attn_cross"), n, ctx, heads, run(context))?;
        x = net.residual(&format!("{b}.add_cross"), x, y)?;
        let n = net.layer_norm(&format!("{b}.norm_mlp"), x)?;
        let y = net.mlp(&format!("{b}.mlp"), n)?;
        net.residual(&format!("{b}.add_mlp"), x, y)
    }

    /// `[h * w, E]`; on the table's own grid the table itself.
    fn positions(&self, net: &mut Net<'_, '_>, to: [usize; 2]) -> Result<ValueId> {
        let table = net.param("csr.pos_embed")?;
        if to == self.grid {
            return Ok(table);
        }
        let op = ops::ResizePositions { prefix: 0, from: self.grid, to };
        net.push(&format!("csr.pos_embed.{}x{}", to[0], to[1]), op, &[table])
    }
}

/// Checks the shape of a decoder's transformer blocks.
pub(super) fn check_block(dim: usize, depth: usize, heads: usize, key: &str) -> Result<()> {
    if dim == 0 || heads == 0 || !dim.is_multiple_of(heads) {
        return Err(Error::config(format!("{key}.heads"), format!("must divide dim {dim}, got {heads}")));
    }
    if depth == 0 {
        return Err(Error::config(format!("{key}.depth"), "must be at least 1"));
    }
    Ok(())
}
