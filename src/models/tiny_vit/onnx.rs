//! timm's `TinyVit`.

use crate::error::{Error, Result};
use crate::onnx::{Builder, Conv, Grid, OnnxTokens, TAP_STAGE, Value, tokens_of};
use std::collections::HashMap;

const EPS: f32 = 1e-5;
const HALVING: Conv = Conv { stride: 2, pad: 1, groups: 1 };

/// What is not read off the tensors.
pub struct Sizes {
    pub dims: [usize; 4],
    pub depths: [usize; 4],
    pub heads: [usize; 4],
    pub windows: [usize; 4],
}

/// A stage behind the first: its map is `grid`.
struct Stage {
    dim: usize,
    heads: usize,
    window: usize,
    grid: Grid,
}

pub fn build(b: &mut Builder<'_>, images: &Value, grid: Grid, net: &Sizes) -> Result<OnnxTokens> {
    let x = conv_bn(b, images, "patch_embed.conv1", HALVING)?;
    let x = b.gelu(&x);
    let mut x = conv_bn(b, &x, "patch_embed.conv2", HALVING)?;
    for i in 0..net.depths[0] {
        x = mb_conv(b, &x, &format!("stages.0.blocks.{i}"))?;
    }
    let mut patch = String::new();
    for stage in 1..4 {
        let dim = net.dims[stage];
        x = downsample(b, &x, &format!("stages.{stage}.downsample"), dim)?;
        // The grid is that of stride 16, which is the map of stage 2; halving rounds up.
        let grid = match stage {
            1 => Grid { height: grid.height * 2, width: grid.width * 2 },
            2 => grid,
            _ => Grid { height: grid.height.div_ceil(2), width: grid.width.div_ceil(2) },
        };
        let s = Stage { dim, heads: net.heads[stage], window: net.windows[stage], grid };
        for i in 0..net.depths[stage] {
            x = block(b, &x, &format!("stages.{stage}.blocks.{i}"), &s)?;
        }
        if stage == TAP_STAGE {
            patch = tokens_of(b, &x, dim, grid);
        }
    }
    let dim = net.dims[3];
    let mean = b.op("GlobalAveragePool", &[&x], Vec::new());
    let mean = b.reshape(&mean, &[0, dim as i64]);
    let image = b.layer_norm(&mean, "head.norm", EPS)?;
    Ok(OnnxTokens { image, patch, image_dim: dim, patch_dim: net.dims[TAP_STAGE] })
}

fn conv_bn(b: &mut Builder<'_>, x: &Value, path: &str, conv: Conv) -> Result<Value> {
    b.conv(x, &format!("{path}.conv"), Some(&format!("{path}.bn")), conv)
}

fn mb_conv(b: &mut Builder<'_>, x: &Value, path: &str) -> Result<Value> {
    let (dims, _) = b.tensor(&format!("{path}.conv2.conv.weight"))?;
    let inner = dims.first().copied().unwrap_or(0);
    let y = conv_bn(b, x, &format!("{path}.conv1"), Conv::POINTWISE)?;
    let y = b.gelu(&y);
    let y = conv_bn(b, &y, &format!("{path}.conv2"), Conv::depthwise(inner, 3, 1))?;
    let y = b.gelu(&y);
    let y = conv_bn(b, &y, &format!("{path}.conv3"), Conv::POINTWISE)?;
    let y = b.add(x, &y);
    Ok(b.gelu(&y))
}

fn downsample(b: &mut Builder<'_>, x: &Value, path: &str, dim: usize) -> Result<Value> {
    let y = conv_bn(b, x, &format!("{path}.conv1"), Conv::POINTWISE)?;
    let y = b.gelu(&y);
    let y = conv_bn(b, &y, &format!("{path}.conv2"), Conv::depthwise(dim, 3, 2))?;
    let y = b.gelu(&y);
    conv_bn(b, &y, &format!("{path}.conv3"), Conv::POINTWISE)
}

/// NCHW to NCHW.
fn block(b: &mut Builder<'_>, x: &Value, path: &str, s: &Stage) -> Result<Value> {
    let Grid { height, width } = s.grid;
    let [h, w, c, n] = [height, width, s.dim, height * width].map(|v| v as i64);
    let rows = b.transpose(x, &[0, 2, 3, 1]);
    let y = windows(b, &rows, path, s)?;
    let y = b.add(&rows, &y);
    let y = b.transpose(&y, &[0, 3, 1, 2]);
    let (dims, _) = b.tensor(&format!("{path}.local_conv.conv.weight"))?;
    let kernel = dims.last().copied().unwrap_or(0);
    let y = conv_bn(b, &y, &format!("{path}.local_conv"), Conv::depthwise(s.dim, kernel, 1))?;
    let y = b.reshape(&y, &[0, c, n]);
    let y = b.transpose(&y, &[0, 2, 1]);
    let z = b.layer_norm(&y, &format!("{path}.mlp.norm"), EPS)?;
    let z = b.linear(&z, &format!("{path}.mlp.fc1"))?;
    let z = b.gelu(&z);
    let z = b.linear(&z, &format!("{path}.mlp.fc2"))?;
    let y = b.add(&y, &z);
    let y = b.transpose(&y, &[0, 2, 1]);
    Ok(b.reshape(&y, &[0, c, h, w]))
}

/// Attention within the windows of NHWC; maps that windows do not divide get zeros behind their ends.
fn windows(b: &mut Builder<'_>, x: &Value, path: &str, s: &Stage) -> Result<Value> {
    let Grid { height, width } = s.grid;
    let (side, c) = (s.window as i64, s.dim as i64);
    let down = (s.window - height % s.window) % s.window;
    let right = (s.window - width % s.window) % s.window;
    let padded = if down + right > 0 { b.pad_ends(x, down, right) } else { x.clone() };
    let (high, wide) = ((height + down) as i64, (width + right) as i64);
    let (nh, nw) = (high / side, wide / side);
    let y = b.reshape(&padded, &[-1, nh, side, nw, side, c]);
    let y = b.transpose(&y, &[0, 1, 3, 2, 4, 5]);
    let y = b.reshape(&y, &[-1, side * side, c]);
    let y = attention(b, &y, path, s)?;
    let y = b.reshape(&y, &[-1, nh, nw, side, side, c]);
    let y = b.transpose(&y, &[0, 1, 3, 2, 4, 5]);
    let mut y = b.reshape(&y, &[-1, high, wide, c]);
    if down > 0 {
        y = b.slice(&y, 1, 0, height);
    }
    if right > 0 {
        y = b.slice(&y, 2, 0, width);
    }
    Ok(y)
}

/// Queries, keys and values of a head lie side by side.
fn attention(b: &mut Builder<'_>, x: &Value, path: &str, s: &Stage) -> Result<Value> {
    let (tokens, each) = (s.window * s.window, s.dim / s.heads);
    let n = b.layer_norm(x, &format!("{path}.attn.norm"), EPS)?;
    let qkv = b.linear(&n, &format!("{path}.attn.qkv"))?;
    let qkv = b.reshape(&qkv, &[-1, tokens as i64, s.heads as i64, 3 * each as i64]);
    let qkv = b.transpose(&qkv, &[0, 2, 1, 3]);
    let [q, k, v] = b.thirds(&qkv, 3, each);
    let name = format!("{path}.attn.attention_biases");
    let (dims, table) = b.tensor(&name)?;
    if dims != [s.heads, tokens] {
        return Err(Error::usage(format!(
            "the tensor `{name}` is {dims:?}, expected [{}, {tokens}]",
            s.heads
        )));
    }
    let index = offsets(s.window);
    let biases: Vec<f32> =
        table.chunks_exact(tokens).flat_map(|head| index.iter().map(|i| head[*i])).collect();
    let biases = b.floats(&name, &[s.heads, tokens, tokens], &biases);
    let y = b.attention([&q, &k, &v], each, Some(&biases));
    let y = b.transpose(&y, &[0, 2, 1, 3]);
    let y = b.reshape(&y, &[-1, tokens as i64, s.dim as i64]);
    b.linear(&y, &format!("{path}.attn.proj"))
}

/// Place in the table of biases of every pair of places in a window: offsets are numbered as they first occur.
fn offsets(window: usize) -> Vec<usize> {
    let mut numbers = HashMap::new();
    let places = |i: usize| (i / window, i % window);
    let count = window * window;
    let mut index = Vec::with_capacity(count * count);
    for pair in 0..count * count {
        let ((y1, x1), (y2, x2)) = (places(pair / count), places(pair % count));
        let next = numbers.len();
        index.push(*numbers.entry((y1.abs_diff(y2), x1.abs_diff(x2))).or_insert(next));
    }
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_numbered_as_they_occur() {
        // Places 0 1 / 2 3: from 0 the offsets (0,0), (0,1), (1,0), (1,1).
        assert_eq!(offsets(2), [0, 1, 2, 3, 1, 0, 3, 2, 2, 3, 0, 1, 3, 2, 1, 0]);
        // As many numbers as a window has places.
        assert_eq!(offsets(7).iter().max(), Some(&48));
    }
}
