//! The graph of one training step.

use super::config::StepConfig;
use super::model::{Model, images};
use crate::error::Result;
use crate::ir::{Region, ops};
use crate::models::{DropPath, View};
use crate::nn::{Mode, Net, Weights};
use crate::step::{Builder, Step, StepOptions, TARGET};
use crate::tensor::DType;

/// The name of the loss.
const LOSS: &str = "ce";

/// Builds the step of `cfg`: its loss is `ce`, cross-entropy against soft targets, which it reports as `target.soft: [B, C]`. It
/// reads `image: [B, 3, H, W]`, `label: [B]`, and `lam: [B]` and `box: [B, 4]`, which say how an image is mixed with its partner.
///
/// # Errors
/// [`Error::Config`](crate::error::Error::Config) naming a key that is out of range,
/// [`Error::Usage`](crate::error::Error::Usage) for impossible options.
pub(super) fn build_step(cfg: &StepConfig, opts: &StepOptions) -> Result<Step> {
    let model = Model::new(cfg)?;
    let mut builder = Builder::new(opts, model.registries()?)?;
    let (types, batch) = (builder.types, cfg.batch);
    let plain = images(cfg, types, &mut builder.graph, &mut builder.inputs);
    let mut source = |name: &str, region, shape: &[usize], dtype| {
        let at = builder.inputs.add(name, region, shape);
        builder.graph.source(name, shape, dtype, at)
    };
    let lam = source("lam", Region::Inputs, &[batch], types.master);
    let boxes = source("box", Region::Indices, &[batch, 4], DType::I32);
    let labels = source("label", Region::Indices, &[batch], DType::I32);
    builder.begin(0);
    let drop_path = builder.drop_path(model.encoder.branch_blocks(), batch);
    let drop_path = drop_path.map(|at| DropPath {
        region: at.region,
        offset: at.offset,
        segments: batch,
        dtype: types.master,
    });

    let registries = builder.registries.clone();
    let mut weights = Weights::new(&registries.student, Region::Params, types.compute)
        .with_buffers(&registries.student_buffers, Mode::Training);
    let mut net = Net { graph: &mut builder.graph, weights: &mut weights };
    let mixed = View { image: net.push("mix", ops::MixImages, &[plain.image, lam, boxes])?, ..plain };
    let soft = ops::SoftTargets { classes: cfg.classes, smoothing: cfg.smoothing, size: cfg.global_size };
    let target = net.push(&format!("{LOSS}.target"), soft, &[lam, boxes, labels])?;
    let tokens = model.encoder.build(&mut net, &[mixed], &[], drop_path)?;
    let logits = model.logits(&mut net, tokens.image)?;
    let loss = net.push(&format!("{LOSS}.loss"), ops::SoftCrossEntropy, &[logits, target])?;
    builder.outputs.output(&mut builder.graph, &format!("{TARGET}soft"), target)?;
    let total = builder.total(&[(LOSS, 1.0, loss)])?;
    let segments = model.segments(&registries.student);
    builder.finish(&weights, total, segments, Vec::new())
}
