//! Launches of `kernels/layer_norm.cu`.

use super::kernel::{Call, Family, Given, KernelParams, kernel_params};
use super::lower::{Lower, Lowered, Operands};
use super::pointwise::vector;
use crate::ir::ops;
use crate::plan::OperandType;
use crate::tensor::DType;
use std::mem::offset_of;

kernel_params! {
    pub const LAYOUTS;
    LayerNormParams {
        y: u64, mean: u64, rstd: u64, x: u64, gamma: u64, beta: u64, rows: u32, eps: f32,
    }
    LayerNormBackwardParams {
        dx: u64, dgamma: u64, dbeta: u64, partial: u64, arrivals: u64, dy: u64, x: u64, gamma: u64, mean: u64, rstd: u64,
        residual: u64, rows: u32, group: u32,
    }
}

/// Warps of a block.
const WARPS: u32 = 8;
/// Multiprocessors of a large GPU. The order of sums depends on the grid, so grids do not depend on the GPU that is there.
const MULTIPROCESSORS: u32 = 132;

/// Widths whose rows fit the registers of a warp.
pub const WIDTHS: std::ops::RangeInclusive<usize> = 1..=1024;

/// Blocks of the forward pass that a multiprocessor holds: what registers allow, which hold several rows of a warp.
fn forward_blocks(width: usize, element: DType) -> u32 {
    if width <= 256 && element == DType::Bf16 { 3 } else { 2 }
}

/// The same of the backward pass, whose registers hold sums over rows besides.
fn backward_blocks(width: usize, element: DType) -> u32 {
    match (width, element) {
        (..=256, DType::Bf16) => 4,
        (..=256, _) => 3,
        (257..=512, _) => 2,
        _ => 1,
    }
}

/// Blocks for `rows`: all of them are resident at once, so that none begins when others end.
fn grid(rows: usize, resident: u32) -> u32 {
    // At most the other side of the comparison, so the conversion loses nothing.
    rows.div_ceil(WARPS as usize).clamp(1, (MULTIPROCESSORS * resident) as usize) as u32
}

/// Bytes of scratch memory of the backward pass.
pub fn backward_workspace(rows: usize, width: usize, element: DType) -> usize {
    grid(rows, backward_blocks(width, element)) as usize * 2 * width * size_of::<f32>()
}

/// The forward pass over rows of `width`.
///
/// # Errors
/// More of either than the kernels take.
pub fn forward(params: &LayerNormParams, width: u32, element: DType) -> Lowered {
    check(params.rows, width)?;
    let width = width as usize;
    let addresses = [params.y, params.x, params.gamma, params.beta];
    let blocks = grid(params.rows as usize, forward_blocks(width, element));
    Ok(vec![call("layer_norm", [blocks, WARPS * 32], params, width, element, &addresses)])
}

/// The backward pass: `dx` with a partial sum a block, which the last blocks add up.
///
/// # Errors
/// More rows or columns than the kernels take.
pub fn backward(params: LayerNormBackwardParams, width: u32, element: DType) -> Lowered {
    check(params.rows, width)?;
    let width = width as usize;
    let parts = grid(params.rows as usize, backward_blocks(width, element));
    // About as many groups as a group has blocks.
    let group = (1..parts).find(|g| g * g >= parts).unwrap_or(1);
    let p = LayerNormBackwardParams { group, ..params };
    let kernel = if p.residual == 0 { "layer_norm_backward" } else { "layer_norm_backward_residual" };
    let addresses = [p.dx, p.dy, p.x, p.gamma, p.residual];
    let arrivals = vec![0; (parts.div_ceil(group) as usize + 1) * size_of::<u32>()];
    let call = call(kernel, [parts, WARPS * 32], &p, width, element, &addresses);
    Ok(vec![call.table(offset_of!(LayerNormBackwardParams, arrivals), arrivals)])
}

/// Rows are counted in 32 bits, with a grid's turn beyond the last.
const MOST_ROWS: u32 = i32::MAX as u32;

fn check(rows: u32, width: u32) -> Result<(), String> {
    if !WIDTHS.contains(&(width as usize)) {
        return Err(format!("takes rows of 1 to {} elements, not {width}", WIDTHS.end()));
    }
    if rows > MOST_ROWS {
        return Err(format!("takes at most {MOST_ROWS} rows, not {rows}: use a smaller batch"));
    }
    Ok(())
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
        let [x, gamma, beta] = [0, 1, 2].map(|i: usize| inputs[i].at);
        let (mean, rstd) = (outputs[1].at, outputs[2].at);
        let params = LayerNormParams { y, mean, rstd, x, gamma, beta, rows, eps: *eps as f32 };
        forward(&params, width, o.element())
    }
}

impl Lower for ops::LayerNormBackward {
    fn workspace(&self, inputs: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        let (rows, width) = inputs[0].shape.as_matrix();
        backward_workspace(rows, width, inputs[0].dtype)
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let Operands { inputs, outputs, scratch, .. } = *o;
        let y = outputs[0].at;
        let ops::LayerNormBackward { residual } = self;
        let (rows, width) = inputs[0].rows_width()?;
        let [dy, x, gamma, mean, rstd] = [0, 1, 2, 3, 4].map(|i: usize| inputs[i].at);
        let residual = if *residual { inputs[5].at } else { 0 };
        let params = LayerNormBackwardParams {
            dx: y,
            dgamma: outputs[1].at,
            dbeta: outputs[2].at,
            partial: scratch,
            arrivals: 0,
            dy,
            x,
            gamma,
            mean,
            rstd,
            residual,
            rows,
            group: 1,
        };
        backward(params, width, o.element())
    }
}

/// Constants with which the recipes compile the kernels: the widths of encoders and decoders, of frozen experts, and the
/// largest.
pub fn variants(bf16: bool) -> Vec<Given> {
    let element = if bf16 { DType::Bf16 } else { DType::F32 };
    [192, 512, 768, *WIDTHS.end()].map(|width| given(width, element, &[])).to_vec()
}

fn given(width: usize, element: DType, addresses: &[u64]) -> Given {
    vec![
        ("D", width),
        ("VEC", vector(width as u64, element, addresses) as usize),
        ("WARPS", WARPS as usize),
        ("FORWARD_BLOCKS", forward_blocks(width, element) as usize),
        ("BACKWARD_BLOCKS", backward_blocks(width, element) as usize),
    ]
}

fn call<P: KernelParams>(
    kernel: &'static str,
    [blocks, threads]: [u32; 2],
    params: &P,
    width: usize,
    element: DType,
    addresses: &[u64],
) -> Call {
    let mut call = Call::new(Family::LayerNorm, kernel, blocks, threads, params);
    call.given = given(width, element, addresses);
    call
}
