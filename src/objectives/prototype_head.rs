//! The image-level head of self-distillation: an MLP, L2 normalisation, and prototypes of unit or of learned length.

use crate::error::{Error, Result};
use crate::ir::{ValueId, ops};
use crate::keys::{MAX_COUNT, MAX_WIDTH, Range, section};
use crate::nn::layers::Net;
use crate::nn::params::{Init, ParamRegistry};
use serde::{Deserialize, Serialize};

/// MLP `D -> hidden -> hidden -> bottleneck`, then `prototypes` vectors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadConfig {
    pub hidden: usize,
    pub bottleneck: usize,
    pub prototypes: usize,
    /// Whether the length of every prototype is learned (DINO's `norm_last_layer=False`); else all are unit vectors.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gain: bool,
}

section! {
    /// The image-level head, and SAIP's weight of the loss behind it.
    pub struct CsmSection {
        /// Width of the hidden layers.
        pub hidden: usize = 2048, Range::Whole(1, MAX_WIDTH);
        /// Width before the prototypes.
        pub bottleneck: usize = 256, Range::Whole(1, MAX_WIDTH);
        /// Number of prototypes.
        pub prototypes: usize = 65536, Range::Whole(2, MAX_COUNT);
        /// Weight of SAIP's matching loss; 0: off.
        pub weight: f64 = 1.0, Range::NotNegative;
    }
}

/// `torch.nn.functional.normalize`'s epsilon.
const UNIT_EPS: f64 = 1e-12;

/// What the last layer of the head is: the parameters that DINO holds for the first epochs.
pub const LAST_LAYER: [&str; 2] = ["csm.prototypes", "csm.gain"];

/// The head over features of width `dim`.
#[derive(Clone, Debug)]
pub struct PrototypeHead {
    dim: usize,
    config: HeadConfig,
}

impl PrototypeHead {
    /// # Errors
    /// [`Error::Config`] when a width is 0.
    pub fn new(dim: usize, config: &HeadConfig) -> Result<Self> {
        for (key, value) in [
            ("csm.hidden", config.hidden),
            ("csm.bottleneck", config.bottleneck),
            ("csm.prototypes", config.prototypes),
        ] {
            if value == 0 {
                return Err(Error::config(key, "must be at least 1"));
            }
        }
        Ok(PrototypeHead { dim, config: config.clone() })
    }

    /// Number of prototypes.
    pub fn prototype_count(&self) -> usize {
        self.config.prototypes
    }

    /// Appends the parameters, named `csm.*`.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn register(&self, reg: &mut ParamRegistry) -> Result<()> {
        let c = &self.config;
        reg.linear("csm.fc1", c.hidden, self.dim)?;
        reg.linear("csm.fc2", c.hidden, c.hidden)?;
        reg.linear("csm.fc3", c.bottleneck, c.hidden)?;
        let [prototypes, gain] = LAST_LAYER;
        reg.register(prototypes, &[c.prototypes, c.bottleneck], Init::Normal { std: 0.02 })?;
        if c.gain { reg.row_scales(gain, c.prototypes, Init::Ones) } else { Ok(()) }
    }

    /// `x: [M, D]` -> unit vectors `[M, bottleneck]`.
    ///
    /// # Errors
    /// When the parameters are not registered.
    pub fn embed(&self, net: &mut Net<'_, '_>, x: ValueId) -> Result<ValueId> {
        let mut h = x;
        for layer in ["csm.fc1", "csm.fc2"] {
            h = net.linear(layer, h)?;
            h = net.gelu(&format!("{layer}.act"), h)?;
        }
        h = net.linear("csm.fc3", h)?;
        net.push("csm.normalize", ops::L2Normalize { eps: UNIT_EPS }, &[h])
    }

    /// The prototypes `[K, bottleneck]`: unit vectors, times their gains where these are learned.
    ///
    /// # Errors
    /// When the parameters are not registered.
    pub fn prototypes(&self, net: &mut Net<'_, '_>) -> Result<ValueId> {
        let [prototypes, gain] = LAST_LAYER;
        let w = net.param(prototypes)?;
        let unit = net.push("csm.prototypes.normalize", ops::L2Normalize { eps: UNIT_EPS }, &[w])?;
        if !self.config.gain {
            return Ok(unit);
        }
        let gain = net.param(gain)?;
        net.push("csm.prototypes.scale", ops::ScaleRows, &[unit, gain])
    }
}
