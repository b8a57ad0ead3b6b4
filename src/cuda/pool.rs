//! Launches of `kernels/pool.cu`.

use super::kernel::{Call, Family, Given, kernel_params};
use super::lower::{Lower, Lowered, Operands};
use super::pointwise::{THREADS, blocks, vector};
use crate::ir::{ConvGeometry, ops};
use crate::plan::OperandType;

kernel_params! {
    pub const LAYOUTS;
    PoolParams { y: u64, x: u64, images: u64, rows: u32, width: u32 }
    MaxPoolParams {
        y: u64, x: u64, dy: u64, images: u64, height: u32, width: u32, out_height: u32, out_width: u32, channels: u32,
        kernel: u32, stride: u32, unused: u32,
    }
}

fn runs(o: &Operands<'_>, images: &[(usize, usize)], backward: bool) -> Lowered {
    let (_, width) = o.inputs[0].rows_width()?;
    // The rows of all images are an operand's, so those of one image fit 32 bits.
    o.outputs[0].rows_width()?;
    let (mut y, mut x) = (o.outputs[0].at, o.inputs[0].at);
    let bytes = u64::from(width) * o.element().bytes() as u64;
    let mut calls = Vec::with_capacity(images.len());
    for &(count, rows) in images.iter().filter(|i| i.0 > 0) {
        let (count, all) = (count as u64, (count * rows) as u64);
        let vec = vector(u64::from(width), o.element(), &[y, x]);
        let params = PoolParams { y, x, images: count, rows: rows as u32, width };
        let (kernel, written, read) = if backward {
            ("global_average_pool_backward", all, count)
        } else {
            ("global_average_pool", count, all)
        };
        let blocks = blocks(written * u64::from(width) / vec);
        calls.push(Call::new(Family::Pool, kernel, blocks, THREADS, &params).given("VEC", vec as usize));
        y += written * bytes;
        x += read * bytes;
    }
    Ok(calls)
}

/// One launch for the maps of each size: `y` of `x`, or with `dy` the gradient `y` of `x`'s shape.
fn maxima(o: &Operands<'_>, geometry: &ConvGeometry, x: u64, dy: Option<u64>) -> Lowered {
    let (_, channels) = o.outputs[0].rows_width()?;
    // Rows of all maps are an operand's, so that their sizes fit 32 bits; those of the larger operand are counted here.
    for operand in o.inputs.iter().chain(o.outputs) {
        operand.rows_width()?;
    }
    let small = |n: usize| u32::try_from(n).map_err(|_| format!("takes windows of at most {}", u32::MAX));
    let (kernel, stride) = (small(geometry.kernel)?, small(geometry.stride)?);
    let bytes = u64::from(channels) * o.element().bytes() as u64;
    let (mut x, mut dy, mut y) = (x, dy, o.outputs[0].at);
    let mut calls = Vec::with_capacity(geometry.maps.len());
    for (map, out) in geometry.maps.iter().zip(geometry.outputs()) {
        let vec = vector(u64::from(channels), o.element(), &[y, x, dy.unwrap_or(0)]);
        let params = MaxPoolParams {
            y,
            x,
            dy: dy.unwrap_or(0),
            images: map.count as u64,
            height: map.height as u32,
            width: map.width as u32,
            out_height: out.height as u32,
            out_width: out.width as u32,
            channels,
            kernel,
            stride,
            unused: 0,
        };
        let (name, written) = match dy {
            Some(_) => ("max_pool_backward", map.rows() as u64),
            None => ("max_pool", out.rows() as u64),
        };
        let blocks = blocks(written * u64::from(channels) / vec);
        calls.push(Call::new(Family::Pool, name, blocks, THREADS, &params).given("VEC", vec as usize));
        y += written * bytes;
        x += map.rows() as u64 * bytes;
        dy = dy.map(|dy| dy + out.rows() as u64 * bytes);
    }
    Ok(calls)
}

impl Lower for ops::MaxPool2d {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    /// `y`.
    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let ops::MaxPool2d { geometry } = self;
        maxima(o, geometry, o.inputs[0].at, None)
    }
}

impl Lower for ops::MaxPool2dBackward {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    /// `dx`.
    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let ops::MaxPool2dBackward { geometry } = self;
        maxima(o, geometry, o.inputs[1].at, Some(o.inputs[0].at))
    }
}

impl Lower for ops::GlobalAveragePool {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    /// Means over the rows of each image; `images` lists `(count, rows)`.
    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let ops::GlobalAveragePool { images } = self;
        runs(o, images, false)
    }
}

impl Lower for ops::GlobalAveragePoolBackward {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    /// The gradient: every row of an image has the mean's share.
    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let ops::GlobalAveragePoolBackward { images } = self;
        runs(o, images, true)
    }
}

/// Constants with which the recipes compile the kernels.
pub fn variants() -> Vec<Given> {
    vec![vec![("VEC", 1)], vec![("VEC", 4)], vec![("VEC", 8)]]
}
