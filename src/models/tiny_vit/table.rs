//! The tensors of timm's `TinyVit`, and what they tell of it.

use std::fmt;

use super::config::TinyVitConfig;
use crate::models::config::EncoderConfig;
use crate::models::layers::Layers;
use crate::models::shapes::{Shapes, four};
use crate::nn::Init;

/// timm's `TinyVit`: four stages, of which the first is convolutional.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TinyVit {
    /// Channels behind the first of the two stem convolutions.
    pub stem: usize,
    /// Channels per stage.
    pub widths: Vec<usize>,
    /// Blocks per stage.
    pub depths: Vec<usize>,
    /// Channels inside the blocks of the first stage.
    pub expanded: usize,
    /// Attention heads of the stages behind the first.
    pub heads: Vec<usize>,
    /// Side of their windows.
    pub windows: Vec<usize>,
    /// Width inside their feed-forwards.
    pub hidden: Vec<usize>,
    /// Side of the kernel of their local convolution.
    pub local: usize,
}

impl TinyVit {
    /// timm's tensors.
    pub fn layers(&self) -> Layers {
        let first = self.widths.first().copied().unwrap_or(0);
        let (mut all, inner) = (Layers::default(), self.expanded);
        conv_norm(&mut all, "patch_embed.conv1", [self.stem, 3, 3, 3], Init::Ones);
        conv_norm(&mut all, "patch_embed.conv2", [first, self.stem, 3, 3], Init::Ones);
        for i in 0..self.depths.first().copied().unwrap_or(0) {
            let b = format!("stages.0.blocks.{i}");
            conv_norm(&mut all, &format!("{b}.conv1"), [inner, first, 1, 1], Init::Ones);
            conv_norm(&mut all, &format!("{b}.conv2"), [inner, 1, 3, 3], Init::Ones);
            conv_norm(&mut all, &format!("{b}.conv3"), [first, inner, 1, 1], Init::Zeros);
        }
        for stage in 1..self.widths.len() {
            let (before, d) = (self.widths[stage - 1], self.widths[stage]);
            let s = format!("stages.{stage}");
            conv_norm(&mut all, &format!("{s}.downsample.conv1"), [d, before, 1, 1], Init::Ones);
            conv_norm(&mut all, &format!("{s}.downsample.conv2"), [d, 1, 3, 3], Init::Ones);
            conv_norm(&mut all, &format!("{s}.downsample.conv3"), [d, d, 1, 1], Init::Ones);
            for i in 0..self.depths[stage] {
                self.block(&mut all, &format!("{s}.blocks.{i}"), stage);
            }
        }
        all.layer_norm("head.norm", self.widths.last().copied().unwrap_or(0));
        all
    }

    fn block(&self, all: &mut Layers, b: &str, stage: usize) {
        let d = self.widths[stage];
        let [heads, window, hidden] = [&self.heads, &self.windows, &self.hidden].map(|of| of[stage - 1]);
        all.parameter(format!("{b}.attn.attention_biases"), &[heads, window * window], Init::Zeros);
        all.layer_norm(&format!("{b}.attn.norm"), d);
        all.linear(&format!("{b}.attn.qkv"), 3 * d, d);
        all.linear(&format!("{b}.attn.proj"), d, d);
        all.layer_norm(&format!("{b}.mlp.norm"), d);
        all.linear(&format!("{b}.mlp.fc1"), hidden, d);
        all.linear(&format!("{b}.mlp.fc2"), d, hidden);
        conv_norm(all, &format!("{b}.local_conv"), [d, 1, self.local, self.local], Init::Ones);
    }

    /// The encoder of these sizes.
    ///
    /// # Errors
    /// When it does not have four stages.
    pub fn config(&self) -> Result<EncoderConfig, String> {
        // The first stage has no attention.
        let behind_first = |of: &[usize], first| four(&[&[first], of].concat());
        Ok(EncoderConfig::TinyVit(TinyVitConfig {
            embed_dims: four(&self.widths)?,
            depths: four(&self.depths)?,
            num_heads: behind_first(&self.heads, 1)?,
            window_sizes: behind_first(&self.windows, 7)?,
        }))
    }
}

/// timm's `ConvNorm`: `{path}.conv` without bias and `{path}.bn`, whose weight begins as `weight`.
fn conv_norm(all: &mut Layers, path: &str, shape: [usize; 4], weight: Init) {
    all.conv(&format!("{path}.conv"), shape, None, false);
    all.batch_norm(&format!("{path}.bn"), shape[0], weight);
}

/// The sizes of a TinyViT with these tensors.
pub fn recognise(shapes: Shapes<'_>) -> Option<TinyVit> {
    let [stem, ..] = shapes.of::<4>("patch_embed.conv1.conv.weight")?;
    let [width, ..] = shapes.of::<4>("patch_embed.conv2.conv.weight")?;
    let [expanded, ..] = shapes.of::<4>("stages.0.blocks.0.conv1.conv.weight")?;
    let [.., local] = shapes.of::<4>("stages.1.blocks.0.local_conv.conv.weight")?;
    let stages = shapes.count(1, |s| format!("stages.{s}.downsample.conv1.conv.weight"));
    let mut t = TinyVit {
        stem,
        widths: vec![width],
        depths: vec![shapes.count(0, |i| format!("stages.0.blocks.{i}.conv1.conv.weight"))],
        expanded,
        heads: Vec::new(),
        windows: Vec::new(),
        hidden: Vec::new(),
        local,
    };
    for s in 1..=stages {
        let [width, ..] = shapes.of::<4>(&format!("stages.{s}.downsample.conv1.conv.weight"))?;
        let [heads, offsets] = shapes.of(&format!("stages.{s}.blocks.0.attn.attention_biases"))?;
        let [hidden, _] = shapes.of(&format!("stages.{s}.blocks.0.mlp.fc1.weight"))?;
        t.widths.push(width);
        t.depths.push(shapes.count(0, |i| format!("stages.{s}.blocks.{i}.attn.qkv.weight")));
        t.heads.push(heads);
        // One bias per distance along height and width.
        t.windows.push(offsets.isqrt());
        t.hidden.push(hidden);
    }
    Some(t)
}

impl fmt::Display for TinyVit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TinyViT, widths {:?}, depths {:?}", self.widths, self.depths)
    }
}
