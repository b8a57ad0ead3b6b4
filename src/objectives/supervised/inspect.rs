//! What a report shows of a batch: attention of the class token.

use super::config::StepConfig;
use super::model::{Model, images};
use crate::error::{Error, Result};
use crate::ir::{Graph, PATCH, Region};
use crate::nn::{Mode, Net, Weights};
use crate::objectives::Inspect;
use crate::step::{Slots, Types};
use crate::tensor::DType;

/// The forward pass of the images, unmixed, in evaluation mode. Its outputs are `image: [B, D]`, their image tokens, and `qkv:
/// [B, 1 + N, 3D]`, a ViT's last block's queries, keys and values.
///
/// # Errors
/// [`Error::Config`] naming a key that is out of range, [`Error::Usage`] for a type that is no float.
pub(super) fn build_inspect(cfg: &StepConfig, dtype: DType) -> Result<Inspect> {
    if !dtype.is_float() {
        return Err(Error::usage(format!("pictures cannot be computed in {dtype}; choose bf16, f32 or f64")));
    }
    let (model, types) = (Model::new(cfg)?, Types::of(dtype));
    let registries = model.registries()?;
    let (mut inputs, mut outputs, mut graph) = (Slots::default(), Slots::default(), Graph::new());
    let view = images(cfg, types, &mut graph, &mut inputs);
    let mut weights = Weights::new(&registries.student, Region::Params, types.compute)
        .with_buffers(&registries.student_buffers, Mode::Evaluation);
    let mut net = Net { graph: &mut graph, weights: &mut weights };
    let tokens = model.encoder.build(&mut net, &[view], &[], None)?;
    if let Some(id) = tokens.image {
        outputs.output(&mut graph, "image", id)?;
    }
    if let Some(id) = tokens.last_qkv {
        let [h, w] = cfg.global_size.map(|s| s / PATCH);
        let (rows, width) = (1 + h * w, graph.shape(id).as_matrix().1);
        outputs.output_shaped(&mut graph, "qkv", id, [cfg.batch, rows, width])?;
    }
    Ok(Inspect { graph, registries, inputs: inputs.list, outputs: outputs.list })
}
