//! The prototype cross-entropy and what else reads the expert's distributions, a chunk of prototypes at a time.

use super::choices::Choices;
use super::embed::{self, Run};
use super::gemm::{self};
use super::kernel::{Call, Family, Given, KernelParams, kernel_params};
use super::lower::{Lower, Lowered, Operand, Operands};
use super::pointwise::{THREADS, vector};
use super::product::{Finish, Product};
use super::prototype_ce_sm90 as sm90;
use super::prototype_extent::{Extent, Layout, SPAN, extent};
use crate::ir::ops::{self, Temperature};
use crate::plan::OperandType;
use crate::tensor::DType;

kernel_params! {
    pub const LAYOUTS;
    ChunkParams {
        student: u64, expert: u64, center: u64, temperatures: u64, parts: u64, each: u64, images: u32, views: u32,
        count: u32, unused: u32,
    }
    MergeParams {
        lse: u64, lse_t: u64, parts: u64, each: u64, count: u32, images: u32, views: u32, unused: u32,
    }
    CrossEntropyParams {
        loss: u64, lse: u64, lse_t: u64, parts: u64, each: u64, count: u32, images: u32, views: u32, unused: u32,
    }
    GradientParams {
        gradient: u64, student: u64, expert: u64, center: u64, temperatures: u64, dloss: u64, lse: u64, lse_t: u64,
        images: u32, views: u32, count: u32, unused: u32,
    }
    SumPartsParams { y: u64, parts: u64, n: u64, count: u32, unused: u32 }
    EntropyParams {
        parts: u64, expert: u64, center: u64, temperatures: u64, lse_t: u64, rows: u32, count: u32,
    }
    SpreadParams {
        y: u64, lengths: u64, deviations: u64, parts: u64, features: u64, blocks: u64, rows: u32, width: u32,
    }
    CenterParams {
        center: u64, sum: u64, wt: u64, temperatures: u64, health: u64, count: u32, width: u32, rows: u32, unused: u32,
    }
}

/// Threads of the block that adds up all pairs of views.
const PAIRS_AT_ONCE: u32 = 1024;

/// The logits of a chunk and what is left of it; offsets from the workspace's start.
struct Places {
    student: u64,
    expert: u64,
    parts: u64,
    gradient: u64,
    dz: u64,
    end: u64,
}

/// How `dz` is summed over a chunk: splits of it, and prototypes of each.
fn dz_splits(e: &Extent) -> (u32, u32) {
    gemm::splits(e.rows, e.width, e.widest() as u32)
}

fn places(e: &Extent, backward: Option<DType>) -> Places {
    let mut layout = Layout::default();
    let student = layout.take(u64::from(e.rows) * e.widest() * 4);
    let expert = layout.take(u64::from(e.expert_rows) * e.widest() * 4);
    let (mut parts, mut gradient, mut dz) = (0, 0, 0);
    match backward {
        None => parts = layout.take(u64::from(e.parts()) * e.part() * 4),
        Some(element) => {
            gradient = layout.take(u64::from(e.rows) * e.widest() * element.bytes() as u64);
            dz = layout.take(u64::from(dz_splits(e).0) * u64::from(e.rows) * u64::from(e.width) * 4);
        }
    }
    Places { student, expert, parts, gradient, dz, end: layout.end }
}

/// Where temperatures are, as the kernels name them.
const PLACES: [(&str, usize); 3] = [
    ("STUDENT_TEMP", Temperature::Student as usize),
    ("TEACHER_TEMP", Temperature::Teacher as usize),
    ("CENTER_MOMENTUM", Temperature::CenterMomentum as usize),
];

/// Prototypes that an instruction reads, of `prototypes` in all: chunks are multiples of it.
fn vec(prototypes: u32, addresses: &[u64]) -> usize {
    vector(u64::from(prototypes), DType::F32, addresses) as usize
}

fn given(vec: usize) -> Given {
    let own = [("SPAN", SPAN as usize), ("PAIRS_AT_ONCE", PAIRS_AT_ONCE as usize), ("VEC", vec)];
    PLACES.into_iter().chain(own).collect()
}

fn call<P: KernelParams>(kernel: &'static str, blocks: u32, params: &P, vec: usize) -> Call {
    let mut call = Call::new(Family::PrototypeCe, kernel, blocks.max(1), THREADS, params);
    call.given = given(vec);
    call
}

/// Cosines of `z: [rows, d]` with the prototypes of a chunk of `w`, in float at `to`.
fn cosines(
    to: u64,
    z: u64,
    rows: u32,
    w: &Operand<'_>,
    e: &Extent,
    (first, count): (u32, u32),
    choices: &Choices,
) -> Result<Call, String> {
    let mut product = Product::new(rows, count, e.width);
    product.finish = Finish::Wide;
    (product.params.a, product.params.b) = (z, row(w, first, e.width));
    product.params.partial = to;
    product.call(w.dtype, choices)
}

/// Address of row `i` of `x`, `width` wide.
fn row(x: &Operand<'_>, i: u32, width: u32) -> u64 {
    x.at + u64::from(i) * u64::from(width) * x.dtype.bytes() as u64
}

/// Places of [`expert_statistics`]: logits, entropies per block, lengths, deviations, end.
fn statistics_places(e: &Extent, dim: u64) -> [u64; 5] {
    let mut layout = Layout::default();
    let expert = layout.take(u64::from(e.expert_rows) * e.widest() * 4);
    let parts = u64::from(e.prototypes.div_ceil(32) + e.chunks().count() as u32);
    let parts = layout.take(parts.max(sm90::entropy_parts(e)) * 8);
    let lengths = layout.take(u64::from(e.expert_rows) * 4);
    let deviations = layout.take(dim * 4);
    [expert, parts, lengths, deviations, layout.end]
}

impl Lower for ops::PrototypeCrossEntropy {
    fn workspace(&self, inputs: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        let e = Extent::of(inputs[0].shape, inputs[1].shape, inputs[2].shape);
        // The device that the memory is for is not known here.
        let hopper = sm90::takes_sizes(&e, inputs[0].dtype).then(|| sm90::forward_workspace(&e));
        places(&e, None).end.max(hopper.unwrap_or(0)) as usize
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let e = extent(o, 0)?;
        let [z, w, zt, wt] = [0, 1, 2, 3].map(|i: usize| &o.inputs[i]);
        if sm90::takes(&e, &[z, w, zt, wt], o.element(), o.choices) {
            return Ok(sm90::cross_entropy(o, &e));
        }
        let at = places(&e, None);
        let [student, expert, parts] = [at.student, at.expert, at.parts].map(|p| o.scratch + p);
        let (images, views) = (e.images(), e.views());
        let vec = vec(e.prototypes, &[student, expert, o.inputs[4].at]);
        let (mut calls, mut part, each) = (Vec::new(), parts, e.part());
        for (first, count) in e.chunks() {
            calls.push(cosines(student, z.at, e.rows, w, &e, (first, count), o.choices)?);
            calls.push(cosines(expert, zt.at, e.expert_rows, wt, &e, (first, count), o.choices)?);
            let (center, temperatures) = (row(&o.inputs[4], first, 1), o.inputs[5].at);
            let params = ChunkParams {
                student,
                expert,
                center,
                temperatures,
                parts: part,
                each,
                images,
                views,
                count,
                unused: 0,
            };
            let mut sums = call("chunk_sums", images, &params, vec);
            sums.grid[1] = count.div_ceil(SPAN);
            // Of each warp: tops and sums of an image's rows, cross terms.
            sums.shared = THREADS / 32 * (2 * (views + 2) + 2 * views) * 4;
            part += u64::from(sums.grid[1]) * each * 4;
            calls.push(sums);
        }
        let count = e.parts();
        let [loss, lse, lse_t] = [0, 1, 2].map(|i: usize| o.outputs[i].at);
        let merge = MergeParams { lse, lse_t, parts, each, count, images, views, unused: 0 };
        calls.push(call("merge_parts", (e.rows + e.expert_rows).div_ceil(THREADS), &merge, vec));
        let last = CrossEntropyParams { loss, lse, lse_t, parts, each, count, images, views, unused: 0 };
        let mut pairs = call("cross_entropy", 1, &last, vec);
        pairs.block[0] = PAIRS_AT_ONCE;
        calls.push(pairs);
        Ok(calls)
    }
}

impl Lower for ops::PrototypeCrossEntropyBackward {
    fn workspace(&self, inputs: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        let e = Extent::of(inputs[1].shape, inputs[2].shape, inputs[3].shape);
        let hopper = sm90::takes_sizes(&e, inputs[1].dtype).then(|| sm90::backward_workspace(&e));
        places(&e, Some(inputs[1].dtype)).end.max(hopper.unwrap_or(0)) as usize
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let (e, element) = (extent(o, 1)?, o.element());
        let [z, w, zt, wt] = [1, 2, 3, 4].map(|i: usize| &o.inputs[i]);
        if sm90::takes(&e, &[z, w, zt, wt, &o.outputs[1]], element, o.choices) {
            return Ok(sm90::gradients(o, &e));
        }
        let at = places(&e, Some(element));
        let [student, expert, gradient, dz] =
            [at.student, at.expert, at.gradient, at.dz].map(|p| o.scratch + p);
        let (images, views) = (e.images(), e.views());
        let (splits, each) = dz_splits(&e);
        let vec = vec(e.prototypes, &[student, expert, gradient, o.inputs[5].at]);
        let mut calls = Vec::new();
        for (first, count) in e.chunks() {
            calls.push(cosines(student, z.at, e.rows, w, &e, (first, count), o.choices)?);
            calls.push(cosines(expert, zt.at, e.expert_rows, wt, &e, (first, count), o.choices)?);
            let [center, temperatures] = [row(&o.inputs[5], first, 1), o.inputs[6].at];
            let [dloss, lse, lse_t] = [0, 7, 8].map(|i: usize| o.inputs[i].at);
            let params = GradientParams {
                gradient,
                student,
                expert,
                center,
                temperatures,
                dloss,
                lse,
                lse_t,
                images,
                views,
                count,
                unused: 0,
            };
            let mut slope = call("chunk_gradient", count.div_ceil(THREADS * vec as u32), &params, vec);
            slope.grid[1] = images.max(1);
            calls.push(slope);
            let mut along = Product::new(e.rows, e.width, count);
            (along.b_trans, along.splits) = (true, splits);
            along.finish = if first == 0 { Finish::Wide } else { Finish::Add };
            (along.params.a, along.params.b) = (gradient, row(w, first, e.width));
            (along.params.partial, along.params.each) = (dz, each);
            calls.push(along.call(element, o.choices)?);
            let mut across = Product::new(count, e.width, e.rows);
            (across.a_trans, across.b_trans, across.finish) = (true, true, Finish::Wide);
            (across.params.a, across.params.b) = (gradient, z.at);
            across.params.partial = row(&o.outputs[1], first, e.width);
            calls.push(across.call(element, o.choices)?);
        }
        let n = u64::from(e.rows) * u64::from(e.width);
        let sum = SumPartsParams { y: o.outputs[0].at, parts: dz, n, count: splits, unused: 0 };
        calls.push(call("sum_parts", n.div_ceil(u64::from(THREADS)) as u32, &sum, vec));
        Ok(calls)
    }
}

impl Lower for ops::ExpertStatistics {
    fn workspace(&self, inputs: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        let e = Extent::of(inputs[0].shape, inputs[1].shape, inputs[0].shape);
        statistics_places(&e, inputs[5].shape.as_matrix().1 as u64)[4] as usize
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let [zt, wt, center, temperatures, lse_t, features] = [0, 1, 2, 3, 4, 5].map(|i: usize| &o.inputs[i]);
        let (_, width) = features.rows_width()?;
        let e = Extent::of(zt.shape, wt.shape, zt.shape);
        let [expert, parts, lengths, deviations, _] =
            statistics_places(&e, u64::from(width)).map(|p| o.scratch + p);
        let vec = vec(e.prototypes, &[expert, center.at]);
        let (mut calls, mut blocks) = (Vec::new(), 0);
        let hopper = sm90::takes(&e, &[zt, wt], zt.dtype, o.choices);
        if hopper {
            calls.push(sm90::entropies(o, &e, parts));
            blocks = sm90::entropy_parts(&e);
        }
        for (first, count) in e.chunks().take_while(|_| !hopper) {
            calls.push(cosines(expert, zt.at, e.expert_rows, wt, &e, (first, count), o.choices)?);
            let params = EntropyParams {
                parts: parts + blocks * 8,
                expert,
                center: row(center, first, 1),
                temperatures: temperatures.at,
                lse_t: lse_t.at,
                rows: e.expert_rows,
                count,
            };
            calls.push(call("chunk_entropy", count.div_ceil(32), &params, vec));
            blocks += u64::from(count.div_ceil(32));
        }
        let (y, features) = (o.outputs[0].at, features.at);
        let params =
            SpreadParams { y, lengths, deviations, parts, features, blocks, rows: e.expert_rows, width };
        calls.push(call("feature_lengths", e.expert_rows.div_ceil(THREADS / 32), &params, vec));
        calls.push(call("feature_deviations", width, &params, vec));
        calls.push(call("expert_statistics", 1, &params, vec));
        Ok(calls)
    }
}

impl Lower for ops::CenterUpdate {
    fn workspace(&self, inputs: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        inputs[1].shape.as_matrix().1 * size_of::<f32>()
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let [center, zt, wt, temperatures, health] = [0, 1, 2, 3, 4].map(|i: usize| &o.inputs[i]);
        let ((rows, width), (count, _)) = (zt.rows_width()?, wt.rows_width()?);
        let all = [Run { start: 0, stride: 1, count: u64::from(rows) }];
        let sum = embed::sum_rows("sum_rows_narrow", o.scratch, zt.at, width, &all);
        let params = CenterParams {
            center: center.at,
            sum: o.scratch,
            wt: wt.at,
            temperatures: temperatures.at,
            health: health.at,
            count,
            width,
            rows,
            unused: 0,
        };
        Ok(vec![sum, call("center_update", count.div_ceil(THREADS / 32), &params, vec(count, &[center.at]))])
    }
}

/// Constants with which the recipes compile the kernels.
pub fn variants() -> Vec<Given> {
    [1, 4].map(given).to_vec()
}
