//! What pictures show of an encoder: where the image token of a ViT looks.

use super::objective::Inspect;
use crate::data::augment::normalize::denormalise;
use crate::error::{Error, Result};
use crate::ir::{Graph, PATCH, Region};
use crate::models::{Encoder, EncoderConfig, Tokens, View, VitConfig};
use crate::nn::{Mode, Net, Weights};
use crate::report::AttentionMap;
use crate::step::{Registries, Slots, Types};
use crate::tensor::DType;

/// The types in which pictures are computed.
///
/// # Errors
/// [`Error::Usage`] for one that is no float.
pub fn picture_types(dtype: DType) -> Result<Types> {
    match dtype.is_float() {
        true => Ok(Types::of(dtype)),
        false => {
            Err(Error::usage(format!("pictures cannot be computed in {dtype}; choose bf16, f32 or f64")))
        }
    }
}

/// Makes outputs of the tokens of `batch` images of `size`: `image: [B, D]`, and `qkv: [B, 1 + N, 3D]`, the queries, keys and values
/// of a ViT's last block.
///
/// # Errors
/// When an output is named twice.
pub fn show_tokens(
    graph: &mut Graph,
    outputs: &mut Slots,
    tokens: &Tokens,
    batch: usize,
    size: [usize; 2],
) -> Result<()> {
    if let Some(id) = tokens.image {
        outputs.output(graph, "image", id)?;
    }
    if let Some(id) = tokens.last_qkv {
        let [h, w] = size.map(|s| s / PATCH);
        let (rows, width) = (1 + h * w, graph.shape(id).as_matrix().1);
        outputs.output_shaped(graph, "qkv", id, [batch, rows, width])?;
    }
    Ok(())
}

/// The forward pass of the student's encoder in evaluation mode over one view, with the outputs of [`show_tokens`].
///
/// # Errors
/// [`Error::Usage`] for a type that is no float; those of the encoder.
pub fn inspect_images(
    encoder: &dyn Encoder,
    registries: Registries,
    dtype: DType,
    view: impl FnOnce(&mut Graph, &mut Slots, Types) -> View,
) -> Result<Inspect> {
    let types = picture_types(dtype)?;
    let (mut inputs, mut outputs, mut graph) = (Slots::default(), Slots::default(), Graph::new());
    let view = view(&mut graph, &mut inputs, types);
    let mut weights = Weights::new(&registries.student, Region::Params, types.compute)
        .with_buffers(&registries.student_buffers, Mode::Evaluation);
    let mut net = Net { graph: &mut graph, weights: &mut weights };
    let tokens = encoder.build(&mut net, std::slice::from_ref(&view), &[], None)?;
    show_tokens(&mut graph, &mut outputs, &tokens, view.count, view.size)?;
    Ok(Inspect { graph, registries, inputs: inputs.list, outputs: outputs.list })
}

/// Softmax of the image token's query against the patch tokens' keys, per head, from the last block's packed
/// `qkv: [B, 1 + N, 3D]` over the first `images` of `pixels`, each `[3, H, W]` of `size`. None of an encoder without them.
///
/// # Errors
/// When a picture cannot be made.
pub fn attention(
    encoder: &EncoderConfig,
    pixels: &[f32],
    size: [usize; 2],
    images: usize,
    qkv: &[f32],
) -> Result<Vec<AttentionMap>> {
    let EncoderConfig::Vit(VitConfig { num_heads, embed_dim, .. }) = *encoder else { return Ok(Vec::new()) };
    let [h, w] = size;
    let grid = size.map(|s| s / PATCH);
    let (rows, width) = (1 + grid[0] * grid[1], embed_dim / num_heads);
    let scale = 1.0 / (width as f32).sqrt();
    (0..images)
        .map(|i| {
            let tokens = &qkv[i * rows * 3 * embed_dim..(i + 1) * rows * 3 * embed_dim];
            let heads = (0..num_heads)
                .map(|head| {
                    let q = &tokens[head * width..(head + 1) * width];
                    let scores: Vec<f32> = tokens
                        .chunks_exact(3 * embed_dim)
                        .map(|row| &row[embed_dim + head * width..embed_dim + (head + 1) * width])
                        .map(|k| scale * q.iter().zip(k).map(|(a, b)| a * b).sum::<f32>())
                        .collect();
                    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    let exp: Vec<f32> = scores.iter().map(|s| (s - max).exp()).collect();
                    let sum: f32 = exp.iter().sum();
                    exp[1..].iter().map(|e| e / sum).collect()
                })
                .collect();
            let image = &pixels[i * 3 * h * w..(i + 1) * 3 * h * w];
            Ok(AttentionMap { image: denormalise(image, h, w)?, heads, grid })
        })
        .collect()
}
