//! Launches of `kernels/prototype_ce_sm90.cu`: the prototype cross-entropy on Hopper, whose logits never leave registers.

use super::choices::Choices;
use super::driver::TensorMap;
use super::kernel::{Call, Family, Given, KernelParams, kernel_params};
use super::lower::{Operand, Operands};
use super::prototype_extent::{Extent, Layout};
use crate::ir::ops::Temperature;
use crate::tensor::DType;
use std::mem::offset_of;

kernel_params! {
    pub const LAYOUTS;
    /// The maps are the driver's to make.
    PrototypeSm90Params {
        student_rows: [u64; 16], student_stream: [u64; 16], expert_rows: [u64; 16], expert_stream: [u64; 16],
        expert_values: [u64; 16], temperatures: u64, center: u64, student: u64, expert: u64, dloss: u64, y: u64, ends: u64,
        images: u32, views: u32, count: u32, width: u32, each: u32, unused: [u32; 13],
    }
    PrototypeImageParams {
        lse: u64, lse_t: u64, parts: u64, student_ends: u64, expert_ends: u64, means: u64, z: u64, temperatures: u64,
        images: u32, views: u32, width: u32, student_spans: u32, expert_spans: u32, unused: u32,
    }
    PrototypeLossParams { loss: u64, parts: u64, images: u32, views: u32 }
    PrototypeRowsParams {
        student: u64, expert: u64, paired: u64, lse: u64, lse_t: u64, z: u64, images: u32, views: u32, width: u32,
        student_end: u32, expert_end: u32, unused: u32,
    }
    PrototypeFeatureParams {
        dz: u64, parts: u64, temperatures: u64, dloss: u64, images: u32, views: u32, width: u32, spans: u32,
    }
}

/// Rows that a block keeps, and of a tile of what streams by.
const KEPT: u32 = 128;
const TILE: u32 = 64;
const WIDE_TILE: u32 = 128;
/// Stages of either form: with the rows they fill a multiprocessor's memory.
const STAGES: u32 = 5;
const WIDE_STAGES: u32 = 10;
/// Threads of the kernels that multiply: two warpgroups, and one that copies.
const THREADS: u32 = 384;
/// Threads of the others.
const SMALL: u32 = 256;
/// Bytes of a swizzled row, and the elements that it holds.
const ROW: u32 = 128;
const EACH: u32 = 64;
/// Largest width of a product's sums.
const WIDEST: u32 = 256;

/// Whether the kernels take operands of these sizes.
pub fn takes_sizes(e: &Extent, element: DType) -> bool {
    // Tiles beyond the last are counted in 32 bits with a sign; rows of whole 16 bytes are what tensor copies take.
    let counted = |n: u32| n <= i32::MAX as u32 / 2;
    let rows = [e.rows, e.expert_rows, e.prototypes].into_iter().all(|n| n > 0 && counted(n));
    let views = e.images() > 0 && e.views() <= 4096;
    element == DType::Bf16 && rows && views && e.width > 0 && e.width.is_multiple_of(8) && e.width <= WIDEST
}

/// Whether the kernels take these operands on the device of `choices`: `wide` are those that tensor copies read or whose pairs
/// of numbers are stored at once.
pub fn takes(e: &Extent, wide: &[&Operand<'_>], element: DType, choices: &Choices) -> bool {
    choices.has_wgmma() && takes_sizes(e, element) && wide.iter().all(|x| x.at.is_multiple_of(16))
}

/// `(spans, tiles of each)` that `tiles` of prototypes are spread over where `rows` of them keep blocks busy. The device has no
/// say: sums have the same order on all.
fn spans(blocks: u32, tiles: u32) -> (u32, u32) {
    /// Blocks that a large GPU holds; tiles' time that a block takes besides; the most parts.
    const PLACES: u64 = 132;
    const BESIDES: u64 = 4;
    const MOST: u32 = 32;
    let cost = |s: &u32| {
        let rounds = (u64::from(blocks) * u64::from(*s)).div_ceil(PLACES);
        rounds * (u64::from(tiles.div_ceil(*s)) + BESIDES)
    };
    let spans = (1..=MOST.min(tiles.max(1))).min_by_key(cost).unwrap_or(1);
    let each = tiles.div_ceil(spans).max(1);
    (tiles.div_ceil(each).max(1), each)
}

/// How the prototypes are spread over blocks: for the expert's rows, the student's without values, and the gradient of all.
struct Spread {
    expert: (u32, u32),
    student: (u32, u32),
    both: (u32, u32),
}

impl Spread {
    fn of(e: &Extent) -> Self {
        let (student, expert) = (e.rows.div_ceil(KEPT), e.expert_rows.div_ceil(KEPT));
        Spread {
            expert: spans(expert, e.prototypes.div_ceil(TILE)),
            student: spans(student, e.prototypes.div_ceil(WIDE_TILE)),
            both: spans(student + expert, e.prototypes.div_ceil(TILE)),
        }
    }
}

/// Offsets of [`cross_entropy`]: means, ends of the expert, of the student, losses of images, end.
fn forward_places(e: &Extent) -> [u64; 5] {
    let (s, mut layout) = (Spread::of(e), Layout::default());
    let (expert, width) = (u64::from(s.expert.0) * u64::from(e.expert_rows), u64::from(e.width));
    let means = layout.take(expert * width * 4);
    let expert_ends = layout.take(expert * 8);
    let student_ends = layout.take(u64::from(s.student.0) * u64::from(e.rows) * 8);
    let losses = layout.take(u64::from(e.images()) * 8);
    [means, expert_ends, student_ends, losses, layout.end]
}

/// Offsets of [`gradients`]: tables of the student's and the expert's rows, paired rows, parts, end.
fn backward_places(e: &Extent) -> [u64; 5] {
    let (s, mut layout) = (Spread::of(e), Layout::default());
    let width = u64::from(e.width);
    let student = layout.take(u64::from(e.rows.next_multiple_of(KEPT)) * 4);
    let expert = layout.take(u64::from(e.expert_rows.next_multiple_of(KEPT)) * 4);
    let paired = layout.take(u64::from(e.expert_rows) * width * 2);
    let parts = layout.take(u64::from(s.both.0) * (u64::from(e.rows) + u64::from(e.expert_rows)) * width * 4);
    [student, expert, paired, parts, layout.end]
}

/// Bytes of scratch memory of [`cross_entropy`].
pub fn forward_workspace(e: &Extent) -> u64 {
    forward_places(e)[4]
}

/// Bytes of scratch memory of [`gradients`].
pub fn backward_workspace(e: &Extent) -> u64 {
    backward_places(e)[4]
}

/// Pairs that [`entropies`] leaves.
pub fn entropy_parts(e: &Extent) -> u64 {
    u64::from(e.prototypes.div_ceil(KEPT)) * 8
}

fn given(width: u32) -> Given {
    vec![
        ("WIDTH", width.next_multiple_of(EACH) as usize),
        ("KEPT", KEPT as usize),
        ("TILE", TILE as usize),
        ("STAGES", STAGES as usize),
        ("WIDE_TILE", WIDE_TILE as usize),
        ("WIDE_STAGES", WIDE_STAGES as usize),
        ("SMALL", SMALL as usize),
        ("STUDENT_TEMP", Temperature::Student as usize),
        ("TEACHER_TEMP", Temperature::Teacher as usize),
    ]
}

/// Constants with which the recipes compile the kernels.
pub fn variants() -> Vec<Given> {
    vec![given(WIDEST)]
}

/// What all products of an op are given; the pointers that not all have are 0.
fn params(e: &Extent, temperatures: u64, center: u64) -> PrototypeSm90Params {
    let none = [0; 16];
    let (images, views) = (e.images(), e.views());
    PrototypeSm90Params {
        student_rows: none,
        student_stream: none,
        expert_rows: none,
        expert_stream: none,
        expert_values: none,
        temperatures,
        center,
        student: 0,
        expert: 0,
        dloss: 0,
        y: 0,
        ends: 0,
        images,
        views,
        count: e.prototypes,
        width: e.width,
        each: 0,
        unused: [0; 13],
    }
}

/// A map of rows `width` wide, in boxes of `box_rows`.
fn map(at: u64, rows: u32, width: u32, box_rows: u32) -> TensorMap {
    TensorMap { at, rows, columns: width, box_rows, box_columns: EACH, windows: None }
}

/// A launch over blocks that multiply; `wide` without values.
fn multiply(kernel: &'static str, grid: [u32; 2], params: &PrototypeSm90Params, wide: bool) -> Call {
    let mut call = Call::new(Family::PrototypeCeSm90, kernel, grid[0].max(1), THREADS, params);
    let panels = params.width.div_ceil(EACH);
    let (stages, bytes) = if wide { (WIDE_STAGES, WIDE_TILE * ROW) } else { (STAGES, panels * TILE * ROW) };
    // Behind rows and stages two barriers of the rows and two a stage.
    call.shared = panels * KEPT * ROW + stages * bytes + 16 + 16 * stages;
    (call.grid[1], call.given) = (grid[1], given(params.width));
    call
}

fn small<P: KernelParams>(kernel: &'static str, blocks: u64, params: &P, width: u32) -> Call {
    // Blocks of 256 elements of matrices whose rows and columns kernels count.
    let blocks = blocks.clamp(1, i32::MAX as u64) as u32;
    let mut call = Call::new(Family::PrototypeCeSm90, kernel, blocks, SMALL, params);
    call.given = given(width);
    call
}

/// Loss, lse, lse_t, of operands z, w, zt, wt, center, temperatures.
pub fn cross_entropy(o: &Operands<'_>, e: &Extent) -> Vec<Call> {
    let [z, w, zt, wt, center, temperatures] = [0, 1, 2, 3, 4, 5].map(|i: usize| o.inputs[i].at);
    let [means, expert_ends, student_ends, losses, _] = forward_places(e).map(|p| o.scratch + p);
    let (s, width, count) = (Spread::of(e), e.width, e.prototypes);
    let all = params(e, temperatures, center);
    let of_expert = PrototypeSm90Params { y: means, ends: expert_ends, each: s.expert.1, ..all };
    let mut expert = multiply("expert_means", [e.expert_rows.div_ceil(KEPT), s.expert.0], &of_expert, false);
    expert.maps = vec![
        (offset_of!(PrototypeSm90Params, expert_rows), map(zt, e.expert_rows, width, KEPT)),
        (offset_of!(PrototypeSm90Params, expert_stream), map(wt, count, width, TILE)),
        (offset_of!(PrototypeSm90Params, expert_values), map(w, count, width, TILE)),
    ];
    let of_student = PrototypeSm90Params { ends: student_ends, each: s.student.1, ..all };
    let mut student = multiply("student_sums", [e.rows.div_ceil(KEPT), s.student.0], &of_student, true);
    student.maps = vec![
        (offset_of!(PrototypeSm90Params, student_rows), map(z, e.rows, width, KEPT)),
        (offset_of!(PrototypeSm90Params, student_stream), map(w, count, width, WIDE_TILE)),
    ];
    let [loss, lse, lse_t] = [0, 1, 2].map(|i: usize| o.outputs[i].at);
    let (images, views) = (e.images(), e.views());
    let of_images = PrototypeImageParams {
        lse,
        lse_t,
        parts: losses,
        student_ends,
        expert_ends,
        means,
        z,
        temperatures,
        images,
        views,
        width,
        student_spans: s.student.0,
        expert_spans: s.expert.0,
        unused: 0,
    };
    let mut merge = small("image_losses", images.into(), &of_images, width);
    merge.shared = views * 4;
    let mean = PrototypeLossParams { loss, parts: losses, images, views };
    vec![expert, student, merge, small("mean_loss", 1, &mean, width)]
}

/// dz and dw, of operands dloss, z, w, zt, wt, center, temperatures, lse, lse_t.
pub fn gradients(o: &Operands<'_>, e: &Extent) -> Vec<Call> {
    let [dloss, z, w, zt, wt, center, temperatures, lse, lse_t] =
        [0, 1, 2, 3, 4, 5, 6, 7, 8].map(|i: usize| o.inputs[i].at);
    let [student, expert, paired, parts, _] = backward_places(e).map(|p| o.scratch + p);
    let (spans, each) = Spread::of(e).both;
    let (images, views, width, count) = (e.images(), e.views(), e.width, e.prototypes);
    let [student_end, expert_end] = [e.rows, e.expert_rows].map(|n| n.next_multiple_of(KEPT));
    let rows = PrototypeRowsParams {
        student,
        expert,
        paired,
        lse,
        lse_t,
        z,
        images,
        views,
        width,
        student_end,
        expert_end,
        unused: 0,
    };
    let elements = (u64::from(e.expert_rows) * u64::from(width)).max(u64::from(student_end.max(expert_end)));
    let all = PrototypeSm90Params { student, expert, dloss, ..params(e, temperatures, center) };
    let places = [
        offset_of!(PrototypeSm90Params, student_rows),
        offset_of!(PrototypeSm90Params, student_stream),
        offset_of!(PrototypeSm90Params, expert_rows),
        offset_of!(PrototypeSm90Params, expert_stream),
    ];
    let of_features = PrototypeSm90Params { y: parts, each, ..all };
    let blocks = e.rows.div_ceil(KEPT) + e.expert_rows.div_ceil(KEPT);
    let mut features = multiply("feature_gradients", [blocks, spans], &of_features, false);
    features.maps = places
        .into_iter()
        .zip([
            map(z, e.rows, width, KEPT),
            map(w, count, width, TILE),
            map(zt, e.expert_rows, width, KEPT),
            map(wt, count, width, TILE),
        ])
        .collect();
    let of_prototypes = PrototypeSm90Params { y: o.outputs[1].at, ..all };
    let mut prototypes = multiply("prototype_gradients", [count.div_ceil(KEPT), 1], &of_prototypes, false);
    prototypes.maps = places
        .into_iter()
        .zip([
            map(w, count, width, KEPT),
            map(z, e.rows, width, TILE),
            map(wt, count, width, KEPT),
            map(zt, e.expert_rows, width, TILE),
        ])
        .collect();
    let values = map(paired, e.expert_rows, width, TILE);
    prototypes.maps.push((offset_of!(PrototypeSm90Params, expert_values), values));
    let sum = PrototypeFeatureParams {
        dz: o.outputs[0].at,
        parts,
        temperatures,
        dloss,
        images,
        views,
        width,
        spans,
    };
    let dz = u64::from(e.rows) * u64::from(width);
    vec![
        small("gradient_rows", elements.div_ceil(SMALL.into()), &rows, width),
        features,
        small("sum_features", dz.div_ceil(SMALL.into()), &sum, width),
        prototypes,
    ]
}

/// Pairs of entropies at `parts`, of operands zt, wt, center, temperatures, lse_t.
pub fn entropies(o: &Operands<'_>, e: &Extent, parts: u64) -> Call {
    let [zt, wt, center, temperatures, expert] = [0, 1, 2, 3, 4].map(|i: usize| o.inputs[i].at);
    let params = PrototypeSm90Params { expert, y: parts, ..params(e, temperatures, center) };
    let mut call = multiply("expert_entropies", [e.prototypes.div_ceil(KEPT), 1], &params, true);
    call.maps = vec![
        (offset_of!(PrototypeSm90Params, expert_rows), map(wt, e.prototypes, e.width, KEPT)),
        (offset_of!(PrototypeSm90Params, expert_stream), map(zt, e.expert_rows, e.width, WIDE_TILE)),
    ];
    call
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_fill_the_rounds_of_a_large_gpu() {
        let e = Extent { rows: 2560, expert_rows: 512, prototypes: 65536, width: 256 };
        let s = Spread::of(&e);
        // 24 blocks of rows by 11 spans are two rounds of 132; 20 by 13 nearly are; 4 by 32 nearly one.
        assert_eq!((s.both, s.student, s.expert), ((11, 94), (13, 40), (32, 32)));
        for tiles in [1, 2, 63, 65, 1000] {
            for blocks in [1, 7, 132, 1000] {
                let (spans, each) = spans(blocks, tiles);
                assert!(spans * each >= tiles && (spans - 1) * each < tiles, "{tiles} {blocks}");
            }
        }
    }
}
