//! Launches of `kernels/optim.cu`.

use super::kernel::{Call, Family, KernelParams, kernel_params};
use super::lower::{Lower, Lowered, Operands};
use super::pointwise::{THREADS, blocks};
use crate::ir::{ParamSegment, Scalar, ops};
use crate::plan::OperandType;

kernel_params! {
    pub const LAYOUTS;
    AccumulateParams { total: u64, grads: u64, scalars: u64, n: u64 }
    SquareParams { partial: u64, grads: u64, n: u64 }
    HealthParams { health: u64, partial: u64, loss: u64, scalars: u64, chunks: u64 }
    Piece { start: u64, expert: u64, len: u32, rule: u32 }
    ClipPiece { start: u64, len: u32, first: u32, pieces: u32, unused: u32 }
    ClipParams { grads: u64, partial: u64, scalars: u64, pieces: u64 }
    AdamWParams {
        params: u64, m: u64, v: u64, expert: u64, weights: u64, expert_weights: u64, grads: u64, scalars: u64,
        health: u64, pieces: u64,
    }
}

/// Elements of one partial sum of squares: CHUNK of the kernel.
const CHUNK: u64 = 65536;
/// Most elements of a [`Piece`].
const PIECE: usize = 4096;
/// Bits of a [`Piece`]'s rule.
const DECAYS: u32 = 1;
const LATE: u32 = 2;
/// Marks a parameter that the expert has no average of.
const NO_EXPERT: u64 = u64::MAX;

/// Names under which the kernels know places in the scalar block.
pub const SCALARS: [(&str, usize); 14] = [
    ("LEARNING_RATE", Scalar::LearningRate as usize),
    ("WEIGHT_DECAY", Scalar::WeightDecay as usize),
    ("BETA1", Scalar::Beta1 as usize),
    ("BETA2", Scalar::Beta2 as usize),
    ("ADAM_EPS", Scalar::AdamEps as usize),
    ("BIAS_CORRECTION1", Scalar::BiasCorrection1 as usize),
    ("BIAS_CORRECTION2", Scalar::BiasCorrection2 as usize),
    ("CLIP_NORM", Scalar::ClipNorm as usize),
    ("EXPERT_MOMENTUM", Scalar::ExpertMomentum as usize),
    ("MICRO_STEP", Scalar::MicroStep as usize),
    ("MICRO_WEIGHT", Scalar::MicroWeight as usize),
    ("TENSOR_CLIP_NORM", Scalar::TensorClipNorm as usize),
    ("LATE_CORRECTION1", Scalar::LateCorrection1 as usize),
    ("LATE_CORRECTION2", Scalar::LateCorrection2 as usize),
];

fn call<P: KernelParams>(kernel: &'static str, blocks: u32, params: &P) -> Call {
    SCALARS
        .iter()
        .fold(Call::new(Family::Optim, kernel, blocks, THREADS, params), |c, (name, at)| c.given(name, *at))
}

/// Adds a micro step's gradients to the sum.
pub fn accumulate_grads(params: &AccumulateParams) -> Vec<Call> {
    vec![call("accumulate_grads", blocks(params.n), params)]
}

/// Bytes of scratch memory of [`grad_health`] for `n` gradients.
pub fn health_workspace(n: u64) -> usize {
    n.div_ceil(CHUNK) as usize * size_of::<f64>()
}

/// Norm, clip factor and soundness of `n` gradients.
///
/// # Errors
/// More gradients than one grid covers.
pub fn grad_health(
    health: u64,
    grads: u64,
    n: u64,
    loss: u64,
    scalars: u64,
    scratch: u64,
) -> Result<Vec<Call>, String> {
    let chunks = n.div_ceil(CHUNK);
    let grid = u32::try_from(chunks).map_err(|_| format!("takes fewer than {n} gradients"))?;
    let squares = SquareParams { partial: scratch, grads, n };
    let params = HealthParams { health, partial: scratch, loss, scalars, chunks };
    Ok(vec![call("square_sums", grid.max(1), &squares), call("grad_health", 1, &params)])
}

/// The pieces in which `tensors` are clipped; none for more than one grid covers.
fn clip_pieces(tensors: &[(usize, usize)]) -> Option<Vec<ClipPiece>> {
    let mut all: Vec<ClipPiece> = Vec::new();
    for &(start, len) in tensors {
        let first = u32::try_from(all.len()).ok()?;
        let pieces = u32::try_from(len.div_ceil(CHUNK as usize)).ok()?;
        for from in (0..len).step_by(CHUNK as usize) {
            let (start, len) = ((start + from) as u64, (CHUNK as usize).min(len - from) as u32);
            all.push(ClipPiece { start, len, first, pieces, unused: 0 });
        }
    }
    u32::try_from(all.len()).is_ok().then_some(all)
}

/// The update of all `segments`, one block each [`PIECE`] elements.
pub fn adamw(params: &AdamWParams, segments: &[ParamSegment]) -> Vec<Call> {
    let mut pieces = Vec::new();
    for s in segments {
        for from in (0..s.len).step_by(PIECE) {
            pieces.push(Piece {
                start: (s.start + from) as u64,
                expert: s.expert.map_or(NO_EXPERT, |e| (e + from) as u64),
                len: PIECE.min(s.len - from) as u32,
                rule: u32::from(s.decay) * DECAYS + u32::from(s.late) * LATE,
            });
        }
    }
    if pieces.is_empty() {
        return Vec::new();
    }
    let blocks = pieces.len() as u32;
    let table = bytemuck::cast_slice(&pieces).to_vec();
    vec![call("adamw", blocks, params).table(std::mem::offset_of!(AdamWParams, pieces), table)]
}

impl Lower for ops::AccumulateGrads {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let Operands { inputs, outputs, .. } = *o;
        let n = outputs[0].count();
        let [total, grads, scalars] = [0, 1, 2].map(|i: usize| inputs[i].at);
        Ok(accumulate_grads(&AccumulateParams { total, grads, scalars, n }))
    }
}

impl Lower for ops::GradHealth {
    fn workspace(&self, inputs: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        health_workspace(inputs[0].shape.count() as u64)
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let Operands { inputs, scratch, outputs, .. } = *o;
        let y = outputs[0].at;
        let [grads, loss, scalars] = [0, 1, 2].map(|i: usize| inputs[i].at);
        grad_health(y, grads, inputs[0].count(), loss, scalars, scratch)
    }
}

impl Lower for ops::ClipTensors {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        let pieces: usize = self.tensors.iter().map(|t| t.1.div_ceil(CHUNK as usize)).sum();
        pieces * size_of::<f64>()
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let Operands { inputs, scratch, .. } = *o;
        let pieces = clip_pieces(&self.tensors).ok_or("takes fewer gradients")?;
        if pieces.is_empty() {
            return Ok(Vec::new());
        }
        let (grads, scalars) = (inputs[0].at, inputs[1].at);
        let params = ClipParams { grads, partial: scratch, scalars, pieces: 0 };
        let at = std::mem::offset_of!(ClipParams, pieces);
        let call = |kernel| {
            let table = bytemuck::cast_slice(&pieces).to_vec();
            call(kernel, pieces.len() as u32, &params).table(at, table)
        };
        Ok(vec![call("piece_squares"), call("clip_tensors")])
    }
}

impl Lower for ops::AdamW {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let Operands { inputs, .. } = *o;
        let ops::AdamW { segments, copies } = self;
        let [params, grads, m, v, expert, scalars, health] =
            [0, 1, 2, 3, 4, 5, 6].map(|i: usize| inputs[i].at);
        let [weights, expert_weights] = if *copies { [7, 8].map(|i: usize| inputs[i].at) } else { [0, 0] };
        let params =
            AdamWParams { params, m, v, expert, weights, expert_weights, grads, scalars, health, pieces: 0 };
        Ok(adamw(&params, segments))
    }
}
