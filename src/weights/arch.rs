//! Which encoder a file holds, told by the names and shapes of its tensors.

use std::collections::HashMap;
use std::fmt;

use super::names::{encoder, unknown};
use super::tensor::StateDict;
use super::timm::timm_parameters;
use crate::error::Result;

/// An encoder and its sizes, as far as tensors tell them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    Vit(Vit),
    TinyVit(TinyVit),
    StarNet(StarNet),
}

/// timm's `VisionTransformer`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Vit {
    /// Width of a token.
    pub dim: usize,
    pub depth: usize,
    /// Width inside the feed-forward.
    pub hidden: usize,
    /// Height and width of a patch in pixels.
    pub patch: [usize; 2],
    /// Channels of the image.
    pub channels: usize,
    /// Rows of the position table: those of the patches and, usually, of the class token.
    pub positions: usize,
    pub class_token: bool,
    /// A second token beside it, as in DeiT's distilled models.
    pub distillation_token: bool,
    /// Register tokens.
    pub registers: usize,
    /// LayerScale behind each branch, as in DINOv2.
    pub layer_scale: bool,
}

impl Vit {
    /// Attention heads do not show in any shape. This is what the published models of this width have: 64 columns a head, and
    /// 16 heads from the huge model on.
    pub fn usual_heads(&self) -> usize {
        match self.dim {
            1280 | 1408 | 1664 => 16,
            dim => (dim / 64).max(1),
        }
    }

    /// Rows of the position table before those of the patches: as many as leave a square grid (timm's tables cover the class
    /// token, or all prefix tokens, or none), else that of the class token.
    pub fn prefix_rows(&self) -> usize {
        let class = usize::from(self.class_token) + usize::from(self.distillation_token);
        let square = |prefix: &usize| {
            self.positions.checked_sub(*prefix).is_some_and(|n| n > 0 && n.isqrt() * n.isqrt() == n)
        };
        [class, class.saturating_add(self.registers), 0].into_iter().find(square).unwrap_or(class)
    }
}

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

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Architecture::Vit(v) => {
                let [h, w] = v.patch;
                write!(
                    f,
                    "ViT, width {}, {} blocks, patches {h}x{w}, {} positions",
                    v.dim, v.depth, v.positions
                )?;
                if v.layer_scale {
                    f.write_str(", LayerScale")?;
                }
                if v.registers > 0 {
                    write!(f, ", {} registers", v.registers)?;
                }
                if v.distillation_token {
                    f.write_str(", a distillation token")?;
                }
                if !v.class_token {
                    f.write_str(", no class token")?;
                }
                Ok(())
            }
            Architecture::TinyVit(t) => write!(f, "TinyViT, widths {:?}, depths {:?}", t.widths, t.depths),
            Architecture::StarNet(s) => write!(f, "StarNet, widths {:?}, depths {:?}", s.widths, s.depths),
        }
    }
}

impl Architecture {
    /// Tells the encoder of a file, under any prefix and in any known naming.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) that says which tensors the file has when it holds no encoder known here, and which
    /// are missing, of another shape or not known when it almost does.
    pub fn recognise(state: &StateDict) -> Result<Architecture> {
        Self::of_timm(&encoder(state)?.state)
    }

    /// [`Architecture::recognise`] of tensors in timm's names.
    pub(super) fn of_timm(state: &StateDict) -> Result<Architecture> {
        let shapes = Shapes(state);
        let found = match () {
            () if shapes.has("patch_embed.proj.weight") => shapes.vit().map(Architecture::Vit),
            () if shapes.has("patch_embed.conv1.conv.weight") => shapes.tiny_vit().map(Architecture::TinyVit),
            () => shapes.star_net().map(Architecture::StarNet),
        };
        let architecture = found.ok_or_else(|| {
            unknown(state, "has an encoder with tensors that no ViT, TinyViT or StarNet has")
        })?;
        compare(state, &architecture)?;
        Ok(architecture)
    }
}

/// The body must be that architecture and nothing else: a block with one more tensor computes something else.
fn compare(state: &StateDict, architecture: &Architecture) -> Result<()> {
    const SHOWN: usize = 5;
    let expected: HashMap<_, _> = timm_parameters(architecture).into_iter().collect();
    let mut wrong = Vec::new();
    for (name, shape) in timm_parameters(architecture) {
        match state.get(&name) {
            Some(t) if *t.shape() != shape => {
                wrong.push(format!("`{name}` has shape {}, expected {shape}", t.shape()));
            }
            // Files from before PyTorch 0.4.1 have no counters; they say nothing about the weights.
            None if !name.ends_with("num_batches_tracked") => {
                wrong.push(format!("`{name}` {shape} is missing"));
            }
            _ => {}
        }
    }
    let body = ["blocks.", "stages.", "stem.", "patch_embed.", "norm_pre.", "pos_embed"];
    for (name, t) in state.iter() {
        if !expected.contains_key(name) && body.iter().any(|b| name.starts_with(b)) {
            wrong.push(format!("`{name}` {} is unknown", t.shape()));
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    let more = match wrong.len().saturating_sub(SHOWN) {
        0 => String::new(),
        n => format!("; and {n} more"),
    };
    wrong.truncate(SHOWN);
    Err(state.error(format!("looks like {architecture}, but {}{more}", wrong.join("; "))))
}

struct Shapes<'a>(&'a StateDict);

impl Shapes<'_> {
    fn has(&self, name: &str) -> bool {
        self.0.get(name).is_some()
    }

    /// The shape of a tensor of rank `N` without a dimension of 0.
    fn of<const N: usize>(&self, name: &str) -> Option<[usize; N]> {
        let dims: [usize; N] = self.0.get(name)?.shape().dims().try_into().ok()?;
        (!dims.contains(&0)).then_some(dims)
    }

    /// How many of the numbered names exist, from `first` on without a gap.
    fn count(&self, first: usize, name: impl Fn(usize) -> String) -> usize {
        (first..).take_while(|i| self.has(&name(*i))).count()
    }

    fn vit(&self) -> Option<Vit> {
        let [dim, channels, ph, pw] = self.of("patch_embed.proj.weight")?;
        let [_, positions, _] = self.of("pos_embed")?;
        let [hidden, _] = self.of("blocks.0.mlp.fc1.weight")?;
        let registers = if self.has("reg_token") { self.of::<3>("reg_token")?[1] } else { 0 };
        Some(Vit {
            dim,
            depth: self.count(0, |i| format!("blocks.{i}.norm1.weight")),
            hidden,
            patch: [ph, pw],
            channels,
            positions,
            class_token: self.has("cls_token"),
            distillation_token: self.has("dist_token"),
            registers,
            layer_scale: self.has("blocks.0.ls1.gamma"),
        })
    }

    fn tiny_vit(&self) -> Option<TinyVit> {
        let [stem, ..] = self.of::<4>("patch_embed.conv1.conv.weight")?;
        let [width, ..] = self.of::<4>("patch_embed.conv2.conv.weight")?;
        let [expanded, ..] = self.of::<4>("stages.0.blocks.0.conv1.conv.weight")?;
        let [.., local] = self.of::<4>("stages.1.blocks.0.local_conv.conv.weight")?;
        let stages = self.count(1, |s| format!("stages.{s}.downsample.conv1.conv.weight"));
        let mut t = TinyVit {
            stem,
            widths: vec![width],
            depths: vec![self.count(0, |i| format!("stages.0.blocks.{i}.conv1.conv.weight"))],
            expanded,
            heads: Vec::new(),
            windows: Vec::new(),
            hidden: Vec::new(),
            local,
        };
        for s in 1..=stages {
            let [width, ..] = self.of::<4>(&format!("stages.{s}.downsample.conv1.conv.weight"))?;
            let [heads, offsets] = self.of(&format!("stages.{s}.blocks.0.attn.attention_biases"))?;
            let [hidden, _] = self.of(&format!("stages.{s}.blocks.0.mlp.fc1.weight"))?;
            t.widths.push(width);
            t.depths.push(self.count(0, |i| format!("stages.{s}.blocks.{i}.attn.qkv.weight")));
            t.heads.push(heads);
            // One bias per distance along height and width.
            t.windows.push(offsets.isqrt());
            t.hidden.push(hidden);
        }
        Some(t)
    }

    fn star_net(&self) -> Option<StarNet> {
        let [stem, ..] = self.of::<4>("stem.0.conv.weight")?;
        let [.., kernel] = self.of::<4>("stages.0.1.dwconv.conv.weight")?;
        let [inner, outer, ..] = self.of::<4>("stages.0.1.f1.conv.weight")?;
        let stages = self.count(0, |s| format!("stages.{s}.0.conv.weight"));
        let widths = (0..stages)
            .map(|s| self.of::<4>(&format!("stages.{s}.0.conv.weight")).map(|d| d[0]))
            .collect::<Option<Vec<_>>>()?;
        let depths =
            (0..stages).map(|s| self.count(1, |i| format!("stages.{s}.{i}.dwconv.conv.weight"))).collect();
        Some(StarNet { stem, widths, depths, expansion: inner / outer, kernel })
    }
}
