//! What an encoder of any kind is.

use std::fmt::Debug;
use std::sync::Arc;

use super::config::EncoderConfig;
use super::layers::Layers;
use super::tokens::{DropPath, EncoderDims, TapGroup, Tokens, View};
use crate::error::Result;
use crate::nn::{Net, ParamRegistry};
use crate::onnx::{Builder, Grid, OnnxTokens, Value};

/// Key of the attention heads in what a file says of itself.
pub const HEADS_KEY: &str = "num_heads";
/// Key of the block of the patch tokens there.
pub const TAP_KEY: &str = "tap";

/// timm's name of an encoder's parameter or running statistic; `None` for what belongs to no encoder. The norm of the tapped
/// block, which timm does not have, is `tap_norm`.
pub fn timm_name(name: &str) -> Option<&str> {
    let own = name.strip_prefix("encoder.")?;
    let inner = own.strip_prefix("vit.").or_else(|| own.strip_prefix("net."));
    inner.or_else(|| own.starts_with("tap_norm.").then_some(own))
}

/// What timm needs to know to build an encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct TimmModel {
    /// The model's name.
    pub name: &'static str,
    /// Arguments of `create_model` beside it; empty where the name says all.
    pub args: serde_json::Map<String, serde_json::Value>,
    /// Its first convolution and its classifier, by their paths.
    pub first_conv: &'static str,
    pub classifier: &'static str,
    /// Whether it takes images of one size only.
    pub fixed_size: bool,
}

/// An encoder: its parameters, its graph, and what other programs are told of it.
pub trait Encoder: Debug + Send + Sync {
    /// Checks its sizes; `key` is its place in the configuration.
    ///
    /// # Errors
    /// [`Error::Config`](crate::error::Error::Config) naming the key that is out of range.
    fn check(&self, key: &str) -> Result<()>;

    /// The same without what only patch tokens need: an objective of image tokens alone trains no norm of a ViT's tapped block.
    /// None where there is nothing of the kind.
    fn without_tap(&self) -> Option<Arc<dyn Encoder>> {
        None
    }

    fn dims(&self) -> EncoderDims;

    /// The block, from 0, of every residual branch that stochastic depth can drop, in order.
    fn branch_blocks(&self) -> Vec<usize>;

    /// timm's tensors.
    fn layers(&self) -> Layers;

    /// What stands before timm's names here.
    fn prefix(&self) -> &'static str {
        "encoder.net."
    }

    /// Tensors that timm does not have, behind `encoder.`.
    fn extra_layers(&self) -> Layers {
        Layers::default()
    }

    /// Encodes all views; `drop_path` switches stochastic depth on.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::error::Error::Shape) when views and images do not fit.
    fn build(
        &self,
        net: &mut Net<'_, '_>,
        views: &[View],
        taps: &[TapGroup],
        drop_path: Option<DropPath>,
    ) -> Result<Tokens>;

    /// The same network in ONNX's operators.
    ///
    /// # Errors
    /// When weights are missing or do not fit.
    fn onnx(&self, b: &mut Builder<'_>, images: &Value, grid: Grid) -> Result<OnnxTokens>;

    fn timm(&self) -> TimmModel;

    /// What shapes do not tell, for a file to say of itself.
    fn told(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// What a model card tells beside the widths.
    fn described(&self) -> Vec<(&'static str, String)> {
        let stride = "stride 32, as timm's; weights of a stride-16 variant have the same shapes";
        vec![("patch tokens from", "the third stage".to_owned()), ("last stage", stride.to_owned())]
    }

    /// A small encoder of the same kind and make, for checks by central differences; `img_size` is that of the global views.
    fn small(&self, img_size: [usize; 2]) -> EncoderConfig;

    /// Appends the parameters, named `encoder.*`.
    ///
    /// # Errors
    /// When a name is taken.
    fn register(&self, reg: &mut ParamRegistry) -> Result<()> {
        self.layers().register(self.prefix(), reg)?;
        self.extra_layers().register("encoder.", reg)
    }

    /// Appends the running statistics, named `encoder.*`; a ViT has none.
    ///
    /// # Errors
    /// When a name is taken.
    fn register_buffers(&self, reg: &mut ParamRegistry) -> Result<()> {
        self.layers().register_statistics(self.prefix(), reg)
    }
}
