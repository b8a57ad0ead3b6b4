//! An encoder of any kind.

use super::feature_maps;
use super::star_net::StarNet;
use super::tiny_vit::TinyVit;
use super::tokens::{DropPath, EncoderDims, TapGroup, Tokens, View};
use super::vit::Vit;
use crate::error::Result;
use crate::models::EncoderConfig;
use crate::nn::layers::Net;
use crate::nn::params::ParamRegistry;

/// timm's name of an encoder's parameter or running statistic; `None` for what belongs to no encoder. The norm of the tapped
/// block, which timm does not have, is `tap_norm`.
pub fn timm_name(name: &str) -> Option<&str> {
    let own = name.strip_prefix("encoder.")?;
    let inner = own.strip_prefix("vit.").or_else(|| own.strip_prefix("net."));
    inner.or_else(|| own.starts_with("tap_norm.").then_some(own))
}

/// An encoder: its parameters and its graph.
#[derive(Clone, Debug)]
pub struct Encoder {
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Vit(Vit),
    TinyVit(TinyVit),
    StarNet(StarNet),
}

impl Encoder {
    /// # Errors
    /// [`Error::Config`](crate::error::Error::Config) when `config` is no valid encoder; `key` is its place in the
    /// configuration.
    pub fn new(config: &EncoderConfig, key: &str) -> Result<Self> {
        let kind = match *config {
            EncoderConfig::Vit { img_size, embed_dim, depth, num_heads, tap } => {
                Kind::Vit(Vit::new(img_size, embed_dim, depth, num_heads, tap, key)?)
            }
            EncoderConfig::TinyVit { embed_dims, depths, num_heads, window_sizes } => {
                Kind::TinyVit(TinyVit::new(embed_dims, depths, num_heads, window_sizes, key)?)
            }
            EncoderConfig::StarNet { base_dim, depths, mlp_ratio } => {
                Kind::StarNet(StarNet::new(base_dim, depths, mlp_ratio, key)?)
            }
        };
        Ok(Encoder { kind })
    }

    /// The same without what only patch tokens need: an objective of image tokens alone trains no norm of a ViT's tapped block.
    pub fn without_tap(self) -> Self {
        match self.kind {
            Kind::Vit(vit) => Encoder { kind: Kind::Vit(vit.without_tap()) },
            kind => Encoder { kind },
        }
    }

    pub fn dims(&self) -> EncoderDims {
        match &self.kind {
            Kind::Vit(vit) => EncoderDims { image: vit.dim(), tap: vit.dim() },
            Kind::TinyVit(net) => net.dims(),
            Kind::StarNet(net) => net.dims(),
        }
    }

    /// The block, from 0, of every residual branch that stochastic depth can drop, in order.
    pub fn branch_blocks(&self) -> Vec<usize> {
        match &self.kind {
            Kind::Vit(vit) => vit.branch_blocks(),
            Kind::TinyVit(net) => net.branch_blocks(),
            Kind::StarNet(net) => net.branch_blocks(),
        }
    }

    /// Appends the parameters, named `encoder.*`.
    pub fn register(&self, reg: &mut ParamRegistry) -> Result<()> {
        match &self.kind {
            Kind::Vit(vit) => vit.register(reg),
            Kind::TinyVit(net) => feature_maps::register(&net.layers(), reg),
            Kind::StarNet(net) => feature_maps::register(&net.layers(), reg),
        }
    }

    /// Appends the running statistics, named `encoder.*`; a ViT has none.
    pub fn register_buffers(&self, reg: &mut ParamRegistry) -> Result<()> {
        match &self.kind {
            Kind::Vit(_) => Ok(()),
            Kind::TinyVit(net) => feature_maps::register_buffers(&net.layers(), reg),
            Kind::StarNet(net) => feature_maps::register_buffers(&net.layers(), reg),
        }
    }

    /// Encodes all views; `drop_path` switches stochastic depth on.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::error::Error::Shape) when views and images do not fit.
    pub fn build(
        &self,
        net: &mut Net<'_, '_>,
        views: &[View],
        taps: &[TapGroup],
        drop_path: Option<DropPath>,
    ) -> Result<Tokens> {
        match &self.kind {
            Kind::Vit(vit) => vit.build(net, views, taps, drop_path),
            Kind::TinyVit(tiny) => tiny.build(net, views, taps, drop_path),
            Kind::StarNet(star) => star.build(net, views, taps, drop_path),
        }
    }
}
