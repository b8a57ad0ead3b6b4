//! timm's `StarNet` over one stream of the feature maps of all views.
//!
//! Stem and stages halve the resolution with 3x3 convolutions; a block multiplies two branches ("Rewrite the Stars",
//! arXiv:2403.19967). The patch tokens are the stride-16 stage, the image token is the mean of the normalised last one.

use super::feature_maps::{Entry, MapStream, check_depths, check_widths, views_with_image};
use super::tokens::{DropPath, scale_branch};
use super::tokens::{EncoderDims, TapGroup, Tokens, View};
use crate::error::Result;
use crate::ir::ops;
use crate::nn::layers::{Mode, Net};
use crate::nn::params::Init;

/// Channels of the stem, whatever the width.
const STEM: usize = 32;
/// The stage on the stride-16 grid.
const TAP: usize = 2;
/// Edge of a block's depthwise kernels.
const DEPTHWISE: usize = 7;
const PREFIX: &str = "encoder.net";

/// A StarNet.
#[derive(Clone, Debug)]
pub(super) struct StarNet {
    base_dim: usize,
    depths: [usize; 4],
    mlp_ratio: usize,
}

impl StarNet {
    /// # Errors
    /// [`Error::Config`](crate::error::Error::Config) for a width, ratio or depth out of range; `key` is the encoder's place in the configuration.
    pub fn new(base_dim: usize, depths: [usize; 4], mlp_ratio: usize, key: &str) -> Result<Self> {
        check_widths(key, "base_dim", &[base_dim], 1)?;
        check_widths(key, "mlp_ratio", &[mlp_ratio], 1)?;
        check_depths(key, &depths)?;
        Ok(StarNet { base_dim, depths, mlp_ratio })
    }

    fn dim(&self, stage: usize) -> usize {
        self.base_dim << stage
    }

    pub fn dims(&self) -> EncoderDims {
        EncoderDims { image: self.dim(3), tap: self.dim(TAP) }
    }

    /// The block of every residual branch: one each.
    pub fn branch_blocks(&self) -> Vec<usize> {
        (0..self.depths.iter().sum()).collect()
    }

    pub fn layers(&self) -> Vec<Entry> {
        let mut all = Vec::new();
        conv_bn(&mut all, &format!("{PREFIX}.stem.0"), [STEM, 3, 3, 3], true);
        let mut before = STEM;
        for (stage, &depth) in self.depths.iter().enumerate() {
            let (d, wide) = (self.dim(stage), self.mlp_ratio * self.dim(stage));
            conv_bn(&mut all, &format!("{PREFIX}.stages.{stage}.0"), [d, before, 3, 3], true);
            for i in 1..=depth {
                let b = format!("{PREFIX}.stages.{stage}.{i}");
                let depthwise = [d, 1, DEPTHWISE, DEPTHWISE];
                conv_bn(&mut all, &format!("{b}.dwconv"), depthwise, true);
                conv_bn(&mut all, &format!("{b}.f1"), [wide, d, 1, 1], false);
                conv_bn(&mut all, &format!("{b}.f2"), [wide, d, 1, 1], false);
                conv_bn(&mut all, &format!("{b}.g"), [d, wide, 1, 1], true);
                conv_bn(&mut all, &format!("{b}.dwconv2"), depthwise, false);
            }
            before = d;
        }
        let path = format!("{PREFIX}.norm");
        all.push(Entry::BatchNorm { path, width: before, weight: Init::Ones });
        all
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
}

/// timm's `ConvBN`: `{path}.conv` and, with `bn`, `{path}.bn`.
fn conv_bn(all: &mut Vec<Entry>, path: &str, shape: [usize; 4], bn: bool) {
    let weight = Some(Init::TruncNormal { std: 0.02 });
    all.push(Entry::Conv { path: format!("{path}.conv"), shape, weight, bias: true });
    if bn {
        all.push(Entry::BatchNorm { path: format!("{path}.bn"), width: shape[0], weight: Init::Ones });
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
