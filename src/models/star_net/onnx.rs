//! timm's `StarNet`.

use crate::error::Result;
use crate::onnx::{Builder, Conv, Grid, OnnxTokens, TAP_STAGE, Value, tokens_of};

/// Kernel of the depthwise convolutions.
const KERNEL: usize = 7;
const HALVING: Conv = Conv { stride: 2, pad: 1, groups: 1 };

pub fn build(
    b: &mut Builder<'_>,
    images: &Value,
    grid: Grid,
    base: usize,
    depths: &[usize; 4],
) -> Result<OnnxTokens> {
    let x = b.conv(images, "stem.0.conv", Some("stem.0.bn"), HALVING)?;
    let mut x = b.relu6(&x);
    let mut patch = String::new();
    for (stage, &depth) in depths.iter().enumerate() {
        let path = format!("stages.{stage}");
        x = b.conv(&x, &format!("{path}.0.conv"), Some(&format!("{path}.0.bn")), HALVING)?;
        for i in 1..=depth {
            x = block(b, &x, &format!("{path}.{i}"), base << stage)?;
        }
        if stage == TAP_STAGE {
            patch = tokens_of(b, &x, base << stage, grid);
        }
    }
    // The last norm has no convolution in front to be folded into; being affine, it may come after the mean.
    let dim = base << (depths.len() - 1);
    let mean = b.op("GlobalAveragePool", &[&x], Vec::new());
    let mean = b.reshape(&mean, &[0, dim as i64]);
    let (scale, shift) = b.batch_norm("norm")?;
    let [scale, shift] = [("norm.scale", scale), ("norm.shift", shift)].map(|(name, values)| {
        let values: Vec<f32> = values.iter().map(|v| *v as f32).collect();
        b.floats(name, &[dim], &values)
    });
    let scaled = b.mul(&mean, &scale);
    let image = b.add(&scaled, &shift);
    Ok(OnnxTokens { image, patch, image_dim: dim, patch_dim: base << TAP_STAGE })
}

fn block(b: &mut Builder<'_>, x: &Value, path: &str, dim: usize) -> Result<Value> {
    let depthwise = Conv::depthwise(dim, KERNEL, 1);
    let y = b.conv(x, &format!("{path}.dwconv.conv"), Some(&format!("{path}.dwconv.bn")), depthwise)?;
    let gate = b.conv(&y, &format!("{path}.f1.conv"), None, Conv::POINTWISE)?;
    let value = b.conv(&y, &format!("{path}.f2.conv"), None, Conv::POINTWISE)?;
    let gate = b.relu6(&gate);
    let y = b.mul(&gate, &value);
    let y = b.conv(&y, &format!("{path}.g.conv"), Some(&format!("{path}.g.bn")), Conv::POINTWISE)?;
    let y = b.conv(&y, &format!("{path}.dwconv2.conv"), None, depthwise)?;
    Ok(b.add(x, &y))
}
