//! Image-level decoder (CSM): an MLP, L2 normalisation, and prototypes that are unit vectors.

use crate::error::{Error, Result};
use crate::ir::{ValueId, ops};
use crate::nn::layers::Net;
use crate::nn::params::{Init, ParamRegistry};
use crate::objectives::saip::config::CsmConfig;

/// `torch.nn.functional.normalize`'s epsilon.
const UNIT_EPS: f64 = 1e-12;

/// The decoder of width `dim`.
#[derive(Clone, Debug)]
pub struct CsmDecoder {
    dim: usize,
    config: CsmConfig,
}

impl CsmDecoder {
    /// # Errors
    /// [`Error::Config`] when a width is 0.
    pub fn new(dim: usize, config: &CsmConfig) -> Result<Self> {
        for (key, value) in [
            ("csm.hidden", config.hidden),
            ("csm.bottleneck", config.bottleneck),
            ("csm.prototypes", config.prototypes),
        ] {
            if value == 0 {
                return Err(Error::config(key, "must be at least 1"));
            }
        }
        Ok(CsmDecoder { dim, config: config.clone() })
    }

    /// Appends the parameters, named `csm.*`.
    pub fn register(&self, reg: &mut ParamRegistry) -> Result<()> {
        let c = &self.config;
        reg.linear("csm.fc1", c.hidden, self.dim)?;
        reg.linear("csm.fc2", c.hidden, c.hidden)?;
        reg.linear("csm.fc3", c.bottleneck, c.hidden)?;
        reg.register("csm.prototypes", &[c.prototypes, c.bottleneck], Init::Normal { std: 0.02 })
    }

    /// `x: [M, D]` -> unit vectors `[M, bottleneck]`.
    pub fn embed(&self, net: &mut Net<'_, '_>, x: ValueId) -> Result<ValueId> {
        let mut h = x;
        for layer in ["csm.fc1", "csm.fc2"] {
            h = net.linear(layer, h)?;
            h = net.gelu(&format!("{layer}.act"), h)?;
        }
        h = net.linear("csm.fc3", h)?;
        net.push("csm.normalize", ops::L2Normalize { eps: UNIT_EPS }, &[h])
    }

    /// The prototypes as unit vectors `[K, bottleneck]`.
    pub fn prototypes(&self, net: &mut Net<'_, '_>) -> Result<ValueId> {
        let w = net.param("csm.prototypes")?;
        net.push("csm.prototypes.normalize", ops::L2Normalize { eps: UNIT_EPS }, &[w])
    }
}
