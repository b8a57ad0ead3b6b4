//! Student and expert: an encoder and a head each, and their views.

use super::config::{Decay, StepConfig};
use crate::error::{Error, Result};
use crate::ir::{Graph, ParamSegment, Region};
use crate::models::{Encoder, View};
use crate::nn::{ParamRegistry, ParamSpec};
use crate::objectives::prototype_head::{LAST_LAYER, PrototypeHead};
use crate::step::{Registries, Slots, Types};
use std::sync::Arc;

/// The modules of one configuration; the expert has the same.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub encoder: Arc<dyn Encoder>,
    pub head: PrototypeHead,
    decay: Decay,
}

impl Model {
    /// `tapped` says whether a ViT has the norm of its tapped block, which is not trained.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key that is out of range.
    pub fn new(cfg: &StepConfig, tapped: bool) -> Result<Self> {
        if cfg.batch == 0 {
            return Err(Error::config("batch", "must be at least 1"));
        }
        let whole = cfg.encoder.open("encoder")?;
        let encoder = if tapped { None } else { whole.without_tap() }.unwrap_or(whole);
        let head = PrototypeHead::new(encoder.dims().image, &cfg.csm)?;
        Ok(Model { encoder, head, decay: cfg.decay })
    }

    /// Parameters and running statistics of student and expert, which have the same.
    ///
    /// # Errors
    /// When two parameters have one name.
    pub fn registries(&self) -> Result<Registries> {
        let (mut own, mut buffers) = (ParamRegistry::new(), ParamRegistry::new());
        self.head.register(&mut own)?;
        self.encoder.register(&mut own)?;
        self.encoder.register_buffers(&mut buffers)?;
        Ok(Registries {
            student: own.clone(),
            expert: own,
            student_buffers: buffers.clone(),
            expert_buffers: buffers,
        })
    }

    /// The student's parameters as the optimizer sees them: the expert averages all of them, and the last layer begins
    /// late.
    pub fn segments(&self, student: &ParamRegistry) -> Vec<ParamSegment> {
        let decays = |p: &ParamSpec| match self.decay {
            Decay::Ndim => p.shape.len() > 1,
            Decay::Saip => p.decay,
        };
        let segment = |p: &ParamSpec| ParamSegment {
            start: p.offset,
            len: p.len,
            decay: decays(p),
            late: LAST_LAYER.contains(&p.name.as_str()),
            expert: Some(p.offset),
        };
        student.iter().map(segment).collect()
    }
}

/// The views of a step as values of the graph, each with its place among the inputs.
pub(super) struct Views<'a> {
    pub cfg: &'a StepConfig,
    pub types: Types,
}

impl Views<'_> {
    /// The two global views of every image, view 0 first; of them the first `count` images.
    pub fn global(&self, graph: &mut Graph, inputs: &mut Slots, count: usize) -> View {
        self.view(graph, inputs, ("global", 2, self.cfg.global_size), count)
    }

    /// All views that the student sees: the global ones, which the expert sees too, then the local ones.
    pub fn all(&self, graph: &mut Graph, inputs: &mut Slots) -> Vec<View> {
        let StepConfig { batch, locals, local_size, .. } = *self.cfg;
        let mut all = vec![self.global(graph, inputs, 2 * batch)];
        if locals > 0 {
            all.push(self.view(graph, inputs, ("local", locals, local_size), locals * batch));
        }
        all
    }

    fn view(
        &self,
        graph: &mut Graph,
        inputs: &mut Slots,
        (name, n, size): (&str, usize, [usize; 2]),
        count: usize,
    ) -> View {
        let [h, w] = size;
        let at = inputs.add(name, Region::Inputs, [n, self.cfg.batch, 3, h, w]);
        let image = graph.source(name, [count, 3, h, w], self.types.master, at);
        View { image, count, size, image_token: true, keep: None }
    }
}
