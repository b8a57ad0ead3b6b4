//! timm's `TinyVit` over one stream of the feature maps of all views.
//!
//! A convolutional first stage, then three stages of attention inside windows ("TinyViT", arXiv:2207.10666). The patch
//! tokens are the stride-16 stage, the image token is the normalised mean of the last one.

use super::feature_maps::{Entry, MapStream, check_depths, check_widths, views_with_image};
use super::tokens::{DropPath, scale_branch};
use super::tokens::{EncoderDims, TapGroup, Tokens, View};
use crate::error::{Error, Result};
use crate::ir::{ValueId, ops};
use crate::nn::layers::{Mode, Net, range};
use crate::nn::params::Init;

/// The stage on the stride-16 grid.
const TAP: usize = 2;
/// Expansion of feed-forward layers and inverted bottlenecks.
const RATIO: usize = 4;
/// PyTorch's epsilon of a layer normalisation.
const NORM_EPS: f64 = 1e-5;
const PREFIX: &str = "encoder.net";

/// A TinyViT.
#[derive(Clone, Debug)]
pub(super) struct TinyVit {
    embed_dims: [usize; 4],
    depths: [usize; 4],
    heads: [usize; 4],
    windows: [usize; 4],
}

impl TinyVit {
    /// # Errors
    /// [`Error::Config`] naming what is out of range; `key` is the encoder's place in the configuration.
    pub fn new(
        embed_dims: [usize; 4],
        depths: [usize; 4],
        heads: [usize; 4],
        windows: [usize; 4],
        key: &str,
    ) -> Result<Self> {
        check_widths(key, "embed_dims", &embed_dims, 2)?;
        check_widths(key, "window_sizes", &windows[1..], 1)?;
        check_depths(key, &depths)?;
        let divides = |stage: usize| heads[stage] > 0 && embed_dims[stage].is_multiple_of(heads[stage]);
        if !(1..4).all(divides) {
            let message = format!("must divide embed_dims {embed_dims:?}, got {heads:?}");
            return Err(Error::config(format!("{key}.num_heads"), message));
        }
        Ok(TinyVit { embed_dims, depths, heads, windows })
    }

    pub fn dims(&self) -> EncoderDims {
        EncoderDims { image: self.embed_dims[3], tap: self.embed_dims[TAP] }
    }

    /// The block of every residual branch: one each in the first stage, two in the others.
    pub fn branch_blocks(&self) -> Vec<usize> {
        let first = self.depths[0];
        (0..first).chain((first..self.depths.iter().sum()).flat_map(|b| [b, b])).collect()
    }

    pub fn layers(&self) -> Vec<Entry> {
        let mut all = Vec::new();
        let d = self.embed_dims[0];
        conv_norm(&mut all, &format!("{PREFIX}.patch_embed.conv1"), [d / 2, 3, 3, 3], Init::Ones);
        conv_norm(&mut all, &format!("{PREFIX}.patch_embed.conv2"), [d, d / 2, 3, 3], Init::Ones);
        for i in 0..self.depths[0] {
            let b = format!("{PREFIX}.stages.0.blocks.{i}");
            conv_norm(&mut all, &format!("{b}.conv1"), [RATIO * d, d, 1, 1], Init::Ones);
            conv_norm(&mut all, &format!("{b}.conv2"), [RATIO * d, 1, 3, 3], Init::Ones);
            conv_norm(&mut all, &format!("{b}.conv3"), [d, RATIO * d, 1, 1], Init::Zeros);
        }
        for stage in 1..4 {
            let (before, d) = (self.embed_dims[stage - 1], self.embed_dims[stage]);
            let s = format!("{PREFIX}.stages.{stage}");
            conv_norm(&mut all, &format!("{s}.downsample.conv1"), [d, before, 1, 1], Init::Ones);
            conv_norm(&mut all, &format!("{s}.downsample.conv2"), [d, 1, 3, 3], Init::Ones);
            conv_norm(&mut all, &format!("{s}.downsample.conv3"), [d, d, 1, 1], Init::Ones);
            for i in 0..self.depths[stage] {
                self.block_layers(&mut all, &format!("{s}.blocks.{i}"), stage);
            }
        }
        all.push(Entry::LayerNorm { path: format!("{PREFIX}.head.norm"), width: self.embed_dims[3] });
        all
    }

    fn block_layers(&self, all: &mut Vec<Entry>, b: &str, stage: usize) {
        let (d, window) = (self.embed_dims[stage], self.windows[stage]);
        let linear =
            |name: &str, outputs, inputs| Entry::Linear { path: format!("{b}.{name}"), outputs, inputs };
        let shape = [self.heads[stage], window * window];
        all.push(Entry::Table { path: format!("{b}.attn.attention_biases"), shape });
        all.push(Entry::LayerNorm { path: format!("{b}.attn.norm"), width: d });
        all.push(linear("attn.qkv", 3 * d, d));
        all.push(linear("attn.proj", d, d));
        all.push(Entry::LayerNorm { path: format!("{b}.mlp.norm"), width: d });
        all.push(linear("mlp.fc1", RATIO * d, d));
        all.push(linear("mlp.fc2", d, RATIO * d));
        conv_norm(all, &format!("{b}.local_conv"), [d, 1, 3, 3], Init::Ones);
    }

    pub fn build(
        &self,
        net: &mut Net<'_, '_>,
        views: &[View],
        taps: &[TapGroup],
        drop_path: Option<DropPath>,
    ) -> Result<Tokens> {
        let with_image = views_with_image(views)?;
        let mut tokens = Tokens::default();
        let p = format!("{PREFIX}.patch_embed");
        let pixels = MapStream::pixels(net, &format!("{PREFIX}.pixels"), views)?;
        let x = conv(net, &pixels, &format!("{p}.conv1"), (3, 2))?;
        let x = gelu(net, &format!("{p}.act"), &x)?;
        let mut stream = conv(net, &x, &format!("{p}.conv2"), (3, 2))?;
        let (mut block, mut branch) = (0, 0);
        for stage in 0..4 {
            let s = format!("{PREFIX}.stages.{stage}");
            if stage > 0 {
                stream = downsample(net, &stream, &format!("{s}.downsample"))?;
            }
            for i in 0..self.depths[stage] {
                let drop = drop_path.filter(|_| block > 0).map(|d| (d, branch));
                let b = format!("{s}.blocks.{i}");
                stream = net.block(|net| match stage {
                    0 => inverted_bottleneck(net, &stream, &b, drop),
                    _ => self.attention_block(net, &stream, &b, stage, drop),
                })?;
                block += 1;
                branch += if stage == 0 { 1 } else { 2 };
            }
            if stage == TAP {
                let wanted = taps.iter().map(|t| stream.tap_tokens(net, views, t));
                tokens.taps = wanted.collect::<Result<_>>()?;
                if with_image == 0 {
                    return Ok(tokens);
                }
                // In training the statistics of the last stage are those of all views, as in the reference.
                if net.weights.mode() == Mode::Evaluation {
                    stream = stream.cut(net, &format!("{s}.with_image"), with_image)?;
                }
            }
        }
        let last = stream.cut(net, &format!("{PREFIX}.with_image"), with_image)?;
        let pooled = last.pool(net, &format!("{PREFIX}.head.global_pool"))?;
        tokens.image = Some(net.layer_norm_with(&format!("{PREFIX}.head.norm"), pooled, NORM_EPS)?);
        Ok(tokens)
    }

    /// Attention inside windows, a local convolution, a feed-forward layer.
    fn attention_block(
        &self,
        net: &mut Net<'_, '_>,
        x: &MapStream,
        path: &str,
        stage: usize,
        drop: Option<(DropPath, usize)>,
    ) -> Result<MapStream> {
        let layer = |name: &str| format!("{path}.{name}");
        let y = self.attention(net, x, &layer("attn"), stage)?;
        let y = scale_branch(net, &layer("drop_path1"), y, &x.lengths(), drop)?;
        let x = x.with(net.residual(&layer("add1"), x.x, y)?);
        let x = x.depthwise(net, &layer("local_conv.conv"), (3, 1), false)?;
        let x = x.batch_norm(net, &layer("local_conv.bn"))?;
        let n = net.layer_norm_with(&layer("mlp.norm"), x.x, NORM_EPS)?;
        let y = net.mlp(&layer("mlp"), n)?;
        let drop = drop.map(|(d, row)| (d, row + 1));
        let y = scale_branch(net, &layer("drop_path2"), y, &x.lengths(), drop)?;
        Ok(x.with(net.residual(&layer("add2"), x.x, y)?))
    }

    /// Windows that leave the map see zeros there, which the normalisation turns into its bias.
    fn attention(&self, net: &mut Net<'_, '_>, x: &MapStream, path: &str, stage: usize) -> Result<ValueId> {
        let n = net.layer_norm_with(&format!("{path}.norm"), x.x, NORM_EPS)?;
        let qkv = net.linear(&format!("{path}.qkv"), n)?;
        let zero = net.param(&format!("{path}.norm.bias"))?;
        let zero = net.select(&format!("{path}.outside"), zero, vec![range(0, 1)])?;
        let zero = net.in_compute_type(&format!("{path}.outside.narrow"), zero)?;
        let pad = net.linear(&format!("{path}.qkv"), zero)?;
        let biases = net.param(&format!("{path}.attention_biases"))?;
        let (heads, window) = (self.heads[stage], self.windows[stage]);
        let op = ops::WindowAttention { heads, window, maps: x.maps.clone() };
        let o = net.push(path, op, &[qkv, pad, biases])?;
        net.linear(&format!("{path}.proj"), o)
    }
}

/// timm's `ConvNorm`: `{path}.conv` without bias and `{path}.bn`, whose weight begins as `weight`.
fn conv_norm(all: &mut Vec<Entry>, path: &str, shape: [usize; 4], weight: Init) {
    all.push(Entry::Conv { path: format!("{path}.conv"), shape, weight: None, bias: false });
    all.push(Entry::BatchNorm { path: format!("{path}.bn"), width: shape[0], weight });
}

/// A dense [`conv_norm`].
fn conv(net: &mut Net<'_, '_>, x: &MapStream, path: &str, size: (usize, usize)) -> Result<MapStream> {
    x.conv(net, &format!("{path}.conv"), size, false)?.batch_norm(net, &format!("{path}.bn"))
}

/// A depthwise 3x3 [`conv_norm`].
fn depthwise(net: &mut Net<'_, '_>, x: &MapStream, path: &str, stride: usize) -> Result<MapStream> {
    x.depthwise(net, &format!("{path}.conv"), (3, stride), false)?.batch_norm(net, &format!("{path}.bn"))
}

fn gelu(net: &mut Net<'_, '_>, path: &str, x: &MapStream) -> Result<MapStream> {
    Ok(x.with(net.gelu(path, x.x)?))
}

/// timm's `MBConv`.
fn inverted_bottleneck(
    net: &mut Net<'_, '_>,
    x: &MapStream,
    path: &str,
    drop: Option<(DropPath, usize)>,
) -> Result<MapStream> {
    let layer = |name: &str| format!("{path}.{name}");
    let y = conv(net, x, &layer("conv1"), (1, 1))?;
    let y = gelu(net, &layer("act1"), &y)?;
    let y = depthwise(net, &y, &layer("conv2"), 1)?;
    let y = gelu(net, &layer("act2"), &y)?;
    let y = conv(net, &y, &layer("conv3"), (1, 1))?;
    let y = scale_branch(net, &layer("drop_path"), y.x, &x.lengths(), drop)?;
    let sum = x.with(net.residual(&layer("add"), x.x, y)?);
    gelu(net, &layer("act3"), &sum)
}

/// timm's `PatchMerging`.
fn downsample(net: &mut Net<'_, '_>, x: &MapStream, path: &str) -> Result<MapStream> {
    let layer = |name: &str| format!("{path}.{name}");
    let y = conv(net, x, &layer("conv1"), (1, 1))?;
    let y = gelu(net, &layer("act1"), &y)?;
    let y = depthwise(net, &y, &layer("conv2"), 2)?;
    let y = gelu(net, &layer("act2"), &y)?;
    conv(net, &y, &layer("conv3"), (1, 1))
}
