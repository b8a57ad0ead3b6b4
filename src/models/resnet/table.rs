//! The tensors of timm's `ResNet` of basic blocks, and what they tell of it.

use std::fmt;

use super::config::ResNetConfig;
use crate::models::config::EncoderConfig;
use crate::models::layers::Layers;
use crate::models::shapes::{Shapes, four};
use crate::nn::Init;

/// Edge of the stem's kernel.
pub const STEM_KERNEL: usize = 7;

/// timm's `ResNet` of basic blocks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ResNet {
    /// Channels of the stem.
    pub stem: usize,
    /// Channels per stage.
    pub widths: Vec<usize>,
    /// Blocks per stage.
    pub depths: Vec<usize>,
}

impl ResNet {
    /// timm's tensors.
    pub fn layers(&self) -> Layers {
        let mut all = Layers::default();
        conv_bn(&mut all, ["conv1", "bn1"], [self.stem, 3, STEM_KERNEL, STEM_KERNEL], Init::Ones);
        let mut before = self.stem;
        for (stage, (&d, &depth)) in self.widths.iter().zip(&self.depths).enumerate() {
            for i in 0..depth {
                let layer = |name: &str| format!("{}.{name}", block(stage, i));
                conv_bn(&mut all, [&layer("conv1"), &layer("bn1")], [d, before, 3, 3], Init::Ones);
                // A block begins as its shortcut, as timm's `zero_init_last` has it.
                conv_bn(&mut all, [&layer("conv2"), &layer("bn2")], [d, d, 3, 3], Init::Zeros);
                if stride(stage, i) > 1 || before != d {
                    let path = [layer("downsample.0"), layer("downsample.1")];
                    conv_bn(&mut all, [&path[0], &path[1]], [d, before, 1, 1], Init::Ones);
                }
                before = d;
            }
        }
        all
    }

    /// The encoder of these sizes.
    ///
    /// # Errors
    /// When it does not have four stages.
    pub fn config(&self) -> Result<EncoderConfig, String> {
        Ok(EncoderConfig::ResNet(ResNetConfig { layers: four(&self.depths)?, channels: four(&self.widths)? }))
    }
}

/// timm's path of block `i` of `stage`, both from 0.
pub fn block(stage: usize, i: usize) -> String {
    format!("layer{}.{i}", stage + 1)
}

/// The stride of block `i` of `stage`: all stages but the first begin by halving the map.
pub fn stride(stage: usize, i: usize) -> usize {
    if stage > 0 && i == 0 { 2 } else { 1 }
}

/// A convolution without bias and its normalisation, whose weight begins as `weight`.
fn conv_bn(all: &mut Layers, [conv, bn]: [&str; 2], shape: [usize; 4], weight: Init) {
    let [outputs, _, kernel, _] = shape;
    // PyTorch's `kaiming_normal_` for ReLU by the number of outputs, as in timm.
    let std = (2.0 / (outputs * kernel * kernel).max(1) as f64).sqrt();
    all.conv(conv, shape, Some(Init::Normal { std }), false);
    all.batch_norm(bn, outputs, weight);
}

/// The sizes of a ResNet with these tensors.
pub fn recognise(shapes: Shapes<'_>) -> Option<ResNet> {
    let [stem, ..] = shapes.of::<4>("conv1.weight")?;
    let stages = shapes.count(0, |s| format!("{}.conv1.weight", block(s, 0)));
    let widths = (0..stages)
        .map(|s| shapes.of::<4>(&format!("{}.conv1.weight", block(s, 0))).map(|d| d[0]))
        .collect::<Option<Vec<_>>>()?;
    let depths = (0..stages).map(|s| shapes.count(0, |i| format!("{}.conv1.weight", block(s, i)))).collect();
    Some(ResNet { stem, widths, depths })
}

impl fmt::Display for ResNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ResNet, widths {:?}, depths {:?}", self.widths, self.depths)
    }
}
