//! What a report shows of a batch: reconstructions, search maps, attention of the class token.

use super::config::StepConfig;
use super::model::{Model, PatchTokens, reconstruct, search};
use super::views::{ViewSlots, ViewValues, patch_counts};
use crate::error::Result;
use crate::ir::{Graph, Region};
use crate::nn::{Mode, Net, Weights};
use crate::objectives::Inspect;
use crate::objectives::attention::{picture_types, show_tokens};
use crate::step::{Registries, Slots};
use crate::tensor::DType;

/// The forward pass in evaluation mode. Its outputs are `reconstruction: [B, hidden, 768]` (pixels of the hidden patches,
/// normalised per patch, values ordered (row, column, channel)), `search: [2, B, m]` (logits), `image: [B, D]` (the anchors'
/// image tokens) and `qkv: [B, 1 + N, 3D]` (a ViT's last block's queries, keys and values over the anchors). Those of a loss
/// that is switched off are absent.
///
/// # Errors
/// [`Error::Config`](crate::error::Error::Config) naming a key that is out of range, [`Error::Usage`](crate::error::Error::Usage) for a type that is no float.
pub fn build_inspect(cfg: &StepConfig, dtype: DType) -> Result<Inspect> {
    let types = picture_types(dtype)?;
    let model = Model::new(cfg)?;
    let registries = model.registries()?;
    let Registries { student, expert, student_buffers: own, expert_buffers: others } = &registries;
    let evaluation = Mode::Evaluation;
    let (mut inputs, mut outputs, mut graph) = (Slots::default(), Slots::default(), Graph::new());
    // Without CSM the streams hold what the pixel-level decoders read, and no other view is asked for.
    let model = Model { csm: None, ..model };
    let slots = ViewSlots::declare(cfg, model.parts(), &mut inputs);
    let mut views = ViewValues::read(&mut graph, cfg, model.parts(), &slots, types, false)?;
    views.student[0].image_token = true;

    let mut weights = Weights::new(expert, Region::Expert, types.compute).with_buffers(others, evaluation);
    let mut net = Net { graph: &mut graph, weights: &mut weights };
    let expert_tokens = if views.expert.is_empty() {
        Default::default()
    } else {
        model.expert.build(&mut net, &views.expert, &views.expert_taps, None)?
    };
    let mut weights = Weights::new(student, Region::Params, types.compute).with_buffers(own, evaluation);
    let mut net = Net { graph: &mut graph, weights: &mut weights };
    let tokens = model.student.build(&mut net, &views.student, &views.student_taps, None)?;
    let patches = PatchTokens::new(&views, &tokens, &expert_tokens);
    let b = cfg.batch;
    if let Some(masked) = &views.masked {
        let id = reconstruct(&mut net, cfg, &model, masked, &patches)?;
        let shape = [b, patch_counts(cfg).1, net.graph.shape(id).as_matrix().1];
        outputs.output_shaped(net.graph, "reconstruction", id, shape)?;
    }
    if views.boxes.is_some() {
        let id = search(&mut net, cfg, &model, &patches)?;
        let m = net.graph.shape(id).as_matrix().1;
        outputs.output_shaped(net.graph, "search", id, [2, b, m])?;
    }
    show_tokens(&mut graph, &mut outputs, &tokens, b, cfg.global_size)?;
    Ok(Inspect { graph, registries, inputs: inputs.list, outputs: outputs.list })
}
