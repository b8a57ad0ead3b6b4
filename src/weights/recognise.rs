//! Which encoder a file holds, told by the names and shapes of its tensors.

use std::collections::HashMap;

use super::arch::{Architecture, StarNet, TinyVit, Vit};
use super::names::{encoder, unknown};
use super::tensor::StateDict;
use super::timm::timm_parameters;
use crate::error::Result;

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
