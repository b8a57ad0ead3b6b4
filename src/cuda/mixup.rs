//! Launches of `kernels/mixup.cu`.

use super::kernel::{Call, Family, Given, KernelParams, kernel_params};
use super::lower::{Lower, Lowered, Operands};
use super::pointwise::{THREADS, blocks, vector};
use crate::ir::ops;
use crate::plan::OperandType;
use crate::tensor::DType;

kernel_params! {
    pub const LAYOUTS;
    MixParams { y: u64, x: u64, lam: u64, boxes: u64, images: u32, height: u32, width: u32, unused: u32 }
    TargetParams {
        y: u64, lam: u64, boxes: u64, labels: u64, images: u32, classes: u32, height: u32, width: u32, cold: f32, hot: f32,
    }
    CrossParams {
        partial: u64, lse: u64, dlogits: u64, dloss: u64, logits: u64, target: u64, rows: u32, classes: u32,
    }
    MeanParams { loss: u64, partial: u64, count: u64 }
}

fn call<P: KernelParams>(kernel: &'static str, blocks: u32, vec: u64, params: &P) -> Call {
    Call::new(Family::Mixup, kernel, blocks, THREADS, params).given("VEC", vec as usize)
}

fn small(n: usize) -> Result<u32, String> {
    u32::try_from(n).map_err(|_| format!("takes sizes of at most {}", u32::MAX))
}

/// Parameters from operands `logits, target`, the first of which is input `first`.
fn cross(o: &Operands<'_>, first: usize) -> Result<CrossParams, String> {
    let (rows, classes) = o.inputs[first].rows_width()?;
    let [logits, target] = [first, first + 1].map(|i| o.inputs[i].at);
    Ok(CrossParams { partial: o.scratch, lse: 0, dlogits: 0, dloss: 0, logits, target, rows, classes })
}

impl Lower for ops::MixImages {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let [x, lam, boxes] = [0, 1, 2].map(|i: usize| o.inputs[i].at);
        let &[images, _, height, width] = o.inputs[0].shape.dims() else {
            return Err(format!("takes images [B, 3, H, W], not {}", o.inputs[0].shape));
        };
        let y = o.outputs[0].at;
        let vec = vector(width as u64, DType::F32, &[x, y]);
        let [images, height, width] = [small(images)?, small(height)?, small(width)?];
        let params = MixParams { y, x, lam, boxes, images, height, width, unused: 0 };
        Ok(vec![call("mix_images", blocks(o.outputs[0].count() / vec), vec, &params)])
    }
}

impl Lower for ops::SoftTargets {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let &ops::SoftTargets { classes, smoothing, size } = self;
        let [lam, boxes, labels] = [0, 1, 2].map(|i: usize| o.inputs[i].at);
        let (images, _) = o.outputs[0].rows_width()?;
        // Labels are counted as i32 are.
        if i32::try_from(classes).is_err() {
            return Err(format!("takes at most {} classes", i32::MAX));
        }
        let cold = (smoothing / classes as f64) as f32;
        let params = TargetParams {
            y: o.outputs[0].at,
            lam,
            boxes,
            labels,
            images,
            classes: small(classes)?,
            height: small(size[0])?,
            width: small(size[1])?,
            cold,
            hot: (1.0 - smoothing) as f32 + cold,
        };
        Ok(vec![call("soft_targets", blocks(o.outputs[0].count()), 1, &params)])
    }
}

impl Lower for ops::SoftCrossEntropy {
    fn workspace(&self, inputs: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        inputs[0].shape.as_matrix().0 * size_of::<f32>()
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let params = CrossParams { lse: o.outputs[1].at, ..cross(o, 0)? };
        let mean = MeanParams { loss: o.outputs[0].at, partial: o.scratch, count: u64::from(params.rows) };
        Ok(vec![call("soft_cross_entropy", params.rows, 1, &params), call("mean_loss", 1, 1, &mean)])
    }
}

impl Lower for ops::SoftCrossEntropyBackward {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let (dloss, lse, dlogits) = (o.inputs[0].at, o.inputs[3].at, o.outputs[0].at);
        let params = CrossParams { dloss, lse, dlogits, ..cross(o, 1)? };
        Ok(vec![call("soft_cross_entropy_backward", params.rows, 1, &params)])
    }
}

/// Constants with which the recipes compile the kernels.
pub fn variants() -> Vec<Given> {
    vec![vec![("VEC", 1)], vec![("VEC", 4)]]
}
