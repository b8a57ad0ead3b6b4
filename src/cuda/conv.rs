//! Dense convolutions with stride 1 as matrix products over (tap, channel).

use super::gemm::{self, Finish, Gather, Product};
use super::kernel::{Call, Family, Given, kernel_params};
use super::lower::{Lowered, Operands};
use crate::backend::OperandType;
use crate::ir::{ConvGeometry, Epilogue, FeatureMap, Op};

kernel_params! {
    WeightParams { y: u64, w: u64, outputs: u32, channels: u32, taps: u32, backward: u32 }
}

/// What the product's kernel knows of images of `channels`.
///
/// # Errors
/// For geometries that the kernels do not take yet.
fn image(geometry: &ConvGeometry, channels: u32) -> Result<[usize; 4], String> {
    match (&geometry.maps[..], geometry.stride) {
        (&[FeatureMap { height, width, .. }], 1) => Ok([height, width, channels as usize, geometry.kernel]),
        (maps, stride) => Err(format!(
            "has no CUDA kernel yet for {} sizes of maps and stride {stride}: use the CPU",
            maps.len()
        )),
    }
}

/// Brings the weight at operand 1 into the order that the product reads, in scratch memory.
fn permute(o: &Operands<'_>, outputs: u32, channels: u32, taps: u32, backward: bool) -> Call {
    let params = WeightParams {
        y: o.scratch,
        w: o.inputs[1].at,
        outputs,
        channels,
        taps,
        backward: u32::from(backward),
    };
    // A weight has fewer elements than 2^32 threads: the operands' widths are counted in 32 bits.
    let blocks = o.inputs[1].count().div_ceil(256).clamp(1, u64::from(u32::MAX)) as u32;
    Call::new(Family::Conv, "permute_weight", blocks, 256, &params)
}

/// `y = conv(x, w) + b` and what follows it.
pub fn forward(o: &Operands<'_>, geometry: &ConvGeometry, epilogue: Epilogue) -> Lowered {
    let (rows, channels) = o.inputs[0].rows_width()?;
    let (_, outputs) = o.outputs[0].rows_width()?;
    let taps = (geometry.kernel * geometry.kernel) as u32;
    let mut product = Product::new(rows, outputs, taps * channels);
    product.gather = Gather::A(image(geometry, channels)?);
    (product.params.a, product.params.b) = (o.inputs[0].at, o.scratch);
    gemm::with_epilogue(&mut product, o, epilogue);
    Ok(vec![permute(o, outputs, channels, taps, false), product.call(o.element(), o.choices)?])
}

/// `dx`, a convolution of `dy` with the taps in reverse; with `gelu` times the slope at operand 2.
pub fn backward_input(o: &Operands<'_>, geometry: &ConvGeometry, gelu: bool) -> Lowered {
    let (rows, outputs) = o.inputs[0].rows_width()?;
    let (_, channels) = o.outputs[0].rows_width()?;
    let taps = (geometry.kernel * geometry.kernel) as u32;
    let mut product = Product::new(rows, channels, taps * outputs);
    product.gather = Gather::A(image(geometry, outputs)?);
    let p = &mut product.params;
    (p.y, p.a, p.b) = (o.outputs[0].at, o.inputs[0].at, o.scratch);
    if gelu {
        (product.finish, p.other) = (Finish::GeluBackward, o.inputs[2].at);
    }
    Ok(vec![permute(o, outputs, channels, taps, true), product.call(o.element(), o.choices)?])
}

/// `dw` and `db`.
pub fn backward_weight(o: &Operands<'_>, geometry: &ConvGeometry) -> Lowered {
    let (_, channels) = o.inputs[1].rows_width()?;
    let taps = (geometry.kernel * geometry.kernel) as u32;
    gemm::weight_gradient(o, taps * channels, Gather::B(image(geometry, channels)?), channels)
}

pub fn workspace(op: &Op, inputs: &[OperandType<'_>], _outputs: &[OperandType<'_>]) -> usize {
    match op {
        Op::Conv2dBackwardWeight { geometry } => {
            let ((rows, outputs), (_, channels)) = (inputs[0].shape.as_matrix(), inputs[1].shape.as_matrix());
            let n = geometry.kernel * geometry.kernel * channels;
            gemm::weight_workspace(outputs as u32, n as u32, rows as u32)
        }
        _ => inputs[1].shape.count() * inputs[1].dtype.bytes(),
    }
}

/// Constants with which the recipes compile the kernels.
pub fn variants() -> Vec<Given> {
    vec![Vec::new()]
}
