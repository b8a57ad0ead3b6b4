//! timm's `ResNet` of basic blocks over one stream of the feature maps of all views.
//!
//! "Deep Residual Learning for Image Recognition", arXiv:1512.03385. A 7x7 stem and a max pooling reach stride 4, each stage
//! behind the first halves the resolution. The patch tokens are the stride-16 stage, the image token is the mean of the last one.

mod config;
mod onnx;
mod table;

pub use config::ResNetConfig;
pub use table::{ResNet, recognise};

use super::config::EncoderConfig;
use super::encoder::{Encoder, TimmModel};
use super::feature_maps::{MapStream, check_depths, check_widths, views_with_image};
use super::layers::Layers;
use super::tokens::{DropPath, scale_branch};
use super::tokens::{EncoderDims, TapGroup, Tokens, View};
use crate::error::Result;
use crate::nn::layers::{Mode, Net};
use crate::onnx::{Builder, Grid, OnnxTokens, Value};
use serde_json::{Map, json};
use table::{STEM_KERNEL, block, stride};

/// Channels of the stem, whatever the widths.
const STEM: usize = 64;
/// The stage on the stride-16 grid.
const TAP: usize = 2;
const PREFIX: &str = "encoder.net";

impl Encoder for ResNetConfig {
    fn check(&self, key: &str) -> Result<()> {
        check_widths(key, "channels", &self.channels, 1)?;
        check_depths(key, "layers", &self.layers, 1)
    }

    fn dims(&self) -> EncoderDims {
        EncoderDims { image: self.channels[3], tap: self.channels[TAP] }
    }

    /// One each.
    fn branch_blocks(&self) -> Vec<usize> {
        (0..self.layers.iter().sum()).collect()
    }

    fn layers(&self) -> Layers {
        ResNet { stem: STEM, widths: self.channels.to_vec(), depths: self.layers.to_vec() }.layers()
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
        let layer = |name: &str| format!("{PREFIX}.{name}");
        let pixels = MapStream::pixels(net, &layer("pixels"), views)?;
        let stem = conv_bn(net, &pixels, [&layer("conv1"), &layer("bn1")], (STEM_KERNEL, 2))?;
        let stem = stem.relu(net, &layer("act1"))?;
        let mut stream = stem.max_pool(net, &layer("maxpool"), (3, 2))?;
        let (mut number, mut width) = (0, STEM);
        for (stage, &depth) in self.layers.iter().enumerate() {
            for i in 0..depth {
                let drop = drop_path.filter(|_| number > 0).map(|d| (d, number));
                let (path, stride) = (layer(&block(stage, i)), stride(stage, i));
                let down = stride > 1 || width != self.channels[stage];
                stream = net.block(|net| basic_block(net, &stream, &path, stride, down, drop))?;
                (number, width) = (number + 1, self.channels[stage]);
            }
            if stage == TAP {
                let wanted = taps.iter().map(|t| stream.tap_tokens(net, views, t));
                tokens.taps = wanted.collect::<Result<_>>()?;
                if with_image == 0 {
                    return Ok(tokens);
                }
                // In training the statistics of the last stage are those of all views, as in the reference.
                if net.weights.mode() == Mode::Evaluation {
                    stream = stream.cut(net, &layer("layer3.with_image"), with_image)?;
                }
            }
        }
        let last = stream.cut(net, &layer("with_image"), with_image)?;
        tokens.image = Some(last.pool(net, &layer("global_pool"))?);
        Ok(tokens)
    }

    fn onnx(&self, b: &mut Builder<'_>, images: &Value, grid: Grid) -> Result<OnnxTokens> {
        onnx::build(b, images, grid, &self.channels, &self.layers)
    }

    fn timm(&self) -> TimmModel {
        let usual = self.channels == [64, 128, 256, 512];
        let (name, known) = match self.layers {
            [2, 2, 2, 2] => ("resnet18", usual),
            [3, 4, 6, 3] => ("resnet34", usual),
            _ => ("resnet18", false),
        };
        let mut args = Map::new();
        if !known {
            args.insert("layers".into(), json!(self.layers));
            args.insert("channels".into(), json!(self.channels));
        }
        TimmModel { name, args, first_conv: "conv1", classifier: "fc", fixed_size: false }
    }

    fn small(&self, _: [usize; 2]) -> EncoderConfig {
        EncoderConfig::ResNet(ResNetConfig { layers: [1, 2, 1, 1], channels: [8; 4] })
    }
}

/// A convolution without bias and its normalisation.
fn conv_bn(
    net: &mut Net<'_, '_>,
    x: &MapStream,
    [conv, bn]: [&str; 2],
    size: (usize, usize),
) -> Result<MapStream> {
    x.conv(net, conv, size, false)?.batch_norm(net, bn)
}

/// `relu(shortcut(x) + bn2(conv2(relu(bn1(conv1(x))))))`; the shortcut is `x`, or with `down` a 1x1 convolution of it.
fn basic_block(
    net: &mut Net<'_, '_>,
    x: &MapStream,
    path: &str,
    stride: usize,
    down: bool,
    drop: Option<(DropPath, usize)>,
) -> Result<MapStream> {
    let layer = |name: &str| format!("{path}.{name}");
    let y = conv_bn(net, x, [&layer("conv1"), &layer("bn1")], (3, stride))?;
    let y = y.relu(net, &layer("act1"))?;
    let y = conv_bn(net, &y, [&layer("conv2"), &layer("bn2")], (3, 1))?;
    let branch = scale_branch(net, &layer("drop_path"), y.x, &y.lengths(), drop)?;
    let shortcut = match down {
        true => conv_bn(net, x, [&layer("downsample.0"), &layer("downsample.1")], (1, stride))?,
        false => x.clone(),
    };
    let sum = y.with(net.residual(&layer("add"), shortcut.x, branch)?);
    sum.relu(net, &layer("act2"))
}
