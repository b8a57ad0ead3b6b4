//! Pixels to token streams: patches, positions, mask tokens.

use super::kernel::{Call, Family, Given, kernel_params};
use super::layout::{self, Kept, Rows};
use super::lower::{Lower, Lowered, Operand, Operands};
use super::pointwise::{THREADS, blocks, vector};
use crate::ir::resample_weights;
use crate::ir::{PATCH, PATCH_VALUES, RowRun, TokenView, ops};
use crate::plan::OperandType;
use crate::tensor::DType;
use std::mem::offset_of;

kernel_params! {
    pub const LAYOUTS;
    PatchParams { rows: u64, image: u64, keep: u64, count: u64, kept: u32, height: u32, width: u32, unused: u32 }
    JoinedPatches { all: u64 }
    JoinedViews { all: u64 }
    PixelParams { rows: u64, image: u64, inverse: u64, count: u64, height: u32, width: u32 }
    EmbedParams {
        stream: u64, rows: u64, token: u64, token_position: u64, positions: u64, keep: u64, images: u64, tokens: u32,
        width: u32,
    }
    InvertParams { inverse: u64, keep: u64, count: u64, kept: u32, tokens: u32 }
    ImageSumParams {
        y: u64, x: u64, inverse: u64, images: u64, stride: u64, each: u64, chunk: u32, width: u32, rows: u32,
        unused: u32,
    }
    RowSumParams { y: u64, x: u64, runs: u64, count: u32, width: u32 }
    Run { start: u64, stride: u64, count: u64 }
    AddPartsParams { y: u64, parts: u64, each: u64, count: u64 }
    RestoreParams {
        y: u64, visible: u64, inverse: u64, mask: u64, positions: u64, images: u64, tokens: u32, kept: u32,
        width: u32, unused: u32,
    }
    ResampleParams {
        y: u64, x: u64, weights: u64, rows: [u32; 2], columns: [u32; 2], prefix: u32, width: u32,
    }
}

/// Values of one pixel patch.
const VALUES: u64 = PATCH_VALUES as u64;
/// Edge of a patch.
const EDGE: u32 = PATCH as u32;
/// Threads that a sum over images should have at least, to keep a large GPU busy.
const ENOUGH_THREADS: u64 = 1 << 16;

fn call<P: super::kernel::KernelParams>(kernel: &'static str, threads: u64, vec: u64, params: &P) -> Call {
    Call::new(Family::Embed, kernel, blocks(threads), THREADS, params).given("VEC", vec as usize)
}

/// `count: [B, k]` of an index operand.
fn index(o: &Operand<'_>) -> Result<(u64, u32), String> {
    let (images, kept) = o.rows_width()?;
    Ok((u64::from(images), kept))
}

fn width_u32(n: usize) -> Result<u32, String> {
    u32::try_from(n).map_err(|_| format!("takes at most {} tokens", u32::MAX))
}

/// A sum over the images of a stretch of rows: what is summed and into what.
struct ImageSum {
    y: u64,
    x: u64,
    images: u64,
    /// Elements from one image to the next.
    stride: u64,
    /// `n * D` elements of the sum.
    each: u64,
    width: u32,
    /// ROWS_ and the inverse index of the kernel.
    rows: (u32, u64),
}

/// Images of one chunk of a sum of `each` elements over `images`.
fn chunk(images: u64, each: u64) -> u64 {
    // Eight elements a thread at most; a chunk of fewer than 16 images is not worth its part.
    let chunks = (ENOUGH_THREADS * 8).div_ceil(each.max(1)).clamp(1, images.div_ceil(16).max(1));
    images.div_ceil(chunks).max(1)
}

/// Bytes of parts that [`ImageSum::calls`] needs.
fn parts(images: u64, each: u64) -> u64 {
    match images.div_ceil(chunk(images, each)) {
        0 | 1 => 0,
        chunks => (chunks * each * 4).next_multiple_of(256),
    }
}

impl ImageSum {
    /// Parts are kept at `scratch`.
    fn calls(&self, scratch: u64, element: DType) -> Vec<Call> {
        let chunk = chunk(self.images, self.each);
        let count = self.images.div_ceil(chunk).max(1);
        let y = if count > 1 { scratch } else { self.y };
        let extent = u64::from(self.width).min(self.stride.max(1));
        let strides = self.stride.is_multiple_of(16 / element.bytes() as u64);
        let vec = if strides { vector(extent, element, &[y, self.x]) } else { 1 };
        let params = ImageSumParams {
            y,
            x: self.x,
            inverse: self.rows.1,
            images: self.images,
            stride: self.stride,
            each: self.each,
            chunk: chunk as u32,
            width: self.width,
            rows: self.rows.0,
            unused: 0,
        };
        let mut sum = call("sum_images", 1, vec, &params);
        sum.grid = [(self.each / vec).div_ceil(u64::from(THREADS)).max(1) as u32, count as u32, 1];
        let mut calls = vec![sum];
        if count > 1 {
            let params = AddPartsParams { y: self.y, parts: scratch, each: self.each, count };
            calls.push(call("add_parts", self.each, vec, &params));
        }
        calls
    }
}

/// The sum of the rows of `runs` of `x`.
pub fn sum_rows(kernel: &'static str, y: u64, x: u64, width: u32, runs: &[Run]) -> Call {
    let params = RowSumParams { y, x, runs: 0, count: runs.len() as u32, width };
    let mut call = Call::new(Family::Embed, kernel, width.div_ceil(32), 1024, &params).given("VEC", 1);
    call = call.table(offset_of!(RowSumParams, runs), bytemuck::cast_slice(runs).to_vec());
    call
}

fn invert(keep: u64, inverse: u64, images: u64, kept: u32, tokens: u32) -> Call {
    let params = InvertParams { inverse, keep, count: images * u64::from(tokens), kept, tokens };
    call("invert_index", params.count, 1, &params)
}

/// Bytes of an inverse index.
fn inverse_bytes(images: u64, tokens: u64) -> u64 {
    (images * tokens * 4).next_multiple_of(256)
}

/// Both weight matrices, one after the other; `transposed` for the way back.
fn weights(from: [usize; 2], to: [usize; 2], transposed: bool) -> Vec<u8> {
    let mut all: Vec<f32> = Vec::new();
    for axis in [0, 1] {
        let (from_n, to_n) = (from[axis], to[axis]);
        let matrix: Vec<f32> = resample_weights(from_n, to_n).map(|w| w as f32).collect();
        if transposed {
            all.extend((0..from_n).flat_map(|j| (0..to_n).map(move |i| i * from_n + j)).map(|i| matrix[i]));
        } else {
            all.extend(matrix);
        }
    }
    bytemuck::cast_slice(&all).to_vec()
}

fn resample(params: &ResampleParams, weights: Vec<u8>) -> Lowered {
    let rows = u64::from(params.prefix) + u64::from(params.rows[0]) * u64::from(params.rows[1]);
    let blocks = (rows * u64::from(params.width)).div_ceil(u64::from(THREADS)).max(1);
    let blocks = u32::try_from(blocks).map_err(|_| "takes smaller tables".to_owned())?;
    let call = Call::new(Family::Embed, "resample", blocks, THREADS, params).given("VEC", 1);
    Ok(vec![call.table(offset_of!(ResampleParams, weights), weights)])
}

fn grid([height, width]: [usize; 2]) -> Result<[u32; 2], String> {
    Ok([width_u32(height)?, width_u32(width)?])
}

impl Lower for ops::PatchRows {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let &ops::PatchRows { kept, .. } = self;
        let images = o.inputs.len() - usize::from(kept.is_some());
        let (mut all, mut vec, mut row, mut most) = (Vec::with_capacity(images), VALUES, 0, 0);
        for (i, image) in o.inputs[..images].iter().enumerate() {
            let &[count, _, height, width] = image.shape.dims() else {
                return Err(format!("takes images [B, 3, H, W], not {}", image.shape));
            };
            let (height, width) = (width_u32(height)?, width_u32(width)?);
            let (keep, each) = match kept {
                Some(view) if view == i => (o.inputs[images].at, index(&o.inputs[images])?.1),
                _ => (0, height / EDGE * (width / EDGE)),
            };
            let count = count as u64 * u64::from(each);
            let rows = o.outputs[0].at + row * VALUES * o.outputs[0].dtype.bytes() as u64;
            vec = vec.min(vector(16, o.element(), &[rows, image.at]));
            let params =
                PatchParams { rows, image: image.at, keep, count, kept: each, height, width, unused: 0 };
            if count > 0 {
                all.push(params);
            }
            row += count;
            most = most.max(count);
        }
        let joined = |table, count| {
            let views = JoinedPatches { all: 0 };
            let mut call = call("patch_rows", most * VALUES / vec, vec, &views).table(0, table);
            call.grid[1] = count;
            call
        };
        Ok(layout::joined(&all, joined))
    }
}

impl Lower for ops::PixelRows {
    fn workspace(&self, inputs: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        let Some(view) = self.masked else { return 0 };
        let dims = inputs[view].shape.dims();
        inverse_bytes(dims[0] as u64, (dims[2] / PATCH * (dims[3] / PATCH)) as u64) as usize
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let &ops::PixelRows { masked, .. } = self;
        let images = o.inputs.len() - usize::from(masked.is_some());
        let (mut calls, mut rows) = (Vec::with_capacity(images + 1), o.outputs[0].at);
        for (i, image) in o.inputs[..images].iter().enumerate() {
            let &[batch, _, height, width] = image.shape.dims() else {
                return Err(format!("takes images [B, 3, H, W], not {}", image.shape));
            };
            let (height, width) = (width_u32(height)?, width_u32(width)?);
            let mut inverse = 0;
            if masked == Some(i) {
                inverse = o.scratch;
                let (_, kept) = index(&o.inputs[images])?;
                calls.push(invert(
                    o.inputs[images].at,
                    inverse,
                    batch as u64,
                    kept,
                    height / EDGE * (width / EDGE),
                ));
            }
            let count = batch as u64 * u64::from(height) * u64::from(width);
            let params = PixelParams { rows, image: image.at, inverse, count, height, width };
            if count > 0 {
                calls.push(call("pixel_rows", count, 1, &params));
            }
            rows += count * 3 * o.outputs[0].dtype.bytes() as u64;
        }
        Ok(calls)
    }
}

impl Lower for ops::EmbedTokens {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let ops::EmbedTokens { layout } = self;
        let (_, width) = o.outputs[0].rows_width()?;
        let bytes = u64::from(width) * o.element().bytes() as u64;
        let (mut stream, mut rows) = (o.outputs[0].at, o.inputs[0].at);
        let (mut all, mut vec, mut most) = (Vec::new(), u64::from(width), 0);
        for (v, view) in layout.views.iter().enumerate() {
            let (images, tokens) = (view.count as u64, width_u32(view.tokens)?);
            let [token_position, positions] =
                if layout.positions { [o.inputs[2].at, o.inputs[3 + v].at] } else { [0, 0] };
            let keep = match (layout.kept, o.inputs.last()) {
                (Some(kept), Some(keep)) if kept == v => keep.at,
                _ => 0,
            };
            let token = o.inputs[1].at;
            let addresses = [stream, rows, token, token_position, positions];
            vec = vec.min(vector(u64::from(width), o.element(), &addresses));
            all.push(EmbedParams {
                stream,
                rows,
                token,
                token_position,
                positions,
                keep,
                images,
                tokens,
                width,
            });
            let count = images * (u64::from(tokens) + 1);
            most = most.max(count);
            stream += count * bytes;
            rows += images * u64::from(tokens) * bytes;
        }
        let joined = |table, count| {
            let views = JoinedViews { all: 0 };
            let mut call = call("embed_tokens", most * u64::from(width) / vec, vec, &views).table(0, table);
            call.grid[1] = count;
            call
        };
        Ok(layout::joined(&all, joined))
    }
}

impl Lower for ops::EmbedTokensBackward {
    fn workspace(&self, _: &[OperandType<'_>], outputs: &[OperandType<'_>]) -> usize {
        let ops::EmbedTokensBackward { layout, tables } = self;
        let view = |(v, view): (usize, &TokenView)| {
            let images = view.count as u64;
            let kept = layout.kept == Some(v);
            let inverse = if kept { inverse_bytes(images, tables[v] as u64) } else { 0 };
            inverse + parts(images, outputs[2 + v].shape.count() as u64)
        };
        layout.views.iter().enumerate().take(tables.len()).map(view).max().unwrap_or(0) as usize
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let ops::EmbedTokensBackward { layout, tables } = self;
        let (_, width) = o.inputs[0].rows_width()?;
        let (dy, element) = (o.inputs[0].at, o.element());
        let (mut runs, mut leading, mut start) = (Vec::new(), Vec::new(), 0);
        for view in &layout.views {
            let len = view.tokens + 1;
            runs.push(RowRun { start: start + 1, len: view.tokens, stride: len, count: view.count });
            leading.push(Run { start: start as u64, stride: len as u64, count: view.count as u64 });
            start += view.count * len;
        }
        let mut calls = layout::select_rows(Rows { y: o.outputs[0].at, x: dy, width, element }, &runs);
        calls.push(sum_rows("sum_rows_narrow", o.outputs[1].at, dy, width, &leading));
        for (v, (view, run)) in layout.views.iter().zip(&leading).enumerate().take(tables.len()) {
            let (table, images) = (tables[v], view.count as u64);
            let x = dy + (run.start + 1) * u64::from(width) * element.bytes() as u64;
            let (each, stride) = ((table * width as usize) as u64, run.stride * u64::from(width));
            let mut sum = ImageSum { y: o.outputs[2 + v].at, x, images, stride, each, width, rows: (0, 0) };
            let mut scratch = o.scratch;
            if let (true, Some(keep)) = (layout.kept == Some(v), o.inputs.get(1)) {
                calls.push(invert(keep.at, scratch, images, width_u32(view.tokens)?, width_u32(table)?));
                sum.rows = (1, scratch);
                scratch += inverse_bytes(images, table as u64);
            }
            calls.extend(sum.calls(scratch, element));
        }
        Ok(calls)
    }
}

impl Lower for ops::ResizePositions {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let &ops::ResizePositions { prefix, from, to } = self;
        let (_, width) = o.inputs[0].rows_width()?;
        let x = o.inputs[0].at + (prefix * width as usize * size_of::<f32>()) as u64;
        let (rows, columns) = (grid(to)?, grid(from)?);
        let params = ResampleParams { y: o.outputs[0].at, x, weights: 0, rows, columns, prefix: 0, width };
        resample(&params, weights(from, to, false))
    }
}

impl Lower for ops::ResizePositionsBackward {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let &ops::ResizePositionsBackward { prefix, from, to } = self;
        let (_, width) = o.inputs[0].rows_width()?;
        let (rows, columns, prefix) = (grid(from)?, grid(to)?, width_u32(prefix)?);
        let params = ResampleParams {
            y: o.outputs[0].at,
            x: o.inputs[0].at,
            weights: 0,
            rows,
            columns,
            prefix,
            width,
        };
        resample(&params, weights(from, to, true))
    }
}

impl Lower for ops::RestoreTokens {
    fn workspace(&self, inputs: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        let [images, tokens] = [1, 3].map(|i: usize| inputs[i].shape.as_matrix().0 as u64);
        inverse_bytes(images, tokens) as usize
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let (tokens, width) = o.inputs[3].rows_width()?;
        let (images, kept) = index(&o.inputs[1])?;
        let [visible, _, mask, positions] = [0, 1, 2, 3].map(|i: usize| o.inputs[i].at);
        let (y, inverse) = (o.outputs[0].at, o.scratch);
        let vec = vector(u64::from(width), o.element(), &[y, visible, mask, positions]);
        let params =
            RestoreParams { y, visible, inverse, mask, positions, images, tokens, kept, width, unused: 0 };
        let threads = images * u64::from(tokens) * u64::from(width) / vec;
        Ok(vec![
            invert(o.inputs[1].at, inverse, images, kept, tokens),
            call("restore_tokens", threads, vec, &params),
        ])
    }
}

impl Lower for ops::RestoreTokensBackward {
    fn workspace(&self, inputs: &[OperandType<'_>], outputs: &[OperandType<'_>]) -> usize {
        let (images, tokens) = (inputs[1].shape.as_matrix().0 as u64, outputs[2].shape.as_matrix().0 as u64);
        let each = outputs[2].shape.count() as u64;
        let bytes = inverse_bytes(images, tokens) + (each * 4).next_multiple_of(256) + parts(images, each);
        bytes as usize
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let (tokens, width) = o.outputs[2].rows_width()?;
        let (images, kept) = index(&o.inputs[1])?;
        let (dy, element) = (o.inputs[0].at, o.element());
        let of = Kept { index: o.inputs[1].at, images, kept, tokens };
        let mut calls = layout::gather_tokens(Rows { y: o.outputs[0].at, x: dy, width, element }, of);
        let each = u64::from(tokens) * u64::from(width);
        let (inverse, hidden) = (o.scratch, o.scratch + inverse_bytes(images, u64::from(tokens)));
        let scratch = hidden + (each * 4).next_multiple_of(256);
        let sum = |y, rows| ImageSum { y, x: dy, images, stride: each, each, width, rows };
        calls.extend(sum(o.outputs[2].at, (0, 0)).calls(scratch, element));
        calls.push(invert(o.inputs[1].at, inverse, images, kept, tokens));
        calls.extend(sum(hidden, (2, inverse)).calls(scratch, element));
        let all = [Run { start: 0, stride: 1, count: u64::from(tokens) }];
        calls.push(sum_rows("sum_rows_wide", o.outputs[1].at, hidden, width, &all));
        Ok(calls)
    }
}

impl Lower for ops::SumImages {
    fn workspace(&self, inputs: &[OperandType<'_>], outputs: &[OperandType<'_>]) -> usize {
        let [all, each] = [inputs, outputs].map(|x| x[0].shape.count() as u64);
        parts(all / each.max(1), each) as usize
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let (n, width) = (o.outputs[0].count(), o.outputs[0].rows_width()?.1);
        let images = o.inputs[0].count() / n.max(1);
        let (y, x) = (o.outputs[0].at, o.inputs[0].at);
        let sum = ImageSum { y, x, images, stride: n, each: n, width, rows: (0, 0) };
        Ok(sum.calls(o.scratch, o.element()))
    }
}

impl Lower for ops::AddPositions {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let Operands { inputs, outputs, .. } = *o;
        let (y, n, element) = (outputs[0].at, outputs[0].count(), o.element());
        let each = inputs[1].count();
        Ok(layout::add_positions(y, inputs[0].at, inputs[1].at, n / each.max(1), each, element))
    }
}

/// Constants with which the recipes compile the kernels.
pub fn variants() -> Vec<Given> {
    vec![vec![("VEC", 1)], vec![("VEC", 4)], vec![("VEC", 8)]]
}
