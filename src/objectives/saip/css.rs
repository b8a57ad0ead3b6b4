//! Pixel-level decoder for search (CSS): a query token reads an instance, then the multi-person image, and becomes a
//! kernel that marks the instance in that image's feature map.

use super::csr::check_block;
use crate::error::{Error, Result};
use crate::ir::{ConvGeometry, SegmentRun, Segments, TokenLayout, TokenView, ValueId, ops};
use crate::nn::layers::{Net, first_rows, register_attention, register_mlp};
use crate::nn::params::{Init, ParamRegistry};
use crate::objectives::saip::config::CssConfig;

/// Instances searched in each multi-person image.
const INSTANCES: usize = 2;

/// The decoder; `tap` and `expert_tap` are the widths of the student's and the expert's patch tokens.
#[derive(Clone, Debug)]
pub struct CssDecoder {
    tap: usize,
    expert_tap: usize,
    config: CssConfig,
}

/// What the decoder reads.
#[derive(Clone, Copy, Debug)]
pub struct CssInstances {
    pub batch: usize,
    /// `[B * N + B * n, T]`: patch tokens of instance 0 of all images, then of instance 1, from the student.
    pub patches: ValueId,
    /// Patch tokens per image of instance 0 and of instance 1.
    pub tokens: [usize; INSTANCES],
    /// `[B * m, T]`: patch tokens of the multi-person image, from the expert.
    pub scene: ValueId,
    /// Its grid, `h * w = m`.
    pub grid: [usize; 2],
}

impl CssDecoder {
    /// # Errors
    /// [`Error::Config`] when the configuration is no valid decoder.
    pub fn new(tap: usize, expert_tap: usize, config: &CssConfig) -> Result<Self> {
        check_block(config.dim, config.depth, config.heads, "css")?;
        if config.convs == 0 {
            return Err(Error::config("css.convs", "must be at least 1"));
        }
        Ok(CssDecoder { tap, expert_tap, config: config.clone() })
    }

    /// Appends the parameters, named `css.*`.
    pub fn register(&self, reg: &mut ParamRegistry) -> Result<()> {
        let e = self.config.dim;
        reg.linear("css.embed_instance", e, self.tap)?;
        reg.linear("css.embed_scene", e, self.expert_tap)?;
        reg.register("css.query_token", &[1, 1, e], Init::Normal { std: 0.02 })?;
        for i in 0..self.config.depth {
            let b = format!("css.blocks.{i}");
            reg.norm(&format!("{b}.norm_self"), e)?;
            register_attention(reg, &format!("{b}.attn_self"), e)?;
            reg.norm(&format!("{b}.norm_mlp"), e)?;
            register_mlp(reg, &format!("{b}.mlp"), e)?;
        }
        reg.norm("css.norm_scene", e)?;
        reg.norm("css.cross.norm_cross", e)?;
        register_attention(reg, "css.cross.attn_cross", e)?;
        reg.norm("css.cross.norm_mlp", e)?;
        register_mlp(reg, "css.cross.mlp", e)?;
        reg.norm("css.norm", e)?;
        reg.linear("css.kernel", e, e)?;
        for i in 0..self.config.convs {
            let (channels, kernel) = if i == 0 { (self.expert_tap, 1) } else { (e, 3) };
            reg.conv(&format!("css.convs.{i}"), e, channels, kernel)?;
        }
        Ok(())
    }

    /// `-> [2 * B, m]`: a logit per instance, image and token of the multi-person image.
    pub fn build(&self, net: &mut Net<'_, '_>, inputs: &CssInstances) -> Result<ValueId> {
        let m = inputs.grid[0] * inputs.grid[1];
        let query = self.query_rows(net, inputs)?;
        let scene = net.linear("css.embed_scene", inputs.scene)?;
        let scene = net.layer_norm("css.norm_scene", scene)?;
        let query = net.block(|net| self.cross(net, query, scene, inputs.batch, m))?;
        let n = net.layer_norm("css.norm", query)?;
        let kernel = net.linear("css.kernel", n)?;
        let features = self.features(net, inputs)?;
        net.push("css.dynamic_conv", ops::DynamicConv { tokens: m }, &[kernel, features])
    }

    /// The query token's row of every instance behind the self-attention blocks, `[2 * B, E]`.
    fn query_rows(&self, net: &mut Net<'_, '_>, inputs: &CssInstances) -> Result<ValueId> {
        let rows = net.linear("css.embed_instance", inputs.patches)?;
        let token = net.param("css.query_token")?;
        let layout = TokenLayout {
            views: inputs.tokens.map(|tokens| TokenView { count: inputs.batch, tokens }).to_vec(),
            positions: false,
            kept: None,
        };
        let lengths: Vec<_> = layout.lengths().collect();
        let mut x = net.push("css.embed", ops::EmbedTokens { layout }, &[rows, token])?;
        for i in 0..self.config.depth {
            let last = i + 1 == self.config.depth;
            x = net.block(|net| self.block(net, i, x, &lengths, last))?;
        }
        Ok(x)
    }

    /// One self-attention block; the last one computes the query token's rows only.
    fn block(
        &self,
        net: &mut Net<'_, '_>,
        i: usize,
        x: ValueId,
        lengths: &[(usize, usize)],
        last: bool,
    ) -> Result<ValueId> {
        let b = format!("css.blocks.{i}");
        let n = net.layer_norm(&format!("{b}.norm_self"), x)?;
        let (mut x, mut query, mut segments) = (x, n, Segments::full(lengths.iter().copied()));
        if last {
            let runs = first_rows(lengths.iter().copied());
            query = net.select(&format!("{b}.query_norm"), n, runs.clone())?;
            x = net.select(&format!("{b}.query_rows"), x, runs)?;
            segments = Segments::first_row(lengths.iter().copied());
        }
        let y = net.attention(&format!("{b}.attn_self"), query, n, self.config.heads, segments)?;
        x = net.residual(&format!("{b}.add_self"), x, y)?;
        let n = net.layer_norm(&format!("{b}.norm_mlp"), x)?;
        let y = net.mlp(&format!("{b}.mlp"), n)?;
        net.residual(&format!("{b}.add_mlp"), x, y)
    }

    /// Every query reads the tokens of its image; both instances share keys and values.
    fn cross(
        &self,
        net: &mut Net<'_, '_>,
        query: ValueId,
        scene: ValueId,
        batch: usize,
        tokens: usize,
    ) -> Result<ValueId> {
        let n = net.layer_norm("css.cross.norm_cross", query)?;
        let segments = Segments {
            runs: vec![SegmentRun { count: INSTANCES * batch, queries: 1, keys: tokens }],
            kv_groups: INSTANCES,
        };
        let y = net.attention("css.cross.attn_cross", n, scene, self.config.heads, segments)?;
        let x = net.residual("css.cross.add_cross", query, y)?;
        let n = net.layer_norm("css.cross.norm_mlp", x)?;
        let y = net.mlp("css.cross.mlp", n)?;
        net.residual("css.cross.add_mlp", x, y)
    }

    /// The feature map of the multi-person image, `[B * m, E]`.
    fn features(&self, net: &mut Net<'_, '_>, inputs: &CssInstances) -> Result<ValueId> {
        let [height, width] = inputs.grid;
        let geometry = ConvGeometry::same(inputs.batch, height, width, 3);
        let mut x = inputs.scene;
        for i in 0..self.config.convs {
            let path = format!("css.convs.{i}");
            x = if i == 0 {
                // A 1x1 convolution on rows of channels is a linear layer.
                net.linear(&path, x)?
            } else {
                let (w, b) = (net.param(&format!("{path}.weight"))?, net.param(&format!("{path}.bias"))?);
                let op = ops::Conv2d { geometry: geometry.clone(), epilogue: crate::ir::Epilogue::None };
                net.push(&path, op, &[x, w, b])?
            };
            x = net.gelu(&format!("{path}.act"), x)?;
        }
        Ok(x)
    }
}
