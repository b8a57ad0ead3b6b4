//! The tensors of timm's `StarNet`, and what they tell of it.

use std::fmt;

use super::config::StarNetConfig;
use crate::models::config::EncoderConfig;
use crate::models::layers::Layers;
use crate::models::shapes::{Shapes, four};
use crate::nn::Init;

/// timm's `StarNet`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StarNet {
    /// Channels of the stem.
    pub stem: usize,
    /// Channels per stage.
    pub widths: Vec<usize>,
    /// Blocks per stage.
    pub depths: Vec<usize>,
    /// Channels of the two multiplied branches over those of their stage.
    pub expansion: usize,
    /// Side of the depthwise kernels.
    pub kernel: usize,
}

impl StarNet {
    /// timm's tensors.
    pub fn layers(&self) -> Layers {
        let mut all = Layers::default();
        conv_bn(&mut all, "stem.0", [self.stem, 3, 3, 3], true);
        let mut before = self.stem;
        for (stage, (&d, &depth)) in self.widths.iter().zip(&self.depths).enumerate() {
            let (wide, depthwise) = (self.expansion * d, [d, 1, self.kernel, self.kernel]);
            conv_bn(&mut all, &format!("stages.{stage}.0"), [d, before, 3, 3], true);
            for i in 1..=depth {
                let b = format!("stages.{stage}.{i}");
                conv_bn(&mut all, &format!("{b}.dwconv"), depthwise, true);
                conv_bn(&mut all, &format!("{b}.f1"), [wide, d, 1, 1], false);
                conv_bn(&mut all, &format!("{b}.f2"), [wide, d, 1, 1], false);
                conv_bn(&mut all, &format!("{b}.g"), [d, wide, 1, 1], true);
                conv_bn(&mut all, &format!("{b}.dwconv2"), depthwise, false);
            }
            before = d;
        }
        all.batch_norm("norm", before, Init::Ones);
        all
    }

    /// The encoder of these sizes.
    ///
    /// # Errors
    /// When it does not have four stages.
    pub fn config(&self) -> Result<EncoderConfig, String> {
        let [base_dim, ..] = four(&self.widths)?;
        Ok(EncoderConfig::StarNet(StarNetConfig {
            base_dim,
            depths: four(&self.depths)?,
            mlp_ratio: self.expansion,
        }))
    }
}

/// timm's `ConvBN`: `{path}.conv` and, with `bn`, `{path}.bn`.
fn conv_bn(all: &mut Layers, path: &str, shape: [usize; 4], bn: bool) {
    all.conv(&format!("{path}.conv"), shape, Some(Init::TruncNormal { std: 0.02 }), true);
    if bn {
        all.batch_norm(&format!("{path}.bn"), shape[0], Init::Ones);
    }
}

/// The sizes of a StarNet with these tensors.
pub fn recognise(shapes: Shapes<'_>) -> Option<StarNet> {
    let [stem, ..] = shapes.of::<4>("stem.0.conv.weight")?;
    let [.., kernel] = shapes.of::<4>("stages.0.1.dwconv.conv.weight")?;
    let [inner, outer, ..] = shapes.of::<4>("stages.0.1.f1.conv.weight")?;
    let stages = shapes.count(0, |s| format!("stages.{s}.0.conv.weight"));
    let widths = (0..stages)
        .map(|s| shapes.of::<4>(&format!("stages.{s}.0.conv.weight")).map(|d| d[0]))
        .collect::<Option<Vec<_>>>()?;
    let depths =
        (0..stages).map(|s| shapes.count(1, |i| format!("stages.{s}.{i}.dwconv.conv.weight"))).collect();
    Some(StarNet { stem, widths, depths, expansion: inner / outer, kernel })
}

impl fmt::Display for StarNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StarNet, widths {:?}, depths {:?}", self.widths, self.depths)
    }
}
