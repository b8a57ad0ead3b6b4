//! Launches of `kernels/pointwise.cu`.

use super::kernel::{Call, Family, kernel_params};
use super::lower::{Lower, Lowered, Operands};
use crate::ir::ops;
use crate::plan::OperandType;
use crate::tensor::DType;

kernel_params! {
    pub const LAYOUTS;
    UnaryParams { y: u64, x: u64, n: u64, factor: f32, unused: u32 }
    BinaryParams { y: u64, a: u64, b: u64, n: u64 }
    GateParams { da: u64, db: u64, dy: u64, a: u64, b: u64, n: u64 }
    SegmentParams { y: u64, x: u64, factors: u64, start: u64, rows: u64, len: u32, width: u32 }
    SumParams { y: u64, x: [u64; MOST_TERMS], weight: [f32; MOST_TERMS], terms: u32, unused: u32 }
    RowScaleParams { y: u64, dfactors: u64, x: u64, rows_before: u64, factors: u64, rows: u32, width: u32 }
    NormalizeParams { y: u64, norm: u64, x: u64, unit: u64, rows: u32, width: u32, eps: f32, unused: u32 }
}

/// Threads of a block.
pub(super) const THREADS: u32 = 256;
/// Blocks that keep any GPU busy; more elements are taken in turns.
const MOST_BLOCKS: u64 = 8192;
/// Rows of a block in the kernels that give each row a warp.
const ROWS: u32 = THREADS / 32;

/// Elements that one instruction can move: 16 bytes if counts and addresses allow.
pub(super) fn vector(n: u64, element: DType, addresses: &[u64]) -> u64 {
    let most = 16 / element.bytes() as u64;
    if n.is_multiple_of(most) && addresses.iter().all(|a| a.is_multiple_of(16)) { most } else { 1 }
}

/// Threads beside each other for `packs` of channels: whole cache lines of 128 bytes where there are as many, and few threads
/// without channels.
pub(super) fn columns(packs: u32) -> u32 {
    let waste = |columns: &u32| packs.next_multiple_of(*columns);
    match packs {
        0..8 => packs.max(1).next_power_of_two(),
        _ => [32, 16, 8].into_iter().min_by_key(waste).unwrap_or(8),
    }
}

/// Blocks of [`THREADS`] for `threads` threads.
pub(super) fn blocks(threads: u64) -> u32 {
    // At most MOST_BLOCKS, so the conversion loses nothing.
    threads.div_ceil(u64::from(THREADS)).clamp(1, MOST_BLOCKS) as u32
}

/// `y = f(x)` by the kernel of that name; `x` is 0 for one that reads nothing.
pub fn unary(kernel: &'static str, y: u64, x: u64, n: u64, factor: f64, element: DType) -> Call {
    let vec = vector(n, element, &[x, y]);
    let params = UnaryParams { y, x, n, factor: factor as f32, unused: 0 };
    Call::new(Family::Pointwise, kernel, blocks(n / vec), THREADS, &params).given("VEC", vec as usize)
}

/// `y = x` in another type.
pub fn cast(y: u64, x: u64, n: u64, from: DType, to: DType) -> Call {
    let vec = vector(n, if from.bytes() > to.bytes() { from } else { to }, &[x, y]);
    let params = UnaryParams { y, x, n, factor: 0.0, unused: 0 };
    let kernel = if to == DType::F32 { "widen" } else { "narrow" };
    Call::new(Family::Pointwise, kernel, blocks(n / vec), THREADS, &params).given("VEC", vec as usize)
}

/// `y = f(a, b)` by the kernel of that name.
pub fn binary(kernel: &'static str, y: u64, a: u64, b: u64, n: u64, element: DType) -> Call {
    let vec = vector(n, element, &[y, a, b]);
    let params = BinaryParams { y, a, b, n };
    Call::new(Family::Pointwise, kernel, blocks(n / vec), THREADS, &params).given("VEC", vec as usize)
}

/// `da` and `db` of `relu6(a) * b`, `n` elements each.
pub fn relu6_gate_backward(params: &GateParams, element: DType) -> Call {
    let GateParams { da, db, dy, a, b, n } = *params;
    let vec = vector(n, element, &[da, db, dy, a, b]);
    let blocks = blocks(n / vec);
    Call::new(Family::Pointwise, "relu6_gate_backward", blocks, THREADS, params).given("VEC", vec as usize)
}

/// Terms of one weighted sum: MOST_TERMS of the kernel.
const MOST_TERMS: usize = 8;

/// `y = sum of weight * x`, one element each.
///
/// # Errors
/// More terms than the kernel takes.
pub fn weighted_sum(y: u64, x: &[u64], weights: &[f64]) -> Result<Call, String> {
    if x.len() > MOST_TERMS || weights.len() != x.len() {
        return Err(format!("takes at most {MOST_TERMS} terms, each with its weight"));
    }
    let mut params = SumParams { y, x: [0; MOST_TERMS], weight: [0.0; MOST_TERMS], terms: 0, unused: 0 };
    for (i, (x, weight)) in x.iter().zip(weights).enumerate() {
        (params.x[i], params.weight[i]) = (*x, *weight as f32);
        params.terms += 1;
    }
    Ok(Call::new(Family::Pointwise, "weighted_sum", 1, 1, &params).given("VEC", 1))
}

/// Rows of `width` times the factor of their segment; `segments` lists `(count, rows)`.
pub fn scale_segments(y: u64, x: u64, factors: u64, width: u32, segments: &[(usize, usize)]) -> Vec<Call> {
    let (mut start, mut first) = (0, 0);
    let mut calls = Vec::with_capacity(segments.len());
    for &(count, len) in segments {
        let (count, len) = (count as u64, len as u64);
        let rows = count * len;
        let factors = factors + first * size_of::<f32>() as u64;
        let params = SegmentParams { y, x, factors, start, rows, len: len as u32, width };
        let blocks = blocks(rows * u64::from(width));
        calls.push(Call::new(Family::Pointwise, "scale_segments", blocks, THREADS, &params).given("VEC", 1));
        (start, first) = (start + rows, first + count);
    }
    calls
}

/// Rows times factors, or the gradient of it; see the struct in the kernel's file.
pub fn row_scale(kernel: &'static str, params: &RowScaleParams) -> Call {
    Call::new(Family::Pointwise, kernel, params.rows.div_ceil(ROWS).max(1), THREADS, params).given("VEC", 1)
}

/// Rows to unit length, or the gradient of it; see the struct in the kernel's file.
pub fn normalize(kernel: &'static str, params: &NormalizeParams) -> Call {
    Call::new(Family::Pointwise, kernel, params.rows.div_ceil(ROWS).max(1), THREADS, params).given("VEC", 1)
}

impl Lower for ops::Gelu {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let Operands { inputs, outputs, .. } = *o;
        let (y, n, element) = (outputs[0].at, outputs[0].count(), o.element());
        Ok(vec![unary("gelu_forward", y, inputs[0].at, n, 0.0, element)])
    }
}

impl Lower for ops::GeluBackward {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let Operands { inputs, outputs, .. } = *o;
        let (y, n, element) = (outputs[0].at, outputs[0].count(), o.element());
        Ok(vec![binary("gelu_backward", y, inputs[0].at, inputs[1].at, n, element)])
    }
}

impl Lower for ops::Relu {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let Operands { inputs, outputs, .. } = *o;
        let (y, n, element) = (outputs[0].at, outputs[0].count(), o.element());
        Ok(vec![unary("relu", y, inputs[0].at, n, 0.0, element)])
    }
}

impl Lower for ops::ReluBackward {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let Operands { inputs, outputs, .. } = *o;
        let (y, n, element) = (outputs[0].at, outputs[0].count(), o.element());
        Ok(vec![binary("relu_backward", y, inputs[0].at, inputs[1].at, n, element)])
    }
}

impl Lower for ops::Relu6 {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let Operands { inputs, outputs, .. } = *o;
        let (y, n, element) = (outputs[0].at, outputs[0].count(), o.element());
        Ok(vec![unary("relu6", y, inputs[0].at, n, 0.0, element)])
    }
}

impl Lower for ops::Relu6Backward {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let Operands { inputs, outputs, .. } = *o;
        let (y, n, element) = (outputs[0].at, outputs[0].count(), o.element());
        Ok(vec![binary("relu6_backward", y, inputs[0].at, inputs[1].at, n, element)])
    }
}

impl Lower for ops::Relu6Gate {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let Operands { inputs, outputs, .. } = *o;
        let (y, n, element) = (outputs[0].at, outputs[0].count(), o.element());
        Ok(vec![binary("relu6_gate", y, inputs[0].at, inputs[1].at, n, element)])
    }
}

impl Lower for ops::Relu6GateBackward {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let Operands { inputs, outputs, .. } = *o;
        let (y, n, element) = (outputs[0].at, outputs[0].count(), o.element());
        let [dy, a, b] = [0, 1, 2].map(|i: usize| inputs[i].at);
        let params = GateParams { da: y, db: outputs[1].at, dy, a, b, n };
        Ok(vec![relu6_gate_backward(&params, element)])
    }
}

impl Lower for ops::Add {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let Operands { inputs, outputs, .. } = *o;
        let (y, n, element) = (outputs[0].at, outputs[0].count(), o.element());
        Ok(vec![binary("add", y, inputs[0].at, inputs[1].at, n, element)])
    }
}

impl Lower for ops::Scale {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let Operands { inputs, outputs, .. } = *o;
        let (y, n, element) = (outputs[0].at, outputs[0].count(), o.element());
        let ops::Scale { factor } = self;
        Ok(vec![unary("scale", y, inputs[0].at, n, *factor, element)])
    }
}

impl Lower for ops::Fill {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let Operands { outputs, .. } = *o;
        let (y, n, element) = (outputs[0].at, outputs[0].count(), o.element());
        let ops::Fill { value, .. } = self;
        Ok(vec![unary("fill", y, 0, n, *value, element)])
    }
}

impl Lower for ops::Cast {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let Operands { inputs, outputs, .. } = *o;
        let (y, n) = (outputs[0].at, outputs[0].count());
        Ok(vec![cast(y, inputs[0].at, n, inputs[0].dtype, outputs[0].dtype)])
    }
}

impl Lower for ops::ScaleSegments {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let Operands { inputs, outputs, .. } = *o;
        let y = outputs[0].at;
        let ops::ScaleSegments { segments } = self;
        let (_, width) = inputs[0].rows_width()?;
        Ok(scale_segments(y, inputs[0].at, inputs[1].at, width, segments))
    }
}

impl Lower for ops::ScaleRows {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let Operands { inputs, outputs, .. } = *o;
        let (rows, width) = inputs[0].rows_width()?;
        let (y, x, factors) = (outputs[0].at, inputs[0].at, inputs[1].at);
        let params = RowScaleParams { y, dfactors: 0, x, rows_before: 0, factors, rows, width };
        Ok(vec![row_scale("scale_rows", &params)])
    }
}

impl Lower for ops::ScaleRowsBackward {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let Operands { inputs, outputs, .. } = *o;
        let (rows, width) = inputs[0].rows_width()?;
        let [y, dfactors] = [0, 1].map(|i: usize| outputs[i].at);
        let [x, rows_before, factors] = [0, 1, 2].map(|i: usize| inputs[i].at);
        let params = RowScaleParams { y, dfactors, x, rows_before, factors, rows, width };
        let wide = inputs[0].dtype == DType::F32;
        Ok(vec![row_scale(if wide { "scale_rows_backward_wide" } else { "scale_rows_backward" }, &params)])
    }
}

impl Lower for ops::L2Normalize {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let Operands { inputs, outputs, .. } = *o;
        let y = outputs[0].at;
        let ops::L2Normalize { eps } = self;
        let (rows, width) = inputs[0].rows_width()?;
        let (norm, x, eps) = (outputs[1].at, inputs[0].at, *eps as f32);
        Ok(vec![normalize(
            "l2_normalize",
            &NormalizeParams { y, norm, x, unit: 0, rows, width, eps, unused: 0 },
        )])
    }
}

impl Lower for ops::L2NormalizeBackward {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let Operands { inputs, outputs, .. } = *o;
        let y = outputs[0].at;
        let ops::L2NormalizeBackward { eps } = self;
        let (rows, width) = inputs[0].rows_width()?;
        let (x, unit, norm, eps) = (inputs[0].at, inputs[1].at, inputs[2].at, *eps as f32);
        let params = NormalizeParams { y, norm, x, unit, rows, width, eps, unused: 0 };
        let wide = inputs[0].dtype == DType::F32;
        let kernel = if wide { "l2_normalize_backward_wide" } else { "l2_normalize_backward" };
        Ok(vec![normalize(kernel, &params)])
    }
}

impl Lower for ops::WeightedSum {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let Operands { inputs, outputs, .. } = *o;
        let y = outputs[0].at;
        let ops::WeightedSum { weights } = self;
        let x: Vec<u64> = inputs.iter().map(|x| x.at).collect();
        Ok(vec![weighted_sum(y, &x, weights)?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_need_counts_and_addresses() {
        assert_eq!(vector(8, DType::F32, &[256, 512]), 4);
        assert_eq!(vector(8, DType::Bf16, &[256, 512]), 8);
        assert_eq!(vector(9, DType::F32, &[256, 512]), 1);
        assert_eq!(vector(8, DType::F32, &[256, 516]), 1);
    }

    #[test]
    fn grids_cover_small_and_huge_counts() {
        assert_eq!([0, 1, 256, 257].map(blocks), [1, 1, 1, 2]);
        assert_eq!(blocks(u64::MAX), 8192);
    }
}
