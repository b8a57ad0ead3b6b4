//! The encoders: a folder each, with the table of its tensors, its graph and its form in ONNX; [`KINDS`] is the list of them.

mod config;
mod embed;
mod encoder;
mod feature_maps;
mod kinds;
mod layers;
mod resnet;
mod shapes;
mod star_net;
mod tiny_vit;
mod tokens;
mod vit;

pub use config::EncoderConfig;
pub use embed::{EmbedGraph, EmbedOptions, build_embed};
pub use encoder::{Encoder, HEADS_KEY, TAP_KEY, TimmModel, timm_name};
pub use kinds::{Architecture, KINDS, Kind, kind_named, listed};
pub use layers::{Holds, LayerTensor, Layers};
pub use resnet::{ResNet, ResNetConfig};
pub use shapes::{Shapes, Tensors};
pub use star_net::{StarNet, StarNetConfig};
pub use tiny_vit::{TinyVit, TinyVitConfig};
pub use tokens::{DropPath, EncoderDims, TapGroup, Tokens, View};
pub use vit::{Vit, VitConfig};
