//! Feature maps: convolutions, batch normalisation, pooling, windowed attention.

use super::dense::log_sum_exp;
use super::layout::pixel;
use crate::common::tensor::{Input, Tensor};
use saip_engine::ir::{ConvGeometry, FeatureMap};

/// A map of the stream with the row of its first position: all maps of all views, one after the other.
fn single_maps(maps: &[FeatureMap]) -> Vec<(usize, usize, usize)> {
    let mut start = 0;
    let mut all = Vec::new();
    for m in maps {
        for _ in 0..m.count {
            all.push((start, m.height, m.width));
            start += m.height * m.width;
        }
    }
    all
}

/// Size of the output along one axis with a padding of half the kernel.
fn strided(size: usize, g: &ConvGeometry) -> usize {
    (size + 2 * (g.kernel / 2) - g.kernel) / g.stride + 1
}

/// Cross-correlation with zero padding; every `group` output channels read the input channels of their group.
fn convolution(x: &[Input], g: &ConvGeometry, depthwise: bool) -> Tensor {
    let (x, w, b) = (x[0].float(), x[1].float(), x[2].float());
    let (outputs, depth, k, half) = (w.shape[0], w.shape[1], g.kernel, (g.kernel / 2) as isize);
    let channels = x.cols();
    let mut out = Vec::new();
    for (start, height, width) in single_maps(&g.maps) {
        for oy in 0..strided(height, g) {
            for ox in 0..strided(width, g) {
                for o in 0..outputs {
                    let mut sum = b.data[o];
                    for ky in 0..k {
                        for kx in 0..k {
                            let y = (oy * g.stride + ky) as isize - half;
                            let px = (ox * g.stride + kx) as isize - half;
                            if y < 0 || px < 0 || y >= height as isize || px >= width as isize {
                                continue;
                            }
                            let row = start + y as usize * width + px as usize;
                            for i in 0..depth {
                                let c = if depthwise { o } else { i };
                                sum +=
                                    x.data[row * channels + c] * w.data[((o * depth + i) * k + ky) * k + kx];
                            }
                        }
                    }
                    out.push(sum);
                }
            }
        }
    }
    Tensor::new([out.len() / outputs, outputs], out)
}

pub fn conv2d(x: &[Input], g: &ConvGeometry) -> Tensor {
    convolution(x, g, false)
}

pub fn depthwise_conv2d(x: &[Input], g: &ConvGeometry) -> Tensor {
    convolution(x, g, true)
}

pub fn pixel_rows(x: &[Input], masked: Option<usize>) -> Tensor {
    let images = x.len() - usize::from(masked.is_some());
    let mut data = Vec::new();
    for i in 0..images {
        let t = x[i].float();
        let (h, w) = (t.shape[2], t.shape[3]);
        for b in 0..t.shape[0] {
            for y in 0..h {
                for px in 0..w {
                    let patch = y / 16 * (w / 16) + px / 16;
                    let visible = masked != Some(i) || x[images].index_row(b).contains(&patch);
                    data.extend((0..3).map(|c| if visible { pixel(t, b, c, y, px) } else { 0.0 }));
                }
            }
        }
    }
    Tensor::new([data.len() / 3, 3], data)
}

/// `y`, `mean`, biased `var` per group.
pub fn batch_norm(x: &[Input], eps: f64, groups: &[usize]) -> Vec<Tensor> {
    let (x, gamma, beta) = (x[0].float(), x[1].float(), x[2].float());
    let c = x.cols();
    let (mut y, mut means, mut vars) = (x.clone(), vec![], vec![]);
    let mut start = 0;
    for &rows in groups {
        for i in 0..c {
            let column = || (start..start + rows).map(|r| x.data[r * c + i]);
            let mean = column().sum::<f64>() / rows as f64;
            let var = column().map(|v| (v - mean) * (v - mean)).sum::<f64>() / rows as f64;
            for r in start..start + rows {
                y.data[r * c + i] =
                    (x.data[r * c + i] - mean) / (var + eps).sqrt() * gamma.data[i] + beta.data[i];
            }
            means.push(mean);
            vars.push(var);
        }
        start += rows;
    }
    vec![y, Tensor::new([groups.len(), c], means), Tensor::new([groups.len(), c], vars)]
}

pub fn batch_norm_inference(x: &[Input], eps: f64) -> Tensor {
    let [x, gamma, beta, mean, var] = [0, 1, 2, 3, 4].map(|i| x[i].float());
    let c = x.cols();
    Tensor::from_fn(x.shape.clone(), |i| {
        let at = i % c;
        (x.data[i] - mean.data[at]) / (var.data[at] + eps).sqrt() * gamma.data[at] + beta.data[at]
    })
}

pub fn running_statistics(x: &[Input], momentum: f64, groups: &[usize]) -> Vec<Tensor> {
    let [mut mean, mut var] = [0, 1].map(|i| x[i].float().clone());
    let c = mean.data.len();
    for (g, &rows) in groups.iter().enumerate() {
        for i in 0..c {
            let (m, v) = (x[2].float().data[g * c + i], x[3].float().data[g * c + i]);
            if m.is_finite() && v.is_finite() {
                mean.data[i] = (1.0 - momentum) * mean.data[i] + momentum * m;
                var.data[i] = (1.0 - momentum) * var.data[i] + momentum * v * rows as f64 / (rows - 1) as f64;
            }
        }
    }
    vec![mean, var]
}

pub fn relu6(x: f64) -> f64 {
    x.clamp(0.0, 6.0)
}

pub fn global_average_pool(x: &Tensor, images: &[(usize, usize)]) -> Tensor {
    let (c, mut start, mut data) = (x.cols(), 0, vec![]);
    for &(count, rows) in images {
        for _ in 0..count {
            for i in 0..c {
                data.push((start..start + rows).map(|r| x.data[r * c + i]).sum::<f64>() / rows as f64);
            }
            start += rows;
        }
    }
    Tensor::new([data.len() / c, c], data)
}

/// As timm computes it: every map is padded to whole windows with rows of their own, here `pad`.
pub fn window_attention(x: &[Input], heads: usize, window: usize, maps: &[FeatureMap]) -> Vec<Tensor> {
    let (qkv, pad, biases) = (x[0].float(), x[1].float(), x[2].float());
    let d = qkv.cols() / 3;
    let width = d / heads;
    let (mut o, mut lse) = (Tensor::zeros([qkv.rows(), d]), Tensor::zeros([qkv.rows(), heads]));
    for (start, h, w) in single_maps(maps) {
        for (top, left) in (0..h).step_by(window).flat_map(|t| (0..w).step_by(window).map(move |l| (t, l))) {
            let places: Vec<(usize, usize)> =
                (0..window * window).map(|i| (top + i / window, left + i % window)).collect();
            let row = |(y, px): (usize, usize)| (y < h && px < w).then(|| start + y * w + px);
            let operands = |place| row(place).map_or(&pad.data[..], |r| qkv.row(r));
            for head in 0..heads {
                let part = |place, part: usize| &operands(place)[(head * 3 + part) * width..][..width];
                let keys: Vec<&[f64]> = places.iter().map(|p| part(*p, 1)).collect();
                let values: Vec<&[f64]> = places.iter().map(|p| part(*p, 2)).collect();
                for &query in places.iter().filter(|p| row(**p).is_some()) {
                    let scores: Vec<f64> = places
                        .iter()
                        .zip(&keys)
                        .map(|(&key, k)| {
                            let dot: f64 = part(query, 0).iter().zip(*k).map(|(a, b)| a * b).sum();
                            let offset = query.0.abs_diff(key.0) * window + query.1.abs_diff(key.1);
                            dot / (width as f64).sqrt() + biases.data[head * window * window + offset]
                        })
                        .collect();
                    let sum = log_sum_exp(&scores);
                    let r = row(query).expect("a query lies in the map");
                    lse.data[r * heads + head] = sum;
                    let shares: Vec<f64> = scores.iter().map(|s| (s - sum).exp()).collect();
                    for i in 0..width {
                        o.data[r * d + head * width + i] =
                            values.iter().zip(&shares).map(|(v, share)| share * v[i]).sum();
                    }
                }
            }
        }
    }
    vec![o, lse]
}

/// The largest value of every window; what lies outside of the map is left out.
pub fn max_pool2d(x: &Tensor, g: &ConvGeometry) -> Tensor {
    let (c, half, mut data) = (x.cols(), (g.kernel / 2) as isize, vec![]);
    for (start, height, width) in single_maps(&g.maps) {
        for (oy, ox) in (0..strided(height, g)).flat_map(|oy| (0..strided(width, g)).map(move |ox| (oy, ox)))
        {
            let inside = |at: usize, k: usize, size: usize| {
                usize::try_from((at * g.stride + k) as isize - half).ok().filter(|place| *place < size)
            };
            let places: Vec<usize> = (0..g.kernel * g.kernel)
                .filter_map(|tap| {
                    let y = inside(oy, tap / g.kernel, height)?;
                    Some(start + y * width + inside(ox, tap % g.kernel, width)?)
                })
                .collect();
            data.extend(
                (0..c).map(|i| places.iter().fold(f64::NEG_INFINITY, |m, p| m.max(x.data[p * c + i]))),
            );
        }
    }
    Tensor::new([data.len() / c, c], data)
}
