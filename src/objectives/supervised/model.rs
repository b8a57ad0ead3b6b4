//! An encoder and a linear layer on its image token.

use super::config::StepConfig;
use crate::error::{Error, Result};
use crate::ir::{Graph, ParamSegment, Region, ValueId};
use crate::models::{Encoder, View};
use crate::nn::{Init, Net, ParamRegistry, ParamSpec};
use crate::step::{Registries, Slots, Types};
use std::sync::Arc;

/// The linear layer.
const HEAD: &str = "head";

/// The input of the images.
pub(super) const IMAGE: &str = "image";

/// The modules of one configuration.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub encoder: Arc<dyn Encoder>,
    classes: usize,
}

impl Model {
    /// # Errors
    /// [`Error::Config`] naming the key that is out of range.
    pub fn new(cfg: &StepConfig) -> Result<Self> {
        cfg.validate()?;
        Ok(Model { encoder: cfg.encoder.open("encoder")?, classes: cfg.classes })
    }

    /// Parameters and running statistics; there is no expert.
    ///
    /// # Errors
    /// When two parameters have one name.
    pub fn registries(&self) -> Result<Registries> {
        let (mut own, mut buffers) = (ParamRegistry::new(), ParamRegistry::new());
        // As timm draws a classifier.
        let weight = Init::TruncNormal { std: 0.02 };
        own.linear_with(HEAD, self.classes, self.encoder.dims().image, weight, Init::Zeros)?;
        self.encoder.register(&mut own)?;
        self.encoder.register_buffers(&mut buffers)?;
        Ok(Registries { student: own, student_buffers: buffers, ..Registries::default() })
    }

    /// The parameters as the optimizer sees them.
    pub fn segments(&self, student: &ParamRegistry) -> Vec<ParamSegment> {
        let segment = |p: &ParamSpec| ParamSegment {
            start: p.offset,
            len: p.len,
            decay: p.decay,
            late: false,
            expert: None,
        };
        student.iter().map(segment).collect()
    }

    /// Logits `[B, C]` of image tokens `[B, D]`.
    ///
    /// # Errors
    /// When the parameters are not registered.
    pub fn logits(&self, net: &mut Net<'_, '_>, image: Option<ValueId>) -> Result<ValueId> {
        let image = image.ok_or_else(|| Error::invariant("model building", "there is no image token"))?;
        net.linear(HEAD, image)
    }
}

/// The images of a step, `[B, 3, H, W]`, as the host gives them.
pub(super) fn images(cfg: &StepConfig, types: Types, graph: &mut Graph, inputs: &mut Slots) -> View {
    let (count, size) = (cfg.batch, cfg.global_size);
    let shape = [count, 3, size[0], size[1]];
    let at = inputs.add(IMAGE, Region::Inputs, shape);
    let image = graph.source(IMAGE, shape, types.master, at);
    View { image, count, size, image_token: true, keep: None }
}
