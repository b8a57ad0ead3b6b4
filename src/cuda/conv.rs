//! Dense convolutions as matrix products over (tap, channel), all sizes of maps in one product. A convolution of one tap
//! and stride 1 is a linear layer.

use super::gemm::{self};
use super::kernel::{Call, Family, Given, kernel_params};
use super::lower::{Lower, Lowered, Operands};
use super::pixels::{Pixels, Reach};
use super::product::{Finish, Gather, Product};
use crate::ir::{ConvGeometry, FeatureMap, InputEpilogue, ops};
use crate::plan::OperandType;
use std::sync::Arc;

kernel_params! {
    pub const LAYOUTS;
    WeightParams {
        y: u64, w: u64, outputs: u32, channels: u32, taps: u32, backward: u32, taps_y: u32, taps_x: u32, first_y: u32,
        first_x: u32, step: u32, edge: u32,
    }
}

/// Whether the rows that are read are the rows of the product.
fn is_linear(g: &ConvGeometry) -> bool {
    g.kernel == 1 && g.stride == 1
}

/// Which taps of the weight a product reads: of each axis the first and their number; the distance of all.
struct Taps {
    first: [usize; 2],
    count: [usize; 2],
    /// Below 0 they are read in reverse.
    step: isize,
}

/// Brings `taps` of the weight `[outputs, channels, kernel, kernel]` at operand 1 into the order that a product reads.
fn permute(
    o: &Operands<'_>,
    y: u64,
    [outputs, channels]: [u32; 2],
    kernel: usize,
    taps: &Taps,
    backward: bool,
) -> Call {
    let [taps_y, taps_x] = taps.count.map(|n| n as u32);
    let [first_y, first_x] = taps.first.map(|n| n as u32);
    let params = WeightParams {
        y,
        w: o.inputs[1].at,
        outputs,
        channels,
        taps: (kernel * kernel) as u32,
        backward: u32::from(backward),
        taps_y,
        taps_x,
        first_y,
        first_x,
        // Wraps around, as sums of it do.
        step: taps.step as u32,
        edge: kernel as u32,
    };
    let count = u64::from(outputs) * u64::from(channels) * (taps.count[0] * taps.count[1]) as u64;
    // A weight has fewer elements than 2^32 threads: the operands' widths are counted in 32 bits.
    let blocks = count.div_ceil(256).clamp(1, u64::from(u32::MAX)) as u32;
    Call::new(Family::Conv, "permute_weight", blocks, 256, &params)
}

impl Lower for ops::Conv2d {
    fn workspace(&self, inputs: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        let ops::Conv2d { geometry, .. } = self;
        if is_linear(geometry) { 0 } else { inputs[1].shape.count() * inputs[1].dtype.bytes() }
    }

    /// `y = conv(x, w) + b` and what follows it.
    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let &ops::Conv2d { ref geometry, epilogue } = self;
        if is_linear(geometry) {
            return gemm::linear(o, epilogue);
        }
        let (_, channels) = o.inputs[0].rows_width()?;
        let (_, outputs) = o.outputs[0].rows_width()?;
        let pixels = Pixels::new(geometry, channels)?;
        let mut product = Product::new(pixels.windows, outputs, pixels.depth());
        product.gather = Gather::A(Arc::new(pixels));
        (product.params.a, product.params.b) = (o.inputs[0].at, o.scratch);
        gemm::with_epilogue(&mut product, o, epilogue);
        let taps = Taps { first: [0; 2], count: [geometry.kernel; 2], step: 1 };
        let permuted = permute(o, o.scratch, [outputs, channels], geometry.kernel, &taps, false);
        Ok(vec![permuted, product.call(o.element(), o.choices)?])
    }
}

impl Lower for ops::Conv2dBackwardInput {
    fn workspace(&self, inputs: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        let ops::Conv2dBackwardInput { geometry, .. } = self;
        if is_linear(geometry) { 0 } else { inputs[1].shape.count() * inputs[1].dtype.bytes() }
    }

    /// `dx`; with `gelu` times the slope at operand 2. A position is reached by those taps alone whose distance to it is a
    /// multiple of the stride: for each of `stride * stride` classes of positions a convolution of `dy` by its own taps, in
    /// reverse. Together they do the work of the forward product.
    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let &ops::Conv2dBackwardInput { ref geometry, gelu } = self;
        if is_linear(geometry) {
            let epilogue = if gelu { InputEpilogue::Gelu } else { InputEpilogue::None };
            return gemm::backward_input(o, epilogue);
        }
        let (_, outputs) = o.inputs[0].rows_width()?;
        let (_, channels) = o.outputs[0].rows_width()?;
        let (mut calls, mut weight) = (Vec::new(), o.scratch);
        // Beyond the largest map no class has positions.
        let largest = |of: fn(&FeatureMap) -> usize| geometry.maps.iter().map(of).max().unwrap_or(0);
        let [lines, columns] = [largest(|m| m.height), largest(|m| m.width)].map(|n| n.min(geometry.stride));
        for place in (0..lines).flat_map(|down| (0..columns).map(move |across| [down, across])) {
            let pixels = Pixels::backward(geometry, outputs, place)?;
            if pixels.windows == 0 {
                continue;
            }
            let [down, across] = place.map(|at| Reach::new(geometry, at));
            let depth = pixels.depth();
            let mut product = Product::new(pixels.windows, channels, depth);
            product.gather = Gather::A(Arc::new(pixels));
            let p = &mut product.params;
            (p.y, p.a, p.b) = (o.outputs[0].at, o.inputs[0].at, weight);
            if gelu {
                (product.finish, p.other) = (Finish::GeluBackward, o.inputs[2].at);
            }
            // Where no tap reaches, the product over nothing leaves 0.
            if depth > 0 {
                let last = |r: Reach| r.tap + geometry.stride * (r.taps - 1);
                let taps = Taps {
                    first: [last(down), last(across)],
                    count: [down.taps, across.taps],
                    step: -(geometry.stride as isize),
                };
                calls.push(permute(o, weight, [outputs, channels], geometry.kernel, &taps, true));
            }
            calls.push(product.call(o.element(), o.choices)?);
            weight += u64::from(channels) * u64::from(depth) * o.inputs[1].dtype.bytes() as u64;
        }
        Ok(calls)
    }
}

impl Lower for ops::Conv2dBackwardWeight {
    fn workspace(&self, inputs: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        let ops::Conv2dBackwardWeight { geometry } = self;
        let ((rows, outputs), (_, channels)) = (inputs[0].shape.as_matrix(), inputs[1].shape.as_matrix());
        let n = geometry.kernel * geometry.kernel * channels;
        let workspace = if is_linear(geometry) { gemm::weight_workspace } else { gemm::gathered_workspace };
        workspace(outputs as u32, n as u32, rows as u32)
    }

    /// `dw` and `db`.
    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let ops::Conv2dBackwardWeight { geometry } = self;
        if is_linear(geometry) {
            return gemm::backward_weight(o);
        }
        let (_, channels) = o.inputs[1].rows_width()?;
        let pixels = Pixels::new(geometry, channels)?;
        let depth = pixels.depth();
        gemm::weight_gradient(o, depth, Gather::B(Arc::new(pixels)), channels)
    }
}

/// Constants with which the recipes compile the kernels.
pub fn variants() -> Vec<Given> {
    vec![Vec::new()]
}
