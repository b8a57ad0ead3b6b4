//! Launches of `kernels/depthwise_conv.cu`.

use super::kernel::{Call, Family, Given, KernelParams, kernel_params};
use super::lower::{Lower, Lowered, Operands};
use super::pointwise::vector;
use crate::ir::{ConvGeometry, FeatureMap, ops};
use crate::plan::OperandType;
use crate::tensor::DType;

/// Sizes of maps of one call: MOST_MAPS of the kernels.
const MOST_MAPS: usize = 8;

kernel_params! {
    pub const LAYOUTS;
    DepthwiseMap {
        height: u32, width: u32, out_height: u32, out_width: u32, row: u32, out_row: u32, images: u32, strips: u32,
        units: u32, block: u32,
    }
    DepthwiseMaps { count: u32, width: u32, map: [DepthwiseMap; MOST_MAPS] }
    DepthwiseParams { y: u64, x: u64, w: u64, bias: u64, residual: u64, turned: u32, unused: u32, maps: DepthwiseMaps }
    DepthwiseWeightParams { partial: u64, dy: u64, x: u64, maps: DepthwiseMaps }
    DepthwiseSumParams { dw: u64, db: u64, partial: u64, blocks: u32, width: u32 }
}

/// Lanes of a warp, each a channel.
const WARP: usize = 32;
/// SUM_WARPS of the kernels.
const SUM_WARPS: u32 = 32;
/// Largest window whose weights fit the registers of a thread.
const MOST_KERNEL: usize = 7;
/// Lines that a warp walks down at least, if there are as many: what loading weights or storing their gradients is worth.
const LINES: usize = 16;
/// Blocks of a weight's gradient that keep a large GPU busy to the end.
const WEIGHT_BLOCKS: usize = 1056;

/// What the kernels of a geometry are compiled with, beside the kernel's size and stride.
#[derive(Clone, Copy)]
struct Tile {
    /// Columns of a strip.
    out: usize,
    /// Warps of a block.
    warps: usize,
    /// Lines that a warp has under way and in use.
    depth: usize,
}

/// A narrow strip and a wide one, columns. Per column, small windows cost a wide strip four fifths of the instructions.
const NARROW: usize = 4;
const WIDE: usize = 8;

impl Tile {
    /// For the maps of `geometry`: wide strips where little of them lies outside of the maps.
    ///
    /// # Errors
    /// Those of [`Tile::fitting`].
    fn new(geometry: &ConvGeometry, element: DType) -> Result<Tile, String> {
        let ConvGeometry { kernel, stride, .. } = *geometry;
        let columns = |out: usize| {
            geometry.outputs().map(|m| m.count * m.height * m.width.div_ceil(out) * out).sum::<usize>()
        };
        let wide = kernel <= 3 && stride == 1 && columns(WIDE) * 4 <= columns(NARROW) * 5;
        Tile::fitting(kernel, stride, if wide { WIDE } else { NARROW }, element)
    }

    /// The largest of up to `out` columns that fits the 48 KiB of shared memory of a block on any GPU.
    ///
    /// # Errors
    /// For a larger window or stride than the kernels take.
    fn fitting(kernel: usize, stride: usize, out: usize, element: DType) -> Result<Tile, String> {
        const MOST_SHARED: usize = 48 << 10;
        let fits = |t: &Tile| {
            let pixels = (t.out - 1).saturating_mul(stride).saturating_add(kernel);
            let line =
                pixels.saturating_mul(stride).saturating_add(t.out).saturating_mul(WARP * element.bytes());
            let weight = kernel * kernel * WARP * size_of::<f32>();
            line.saturating_mul(t.depth * t.warps) <= MOST_SHARED
                && pixels * WARP * element.bytes() * t.depth * t.warps + weight <= MOST_SHARED
        };
        let all = [(out, 8, 4), (out, 8, 2), (NARROW, 4, 2), (2, 4, 2), (1, 4, 2), (1, 1, 2)];
        let tile = all.into_iter().map(|(out, warps, depth)| Tile { out, warps, depth }).find(fits);
        tile.filter(|_| kernel <= MOST_KERNEL).ok_or_else(|| {
            format!(
                "takes windows of at most {MOST_KERNEL} whose lines fit shared memory, not of {kernel} at a stride of {stride}"
            )
        })
    }

    /// Units that each warp takes of maps that a strip walks down in `steps`, and blocks, to give each about `lines`.
    fn units(self, out: &FeatureMap, steps: usize, lines: usize) -> (usize, usize) {
        let all = out.width.div_ceil(self.out) * out.count;
        let units = ((lines + steps / 2) / steps).clamp(1, all);
        (units, all.div_ceil(units * self.warps))
    }
}

/// One op's geometry on the device.
struct Shape<'a> {
    geometry: &'a ConvGeometry,
    tile: Tile,
    maps: DepthwiseMaps,
    /// Of all maps, for each WARP channels.
    blocks: u32,
}

impl<'a> Shape<'a> {
    /// Each warp walks down about `lines`, of `more` than a map's for each unit.
    ///
    /// # Errors
    /// For more sizes of maps, larger windows or more rows than the kernels take.
    fn new(
        geometry: &'a ConvGeometry,
        width: u32,
        tile: Tile,
        (more, lines): (usize, usize),
    ) -> Result<Self, String> {
        if geometry.maps.len() > MOST_MAPS {
            return Err(format!("takes at most {MOST_MAPS} sizes of maps, not {}", geometry.maps.len()));
        }
        let small = |n: usize| {
            // Positions around a map are counted in 32 bits with a sign.
            u32::try_from(n).ok().filter(|n| *n < 1 << 31).ok_or(format!("takes at most {} rows", 1u32 << 31))
        };
        let mut maps = DepthwiseMaps { count: 0, width, map: [bytemuck::Zeroable::zeroed(); MOST_MAPS] };
        let (mut row, mut out_row, mut block) = (0, 0, 0);
        for (to, (map, out)) in maps.map.iter_mut().zip(geometry.maps.iter().zip(geometry.outputs())) {
            let (units, blocks) = tile.units(&out, out.height + more, lines);
            *to = DepthwiseMap {
                height: small(map.height)?,
                width: small(map.width)?,
                out_height: small(out.height)?,
                out_width: small(out.width)?,
                row: small(row)?,
                out_row: small(out_row)?,
                images: small(map.count)?,
                strips: small(out.width.div_ceil(tile.out))?,
                units: small(units)?,
                block: small(block)?,
            };
            maps.count += 1;
            row += map.rows();
            out_row += out.rows();
            block += blocks;
        }
        small(row)?;
        Ok(Shape { geometry, tile, maps, blocks: small(block)? })
    }

    /// A call with a warp for each strip and WARP channels.
    fn call<P: KernelParams>(&self, kernel: &'static str, vec: u64, params: &P) -> Call {
        let threads = (self.tile.warps * WARP) as u32;
        let mut call = Call::new(Family::DepthwiseConv, kernel, self.blocks, threads, params);
        call.grid[1] = self.maps.width.div_ceil(WARP as u32);
        call.given = given(self.geometry.kernel, self.geometry.stride, vec as usize, self.tile);
        call
    }
}

fn given(kernel: usize, stride: usize, vec: usize, tile: Tile) -> Given {
    let Tile { out, warps, depth } = tile;
    vec![
        ("KERNEL", kernel),
        ("STRIDE", stride),
        ("VEC", vec),
        ("OUT", out),
        ("WARPS", warps),
        ("DEPTH", depth),
    ]
}

/// The kernel of that name over `x` with the weight `w`, or with it turned by half.
fn convolve(
    o: &Operands<'_>,
    geometry: &ConvGeometry,
    kernel: &'static str,
    [y, x, w, bias, residual]: [u64; 5],
    turned: bool,
) -> Lowered {
    let width = o.inputs[0].rows_width()?.1;
    let tile = Tile::new(geometry, o.element())?;
    let shape = Shape::new(geometry, width, tile, (0, LINES))?;
    let vec = vector(u64::from(width), o.element(), &[x]);
    let params =
        DepthwiseParams { y, x, w, bias, residual, turned: u32::from(turned), unused: 0, maps: shape.maps };
    Ok(vec![shape.call(kernel, vec, &params)])
}

/// How a weight's gradient is cut: ticks that a unit takes beside its lines, and ticks of a warp.
fn weight_lines(geometry: &ConvGeometry, width: usize, tile: Tile) -> (usize, usize) {
    // AFTER of the kernels.
    let more = (geometry.kernel / 2).div_ceil(geometry.stride);
    let strips = |m: &FeatureMap| m.count * m.width.div_ceil(tile.out);
    let ticks: usize = geometry.outputs().map(|m| strips(&m) * (m.height + more)).sum();
    let warps = WEIGHT_BLOCKS.div_ceil(width.div_ceil(WARP).max(1)) * tile.warps;
    (more, ticks.div_ceil(warps).max(LINES))
}

impl Lower for ops::DepthwiseConv2d {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    /// `y`.
    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let residual = if self.residual { o.inputs[3].at } else { 0 };
        let at = [o.outputs[0].at, o.inputs[0].at, o.inputs[1].at, o.inputs[2].at, residual];
        convolve(o, &self.geometry, "depthwise_conv", at, false)
    }
}

impl Lower for ops::DepthwiseConv2dBackwardInput {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    /// `dx`.
    fn lower(&self, o: &Operands<'_>) -> Lowered {
        // With stride 1 it is the convolution of dy with the weight turned.
        let same = self.geometry.stride == 1;
        let kernel = if same { "depthwise_conv" } else { "depthwise_conv_spread" };
        let residual = if self.residual { o.inputs[2].at } else { 0 };
        let at = [o.outputs[0].at, o.inputs[0].at, o.inputs[1].at, 0, residual];
        convolve(o, &self.geometry, kernel, at, same)
    }
}

impl Lower for ops::DepthwiseConv2dBackwardWeight {
    fn workspace(&self, inputs: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        let ops::DepthwiseConv2dBackwardWeight { geometry } = self;
        let width = inputs[0].shape.as_matrix().1;
        // What the kernels do not take is refused when it is lowered.
        let Ok(tile) = Tile::new(geometry, inputs[0].dtype) else { return 0 };
        let (more, lines) = weight_lines(geometry, width, tile);
        let blocks: usize = geometry.outputs().map(|m| tile.units(&m, m.height + more, lines).1).sum();
        blocks * (geometry.kernel * geometry.kernel + 1) * width * size_of::<f32>()
    }

    /// `dw` and `db`.
    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let ops::DepthwiseConv2dBackwardWeight { geometry } = self;
        let width = o.inputs[0].rows_width()?.1;
        let tile = Tile::new(geometry, o.element())?;
        let shape = Shape::new(geometry, width, tile, weight_lines(geometry, width as usize, tile))?;
        let (dy, x) = (o.inputs[0].at, o.inputs[1].at);
        let params = DepthwiseWeightParams { partial: o.scratch, dy, x, maps: shape.maps };
        let vec = vector(u64::from(width), o.element(), &[dy, x]);
        let weight = shape.call("depthwise_conv_weight", vec, &params);
        let (dw, db) = (o.outputs[0].at, o.outputs[1].at);
        let params = DepthwiseSumParams { dw, db, partial: o.scratch, blocks: shape.blocks, width };
        let columns = (geometry.kernel * geometry.kernel + 1) as u64 * u64::from(width);
        let mut sum = shape.call("depthwise_conv_weight_sum", vec, &params);
        sum.grid = [u32::try_from(columns.div_ceil(WARP as u64)).map_err(|_| "has too many channels")?, 1, 1];
        sum.block[0] = SUM_WARPS * WARP as u32;
        Ok(vec![weight, sum])
    }
}

/// Constants with which the recipes compile the kernels.
pub fn variants(bf16: bool) -> Vec<Given> {
    let element = if bf16 { DType::Bf16 } else { DType::F32 };
    let of = |(k, s, out)| {
        let tile = Tile::fitting(k, s, out, element).ok();
        tile.into_iter().flat_map(move |tile| [16 / element.bytes(), 1].map(|vec| given(k, s, vec, tile)))
    };
    [(3, 1, NARROW), (3, 1, WIDE), (3, 2, NARROW), (7, 1, NARROW)].into_iter().flat_map(of).collect()
}
