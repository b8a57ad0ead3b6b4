//! Pictures of what the model does with a batch.

use super::config::StepConfig;
use crate::data::augment::normalize::denormalise;
use crate::data::batch::Batch;
use crate::error::Result;
use crate::ir::PATCH;
use crate::report::{InstanceResult, Reconstruction, SceneResult, reconstruct};

/// The `i`-th of the images of `size` in `pixels`.
fn image(pixels: &[f32], i: usize, [h, w]: [usize; 2]) -> &[f32] {
    &pixels[i * 3 * h * w..(i + 1) * 3 * h * w]
}

pub(super) fn reconstructions(
    cfg: &StepConfig,
    batch: &Batch,
    values: &[f32],
) -> Result<Vec<Reconstruction>> {
    let [h, w] = cfg.masked_size;
    let hidden: Vec<usize> = batch.i32s("hidden")?.iter().map(|i| *i as usize).collect();
    let masked = batch.f32s("masked")?;
    let per_image = hidden.len() / cfg.batch;
    let width = values.len() / hidden.len().max(1);
    (0..cfg.batch)
        .map(|i| {
            let input = image(masked, i, cfg.masked_size);
            let positions = &hidden[i * per_image..(i + 1) * per_image];
            let predictions = &values[i * per_image * width..(i + 1) * per_image * width];
            let (masked, predicted) = reconstruct(input, h, w, positions, predictions)?;
            Ok(Reconstruction { input: denormalise(input, h, w)?, masked, predicted })
        })
        .collect()
}

pub(super) fn scenes(cfg: &StepConfig, batch: &Batch, logits: &[f32]) -> Result<Vec<SceneResult>> {
    let (s, b) = (cfg.scene_size, cfg.batch);
    let (side, m) = (s / PATCH, (s / PATCH).pow(2));
    let [global, rescaled] = [batch.f32s("global")?, batch.f32s("rescaled")?];
    let [picture, boxes] = [batch.f32s("scene")?, batch.f32s("boxes")?];
    let probability = |x: &f32| 1.0 / (1.0 + (-x).exp());
    (0..b)
        .map(|i| {
            let at = |instance: usize| (instance * b + i) * m..(instance * b + i + 1) * m;
            let queries = [
                (image(global, i, cfg.global_size), cfg.global_size),
                (image(rescaled, i, cfg.rescaled_size), cfg.rescaled_size),
            ];
            let instances = queries
                .iter()
                .enumerate()
                .map(|(instance, (pixels, [h, w]))| {
                    Ok(InstanceResult {
                        query: denormalise(pixels, *h, *w)?,
                        truth: boxes[at(instance)].to_vec(),
                        predicted: logits[at(instance)].iter().map(probability).collect(),
                    })
                })
                .collect::<Result<_>>()?;
            let scene = denormalise(image(picture, i, [s, s]), s, s)?;
            Ok(SceneResult { scene, instances, grid: [side, side] })
        })
        .collect()
}
