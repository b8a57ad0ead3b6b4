//! Launches of `kernels/depthwise_conv.cu`.

use super::kernel::{Call, Family, Given, KernelParams, kernel_params};
use super::lower::{Lower, Lowered, Operands};
use super::pointwise::{columns, vector};
use crate::ir::{ConvGeometry, ops};
use crate::plan::OperandType;
use crate::tensor::DType;

/// Sizes of maps of one call: MOST_MAPS of the kernels.
const MOST_MAPS: usize = 8;

kernel_params! {
    pub const LAYOUTS;
    DepthwiseMap {
        height: u32, width: u32, out_height: u32, out_width: u32, row: u32, out_row: u32, strip: u32, line: u32,
    }
    DepthwiseMaps { count: u32, width: u32, map: [DepthwiseMap; MOST_MAPS] }
    DepthwiseParams { y: u64, x: u64, w: u64, bias: u64, residual: u64, strips: u64, maps: DepthwiseMaps }
    DepthwiseOrderParams { y: u64, w: u64, width: u32, turned: u32 }
    DepthwiseWeightParams {
        partial: u64, dy: u64, x: u64, lines: u32, chunk: u32, bias: u32, unused: u32, maps: DepthwiseMaps,
    }
    DepthwiseSumParams { dw: u64, db: u64, partial: u64, chunks: u32, width: u32 }
}

/// Threads of a block, and lanes of a warp.
const THREADS: u32 = 256;
const WARP: u32 = 32;
/// Positions of a line that a thread computes.
const OUT: usize = 4;
/// Largest window whose weights fit the registers of a thread.
const MOST_KERNEL: usize = 7;

/// One op's geometry on the device.
struct Shape<'a> {
    geometry: &'a ConvGeometry,
    maps: DepthwiseMaps,
    strips: u64,
    lines: u32,
}

impl<'a> Shape<'a> {
    /// # Errors
    /// For more sizes of maps, larger windows or more rows than the kernels take.
    fn new(geometry: &'a ConvGeometry, width: u32) -> Result<Self, String> {
        if geometry.maps.len() > MOST_MAPS || geometry.kernel > MOST_KERNEL {
            return Err(format!(
                "takes at most {MOST_MAPS} sizes of maps and windows of {MOST_KERNEL}, not {} and {}",
                geometry.maps.len(),
                geometry.kernel
            ));
        }
        let small = |n: usize| {
            // Positions around a map are counted in 32 bits with a sign.
            u32::try_from(n).ok().filter(|n| *n < 1 << 31).ok_or(format!("takes at most {} rows", 1u32 << 31))
        };
        let mut maps = DepthwiseMaps { count: 0, width, map: [bytemuck::Zeroable::zeroed(); MOST_MAPS] };
        let (mut row, mut out_row, mut strip, mut line) = (0, 0, 0, 0);
        for (to, (map, out)) in maps.map.iter_mut().zip(geometry.maps.iter().zip(geometry.outputs())) {
            *to = DepthwiseMap {
                height: small(map.height)?,
                width: small(map.width)?,
                out_height: small(out.height)?,
                out_width: small(out.width)?,
                row: small(row)?,
                out_row: small(out_row)?,
                strip: small(strip)?,
                line: small(line)?,
            };
            maps.count += 1;
            row += map.rows();
            out_row += out.rows();
            line += out.count * out.height;
            strip += out.count * out.height * out.width.div_ceil(OUT);
        }
        small(row)?;
        Ok(Shape { geometry, maps, strips: u64::from(small(strip)?), lines: small(line)? })
    }

    fn taps(&self) -> u32 {
        (self.geometry.kernel * self.geometry.kernel) as u32
    }

    fn call<P: KernelParams>(
        &self,
        kernel: &'static str,
        threads: u64,
        vec: u64,
        params: &P,
    ) -> Result<Call, String> {
        let blocks = u32::try_from(threads.div_ceil(u64::from(THREADS)).max(1));
        let blocks = blocks.map_err(|_| format!("takes at most {} blocks of threads", u32::MAX))?;
        let mut call = Call::new(Family::DepthwiseConv, kernel, blocks, THREADS, params);
        call.given = given(self.geometry.kernel, self.geometry.stride, vec as usize, FEW);
        Ok(call)
    }

    /// The weight at `w` in the kernels' order, in scratch memory.
    fn order(&self, o: &Operands<'_>, w: u64, turned: bool, vec: u64) -> Result<Call, String> {
        let width = self.maps.width;
        let params = DepthwiseOrderParams { y: o.scratch, w, width, turned: u32::from(turned) };
        self.call("depthwise_order", u64::from(self.taps()) * u64::from(width), vec, &params)
    }
}

/// `columns` is of the weight's gradient alone.
fn given(kernel: usize, stride: usize, vec: usize, columns: u32) -> Given {
    vec![("KERNEL", kernel), ("STRIDE", stride), ("VEC", vec), ("OUT", OUT), ("COLUMNS", columns as usize)]
}

/// The convolution with the weight `w`, or with it turned by half.
fn convolve(
    o: &Operands<'_>,
    shape: &Shape<'_>,
    [y, x, w]: [u64; 3],
    [bias, residual]: [u64; 2],
    turned: bool,
) -> Lowered {
    let width = u64::from(shape.maps.width);
    let vec = vector(width, o.element(), &[y, x, residual, o.scratch]);
    let params =
        DepthwiseParams { y, x, w: o.scratch, bias, residual, strips: shape.strips, maps: shape.maps };
    let order = shape.order(o, w, turned, vec)?;
    Ok(vec![order, shape.call("depthwise_conv", shape.strips * (width / vec), vec, &params)?])
}

/// COLUMNS of the kernels that do not use it.
const FEW: u32 = 8;

/// Channels of a thread of the weight's gradient: registers hold a line of taps and a line of a window of each.
fn weight_vector(width: u32, kernel: usize, element: DType, addresses: &[u64]) -> u32 {
    let fits = vector(u64::from(width), element, addresses) as u32;
    if kernel > 3 { fits.min(4) } else { fits }
}

/// Lines of a block of the weight's gradient, and blocks of a pack of channels: enough for a large GPU, but with work enough
/// that their sums are few beside what they read.
fn chunks(geometry: &ConvGeometry, width: u32, element: DType) -> (usize, usize) {
    const BLOCKS: usize = 1056;
    let lines: usize = geometry.outputs().map(|m| m.count * m.height).sum();
    // As the planner aligns operands; others have as many chunks, and more blocks of each.
    let packs = width / weight_vector(width, geometry.kernel, element, &[]);
    let wanted = BLOCKS.div_ceil(packs.div_ceil(columns(packs)).max(1) as usize);
    let sums = geometry.kernel * geometry.kernel + 1;
    let least = (8 * sums * lines).div_ceil(geometry.output_rows().max(1));
    let chunk = lines.div_ceil(wanted).max(least).max(1);
    (chunk, lines.div_ceil(chunk).max(1))
}

impl Lower for ops::DepthwiseConv2d {
    fn workspace(&self, inputs: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        inputs[1].shape.count() * inputs[1].dtype.bytes()
    }

    /// `y`.
    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let ops::DepthwiseConv2d { geometry, residual } = self;
        let shape = Shape::new(geometry, o.inputs[0].rows_width()?.1)?;
        let added = [o.inputs[2].at, if *residual { o.inputs[3].at } else { 0 }];
        convolve(o, &shape, [o.outputs[0].at, o.inputs[0].at, o.inputs[1].at], added, false)
    }
}

impl Lower for ops::DepthwiseConv2dBackwardInput {
    fn workspace(&self, inputs: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        inputs[1].shape.count() * inputs[1].dtype.bytes()
    }

    /// `dx`.
    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let ops::DepthwiseConv2dBackwardInput { geometry, residual } = self;
        let residual = if *residual { o.inputs[2].at } else { 0 };
        let (rows, width) = o.outputs[0].rows_width()?;
        let shape = Shape::new(geometry, width)?;
        let [y, x, w] = [o.outputs[0].at, o.inputs[0].at, o.inputs[1].at];
        if geometry.stride == 1 {
            return convolve(o, &shape, [y, x, w], [0, residual], true);
        }
        let vec = vector(u64::from(width), o.element(), &[y, x, residual, o.scratch]);
        let strips = u64::from(rows);
        let params = DepthwiseParams { y, x, w: o.scratch, bias: 0, residual, strips, maps: shape.maps };
        let order = shape.order(o, w, false, vec)?;
        let threads = strips * (u64::from(width) / vec);
        Ok(vec![order, shape.call("depthwise_conv_gather", threads, vec, &params)?])
    }
}

impl Lower for ops::DepthwiseConv2dBackwardWeight {
    fn workspace(&self, inputs: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        let ops::DepthwiseConv2dBackwardWeight { geometry } = self;
        let width = inputs[0].shape.as_matrix().1;
        let taps = geometry.kernel * geometry.kernel;
        // Wider rows are refused.
        let chunks = chunks(geometry, u32::try_from(width).unwrap_or(u32::MAX), inputs[0].dtype).1;
        chunks * (taps + 1) * width * size_of::<f32>()
    }

    /// `dw` and `db`.
    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let ops::DepthwiseConv2dBackwardWeight { geometry } = self;
        let width = o.inputs[0].rows_width()?.1;
        let shape = Shape::new(geometry, width)?;
        let element = o.inputs[0].dtype;
        let (chunk, count) = chunks(geometry, width, element);
        let (dw, db) = (o.outputs[0].at, o.outputs[1].at);
        let params = DepthwiseWeightParams {
            partial: o.scratch,
            dy: o.inputs[0].at,
            x: o.inputs[1].at,
            lines: shape.lines,
            chunk: chunk as u32,
            bias: u32::from(db != 0),
            unused: 0,
            maps: shape.maps,
        };
        let vec = weight_vector(width, geometry.kernel, element, &[params.dy, params.x, o.scratch]);
        let (packs, beside) = (width / vec, columns(width / vec));
        let mut weight = shape.call("depthwise_conv_weight", 1, u64::from(vec), &params)?;
        weight.given = given(geometry.kernel, geometry.stride, vec as usize, beside);
        // At most a few blocks more than wanted: far below what a grid has.
        weight.grid = [packs.div_ceil(beside), count as u32, 1];
        let line = beside * geometry.kernel as u32;
        weight.block[0] = THREADS / line * line;
        let params = DepthwiseSumParams { dw, db, partial: o.scratch, chunks: count as u32, width };
        let columns = u64::from(shape.taps() + 1) * u64::from(width);
        let mut sum = shape.call("depthwise_conv_weight_sum", 1, 1, &params)?;
        sum.grid[0] =
            u32::try_from(columns.div_ceil(u64::from(WARP))).map_err(|_| "has too many channels")?;
        Ok(vec![weight, sum])
    }
}

/// Constants with which the recipes compile the kernels.
pub fn variants(bf16: bool) -> Vec<Given> {
    let element = if bf16 { DType::Bf16 } else { DType::F32 };
    let vec = 16 / element.bytes();
    let of = |(kernel, stride)| {
        let wide = weight_vector(512, kernel, element, &[]) as usize;
        [given(kernel, stride, vec, FEW), given(kernel, stride, wide, 32)]
    };
    [(3, 1), (3, 2), (7, 1)].into_iter().flat_map(of).chain([given(3, 1, 1, FEW)]).collect()
}
