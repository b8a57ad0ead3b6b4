//! Launches of `kernels/layout.cu`.

use super::kernel::{Call, Family, KernelParams, kernel_params};
use super::lower::{Lower, Lowered, Operand, Operands};
use super::pointwise::{self, THREADS, blocks, vector};
use crate::ir::{RowRun, ops};
use crate::plan::OperandType;
use crate::tensor::DType;

kernel_params! {
    pub const LAYOUTS;
    RunParams {
        y: u64, x: u64, first: u64, start: u64, stride: u64, len: u32, count: u32, width: u32, unused: u32,
    }
    JoinedRuns { all: u64 }
    PositionParams { y: u64, x: u64, pos: u64, images: u64, each: u64 }
    TokenParams { y: u64, x: u64, index: u64, rows: u64, kept: u32, tokens: u32, width: u32, unused: u32 }
}

/// Addresses of a packed matrix and one in which its rows lie in runs, both `width` wide.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    pub y: u64,
    pub x: u64,
    pub width: u32,
    pub element: DType,
}

/// Row numbers and widths fit `u32`: see `lower`.
fn narrow(x: usize) -> u32 {
    u32::try_from(x).unwrap_or(u32::MAX)
}

fn call<P: KernelParams>(kernel: &'static str, params: &P, rows: u64, at: Rows) -> Call {
    let vec = vector(u64::from(at.width), at.element, &[at.y, at.x]);
    let threads = rows * u64::from(at.width) / vec;
    Call::new(Family::Layout, kernel, blocks(threads), THREADS, params).given("VEC", vec as usize)
}

/// One launch for all runs.
fn runs(kernel: &'static str, at: Rows, runs: &[RowRun]) -> Vec<Call> {
    let (mut first, mut most) = (0, 0);
    let mut all = Vec::with_capacity(runs.len());
    for run in runs.iter().filter(|r| r.rows() > 0) {
        all.push(RunParams {
            y: at.y,
            x: at.x,
            first,
            start: run.start as u64,
            stride: run.stride as u64,
            len: narrow(run.len),
            count: narrow(run.count),
            width: at.width,
            unused: 0,
        });
        first += run.rows() as u64;
        most = most.max(run.rows() as u64);
    }
    joined(&all, |table, count| {
        let mut call = call(kernel, &JoinedRuns { all: 0 }, most, at).table(0, table);
        call.grid[1] = count;
        call
    })
}

/// Launches whose blocks take their parameters from a table, by their number along y: as few as a grid allows.
pub fn joined<P: KernelParams>(all: &[P], call: impl Fn(Vec<u8>, u32) -> Call) -> Vec<Call> {
    const MOST: usize = 65535;
    all.chunks(MOST).map(|some| call(bytemuck::cast_slice(some).to_vec(), some.len() as u32)).collect()
}

/// The rows of `list`, one after the other.
pub fn select_rows(at: Rows, list: &[RowRun]) -> Vec<Call> {
    runs("select_rows", at, list)
}

/// `rows` rows: those of `list` from `x`, the others 0, or with a base (its address, possibly `y`'s) added onto it.
pub fn scatter_rows(at: Rows, list: &[RowRun], rows: u64, base: Option<u64>) -> Vec<Call> {
    let n = rows * u64::from(at.width);
    let mut calls = Vec::new();
    match base {
        None => calls.push(pointwise::unary("fill", at.y, 0, n, 0.0, at.element)),
        Some(base) if base != at.y => calls.push(pointwise::unary("scale", at.y, base, n, 1.0, at.element)),
        Some(_) => {}
    }
    let kernel = if base.is_some() { "scatter_rows_accumulate" } else { "scatter_rows" };
    calls.extend(runs(kernel, at, list));
    calls
}

/// Which tokens of each of several images.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    pub index: u64,
    pub images: u64,
    pub kept: u32,
    pub tokens: u32,
}

fn tokens(kernel: &'static str, at: Rows, of: Kept) -> Call {
    let rows = of.images * u64::from(of.kept);
    let (index, kept, tokens) = (of.index, of.kept, of.tokens);
    let params = TokenParams { y: at.y, x: at.x, index, rows, kept, tokens, width: at.width, unused: 0 };
    call(kernel, &params, rows, at)
}

pub fn gather_tokens(at: Rows, of: Kept) -> Vec<Call> {
    vec![tokens("gather_tokens", at, of)]
}

/// All tokens: those of `of.index` from `x`, the others 0.
pub fn scatter_tokens(at: Rows, of: Kept) -> Vec<Call> {
    let n = of.images * u64::from(of.tokens) * u64::from(at.width);
    vec![pointwise::unary("fill", at.y, 0, n, 0.0, at.element), tokens("scatter_tokens", at, of)]
}

/// `x: [images * tokens, D]` plus `pos: [tokens, D]` of `each` elements.
pub fn add_positions(y: u64, x: u64, pos: u64, images: u64, each: u64, element: DType) -> Vec<Call> {
    let vec = vector(each, element, &[y, x, pos]);
    let params = PositionParams { y, x, pos, images, each };
    let blocks = blocks(images * each / vec);
    vec![Call::new(Family::Layout, "add_positions", blocks, THREADS, &params).given("VEC", vec as usize)]
}

/// The index input `[B, k]` into images of `tokens` tokens.
fn kept(index: &Operand<'_>, tokens: usize) -> Result<Kept, String> {
    let (images, kept) = index.rows_width()?;
    let tokens = u32::try_from(tokens).map_err(|_| format!("takes at most {} tokens", u32::MAX))?;
    Ok(Kept { index: index.at, images: u64::from(images), kept, tokens })
}

impl Lower for ops::SelectRows {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let Operands { inputs, outputs, .. } = *o;
        let (y, element) = (outputs[0].at, o.element());
        let ops::SelectRows { runs } = self;
        let (_, width) = inputs[0].rows_width()?;
        Ok(select_rows(Rows { y, x: inputs[0].at, width, element }, runs))
    }
}

impl Lower for ops::ScatterRows {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let Operands { inputs, outputs, .. } = *o;
        let (y, element) = (outputs[0].at, o.element());
        let ops::ScatterRows { runs, accumulate, .. } = self;
        let (rows, width) = outputs[0].rows_width()?;
        let base = accumulate.then(|| inputs[1].at);
        Ok(scatter_rows(Rows { y, x: inputs[0].at, width, element }, runs, u64::from(rows), base))
    }
}

impl Lower for ops::GatherTokens {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let Operands { inputs, outputs, .. } = *o;
        let (y, element) = (outputs[0].at, o.element());
        let ops::GatherTokens { tokens } = self;
        let (_, width) = inputs[0].rows_width()?;
        Ok(gather_tokens(Rows { y, x: inputs[0].at, width, element }, kept(&inputs[1], *tokens)?))
    }
}

impl Lower for ops::ScatterTokens {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let Operands { inputs, outputs, .. } = *o;
        let (y, element) = (outputs[0].at, o.element());
        let ops::ScatterTokens { tokens } = self;
        let (_, width) = inputs[0].rows_width()?;
        Ok(scatter_tokens(Rows { y, x: inputs[0].at, width, element }, kept(&inputs[1], *tokens)?))
    }
}
