//! Launches of `kernels/pointwise.cu`.

use super::kernel::{Call, Family, kernel_params};
use crate::tensor::DType;

kernel_params! {
    pub const LAYOUTS;
    UnaryParams { y: u64, x: u64, n: u64, factor: f32, unused: u32 }
    BinaryParams { y: u64, a: u64, b: u64, n: u64 }
    GateParams { da: u64, db: u64, dy: u64, a: u64, b: u64, n: u64 }
    SegmentParams { y: u64, x: u64, factors: u64, start: u64, rows: u64, len: u32, width: u32 }
    SumParams { y: u64, x: [u64; MOST_TERMS], weight: [f32; MOST_TERMS], terms: u32, unused: u32 }
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

/// Rows to unit length, or the gradient of it; see the struct in the kernel's file.
pub fn normalize(kernel: &'static str, params: &NormalizeParams) -> Call {
    Call::new(Family::Pointwise, kernel, params.rows.div_ceil(ROWS).max(1), THREADS, params).given("VEC", 1)
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
