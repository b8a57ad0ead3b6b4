//! Launches of `kernels/pool.cu`.

use super::kernel::{Call, Family, Given, kernel_params};
use super::lower::{Lower, Lowered, Operands};
use super::pointwise::{THREADS, blocks, vector};
use crate::ir::ops;
use crate::plan::OperandType;

kernel_params! {
    pub const LAYOUTS;
    PoolParams { y: u64, x: u64, images: u64, rows: u32, width: u32 }
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
