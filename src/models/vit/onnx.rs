//! timm's `VisionTransformer` with 16x16 patches and a class token.

use crate::error::{Error, Result};
use crate::ir::PATCH;
use crate::onnx::{Attribute, Builder, Conv, Grid, OnnxTokens, Value};

const EPS: f32 = 1e-6;

/// What is not read off the tensors.
pub struct Sizes {
    pub dim: usize,
    pub depth: usize,
    pub heads: usize,
    /// Block whose output gives the patch tokens.
    pub tap: usize,
}

pub fn build(b: &mut Builder<'_>, images: &Value, grid: Grid, vit: &Sizes) -> Result<OnnxTokens> {
    let (dim, patches) = (vit.dim, grid.height * grid.width);
    let conv = Conv { stride: PATCH, pad: 0, groups: 1 };
    let x = b.conv(images, "patch_embed.proj", None, conv)?;
    let x = b.reshape(&x, &[0, dim as i64, patches as i64]);
    let x = b.transpose(&x, &[0, 2, 1]);

    let (dims, positions) = b.tensor("pos_embed")?;
    if dims != [1, 1 + patches, dim] {
        return Err(Error::usage(format!(
            "the position table is {dims:?}, images of {}x{} need [1, {}, {dim}]: export with --img-size {} {}",
            grid.height * PATCH,
            grid.width * PATCH,
            1 + patches,
            grid.height * PATCH,
            grid.width * PATCH
        )));
    }
    let (_, mut class) = b.tensor("cls_token")?;
    class.iter_mut().zip(&positions).for_each(|(c, p)| *c += p);
    let class = b.floats("cls_token", &[1, 1, dim], &class);
    let positions = b.floats("pos_embed", &[1, patches, dim], &positions[dim..]);
    let x = b.add(&x, &positions);
    let class = b.for_each_image(&class, images, 1, dim);
    let mut x = b.op("Concat", &[&class, &x], vec![Attribute::int("axis", 1)]);

    let mut patch = None;
    for i in 0..vit.depth {
        x = block(b, &x, &format!("blocks.{i}"), vit, 1 + patches)?;
        if i == vit.tap {
            patch = Some(b.slice(&x, 1, 1, 1 + patches));
        }
    }
    let Some(mut patch) = patch else {
        return Err(Error::usage(format!("the tap is block {}, the encoder has {}", vit.tap, vit.depth)));
    };
    // The tap's own norm belongs to what the decoders see, not to timm's model.
    if b.has("tap_norm.weight") {
        patch = b.layer_norm(&patch, "tap_norm", EPS)?;
    }
    let class = b.slice(&x, 1, 0, 1);
    let class = b.layer_norm(&class, "norm", EPS)?;
    let image = b.reshape(&class, &[0, dim as i64]);
    Ok(OnnxTokens { image, patch, image_dim: dim, patch_dim: dim })
}

fn block(b: &mut Builder<'_>, x: &Value, path: &str, vit: &Sizes, tokens: usize) -> Result<Value> {
    let (heads, width) = (vit.heads as i64, vit.dim / vit.heads.max(1));
    let n = b.layer_norm(x, &format!("{path}.norm1"), EPS)?;
    let qkv = b.linear(&n, &format!("{path}.attn.qkv"))?;
    let parts = b.thirds(&qkv, 2, vit.dim).map(|part| {
        let part = b.reshape(&part, &[0, tokens as i64, heads, width as i64]);
        b.transpose(&part, &[0, 2, 1, 3])
    });
    let [q, k, v] = &parts;
    let y = b.attention([q, k, v], width, None);
    let y = b.transpose(&y, &[0, 2, 1, 3]);
    let y = b.reshape(&y, &[0, tokens as i64, vit.dim as i64]);
    let y = b.linear(&y, &format!("{path}.attn.proj"))?;
    let x = b.add(x, &y);
    let n = b.layer_norm(&x, &format!("{path}.norm2"), EPS)?;
    let y = b.linear(&n, &format!("{path}.mlp.fc1"))?;
    let y = b.gelu(&y);
    let y = b.linear(&y, &format!("{path}.mlp.fc2"))?;
    Ok(b.add(&x, &y))
}
