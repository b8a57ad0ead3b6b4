//! timm's `ResNet` of basic blocks.

use super::table::{STEM_KERNEL, block, stride};
use crate::error::Result;
use crate::onnx::{Builder, Conv, Grid, OnnxTokens, TAP_STAGE, Value, tokens_of};

pub fn build(
    b: &mut Builder<'_>,
    images: &Value,
    grid: Grid,
    channels: &[usize; 4],
    depths: &[usize; 4],
) -> Result<OnnxTokens> {
    let stem = Conv { stride: 2, pad: STEM_KERNEL / 2, groups: 1 };
    let x = b.conv(images, "conv1", Some("bn1"), stem)?;
    let x = b.relu(&x);
    let mut x = b.max_pool(&x, 3, 2);
    let mut patch = String::new();
    for (stage, &depth) in depths.iter().enumerate() {
        for i in 0..depth {
            x = basic_block(b, &x, &block(stage, i), stride(stage, i))?;
        }
        if stage == TAP_STAGE {
            patch = tokens_of(b, &x, channels[stage], grid);
        }
    }
    let mean = b.op("GlobalAveragePool", &[&x], Vec::new());
    let image = b.reshape(&mean, &[0, channels[3] as i64]);
    Ok(OnnxTokens { image, patch, image_dim: channels[3], patch_dim: channels[TAP_STAGE] })
}

fn basic_block(b: &mut Builder<'_>, x: &Value, path: &str, stride: usize) -> Result<Value> {
    let layer = |name: &str| format!("{path}.{name}");
    let first = Conv { stride, pad: 1, groups: 1 };
    let y = b.conv(x, &layer("conv1"), Some(&layer("bn1")), first)?;
    let y = b.relu(&y);
    let y = b.conv(&y, &layer("conv2"), Some(&layer("bn2")), Conv { stride: 1, ..first })?;
    let shortcut = match b.has(&layer("downsample.0.weight")) {
        true => {
            let down = Conv { stride, pad: 0, groups: 1 };
            b.conv(x, &layer("downsample.0"), Some(&layer("downsample.1")), down)?
        }
        false => x.clone(),
    };
    let sum = b.add(&y, &shortcut);
    Ok(b.relu(&sum))
}
