//! What an encoder is to the rest of the model, whatever its kind.

use super::feature_maps;
use super::layers::Net;
use super::params::ParamRegistry;
use super::star_net::StarNet;
use super::tiny_vit::TinyVit;
use super::vit::{DropPath, Vit};
use crate::error::Result;
use crate::ir::ValueId;
use crate::saip::config::{EncoderConfig, PATCH};

/// Widths of an encoder's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncoderDims {
    /// Image token.
    pub image: usize,
    /// Patch tokens.
    pub tap: usize,
}

/// The images of one view.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// `[count, 3, H, W]`
    pub image: ValueId,
    pub count: usize,
    /// `[H, W]` in pixels.
    pub size: [usize; 2],
    /// Whether image tokens are wanted. Views that want one come before those that do not.
    pub image_token: bool,
    /// Positions of the visible patches `[count, k]`, with their number `k`: the others are not encoded. At most one
    /// view of a stream is masked.
    pub keep: Option<(ValueId, usize)>,
}

impl View {
    /// Patches along height and width.
    pub fn grid(&self) -> [usize; 2] {
        self.size.map(|s| s / PATCH)
    }

    /// Patch tokens that are encoded, per image.
    pub fn tokens(&self) -> usize {
        let [h, w] = self.grid();
        self.keep.map_or(h * w, |(_, k)| k)
    }
}

/// Patch tokens wanted as one value: of each named view (by index, ascending) those of its first `images` images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapGroup {
    pub parts: Vec<TapPart>,
}

/// One view's share of a [`TapGroup`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TapPart {
    pub view: usize,
    pub images: usize,
}

impl TapGroup {
    /// `parts` are `(view, images)`.
    pub fn new(parts: impl IntoIterator<Item = (usize, usize)>) -> Self {
        TapGroup { parts: parts.into_iter().map(|(view, images)| TapPart { view, images }).collect() }
    }
}

/// What an encoder gives.
#[derive(Clone, Debug, Default)]
pub struct Tokens {
    /// `[images, D]`: the image tokens of all views that want them, in stream order.
    pub image: Option<ValueId>,
    /// `[rows, T]` per tap group.
    pub taps: Vec<ValueId>,
    /// A ViT's last block's packed queries, keys and values `[rows, 3D]` over the views that want image tokens.
    pub last_qkv: Option<ValueId>,
}

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
