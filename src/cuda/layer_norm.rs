//! Launches of `kernels/layer_norm.cu`.

use super::kernel::{Call, Family, Given, kernel_params};
use super::lower::{Lower, Lowered, Operands};
use crate::ir::ops;
use crate::plan::OperandType;

kernel_params! {
    pub const LAYOUTS;
    LayerNormParams {
        y: u64, mean: u64, rstd: u64, x: u64, gamma: u64, beta: u64, rows: u32, eps: f32,
    }
    LayerNormBackwardParams {
        dx: u64, partial: u64, dy: u64, x: u64, gamma: u64, mean: u64, rstd: u64, residual: u64, rows: u32,
        unused: u32,
    }
    ColumnSumParams { dgamma: u64, dbeta: u64, partial: u64, chunks: u32, unused: u32 }
}

/// Warps of a block.
const WARPS: u32 = 8;
/// Rows of one partial sum: CHUNK of the kernel.
const CHUNK: u32 = 64;

/// Widths whose rows fit the registers of a warp.
pub const WIDTHS: std::ops::RangeInclusive<usize> = 1..=1024;

/// Bytes of scratch memory of the backward pass.
pub fn backward_workspace(rows: usize, width: usize) -> usize {
    rows.div_ceil(CHUNK as usize) * 2 * width * size_of::<f32>()
}

/// The forward pass over rows of `width`.
pub fn forward(params: &LayerNormParams, width: usize) -> Vec<Call> {
    let blocks = params.rows.div_ceil(WARPS).max(1);
    vec![call("layer_norm", blocks, WARPS * 32, params, width)]
}

/// The backward pass: `dx` with partial sums per chunk of rows, then the sums of those.
pub fn backward(params: &LayerNormBackwardParams, dgamma: u64, dbeta: u64, width: usize) -> Vec<Call> {
    let chunks = params.rows.div_ceil(CHUNK);
    let sum = ColumnSumParams { dgamma, dbeta, partial: params.partial, chunks, unused: 0 };
    let columns = (2 * width as u32).div_ceil(128);
    vec![
        call("layer_norm_backward", chunks.max(1), WARPS * 32, params, width),
        call("layer_norm_backward_sum", columns, 128, &sum, width),
    ]
}

fn norm_width(width: u32) -> Result<(), String> {
    if WIDTHS.contains(&(width as usize)) {
        return Ok(());
    }
    Err(format!("takes rows of 1 to {} elements, not {width}", WIDTHS.end()))
}

impl Lower for ops::LayerNorm {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let Operands { inputs, outputs, .. } = *o;
        let y = outputs[0].at;
        let ops::LayerNorm { eps } = self;
        let (rows, width) = inputs[0].rows_width()?;
        norm_width(width)?;
        let [x, gamma, beta] = [0, 1, 2].map(|i: usize| inputs[i].at);
        let (mean, rstd) = (outputs[1].at, outputs[2].at);
        let params = LayerNormParams { y, mean, rstd, x, gamma, beta, rows, eps: *eps as f32 };
        Ok(forward(&params, width as usize))
    }
}

impl Lower for ops::LayerNormBackward {
    fn workspace(&self, inputs: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        let (rows, width) = inputs[0].shape.as_matrix();
        backward_workspace(rows, width)
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let Operands { inputs, outputs, scratch, .. } = *o;
        let y = outputs[0].at;
        let ops::LayerNormBackward { residual } = self;
        let (rows, width) = inputs[0].rows_width()?;
        norm_width(width)?;
        let [dy, x, gamma, mean, rstd] = [0, 1, 2, 3, 4].map(|i: usize| inputs[i].at);
        let residual = if *residual { inputs[5].at } else { 0 };
        let params = LayerNormBackwardParams {
            dx: y,
            partial: scratch,
            dy,
            x,
            gamma,
            mean,
            rstd,
            residual,
            rows,
            unused: 0,
        };
        Ok(backward(&params, outputs[1].at, outputs[2].at, width as usize))
    }
}

/// Constants with which the recipes compile the kernels: the widths of encoders and decoders, of frozen experts, and the
/// largest.
pub fn variants() -> Vec<Given> {
    [192, 512, 768, *WIDTHS.end()].map(|width| vec![("D", width), ("WARPS", WARPS as usize)]).to_vec()
}

fn call<P: super::kernel::KernelParams>(
    kernel: &'static str,
    blocks: u32,
    threads: u32,
    params: &P,
    width: usize,
) -> Call {
    Call::new(Family::LayerNorm, kernel, blocks, threads, params)
        .given("D", width)
        .given("WARPS", WARPS as usize)
}
