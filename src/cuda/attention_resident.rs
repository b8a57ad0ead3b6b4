//! Launches of `kernels/attention_resident.cu`: attention inside segments short enough for one block.

use super::kernel::{Call, Family, Given, KernelParams, kernel_params};
use crate::ir::{AttentionLayout, Segments};
use std::collections::BTreeMap;
use std::mem::offset_of;

kernel_params! {
    pub const LAYOUTS;
    Segment { query_row: u32, queries: u32, q_row: u32, key_row: u32, keys: u32, unused: u32 }
    ResidentParams {
        o: u64, lse: u64, q: u64, k: u64, v: u64, segments: u64, q_stride: u32, kv_stride: u32, heads: u32, scale: f32,
    }
    ResidentBackwardParams {
        dq: u64, dk: u64, dv: u64, grad: u64, o: u64, lse: u64, q: u64, k: u64, v: u64, segments: u64,
        q_stride: u32, kv_stride: u32, heads: u32, scale: f32, groups: u32, group_rows: u32, packed: u32, cool: f32,
    }
}

const WARP: u32 = 32;
/// Rows of a tile of `mma`.
const TILE: usize = 16;
/// Queries of a backward step: TILE_Q of the kernels.
const TILE_Q: usize = 32;
/// Longest side of a segment: what the most warps of a block own in either pass.
const LONGEST: usize = 256;
/// Dynamic shared memory that a block may have on every supported GPU, bytes.
const MOST_SHARED: usize = 99 << 10;

/// Keys of a backward warp: TILE_M of the kernels. The sums of wide heads fill the registers with one tile.
const fn tile_m(head: usize) -> usize {
    if head == 32 { 2 * TILE } else { TILE }
}

/// Addresses of q, k, v (or of their gradients) and their strides in elements.
pub struct Parts {
    pub at: [u64; 3],
    pub strides: [u32; 2],
}

/// What both passes know of an op.
pub struct Resident<'a> {
    /// Width of a head.
    pub head: usize,
    pub heads: u32,
    pub layout: AttentionLayout,
    pub segments: &'a Segments,
}

/// Segments of one launch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Class {
    queries: usize,
    keys: usize,
}

impl Class {
    fn of(queries: usize, keys: usize, tile_m: usize) -> Self {
        Class { queries: queries.next_multiple_of(TILE), keys: keys.next_multiple_of(tile_m) }
    }

    fn forward_shared(self, head: usize) -> usize {
        (2 * self.keys + self.queries) * head * 2
    }

    /// Rows of keys, values and of two tiles of score gradients; two stages of queries and their gradients; two numbers
    /// for each query.
    fn backward_shared(self, head: usize, groups: usize) -> usize {
        let queries = groups * self.queries.next_multiple_of(TILE_Q);
        self.keys * (4 * head + 4 * TILE_Q) + 4 * TILE_Q * head * 2 + queries * 2 * size_of::<f32>()
    }
}

/// Whether both passes take heads of width `head`; those of `kernels/attention.cu` take every op.
pub fn takes(segments: &Segments, head: usize, bf16: bool) -> bool {
    let groups = segments.kv_groups.max(1);
    let fits = |queries: usize, keys: usize| {
        let class = Class::of(queries, keys, tile_m(head));
        let shared = class.forward_shared(head).max(class.backward_shared(head, groups));
        keys > 0 && class.queries.max(class.keys) <= LONGEST && shared <= MOST_SHARED
    };
    bf16 && matches!(head, 32 | 64) && segments.runs.iter().all(|r| r.count == 0 || fits(r.queries, r.keys))
}

impl Resident<'_> {
    /// Segments by class, the longest first: short ones fill the multiprocessors that long ones leave.
    fn classes(&self, groups: usize, tile_m: usize) -> Vec<(Class, Vec<Segment>)> {
        let mut classes: BTreeMap<Class, Vec<Segment>> = BTreeMap::new();
        for (query_row, queries, key_row, keys) in self.segments.iter().take(self.segments.count() / groups) {
            let class = Class::of(queries, keys, tile_m);
            // Rows are counted in 32 bits: the operands were checked.
            let [query_row, queries, key_row, keys] = [query_row, queries, key_row, keys].map(|n| n as u32);
            let q_row = if self.layout == AttentionLayout::Packed { key_row } else { query_row };
            let segment = Segment { query_row, queries, q_row, key_row, keys, unused: 0 };
            classes.entry(class).or_default().push(segment);
        }
        classes.into_iter().rev().collect()
    }

    fn call<P: KernelParams>(
        &self,
        kernel: &'static str,
        params: &P,
        (at, segments): (usize, &[Segment]),
        warps: usize,
        shared: usize,
    ) -> Call {
        let blocks = segments.len() as u32;
        let mut call = Call::new(Family::AttentionResident, kernel, blocks, warps as u32 * WARP, params)
            .table(at, bytemuck::cast_slice(segments).to_vec());
        call.given = given(self.head);
        call.grid[1] = self.heads;
        call.shared = shared as u32;
        call
    }

    fn scale(&self) -> f32 {
        (self.head as f64).powf(-0.5) as f32
    }

    pub fn forward(&self, [o, lse]: [u64; 2], x: &Parts) -> Vec<Call> {
        let Parts { at: [q, k, v], strides: [q_stride, kv_stride] } = *x;
        let (heads, scale) = (self.heads, self.scale());
        let params = ResidentParams { o, lse, q, k, v, segments: 0, q_stride, kv_stride, heads, scale };
        let mut calls = Vec::new();
        for (class, segments) in self.classes(1, TILE) {
            if class.queries == 0 {
                continue;
            }
            // A warp for each tile of queries, and enough to load the keys of few.
            let warps = (class.queries / TILE).max(class.keys / 64);
            let table = (offset_of!(ResidentParams, segments), &segments[..]);
            calls.push(self.call(
                "attention_resident",
                &params,
                table,
                warps,
                class.forward_shared(self.head),
            ));
        }
        calls
    }

    /// `saved` are the gradient of the output, the output and its log-sum-exp, of `rows` queries; `dx` the gradients of `x`.
    pub fn backward(&self, dx: &Parts, [grad, o, lse]: [u64; 3], x: &Parts, rows: u32) -> Vec<Call> {
        let Parts { at: [q, k, v], strides: [q_stride, kv_stride] } = *x;
        let [dq, dk, dv] = dx.at;
        let (heads, scale, groups) = (self.heads, self.scale(), self.segments.kv_groups.max(1));
        let params = ResidentBackwardParams {
            dq,
            dk,
            dv,
            grad,
            o,
            lse,
            q,
            k,
            v,
            segments: 0,
            q_stride,
            kv_stride,
            heads,
            scale,
            groups: groups as u32,
            group_rows: rows / groups as u32,
            packed: u32::from(self.layout == AttentionLayout::Packed),
            cool: scale * std::f32::consts::LOG2_E,
        };
        let (at, tile_m) = (offset_of!(ResidentBackwardParams, segments), tile_m(self.head));
        let call = |(class, segments): (Class, Vec<Segment>)| {
            let (warps, shared) = (class.keys / tile_m, class.backward_shared(self.head, groups));
            self.call("attention_resident_backward", &params, (at, &segments), warps, shared)
        };
        self.classes(groups, tile_m).into_iter().map(call).collect()
    }
}

fn given(head: usize) -> Given {
    vec![("HEAD", head), ("TILE_M", tile_m(head)), ("TILE_Q", TILE_Q)]
}

/// Constants with which the recipes compile the kernels, which are for bf16 alone.
pub fn variants(bf16: bool) -> Vec<Given> {
    if bf16 { vec![given(32), given(64)] } else { Vec::new() }
}
