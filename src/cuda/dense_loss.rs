//! Losses over tokens, and the predicted kernel in front of one.

use super::kernel::{Call, Family, Given, KernelParams, kernel_params};
use super::lower::{Lower, Lowered, Operands};
use super::pointwise::{THREADS, vector};
use crate::ir::{PATCH_VALUES, ops};
use crate::plan::OperandType;

kernel_params! {
    pub const LAYOUTS;
    MseParams {
        partial: u64, dpred: u64, dloss: u64, pred: u64, image: u64, hidden: u64, each: u32, height: u32, width: u32,
        factor: f32,
    }
    BceParams {
        partial: u64, dlogits: u64, dloss: u64, logits: u64, target: u64, n: u64, factor: f32, unused: u32,
    }
    LossParams { loss: u64, partial: u64, count: u64, factor: f64 }
    DynamicConvParams {
        logits: u64, dkernel: u64, dfeatures: u64, kernel: u64, features: u64, images: u32, tokens: u32, groups: u32,
        width: u32,
    }
}

/// Values of a patch.
const VALUES: u64 = PATCH_VALUES as u64;
/// Elements of a block: BCE_CHUNK of the kernel.
const BCE_CHUNK: u64 = 2048;
/// Packs of a block: KERNEL_COLUMNS of the kernel.
const KERNEL_COLUMNS: u64 = 32;

/// A call over at least one block.
///
/// # Errors
/// More blocks than a grid has.
fn call<P: KernelParams>(kernel: &'static str, blocks: u64, vec: u64, params: &P) -> Result<Call, String> {
    let blocks = u32::try_from(blocks.max(1)).map_err(|_| format!("takes fewer than {blocks} blocks"))?;
    Ok(Call::new(Family::DenseLoss, kernel, blocks, THREADS, params).given("VEC", vec as usize))
}

fn total(o: &Operands<'_>, count: u64, factor: f64) -> Result<Call, String> {
    let params = LossParams { loss: o.outputs[0].at, partial: o.scratch, count, factor };
    call("total_loss", 1, 1, &params)
}

/// Parameters from operands `pred, image, hidden`, the first of which is input `first`; and the rows of `pred`.
fn mse(o: &Operands<'_>, first: usize) -> Result<(MseParams, u64), String> {
    let [pred, image, hidden] = [0, 1, 2].map(|i| &o.inputs[first + i]);
    let (images, each) = hidden.rows_width()?;
    let &[.., height, width] = image.shape.dims() else {
        return Err(format!("takes images [B, 3, H, W], not {}", image.shape));
    };
    let size = |n: usize| u32::try_from(n).map_err(|_| "takes smaller images".to_owned());
    let rows = u64::from(images) * u64::from(each);
    let params = MseParams {
        partial: o.scratch,
        dpred: 0,
        dloss: 0,
        pred: pred.at,
        image: image.at,
        hidden: hidden.at,
        each,
        height: size(height)?,
        width: size(width)?,
        factor: (2.0 / (rows * VALUES) as f64) as f32,
    };
    Ok((params, rows))
}

/// Parameters from operands `logits, target`, the first of which is input `first`.
fn bce(o: &Operands<'_>, first: usize, groups: usize) -> BceParams {
    let n = o.inputs[first].count();
    BceParams {
        partial: o.scratch,
        dlogits: 0,
        dloss: 0,
        logits: o.inputs[first].at,
        target: o.inputs[first + 1].at,
        n,
        factor: (groups as f64 / n as f64) as f32,
        unused: 0,
    }
}

/// Parameters from operands `kernel, features`, the first of which is input `first`.
fn dynamic(o: &Operands<'_>, first: usize, tokens: usize) -> Result<DynamicConvParams, String> {
    let [kernel, features] = [0, 1].map(|i| &o.inputs[first + i]);
    let ((rows, width), (all, _)) = (kernel.rows_width()?, features.rows_width()?);
    let tokens = u32::try_from(tokens).map_err(|_| "takes fewer tokens".to_owned())?;
    let images = all / tokens.max(1);
    Ok(DynamicConvParams {
        logits: 0,
        dkernel: 0,
        dfeatures: 0,
        kernel: kernel.at,
        features: features.at,
        images,
        tokens,
        groups: rows / images.max(1),
        width,
    })
}

impl Lower for ops::DynamicConv {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let &ops::DynamicConv { tokens } = self;
        let params = DynamicConvParams { logits: o.outputs[0].at, ..dynamic(o, 0, tokens)? };
        let vec = vector(u64::from(params.width), o.element(), &[params.kernel, params.features]);
        let warps = u64::from(params.images) * u64::from(params.tokens);
        Ok(vec![call("dynamic_conv", warps.div_ceil(u64::from(THREADS / 32)), vec, &params)?])
    }
}

impl Lower for ops::DynamicConvBackward {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let &ops::DynamicConvBackward { tokens } = self;
        let [dlogits, dkernel, dfeatures] = [o.inputs[0].at, o.outputs[0].at, o.outputs[1].at];
        let params = DynamicConvParams { logits: dlogits, dkernel, dfeatures, ..dynamic(o, 1, tokens)? };
        let addresses = [params.kernel, params.features, dkernel, dfeatures];
        let vec = vector(u64::from(params.width), o.element(), &addresses);
        let packs = u64::from(params.width) / vec;
        let threads = u64::from(params.images) * u64::from(params.tokens) * packs;
        let features =
            call("dynamic_conv_backward_features", threads.div_ceil(u64::from(THREADS)), vec, &params)?;
        let rows = u64::from(params.groups) * u64::from(params.images);
        let mut kernel = call("dynamic_conv_backward_kernel", rows, vec, &params)?;
        kernel.grid[1] = packs.div_ceil(KERNEL_COLUMNS) as u32;
        Ok(vec![features, kernel])
    }
}

impl Lower for ops::MaskedMse {
    fn workspace(&self, inputs: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        inputs[2].shape.count() * size_of::<f32>()
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let (params, rows) = mse(o, 0)?;
        Ok(vec![call("masked_mse", rows, 1, &params)?, total(o, rows, 1.0 / (rows * VALUES) as f64)?])
    }
}

impl Lower for ops::MaskedMseBackward {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let (params, rows) = mse(o, 1)?;
        let params = MseParams { dpred: o.outputs[0].at, dloss: o.inputs[0].at, ..params };
        Ok(vec![call("masked_mse_backward", rows, 1, &params)?])
    }
}

impl Lower for ops::BceWithLogits {
    fn workspace(&self, inputs: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        inputs[0].shape.count().div_ceil(BCE_CHUNK as usize) * size_of::<f32>()
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let &ops::BceWithLogits { groups } = self;
        let params = bce(o, 0, groups);
        let blocks = params.n.div_ceil(BCE_CHUNK);
        let sum = total(o, blocks, groups as f64 / params.n as f64)?;
        Ok(vec![call("bce_with_logits", blocks, 1, &params)?, sum])
    }
}

impl Lower for ops::BceWithLogitsBackward {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let &ops::BceWithLogitsBackward { groups } = self;
        let params = BceParams { dlogits: o.outputs[0].at, dloss: o.inputs[0].at, ..bce(o, 1, groups) };
        Ok(vec![call("bce_with_logits_backward", params.n.div_ceil(u64::from(THREADS)), 1, &params)?])
    }
}

/// Constants with which the recipes compile the kernels.
pub fn variants() -> Vec<Given> {
    vec![vec![("VEC", 1)], vec![("VEC", 4)], vec![("VEC", 8)]]
}
