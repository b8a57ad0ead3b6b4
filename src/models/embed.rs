//! Inference: the encoder alone, in evaluation mode.

use super::config::EncoderConfig;
use super::tokens::{TapGroup, View};
use crate::error::{Error, Result};
use crate::ir::{Graph, PATCH, Region};
use crate::nn::{Mode, Net, ParamRegistry, Weights};
use crate::step::{IoSlot, Slots, Types};
use crate::tensor::DType;

/// How an [`EmbedGraph`] is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmbedOptions {
    pub dtype: DType,
    /// Whose parameters: [`Region::Params`] (the student) or [`Region::Expert`].
    pub region: Region,
    /// Images per run.
    pub batch: usize,
    /// `[height, width]` of the images in pixels.
    pub size: [usize; 2],
    /// Whether the patch tokens of the tap are wanted, too.
    pub patch_tokens: bool,
}

/// Images to features.
#[derive(Clone, Debug)]
pub struct EmbedGraph {
    pub graph: Graph,
    /// `images: [B, 3, H, W]`, normalised pixels.
    pub inputs: Vec<IoSlot>,
    /// `image: [B, D]`, and `patch: [B, N, T]` if asked for.
    pub outputs: Vec<IoSlot>,
}

/// Builds the encoder of `config`, whose parameters are found in `registry`.
///
/// # Errors
/// [`Error::Config`] for an invalid encoder, [`Error::Usage`] for impossible options.
pub fn build_embed(
    config: &EncoderConfig,
    registry: &ParamRegistry,
    opts: &EmbedOptions,
) -> Result<EmbedGraph> {
    let encoder = config.open("encoder")?;
    if !opts.dtype.is_float() || !matches!(opts.region, Region::Params | Region::Expert) {
        return Err(Error::usage(format!(
            "features cannot be computed in {} from {}",
            opts.dtype,
            opts.region.name()
        )));
    }
    let [h, w] = opts.size;
    if opts.batch == 0 || h == 0 || w == 0 || !h.is_multiple_of(PATCH) || !w.is_multiple_of(PATCH) {
        return Err(Error::usage(format!(
            "features need at least one image with height and width multiples of {PATCH}, got {} of {h}x{w}",
            opts.batch
        )));
    }
    let types = Types::of(opts.dtype);
    let (mut inputs, mut outputs, mut graph) = (Slots::default(), Slots::default(), Graph::new());
    let shape = [opts.batch, 3, h, w];
    let at = inputs.add("images", Region::Inputs, shape);
    let image = graph.source("images", shape, types.master, at);
    let view = View { image, count: opts.batch, size: opts.size, image_token: true, keep: None };
    let taps = if opts.patch_tokens { vec![TapGroup::new([(0, opts.batch)])] } else { Vec::new() };
    let mut buffers = ParamRegistry::new();
    encoder.register_buffers(&mut buffers)?;
    let mut weights =
        Weights::new(registry, opts.region, types.compute).with_buffers(&buffers, Mode::Evaluation);
    let mut net = Net { graph: &mut graph, weights: &mut weights };
    let tokens = encoder.build(&mut net, &[view], &taps, None)?;
    if let Some(id) = tokens.image {
        outputs.output(&mut graph, "image", id)?;
    }
    if let Some(&id) = tokens.taps.first() {
        let n = opts.size.iter().map(|s| s / PATCH).product();
        outputs.output_shaped(&mut graph, "patch", id, [opts.batch, n, encoder.dims().tap])?;
    }
    Ok(EmbedGraph { graph, inputs: inputs.list, outputs: outputs.list })
}
