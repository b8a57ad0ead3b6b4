//! Where the image token of a ViT looks.

use crate::data::augment::normalize::denormalise;
use crate::error::Result;
use crate::ir::PATCH;
use crate::models::{EncoderConfig, VitConfig};
use crate::report::AttentionMap;

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
