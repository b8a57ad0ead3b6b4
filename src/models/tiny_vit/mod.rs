//! timm's `TinyVit` over one stream of the feature maps of all views.
//!
//! A convolutional first stage, then three stages of attention inside windows ("TinyViT", arXiv:2207.10666). The patch
//! tokens are the stride-16 stage, the image token is the normalised mean of the last one.

mod config;
mod onnx;
mod table;

pub use config::TinyVitConfig;
pub use table::{TinyVit, recognise};

use super::config::EncoderConfig;
use super::encoder::{Encoder, TimmModel};
use super::feature_maps::{MapStream, check_depths, check_widths, views_with_image};
use super::layers::Layers;
use super::tokens::{DropPath, scale_branch};
use super::tokens::{EncoderDims, TapGroup, Tokens, View};
use crate::error::{Error, Result};
use crate::ir::{ValueId, ops};
use crate::nn::layers::{Mode, Net, range};
use crate::onnx::{Builder, Grid, OnnxTokens, Value};
use serde_json::{Map, json};

/// The stage on the stride-16 grid.
const TAP: usize = 2;
/// Expansion of feed-forward layers and inverted bottlenecks.
const RATIO: usize = 4;
/// PyTorch's epsilon of a layer normalisation.
const NORM_EPS: f64 = 1e-5;
const PREFIX: &str = "encoder.net";

impl Encoder for TinyVitConfig {
    fn check(&self, key: &str) -> Result<()> {
        let TinyVitConfig { embed_dims, depths, num_heads: heads, window_sizes: windows } = self;
        check_widths(key, "embed_dims", embed_dims, 2)?;
        check_widths(key, "window_sizes", &windows[1..], 1)?;
        check_depths(key, "depths", depths, 0)?;
        let divides = |stage: usize| heads[stage] > 0 && embed_dims[stage].is_multiple_of(heads[stage]);
        if !(1..4).all(divides) {
            let message = format!("must divide embed_dims {embed_dims:?}, got {heads:?}");
            return Err(Error::config(format!("{key}.num_heads"), message));
        }
        Ok(())
    }

    fn dims(&self) -> EncoderDims {
        EncoderDims { image: self.embed_dims[3], tap: self.embed_dims[TAP] }
    }

    /// One each in the first stage, two in the others.
    fn branch_blocks(&self) -> Vec<usize> {
        let first = self.depths[0];
        (0..first).chain((first..self.depths.iter().sum()).flat_map(|b| [b, b])).collect()
    }

    fn layers(&self) -> Layers {
        let TinyVitConfig { embed_dims, depths, num_heads: heads, window_sizes: windows } = self;
        let sizes = TinyVit {
            stem: embed_dims[0] / 2,
            widths: embed_dims.to_vec(),
            depths: depths.to_vec(),
            expanded: RATIO * embed_dims[0],
            heads: heads[1..].to_vec(),
            windows: windows[1..].to_vec(),
            hidden: embed_dims[1..].iter().map(|d| RATIO * d).collect(),
            local: 3,
        };
        sizes.layers()
    }

    fn build(
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

    fn onnx(&self, b: &mut Builder<'_>, images: &Value, grid: Grid) -> Result<OnnxTokens> {
        let TinyVitConfig { embed_dims: dims, depths, num_heads: heads, window_sizes: windows } = *self;
        onnx::build(b, images, grid, &onnx::Sizes { dims, depths, heads, windows })
    }

    fn timm(&self) -> TimmModel {
        let TinyVitConfig { embed_dims, depths, num_heads: heads, window_sizes: windows } = self;
        // The first stage has no attention.
        let usual = *depths == [2, 2, 6, 2] && windows[1..] == [7, 14, 7];
        let (name, known) = match (embed_dims, &heads[1..]) {
            ([64, 128, 160, 320], [4, 5, 10]) => ("tiny_vit_5m_224", usual),
            ([64, 128, 256, 448], [4, 8, 14]) => ("tiny_vit_11m_224", usual),
            ([96, 192, 384, 576], [6, 12, 18]) => ("tiny_vit_21m_224", usual),
            _ => ("tiny_vit_5m_224", false),
        };
        let mut args = Map::new();
        if !known {
            args.insert("embed_dims".into(), json!(embed_dims));
            args.insert("depths".into(), json!(depths));
            args.insert("num_heads".into(), json!(heads));
            args.insert("window_sizes".into(), json!(windows));
        }
        let (first_conv, classifier) = ("patch_embed.conv1.conv", "head.fc");
        TimmModel { name, args, first_conv, classifier, fixed_size: false }
    }

    /// A file for stride 16 has the same shapes.
    fn told(&self) -> Vec<(&'static str, String)> {
        vec![("last_stage", "stride 32".to_owned())]
    }

    fn small(&self, _: [usize; 2]) -> EncoderConfig {
        EncoderConfig::TinyVit(TinyVitConfig {
            embed_dims: [8, 8, 16, 16],
            depths: [1, 1, 2, 1],
            num_heads: [1, 1, 2, 2],
            window_sizes: self.window_sizes,
        })
    }
}

impl TinyVitConfig {
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
        let (heads, window) = (self.num_heads[stage], self.window_sizes[stage]);
        let op = ops::WindowAttention { heads, window, maps: x.maps.clone() };
        let o = net.push(path, op, &[qkv, pad, biases])?;
        net.linear(&format!("{path}.proj"), o)
    }
}

/// A dense convolution and its normalisation.
fn conv(net: &mut Net<'_, '_>, x: &MapStream, path: &str, size: (usize, usize)) -> Result<MapStream> {
    x.conv(net, &format!("{path}.conv"), size, false)?.batch_norm(net, &format!("{path}.bn"))
}

/// A depthwise 3x3 one.
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
