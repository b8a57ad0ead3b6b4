//! timm's `StarNet` over one stream of the feature maps of all views.
//!
//! Stem and stages halve the resolution with 3x3 convolutions; a block multiplies two branches ("Rewrite the Stars",
//! arXiv:2403.19967). The patch tokens are the stride-16 stage, the image token is the mean of the normalised last one.

mod config;
mod onnx;
mod table;

pub use config::StarNetConfig;
pub use table::{StarNet, recognise};

use super::config::EncoderConfig;
use super::encoder::{Encoder, TimmModel};
use super::feature_maps::{MapStream, check_depths, check_widths, views_with_image};
use super::layers::Layers;
use super::tokens::{DropPath, scale_branch};
use super::tokens::{EncoderDims, TapGroup, Tokens, View};
use crate::error::Result;
use crate::ir::ops;
use crate::nn::layers::{Mode, Net};
use crate::onnx::{Builder, Grid, OnnxTokens, Value};
use serde_json::{Map, json};

/// Channels of the stem, whatever the width.
const STEM: usize = 32;
/// The stage on the stride-16 grid.
const TAP: usize = 2;
/// Edge of a block's depthwise kernels.
const DEPTHWISE: usize = 7;
const PREFIX: &str = "encoder.net";

impl StarNetConfig {
    fn dim(&self, stage: usize) -> usize {
        self.base_dim << stage
    }
}

impl Encoder for StarNetConfig {
    fn check(&self, key: &str) -> Result<()> {
        check_widths(key, "base_dim", &[self.base_dim], 1)?;
        check_widths(key, "mlp_ratio", &[self.mlp_ratio], 1)?;
        check_depths(key, "depths", &self.depths, 0)
    }

    fn dims(&self) -> EncoderDims {
        EncoderDims { image: self.dim(3), tap: self.dim(TAP) }
    }

    /// One each.
    fn branch_blocks(&self) -> Vec<usize> {
        (0..self.depths.iter().sum()).collect()
    }

    fn layers(&self) -> Layers {
        let sizes = StarNet {
            stem: STEM,
            widths: (0..4).map(|stage| self.dim(stage)).collect(),
            depths: self.depths.to_vec(),
            expansion: self.mlp_ratio,
            kernel: DEPTHWISE,
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
        let pixels = MapStream::pixels(net, &format!("{PREFIX}.pixels"), views)?;
        let mut stream = down(net, &pixels, &format!("{PREFIX}.stem.0"))?;
        stream.x = net.push(&format!("{PREFIX}.stem.1"), ops::Relu6, &[stream.x])?;
        let mut block = 0;
        for (stage, &depth) in self.depths.iter().enumerate() {
            let s = format!("{PREFIX}.stages.{stage}");
            stream = down(net, &stream, &format!("{s}.0"))?;
            for i in 1..=depth {
                let drop = drop_path.filter(|_| block > 0).map(|d| (d, block));
                stream = net.block(|net| star_block(net, &stream, &format!("{s}.{i}"), drop))?;
                block += 1;
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
        let last = stream.batch_norm(net, &format!("{PREFIX}.norm"))?;
        let last = last.cut(net, &format!("{PREFIX}.with_image"), with_image)?;
        tokens.image = Some(last.pool(net, &format!("{PREFIX}.global_pool"))?);
        Ok(tokens)
    }

    fn onnx(&self, b: &mut Builder<'_>, images: &Value, grid: Grid) -> Result<OnnxTokens> {
        onnx::build(b, images, grid, self.base_dim, &self.depths)
    }

    fn timm(&self) -> TimmModel {
        let StarNetConfig { base_dim, depths, mlp_ratio } = self;
        let (name, known) = match (base_dim, depths) {
            (24, [2, 2, 8, 3]) => ("starnet_s1", true),
            (32, [1, 2, 6, 2]) => ("starnet_s2", true),
            (32, [2, 2, 8, 4]) => ("starnet_s3", true),
            (32, [3, 3, 12, 5]) => ("starnet_s4", true),
            _ => ("starnet_s3", false),
        };
        let mut args = Map::new();
        if !known || *mlp_ratio != 4 {
            args.insert("base_dim".into(), json!(base_dim));
            args.insert("depths".into(), json!(depths));
            args.insert("mlp_ratio".into(), json!(mlp_ratio));
        }
        TimmModel { name, args, first_conv: "stem.0.conv", classifier: "head", fixed_size: false }
    }

    fn small(&self, _: [usize; 2]) -> EncoderConfig {
        EncoderConfig::StarNet(StarNetConfig { base_dim: 8, depths: [1; 4], mlp_ratio: 2 })
    }
}

/// A 3x3 convolution of stride 2 and its normalisation.
fn down(net: &mut Net<'_, '_>, x: &MapStream, path: &str) -> Result<MapStream> {
    x.conv(net, &format!("{path}.conv"), (3, 2), true)?.batch_norm(net, &format!("{path}.bn"))
}

/// `x + dwconv2(g(relu6(f1(n)) * f2(n)))` with `n = dwconv(x)`.
fn star_block(
    net: &mut Net<'_, '_>,
    x: &MapStream,
    path: &str,
    drop: Option<(DropPath, usize)>,
) -> Result<MapStream> {
    let layer = |name: &str| format!("{path}.{name}");
    let n = x.depthwise(net, &layer("dwconv.conv"), (DEPTHWISE, 1), true)?;
    let n = n.batch_norm(net, &layer("dwconv.bn"))?;
    let a = n.conv(net, &layer("f1.conv"), (1, 1), true)?;
    let b = n.conv(net, &layer("f2.conv"), (1, 1), true)?;
    let star = n.with(net.push(&layer("star"), ops::Relu6Gate, &[a.x, b.x])?);
    let y = star.conv(net, &layer("g.conv"), (1, 1), true)?.batch_norm(net, &layer("g.bn"))?;
    let y = y.depthwise(net, &layer("dwconv2.conv"), (DEPTHWISE, 1), true)?;
    let y = scale_branch(net, &layer("drop_path"), y.x, &x.lengths(), drop)?;
    Ok(x.with(net.residual(&layer("add"), x.x, y)?))
}
