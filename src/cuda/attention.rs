//! Attention inside segments of a token stream.

use super::attention_resident::{Parts, Resident, takes};
use super::kernel::{Call, Family, Given, kernel_params};
use super::lower::{Lower, Lowered, Operand, Operands};
use crate::ir::{AttentionLayout, Segments, ops};
use crate::plan::OperandType;
use crate::tensor::DType;
use std::mem::offset_of;

kernel_params! {
    pub const LAYOUTS;
    Item { query_row: u32, queries: u32, q_row: u32, key_row: u32, keys: u32, first: u32 }
    AttentionParams {
        o: u64, lse: u64, q: u64, k: u64, v: u64, items: u64, q_stride: u32, kv_stride: u32, heads: u32, scale: f32,
    }
    AttentionBackwardParams {
        dq: u64, dk: u64, dv: u64, delta: u64, grad: u64, o: u64, lse: u64, q: u64, k: u64, v: u64, items: u64,
        q_stride: u32, kv_stride: u32, heads: u32, scale: f32, rows: u32, groups: u32, group_rows: u32, packed: u32,
    }
}

/// Threads of a block.
const THREADS: u32 = 128;
/// Widest head: its tiles fill the shared memory that every kernel may have.
const WIDEST: u32 = 128;

/// Rows of an item: OUTER of the kernel.
fn outer(head: u32, element: DType) -> usize {
    match (element, head) {
        // Rows in shared memory are 64 bytes or a multiple of 128.
        (DType::Bf16, h) if h == 32 || h.is_multiple_of(64) => 64,
        (_, 0..=64) => 16,
        _ => 8,
    }
}

fn parts(x: &[Operand<'_>], layout: AttentionLayout, width: u32) -> Parts {
    let step = u64::from(width) * x[0].dtype.bytes() as u64;
    match layout {
        AttentionLayout::Packed => {
            let at = x[0].at;
            Parts { at: [at, at + step, at + 2 * step], strides: [3 * width; 2] }
        }
        AttentionLayout::Separate => {
            Parts { at: [x[0].at, x[1].at, x[1].at + step], strides: [width, 2 * width] }
        }
    }
}

/// Width of one head.
///
/// # Errors
/// A head wider than the kernels take.
fn head(width: u32, heads: usize) -> Result<(u32, u32), String> {
    let heads = u32::try_from(heads).map_err(|_| "takes fewer heads".to_owned())?;
    let head = width / heads.max(1);
    if head > WIDEST {
        return Err(format!("takes heads of up to {WIDEST} columns, not {head}"));
    }
    Ok((head, heads))
}

/// Stretches of `outer` rows of every segment, of its queries or of its keys.
fn items(segments: &Segments, layout: AttentionLayout, outer: usize, of_keys: bool) -> Vec<Item> {
    let groups = if of_keys { segments.kv_groups.max(1) } else { 1 };
    let mut items = Vec::new();
    // Key segments are those of the first group.
    for (query_row, queries, key_row, keys) in segments.iter().take(segments.count() / groups) {
        for first in (0..if of_keys { keys } else { queries }).step_by(outer) {
            // Rows are counted in 32 bits: the operands were checked.
            let [query_row, queries, key_row, keys, first] =
                [query_row, queries, key_row, keys, first].map(|n| n as u32);
            let q_row = if layout == AttentionLayout::Packed { key_row } else { query_row };
            items.push(Item { query_row, queries, q_row, key_row, keys, first });
        }
    }
    items
}

fn call<P: super::kernel::KernelParams>(
    kernel: &'static str,
    params: &P,
    items_at: usize,
    items: &[Item],
    (head, heads): (u32, u32),
) -> Call {
    let mut call = Call::new(Family::Attention, kernel, items.len().max(1) as u32, THREADS, params)
        .given("HEAD", head as usize)
        .table(items_at, bytemuck::cast_slice(items).to_vec());
    call.grid[1] = heads;
    call
}

impl Lower for ops::Attention {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let &ops::Attention { heads, layout, ref segments } = self;
        let (_, width) = o.outputs[0].rows_width()?;
        o.inputs.iter().try_for_each(|x| x.rows_width().map(|_| ()))?;
        let size = head(width, heads)?;
        let x = parts(o.inputs, layout, width);
        if takes(segments, size.0 as usize, o.element() == DType::Bf16) {
            let resident = Resident { head: size.0 as usize, heads: size.1, layout, segments };
            return Ok(resident.forward([o.outputs[0].at, o.outputs[1].at], &x));
        }
        let Parts { at: [q, k, v], strides: [q_stride, kv_stride] } = x;
        let items = items(segments, layout, outer(size.0, o.element()), false);
        if items.is_empty() {
            return Ok(Vec::new());
        }
        let params = AttentionParams {
            o: o.outputs[0].at,
            lse: o.outputs[1].at,
            q,
            k,
            v,
            items: 0,
            q_stride,
            kv_stride,
            heads: size.1,
            scale: (f64::from(size.0).powf(-0.5)) as f32,
        };
        Ok(vec![call("attention", &params, offset_of!(AttentionParams, items), &items, size)])
    }
}

impl Lower for ops::AttentionBackward {
    fn workspace(&self, inputs: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        let &ops::AttentionBackward { heads, ref segments, .. } = self;
        let (rows, width) = inputs[0].shape.as_matrix();
        let bf16 = inputs.iter().any(|x| x.dtype == DType::Bf16);
        if takes(segments, width / heads.max(1), bf16) { 0 } else { rows * heads * size_of::<f32>() }
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let &ops::AttentionBackward { heads, layout, ref segments } = self;
        let (rows, width) = o.inputs[0].rows_width()?;
        o.inputs.iter().try_for_each(|x| x.rows_width().map(|_| ()))?;
        let size = head(width, heads)?;
        let (x, dx) = (parts(&o.inputs[3..], layout, width), parts(o.outputs, layout, width));
        if takes(segments, size.0 as usize, o.element() == DType::Bf16) {
            let resident = Resident { head: size.0 as usize, heads: size.1, layout, segments };
            return Ok(resident.backward(&dx, [0, 1, 2].map(|i: usize| o.inputs[i].at), &x, rows));
        }
        let Parts { at: [q, k, v], strides: [q_stride, kv_stride] } = x;
        let [dq, dk, dv] = dx.at;
        let groups = segments.kv_groups.max(1) as u32;
        let params = AttentionBackwardParams {
            dq,
            dk,
            dv,
            delta: o.scratch,
            grad: o.inputs[0].at,
            o: o.inputs[1].at,
            lse: o.inputs[2].at,
            q,
            k,
            v,
            items: 0,
            q_stride,
            kv_stride,
            heads: size.1,
            scale: (f64::from(size.0).powf(-0.5)) as f32,
            rows,
            groups,
            group_rows: rows / groups,
            packed: u32::from(layout == AttentionLayout::Packed),
        };
        let warps = u64::from(rows) * u64::from(size.1);
        let blocks = u32::try_from(warps.div_ceil(u64::from(THREADS / 32)))
            .map_err(|_| "takes fewer rows and heads".to_owned())?;
        let delta = Call::new(Family::Attention, "attention_delta", blocks.max(1), THREADS, &params)
            .given("HEAD", size.0 as usize);
        let outer = outer(size.0, o.element());
        let at = offset_of!(AttentionBackwardParams, items);
        let mut calls = vec![delta];
        for (kernel, of_keys) in [("attention_backward_queries", false), ("attention_backward_keys", true)] {
            let items = items(segments, layout, outer, of_keys);
            if !items.is_empty() {
                calls.push(call(kernel, &params, at, &items, size));
            }
        }
        Ok(calls)
    }
}

/// Constants with which the recipes compile the kernels.
pub fn variants() -> Vec<Given> {
    [32, 64, 128].map(|head| vec![("HEAD", head)]).to_vec()
}
