//! The optimizer step: `torch.nn.utils.clip_grad_norm_` and `torch.optim.AdamW`, then the expert's moving average.

use crate::common::tensor::{Input, Tensor};
use saip_engine::ir::{ParamSegment, Scalar};

fn scalar(block: &Input, s: Scalar) -> f64 {
    block.float().data[s as usize]
}

/// Inputs `total, grads, scalars`.
pub fn accumulate_grads(x: &[Input]) -> Tensor {
    let (total, grads) = (x[0].float(), x[1].float());
    let (step, weight) = (scalar(&x[2], Scalar::MicroStep), scalar(&x[2], Scalar::MicroWeight));
    Tensor::from_fn(total.shape.clone(), |i| {
        grads.data[i] * weight + if step == 0.0 { 0.0 } else { total.data[i] }
    })
}

/// Inputs `grads, loss, scalars` -> norm, clip factor, finite.
pub fn grad_health(x: &[Input]) -> Tensor {
    let norm = x[0].float().data.iter().map(|g| g * g).sum::<f64>().sqrt();
    let limit = scalar(&x[2], Scalar::ClipNorm);
    let factor = if limit > 0.0 { (limit / (norm + 1e-6)).min(1.0) } else { 1.0 };
    let finite = norm.is_finite() && x[1].float().data[0].is_finite();
    Tensor::new([3], vec![norm, factor, f64::from(u8::from(finite))])
}

/// Inputs `params, grads, m, v, expert, scalars, health` (`weights, expert_weights`) -> `params, m, v, expert`
/// (`weights, expert_weights`).
pub fn adamw(x: &[Input], segments: &[ParamSegment], copies: bool) -> Vec<Tensor> {
    let mut out = update(x, segments);
    if copies {
        let skipped = x[6].float().data[2] == 0.0;
        let [mut weights, mut expert] = [7, 8].map(|i| x[i].float().clone());
        for s in segments.iter().filter(|_| !skipped) {
            weights.data[s.start..s.start + s.len].copy_from_slice(&out[0].data[s.start..s.start + s.len]);
            if let Some(e) = s.expert {
                expert.data[e..e + s.len].copy_from_slice(&out[3].data[e..e + s.len]);
            }
        }
        out.extend([weights, expert]);
    }
    out
}

fn update(x: &[Input], segments: &[ParamSegment]) -> Vec<Tensor> {
    let [mut p, g, mut m, mut v, mut expert] = [0, 1, 2, 3, 4].map(|i| x[i].float().clone());
    let s = |which| scalar(&x[5], which);
    let health = &x[6].float().data;
    if health[2] == 0.0 {
        return vec![p, m, v, expert];
    }
    let (b1, b2, lr) = (s(Scalar::Beta1), s(Scalar::Beta2), s(Scalar::LearningRate));
    let momentum = s(Scalar::ExpertMomentum);
    for segment in segments {
        let (c1, c2) = match segment.late {
            true => (s(Scalar::LateCorrection1), s(Scalar::LateCorrection2)),
            false => (s(Scalar::BiasCorrection1), s(Scalar::BiasCorrection2)),
        };
        for j in 0..segment.len {
            let i = segment.start + j;
            if c1 == 0.0 {
                if let Some(e) = segment.expert {
                    expert.data[e + j] = momentum * expert.data[e + j] + (1.0 - momentum) * p.data[i];
                }
                continue;
            }
            let grad = g.data[i] * health[1];
            if segment.decay {
                p.data[i] *= 1.0 - lr * s(Scalar::WeightDecay);
            }
            m.data[i] = b1 * m.data[i] + (1.0 - b1) * grad;
            v.data[i] = b2 * v.data[i] + (1.0 - b2) * grad * grad;
            let denominator = (v.data[i] / c2).sqrt() + s(Scalar::AdamEps);
            p.data[i] -= lr * (m.data[i] / c1) / denominator;
            if let Some(e) = segment.expert {
                expert.data[e + j] = momentum * expert.data[e + j] + (1.0 - momentum) * p.data[i];
            }
        }
    }
    vec![p, m, v, expert]
}

/// Inputs `grads, scalars`: DINO's `clip_gradients`, tensor by tensor.
pub fn clip_tensors(x: &[Input], tensors: &[(usize, usize)]) -> Tensor {
    let (mut grads, limit) = (x[0].float().clone(), scalar(&x[1], Scalar::TensorClipNorm));
    for &(start, len) in tensors {
        let own = &mut grads.data[start..start + len];
        let norm = own.iter().map(|g| g * g).sum::<f64>().sqrt();
        let factor = limit / (norm + 1e-6);
        if limit > 0.0 && factor < 1.0 {
            own.iter_mut().for_each(|g| *g *= factor);
        }
    }
    grads
}
