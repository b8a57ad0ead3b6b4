//! The encoders: one file each.

mod config;
mod encoder;
mod feature_maps;
mod star_net;
mod tiny_vit;
mod tokens;
mod vit;

pub use config::EncoderConfig;
pub use encoder::{Encoder, timm_name};
pub use tokens::{DropPath, EncoderDims, TapGroup, Tokens, View};
