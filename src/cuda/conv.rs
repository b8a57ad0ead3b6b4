//! Dense convolutions as matrix products over (tap, channel), all sizes of maps in one product; where tensor copies see the
//! windows on maps of one size, but for the weight's gradient a product a size. A convolution of one tap and stride 1 is a
//! linear layer.

use super::gemm::{self};
use super::kernel::{Call, Family, Given, kernel_params};
use super::lower::{Lower, Lowered, Operands};
use super::pixels::{Pixels, Reach, sizes};
use super::product::{Finish, Gather, Product};
use crate::ir::{ConvGeometry, FeatureMap, InputEpilogue, ops};
use crate::plan::OperandType;
use crate::tensor::DType;
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

/// The products that `make` makes of a convolution: one of all maps, or one of each size if all of those go by tensor copies.
/// `make` is also given the rows of the convolution's input and output before the maps that it is for.
fn by_size(
    o: &Operands<'_>,
    geometry: &ConvGeometry,
    make: impl Fn(&ConvGeometry, [u64; 2]) -> Result<Product, String>,
) -> Result<Vec<Product>, String> {
    let (mut alone, mut before) = (Vec::new(), [0; 2]);
    for maps in sizes(&geometry.maps) {
        let part = ConvGeometry { maps: maps.to_vec(), ..*geometry };
        let product = make(&part, before)?;
        if !o.choices.copies(&product, o.element()) {
            return Ok(vec![make(geometry, [0; 2])?]);
        }
        alone.push(product);
        before = [before[0] + part.rows() as u64, before[1] + part.output_rows() as u64];
    }
    Ok(alone)
}

/// Moves what is stored of a product, and what is read with it, `elements` on.
fn store_behind(product: &mut Product, elements: u64, dtype: DType) {
    let p = &mut product.params;
    for at in [&mut p.y, &mut p.pre, &mut p.other].into_iter().filter(|at| **at != 0) {
        *at += elements * dtype.bytes() as u64;
    }
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
        let products = by_size(o, geometry, |part, [read, written]| {
            let pixels = Pixels::new(part, channels)?;
            let mut product = Product::new(pixels.windows, outputs, pixels.depth());
            product.gather = Gather::A(Arc::new(pixels));
            let x = o.inputs[0].at + read * u64::from(channels) * o.element().bytes() as u64;
            (product.params.a, product.params.b) = (x, o.scratch);
            gemm::with_epilogue(&mut product, o, epilogue);
            store_behind(&mut product, written * u64::from(outputs), o.element());
            Ok(product)
        })?;
        let taps = Taps { first: [0; 2], count: [geometry.kernel; 2], step: 1 };
        let mut calls = vec![permute(o, o.scratch, [outputs, channels], geometry.kernel, &taps, false)];
        for product in products {
            calls.push(product.call(o.element(), o.choices)?);
        }
        Ok(calls)
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
            let products = by_size(o, geometry, |part, [written, read]| {
                let pixels = Pixels::backward(part, outputs, place)?;
                let mut product = Product::new(pixels.windows, channels, pixels.depth());
                product.gather = Gather::A(Arc::new(pixels));
                let p = &mut product.params;
                let dy = o.inputs[0].at + read * u64::from(outputs) * o.element().bytes() as u64;
                (p.y, p.a, p.b) = (o.outputs[0].at, dy, weight);
                if gelu {
                    (product.finish, p.other) = (Finish::GeluBackward, o.inputs[2].at);
                }
                store_behind(&mut product, written * u64::from(channels), o.element());
                Ok(product)
            })?;
            let Some(depth) = products.iter().find(|p| p.params.m > 0).map(|p| p.params.k) else { continue };
            let [down, across] = place.map(|at| Reach::new(geometry, at));
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
            for product in products {
                calls.push(product.call(o.element(), o.choices)?);
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::choices::Choices;
    use crate::cuda::driver::DeviceInfo;
    use crate::cuda::lower::Operand;
    use crate::ir::Epilogue;
    use crate::tensor::Shape;

    /// Kernels of a convolution and of its input's gradient over maps of two sizes on a device, with the addresses of what tensor
    /// copies fetch and store.
    fn calls(capability: (u32, u32), channels: usize) -> [Vec<(&'static str, Vec<u64>)>; 2] {
        let map = |count, height| FeatureMap { count, height, width: 4 };
        let geometry =
            ConvGeometry { maps: vec![map(300, 6), map(200, 6), map(7000, 2)], kernel: 3, stride: 1 };
        let device = DeviceInfo { name: "test".into(), capability, multiprocessors: 132 };
        let choices = Choices::new(&device);
        let (rows, outputs) = (geometry.rows(), 128);
        let [x, w, y] = [
            Shape::from([rows, channels]),
            Shape::from([outputs, channels, 3, 3]),
            Shape::from([rows, outputs]),
        ];
        let bias = Shape::from([outputs]);
        let operand = |at, shape, dtype| Operand { at, shape, dtype };
        let [x, w, y] =
            [(1 << 32, &x), (2 << 32, &w), (3 << 32, &y)].map(|(at, s)| operand(at, s, DType::Bf16));
        let bias = operand(4 << 32, &bias, DType::F32);
        let lowered = |inputs: &[Operand<'_>], outputs: &[Operand<'_>], op: &dyn Lower| {
            let calls = op.lower(&Operands { inputs, outputs, scratch: 5 << 32, choices: &choices }).unwrap();
            calls.iter().map(|c| (c.kernel, c.maps.iter().map(|m| m.1.at).collect())).collect()
        };
        let forward = ops::Conv2d { geometry: geometry.clone(), epilogue: Epilogue::None };
        let backward = ops::Conv2dBackwardInput { geometry, gelu: false };
        [lowered(&[x, w, bias], &[y], &forward), lowered(&[y, w], &[x], &backward)]
    }

    #[test]
    fn sizes_of_maps_go_by_themselves_where_tensor_copies_see_them() {
        let permute = ("permute_weight", vec![]);
        // Of the first size there are 12,000 rows of 64 channels, and of 128.
        let [x, y] = [12_000 * 64 * 2, 12_000 * 128 * 2];
        let sm90 = |a, b| ("gemm_sm90", vec![a, 5 << 32, b]);
        let forward = [sm90(1 << 32, 3 << 32), sm90((1 << 32) + x, (3 << 32) + y)];
        let backward = [sm90(3 << 32, 1 << 32), sm90((3 << 32) + y, (1 << 32) + x)];
        let [got_forward, got_backward] = calls((9, 0), 64);
        assert_eq!((&got_forward[0], &got_forward[1..]), (&permute, &forward[..]));
        assert_eq!((&got_backward[0], &got_backward[1..]), (&permute, &backward[..]));
        // One product on older cards, and where copies do not see channels.
        for all in [calls((8, 0), 64), calls((9, 0), 60)].into_iter().flatten() {
            assert_eq!(all.iter().map(|c| c.0).collect::<Vec<_>>(), ["permute_weight", "gemm"]);
        }
    }
}
