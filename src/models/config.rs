//! Which encoder.

use super::resnet::ResNetConfig;
use super::star_net::StarNetConfig;
use super::tiny_vit::TinyVitConfig;
use super::vit::VitConfig;
use serde::{Deserialize, Serialize};

/// Which encoder, by its kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum EncoderConfig {
    Vit(VitConfig),
    TinyVit(TinyVitConfig),
    StarNet(StarNetConfig),
    ResNet(ResNetConfig),
}
