//! The table of encoders: the one place where their kinds stand side by side.

use std::fmt;
use std::sync::Arc;

use super::config::EncoderConfig;
use super::encoder::Encoder;
use super::layers::Layers;
use super::resnet::{self, ResNet, ResNetConfig};
use super::shapes::{Shapes, Tensors};
use super::star_net::{self, StarNet, StarNetConfig};
use super::tiny_vit::{self, TinyVit, TinyVitConfig};
use super::vit::{self, Vit, VitConfig, VitEncoder};
use crate::error::Result;
use crate::keys::{self, Key, Range, Typed};

/// A kind of encoder.
#[derive(Debug)]
pub struct Kind {
    /// What `encoder.kind` calls it.
    pub name: &'static str,
    /// What messages call it.
    pub label: &'static str,
    /// What of this kind is built, for messages.
    pub built: &'static str,
    /// A tensor that each encoder of this kind has and no other kind, by timm's name.
    pub anchor: &'static str,
    /// What timm's names of its layers begin with: a tensor of such a name changes what is computed.
    pub body: &'static [&'static str],
    /// Reads the sizes; the anchor is there.
    pub recognise: fn(Shapes<'_>) -> Option<Architecture>,
    /// The sizes where a configuration names the kind only.
    pub defaults: fn() -> EncoderConfig,
    /// Its own keys.
    pub keys: &'static [Key],
}

/// What the layers of the kinds with stages or blocks of those names begin with.
const BODY: &[&str] = &["blocks.", "stages.", "stem.", "patch_embed.", "norm_pre.", "pos_embed"];

/// Every kind of encoder.
pub const KINDS: &[Kind] = &[
    Kind {
        name: "vit",
        label: "ViT",
        built: "ViT with 16x16 patches, a class token, and neither registers nor LayerScale, of any width and depth",
        anchor: "patch_embed.proj.weight",
        body: BODY,
        recognise: |shapes| vit::recognise(shapes).map(Architecture::Vit),
        defaults: || EncoderConfig::Vit(VitConfig::default()),
        keys: VitConfig::KEYS,
    },
    Kind {
        name: "tinyvit",
        label: "TinyViT",
        built: "TinyViT",
        anchor: "patch_embed.conv1.conv.weight",
        body: BODY,
        recognise: |shapes| tiny_vit::recognise(shapes).map(Architecture::TinyVit),
        defaults: || EncoderConfig::TinyVit(TinyVitConfig::default()),
        keys: TinyVitConfig::KEYS,
    },
    Kind {
        name: "starnet",
        label: "StarNet",
        built: "StarNet",
        anchor: "stem.0.conv.weight",
        body: BODY,
        recognise: |shapes| star_net::recognise(shapes).map(Architecture::StarNet),
        defaults: || EncoderConfig::StarNet(StarNetConfig::default()),
        keys: StarNetConfig::KEYS,
    },
    Kind {
        name: "resnet",
        label: "ResNet",
        built: "ResNet of basic blocks, such as resnet18",
        anchor: "layer1.0.conv1.weight",
        body: &["conv1.", "bn1.", "layer"],
        recognise: |shapes| resnet::recognise(shapes).map(Architecture::ResNet),
        defaults: || EncoderConfig::ResNet(ResNetConfig::default()),
        keys: ResNetConfig::KEYS,
    },
];

/// The kind that `encoder.kind` calls so.
pub fn kind_named(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.name == name)
}

/// What `encoder.kind` takes.
const NAMES: [&str; KINDS.len()] = {
    let mut names = [""; KINDS.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = KINDS[i].name;
        i += 1;
    }
    names
};

/// The key that names the kind.
const KIND: Key = Key {
    name: "kind",
    kind: keys::Kind::Choice(&NAMES),
    optional: false,
    range: Range::Any,
    may_change: false,
    doc: "Which encoder",
};

impl Typed for EncoderConfig {
    const KIND: keys::Kind =
        keys::Kind::Variants { tag: &KIND, of: |name| kind_named(name).map(|kind| kind.keys) };
}

/// An encoder and its sizes, as far as tensors tell them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    Vit(Vit),
    TinyVit(TinyVit),
    StarNet(StarNet),
    ResNet(ResNet),
}

/// What is known of an encoder by its tensors.
trait Known: fmt::Display {
    /// timm's tensors.
    fn layers(&self) -> Layers;
    /// The encoder that is built here of these sizes; what no tensor tells is a guess.
    ///
    /// # Errors
    /// In words, where there is none.
    fn config(&self) -> std::result::Result<EncoderConfig, String>;
}

macro_rules! known {
    ($($name:ident),*) => {
        $(impl Known for $name {
            fn layers(&self) -> Layers {
                $name::layers(self)
            }

            fn config(&self) -> std::result::Result<EncoderConfig, String> {
                $name::config(self)
            }
        })*

        impl Architecture {
            fn known(&self) -> &dyn Known {
                match self {
                    $(Architecture::$name(known) => known,)*
                }
            }
        }
    };
}

known!(Vit, TinyVit, StarNet, ResNet);

impl Architecture {
    /// Tells the encoder whose tensors these are, in timm's names, and its kind; `None` when they have the first tensor of none, or lack
    /// others by which its sizes are told.
    pub fn told_by(tensors: &dyn Tensors) -> Option<(&'static Kind, Architecture)> {
        let shapes = Shapes(tensors);
        let kind = KINDS.iter().find(|kind| shapes.has(kind.anchor))?;
        Some((kind, (kind.recognise)(shapes)?))
    }

    /// timm's tensors.
    pub fn layers(&self) -> Layers {
        self.known().layers()
    }

    /// The encoder that is built here of these sizes, what no tensor tells being a guess.
    ///
    /// # Errors
    /// In words, where there is none.
    pub fn config(&self) -> std::result::Result<EncoderConfig, String> {
        self.known().config()
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.known().fmt(f)
    }
}

impl EncoderConfig {
    /// The encoder, its sizes not checked: for questions about one that is known to be sound.
    pub fn encoder(&self) -> Arc<dyn Encoder> {
        match self {
            EncoderConfig::Vit(config) => Arc::new(VitEncoder::new(config)),
            EncoderConfig::TinyVit(config) => Arc::new(config.clone()),
            EncoderConfig::StarNet(config) => Arc::new(config.clone()),
            EncoderConfig::ResNet(config) => Arc::new(config.clone()),
        }
    }

    /// The encoder; `key` is its place in the configuration.
    ///
    /// # Errors
    /// [`Error::Config`](crate::error::Error::Config) when it is no valid one.
    pub fn open(&self, key: &str) -> Result<Arc<dyn Encoder>> {
        let encoder = self.encoder();
        encoder.check(key)?;
        Ok(encoder)
    }
}

/// The kinds by one of their names, such as `a, b or c`.
pub fn listed(name: impl Fn(&Kind) -> &'static str) -> String {
    let names: Vec<_> = KINDS.iter().map(name).collect();
    match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => names.concat(),
    }
}
