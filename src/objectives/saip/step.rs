//! The graph of one training step.

use super::config::StepConfig;
use super::model::{Model, PatchTokens, reconstruct, search};
use super::views::{ViewSlots, ViewValues, present};
use crate::error::Result;
use crate::ir::ops::{self, Temperature};
use crate::ir::{Graph, Region, ValueId};
use crate::models::{DropPath, Tokens};
use crate::nn::{Mode, Net, Weights};
use crate::objectives::self_distillation::{Center, Projection};
use crate::step::{Builder, STATISTICS, Slots, Step, StepOptions, Types};
use crate::tensor::DType;

/// Builds the step of `cfg`.
///
/// Its losses are `csm`, `csr`, `css`; its statistics those of the expert's targets, `[3]`; its state is the center
/// `[1, K]`. Its own scalars are the [`Temperature`]s.
///
/// # Errors
/// [`Error::Config`](crate::error::Error::Config) naming a key that is out of range,
/// [`Error::Usage`](crate::error::Error::Usage) for impossible options.
pub fn build_step(cfg: &StepConfig, opts: &StepOptions) -> Result<Step> {
    let model = Model::new(cfg)?;
    let mut builder = Builder::new(opts, model.registries()?)?;
    let slots = ViewSlots::declare(cfg, model.parts(), &mut builder.inputs);
    let own = if model.csm.is_some() { Temperature::COUNT } else { 0 };
    let temperatures = builder.begin(own);
    let center = match &model.csm {
        Some(csm) => Some(Center::declare(&mut builder, csm.prototype_count(), temperatures)?),
        None => None,
    };
    let (registry, buffers) =
        (builder.registries.student.clone(), builder.registries.student_buffers.clone());
    let mut weights =
        Weights::new(&registry, Region::Params, builder.types.compute).with_buffers(&buffers, Mode::Training);
    let mut forward = Forward { cfg, model: &model, builder };
    let (total, targets) = forward.build(&mut weights, &slots, center.as_ref())?;

    let expert = forward.builder.registries.expert.clone();
    let compute = forward.builder.types.compute;
    let again = |graph: &mut Graph| {
        let mut weights = Weights::new(&expert, Region::Expert, compute);
        let csm = present(model.csm.as_ref(), "csm")?;
        Ok(vec![csm.prototypes(&mut Net { graph, weights: &mut weights })?])
    };
    let carried = center.zip(targets).map(|(center, targets)| center.carried(targets, &again));
    let segments = model.segments(&forward.builder.registries);
    forward.builder.finish(&weights, total, segments, carried.into_iter().collect())
}

/// Views in the streams of student and expert.
///
/// # Errors
/// Those of [`build_step`].
pub(super) fn streams(cfg: &StepConfig) -> Result<[u64; 2]> {
    let model = Model::new(cfg)?;
    let (parts, types) = (model.parts(), Types::of(DType::F32));
    let slots = ViewSlots::declare(cfg, parts, &mut Slots::default());
    let views = ViewValues::read(&mut Graph::default(), cfg, parts, &slots, types, parts.csm)?;
    Ok([views.student.len() as u64, views.expert.len() as u64])
}

struct Forward<'a> {
    cfg: &'a StepConfig,
    model: &'a Model,
    builder: Builder,
}

impl Forward<'_> {
    /// The total loss, and the expert's unit vectors `[2B, bottleneck]` and prototypes `[K, bottleneck]`.
    fn build(
        &mut self,
        weights: &mut Weights<'_>,
        slots: &ViewSlots,
        center: Option<&Center>,
    ) -> Result<(ValueId, Option<Projection>)> {
        let (cfg, model) = (self.cfg, self.model);
        let (types, csm) = (self.builder.types, model.csm.is_some());
        let views = ViewValues::read(&mut self.builder.graph, cfg, model.parts(), slots, types, csm)?;
        let drop_path = self.drop_path(&views);
        let registries = self.builder.registries.clone();
        let mut expert_weights = Weights::new(&registries.expert, Region::Expert, types.compute)
            .with_buffers(&registries.expert_buffers, model.expert_mode());
        let mut expert_net = Net { graph: &mut self.builder.graph, weights: &mut expert_weights };
        let expert = model.expert.build(&mut expert_net, &views.expert, &views.expert_taps, None)?;
        let targets = match (&model.csm, expert.image) {
            (Some(csm), Some(image)) => {
                Some((csm.embed(&mut expert_net, image)?, csm.prototypes(&mut expert_net)?))
            }
            _ => None,
        };

        let mut net = Net { graph: &mut self.builder.graph, weights };
        let student = model.student.build(&mut net, &views.student, &views.student_taps, drop_path)?;
        let patches = PatchTokens::new(&views, &student, &expert);
        let mut losses: Vec<(&str, f64, ValueId)> = Vec::new();
        if let (Some(targets), Some(center)) = (targets, center) {
            let loss = self.csm(weights, &student, &expert, targets, center)?;
            losses.push((LOSSES[0], cfg.loss_weights[0], loss));
        }
        let mut net = Net { graph: &mut self.builder.graph, weights };
        if let Some(masked) = &views.masked {
            let pred = reconstruct(&mut net, cfg, model, masked, &patches)?;
            let loss = net.push("csr.loss", ops::MaskedMse, &[pred, masked.image, masked.hidden])?;
            losses.push((LOSSES[1], cfg.loss_weights[1], loss));
        }
        if let Some(boxes) = views.boxes {
            let logits = search(&mut net, cfg, model, &patches)?;
            let loss = net.push("css.loss", ops::BceWithLogits { groups: 2 }, &[logits, boxes])?;
            losses.push((LOSSES[2], cfg.loss_weights[2], loss));
        }
        Ok((self.builder.total(&losses)?, targets))
    }

    /// The input of stochastic depth, if it is on.
    fn drop_path(&mut self, views: &ViewValues) -> Option<DropPath> {
        let segments = views.student.iter().map(|v| v.count).sum();
        let at = self.builder.drop_path(self.model.student.branch_blocks(), segments)?;
        let dtype = self.builder.types.master;
        Some(DropPath { region: at.region, offset: at.offset, segments, dtype })
    }

    /// CSM's loss, and the statistics of the expert's targets.
    fn csm(
        &mut self,
        weights: &mut Weights<'_>,
        student: &Tokens,
        expert: &Tokens,
        targets: Projection,
        center: &Center,
    ) -> Result<ValueId> {
        let (model, builder) = (self.model, &mut self.builder);
        let csm = present(model.csm.as_ref(), "csm")?;
        let mut net = Net { graph: &mut builder.graph, weights };
        let image = present(student.image, "csm: image tokens")?;
        let own = model.student_projection(&mut net, csm, image)?;
        let features = present(expert.image, "csm: the expert's image tokens")?;
        let (loss, statistics) = center.matching(&mut net, "csm", self.cfg.batch, own, targets, features)?;
        builder.outputs.output(&mut builder.graph, STATISTICS, statistics)?;
        Ok(loss)
    }
}

/// Matching, reconstruction, search.
pub(super) const LOSSES: [&str; 3] = ["csm", "csr", "css"];
