//! The encoders: one file each.

mod config;
mod embed;
mod encoder;
mod feature_maps;
mod star_net;
mod tiny_vit;
mod tokens;
mod vit;

pub use config::EncoderConfig;
pub use embed::{EmbedGraph, EmbedOptions, build_embed};
pub use encoder::{Encoder, timm_name};
pub use tokens::{DropPath, EncoderDims, TapGroup, Tokens, View};
