//! What other programs call the same tensors: prefixes around an encoder, and renamings to timm's names and back.

use std::fmt;

use super::asks::Hint;
use super::tensor::StateDict;
use crate::error::{Error, Result};
use crate::models::{KINDS, listed};

/// How the tensors of an encoder are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Naming {
    /// timm's, which DINO, MAE, TransReID and SAIP use for a ViT.
    #[default]
    Timm,
    /// The ViT of mmpretrain and mmpose.
    Mmpretrain,
    /// TinyViT as its authors published it (`microsoft/Cream`).
    TinyVitOriginal,
}

impl fmt::Display for Naming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Naming::Timm => "timm",
            Naming::Mmpretrain => "mmpretrain",
            Naming::TinyVitOriginal => "TinyViT's own",
        })
    }
}

/// A first tensor that the encoders of other namings have.
const ANCHORS: [(&str, Naming); 2] = [
    ("patch_embed.projection.weight", Naming::Mmpretrain),
    ("patch_embed.seq.0.c.weight", Naming::TinyVitOriginal),
];

/// A first tensor that each kind of encoder has, and the naming that it belongs to.
fn anchors() -> impl Iterator<Item = (&'static str, Naming)> {
    KINDS.iter().map(|kind| (kind.anchor, Naming::Timm)).chain(ANCHORS)
}

/// Of several encoders in one file, the one whose prefix has such a word is meant; the first that fits one alone. An average of
/// the weights comes before the weights; of two networks the one that is evaluated: BYOL's online one, MoCo's base encoder,
/// I-JEPA's target.
const PREFERRED: [&str; 6] = ["teacher", "ema", "expert", "online", "base", "q"];
/// Words of an encoder that is there for the other's sake.
const SECOND: [&str; 2] = ["momentum", "k"];

/// Whether a tensor of this name begins an encoder, whatever stands before it.
pub(super) fn has_anchor(name: &str) -> bool {
    anchors().any(|(anchor, _)| {
        name.strip_suffix(anchor).is_some_and(|prefix| prefix.is_empty() || prefix.ends_with('.'))
    })
}

/// Whether `word` is one of the words of a prefix, such as `momentum` of `module.momentum_encoder.`.
fn has_word(prefix: &str, word: &str) -> bool {
    prefix.split(['.', '_']).any(|part| part == word)
}

/// Pairs that are replaced at the dots around them: mmpretrain's, timm's.
const MMPRETRAIN: [(&str, &str); 6] = [
    ("patch_embed.projection.", "patch_embed.proj."),
    (".ffn.layers.0.0.", ".mlp.fc1."),
    (".ffn.layers.1.", ".mlp.fc2."),
    (".ln1.", ".norm1."),
    (".ln2.", ".norm2."),
    ("layers.", "blocks."),
];

impl Naming {
    /// timm's name of the tensor that this naming calls `name`; `None` for one that timm does not keep.
    ///
    /// `to_timm(from_timm(name)) == name` for every tensor of the encoders that the naming knows.
    pub fn to_timm(self, name: &str) -> Option<String> {
        match self {
            Naming::Timm => Some(match name {
                // DINOv2's registers, and SAIP's norm of the tapped block.
                "register_tokens" => "reg_token".to_owned(),
                _ => match name.strip_prefix("inter_norm.") {
                    Some(rest) => format!("tap_norm.{rest}"),
                    None => name.to_owned(),
                },
            }),
            Naming::Mmpretrain => Some(match name.strip_prefix("ln1.") {
                Some(rest) => format!("norm.{rest}"),
                None => replace(name, "layers.", MMPRETRAIN.map(|(mm, timm)| (mm, timm))),
            }),
            Naming::TinyVitOriginal => tiny_vit_to_timm(name),
        }
    }

    /// What this naming calls the tensor that timm calls `name`.
    pub fn from_timm(self, name: &str) -> String {
        match self {
            Naming::Timm => name.to_owned(),
            Naming::Mmpretrain => match name.strip_prefix("norm.") {
                Some(rest) => format!("ln1.{rest}"),
                None => replace(name, "blocks.", MMPRETRAIN.map(|(mm, timm)| (timm, mm))),
            },
            Naming::TinyVitOriginal => tiny_vit_from_timm(name),
        }
    }
}

/// Replaces each pair once; a pair without a leading dot only at the start, and within the blocks only below `blocks`.
fn replace(name: &str, blocks: &str, pairs: [(&str, &str); 6]) -> String {
    let mut out = name.to_owned();
    for (from, to) in pairs {
        if from.starts_with('.') {
            if name.starts_with(blocks) {
                out = out.replacen(from, to, 1);
            }
        } else if let Some(rest) = out.strip_prefix(from) {
            out = format!("{to}{rest}");
        }
    }
    out
}

fn tiny_vit_to_timm(name: &str) -> Option<String> {
    if name.ends_with("attention_bias_idxs") {
        // Positions in the table of biases, which follow from the window.
        return None;
    }
    let name = name.replacen(".c.", ".conv.", 1);
    for (original, timm) in [
        ("patch_embed.seq.0.", "patch_embed.conv1."),
        ("patch_embed.seq.2.", "patch_embed.conv2."),
        ("norm_head.", "head.norm."),
        ("head.", "head.fc."),
    ] {
        if let Some(rest) = name.strip_prefix(original) {
            return Some(format!("{timm}{rest}"));
        }
    }
    let Some((stage, rest)) = numbered(&name, "layers.") else { return Some(name) };
    // The original counts a down-sampling to the stage before it, timm to the one behind.
    Some(match rest.starts_with("downsample.") {
        true => format!("stages.{}.{rest}", stage.saturating_add(1)),
        false => format!("stages.{stage}.{rest}"),
    })
}

fn tiny_vit_from_timm(name: &str) -> String {
    let name = name.replacen(".conv.", ".c.", 1);
    for (original, timm) in [
        ("patch_embed.seq.0.", "patch_embed.conv1."),
        ("patch_embed.seq.2.", "patch_embed.conv2."),
        ("norm_head.", "head.norm."),
        ("head.", "head.fc."),
    ] {
        if let Some(rest) = name.strip_prefix(timm) {
            return format!("{original}{rest}");
        }
    }
    match numbered(&name, "stages.") {
        Some((stage, rest)) if rest.starts_with("downsample.") => {
            format!("layers.{}.{rest}", stage.saturating_sub(1))
        }
        Some((stage, rest)) => format!("layers.{stage}.{rest}"),
        None => name,
    }
}

/// `("3", "rest")` of `{prefix}3.rest`.
fn numbered<'a>(name: &'a str, prefix: &str) -> Option<(usize, &'a str)> {
    let (number, rest) = name.strip_prefix(prefix)?.split_once('.')?;
    Some((number.parse().ok()?, rest))
}

/// One encoder out of a file, in timm's names.
#[derive(Clone, Debug)]
pub struct EncoderWeights {
    pub state: StateDict,
    /// What stood before its names, such as `module.backbone.`.
    pub prefix: String,
    pub naming: Naming,
    /// Names of the file that are not the encoder's: other prefixes, tables that timm does not keep.
    pub outside: Vec<String>,
}

/// Finds the encoder in a file, whatever prefix it has there, and gives its tensors timm's names. Of several, that of the
/// teacher or the expert is taken.
///
/// # Errors
/// [`Error::File`] that lists names of the file when there is no encoder, or the prefixes when there are several.
pub fn encoder(state: &StateDict) -> Result<EncoderWeights> {
    let (prefix, naming) = find(state)?;
    let mut outside = Vec::new();
    for name in state.names() {
        if name.strip_prefix(prefix).and_then(|rest| naming.to_timm(rest)).is_none() {
            outside.push(name.to_owned());
        }
    }
    let named = state.renamed(|name| naming.to_timm(name.strip_prefix(prefix)?));
    if named.len() + outside.len() != state.len() {
        return Err(
            state.error(format!("two of its tensors below `{prefix}` have the same name in timm's naming"))
        );
    }
    Ok(EncoderWeights { state: named, prefix: prefix.to_owned(), naming, outside })
}

fn find(state: &StateDict) -> Result<(&str, Naming)> {
    let mut found: Vec<(&str, Naming)> = Vec::new();
    for name in state.names() {
        for (anchor, naming) in anchors() {
            if let Some(prefix) = name.strip_suffix(anchor).filter(|p| p.is_empty() || p.ends_with('.')) {
                found.push((prefix, naming));
            }
        }
    }
    match found.as_slice() {
        [] => {
            let known = listed(|kind| kind.label);
            Err(unknown(state, &format!("has no encoder that is known here (a {known})")))
        }
        [only] => Ok(*only),
        several => {
            let only = |fits: &dyn Fn(&str) -> bool| {
                let mut all = several.iter().filter(|(p, _)| fits(p));
                all.next().filter(|_| all.next().is_none())
            };
            let preferred = PREFERRED.iter().find_map(|word| only(&|p| has_word(p, word)));
            // A backbone beside networks around copies of it, as mmpretrain has BYOL.
            let backbone = || only(&|p| p == "backbone.");
            let target = || only(&|p| has_word(p, "target"));
            let first = || only(&|p| !SECOND.iter().any(|word| has_word(p, word)));
            preferred.or_else(backbone).or_else(target).or_else(first).copied().ok_or_else(|| {
                let prefixes: Vec<_> =
                    several.iter().map(|(p, _)| format!("`{}`", p.trim_end_matches('.'))).collect();
                let name = state.asks.name(Hint::Entry);
                state.error(format!(
                    "holds several encoders, under {}: name one with {name}",
                    prefixes.join(", ")
                ))
            })
        }
    }
}

/// An error that says which tensors a file has.
pub(super) fn unknown(state: &StateDict, what: &str) -> Error {
    const SHOWN: usize = 8;
    if state.is_empty() {
        return state.error("holds no tensors: name a file of weights");
    }
    let shown: Vec<_> = state.iter().take(SHOWN).map(|(n, t)| format!("`{n}` {}", t.shape())).collect();
    let more = match state.len().saturating_sub(SHOWN) {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    state.error(format!("{what}; its tensors are {}{more}", shown.join(", ")))
}
