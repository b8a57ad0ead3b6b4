//! The graph of one training step.

use super::config::{ClipBy, StepConfig};
use super::model::{Model, Views};
use crate::error::{Error, Result};
use crate::ir::ops::Temperature;
use crate::ir::{Graph, Region, ValueId};
use crate::models::{DropPath, View};
use crate::nn::{Mode, Net, Weights};
use crate::objectives::self_distillation::{Center, Projection};
use crate::step::{Builder, STATISTICS, Step, StepOptions};

/// The name of the loss.
const LOSS: &str = "dino";

/// Builds the step of `cfg`: its loss is `dino`, its statistics are those of the expert's targets, its state is the center
/// `[1, K]`, its own scalars are the [`Temperature`]s.
///
/// # Errors
/// [`Error::Config`] naming a key that is out of range, [`Error::Usage`] for impossible options.
pub(super) fn build_step(cfg: &StepConfig, tapped: bool, opts: &StepOptions) -> Result<Step> {
    let model = Model::new(cfg, tapped)?;
    let mut builder = Builder::new(opts, model.registries()?)?;
    let types = builder.types;
    let views = Views { cfg, types }.all(&mut builder.graph, &mut builder.inputs);
    let temperatures = builder.begin(Temperature::COUNT);
    let center = Center::declare(&mut builder, model.head.prototype_count(), temperatures)?;
    let registries = builder.registries.clone();
    let training = Mode::Training;
    let mut weights = Weights::new(&registries.student, Region::Params, types.compute)
        .with_buffers(&registries.student_buffers, training);
    let mut expert_weights = Weights::new(&registries.expert, Region::Expert, types.compute)
        .with_buffers(&registries.expert_buffers, training);

    let mut expert = Net { graph: &mut builder.graph, weights: &mut expert_weights };
    let (features, targets) = project(&model, &mut expert, &views[..1], None)?;
    let drop_path = drop_path(&model, &mut builder, &views);
    let mut student = Net { graph: &mut builder.graph, weights: &mut weights };
    let (_, own) = project(&model, &mut student, &views, drop_path)?;
    let (loss, statistics) = center.matching(&mut student, LOSS, cfg.batch, own, targets, features)?;
    builder.outputs.output(&mut builder.graph, STATISTICS, statistics)?;
    let total = builder.total(&[(LOSS, 1.0, loss)])?;

    let again = |graph: &mut Graph| {
        let mut weights = Weights::new(&registries.expert, Region::Expert, types.compute);
        Ok(vec![model.head.prototypes(&mut Net { graph, weights: &mut weights })?])
    };
    if matches!(cfg.clip, Some((ClipBy::Each, _))) {
        builder.clip_tensors();
    }
    let segments = model.segments(&registries.student);
    builder.finish(&weights, total, segments, vec![center.carried(targets, &again)])
}

/// The image tokens of `views` `[rows, D]`, and what the head makes of them.
fn project(
    model: &Model,
    net: &mut Net<'_, '_>,
    views: &[View],
    drop_path: Option<DropPath>,
) -> Result<(ValueId, Projection)> {
    let tokens = model.encoder.build(net, views, &[], drop_path)?;
    let image = tokens.image.ok_or_else(|| Error::invariant("model building", "there is no image token"))?;
    Ok((image, (model.head.embed(net, image)?, model.head.prototypes(net)?)))
}

/// The input of stochastic depth, if it is on.
fn drop_path(model: &Model, builder: &mut Builder, views: &[View]) -> Option<DropPath> {
    let segments = views.iter().map(|v| v.count).sum();
    let at = builder.drop_path(model.encoder.branch_blocks(), segments)?;
    Some(DropPath { region: at.region, offset: at.offset, segments, dtype: builder.types.master })
}
