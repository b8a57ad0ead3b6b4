//! The flat buffers after the backward pass: gradient accumulation, their health, AdamW with the expert's average.
//!
//! `P` parameters. `total`, `params`, `m`, `v` and `expert` are updated in place.

use super::buffers::Io;
use super::kernel::Kernel;
use crate::tensor::Shape;
use rayon::prelude::*;

use crate::ir::{ParamSegment, Scalar, ops};

use super::par::for_elements;
use super::real::Real;
use super::simd::vectorize;

/// Elements whose squares one task sums.
const CHUNK: usize = 1 << 15;

fn scalar<T: Real>(scalars: &[T], which: Scalar) -> T {
    scalars[which as usize]
}

/// `total: [P]` becomes (micro step 0) or gains `grads: [P]` times the micro weight.
pub fn accumulate_grads<T: Real>(total: &mut [T], grads: &[T], scalars: &[T]) {
    let weight = scalar(scalars, Scalar::MicroWeight);
    let first = scalar(scalars, Scalar::MicroStep) == T::ZERO;
    for_elements(total, |at, total| {
        vectorize(
            #[inline(always)]
            || {
                let grads = &grads[at..at + total.len()];
                if first {
                    for (t, &g) in total.iter_mut().zip(grads) {
                        *t = g * weight;
                    }
                } else {
                    for (t, &g) in total.iter_mut().zip(grads) {
                        *t += g * weight;
                    }
                }
            },
        );
    });
}

/// Elements of workspace of [`grad_health`]: one f64 per chunk, whatever the element type.
pub fn health_workspace<T: Real>(len: usize) -> usize {
    len.div_ceil(CHUNK) * size_of::<f64>() / size_of::<T>()
}

/// Euclidean length of `x`; `partial` has a sum for each chunk.
fn norm<T: Real>(x: &[T], partial: &mut [f64]) -> f64 {
    partial.par_iter_mut().zip(x.par_chunks(CHUNK)).for_each(|(sum, x)| {
        *sum = vectorize(
            #[inline(always)]
            || {
                let mut lanes = [0.0; 16];
                let (chunks, rest) = x.as_chunks::<16>();
                for c in chunks {
                    for (l, &g) in lanes.iter_mut().zip(c) {
                        *l += g.to_f64() * g.to_f64();
                    }
                }
                for (l, &g) in lanes.iter_mut().zip(rest) {
                    *l += g.to_f64() * g.to_f64();
                }
                lanes.iter().sum()
            },
        );
    });
    partial.iter().sum::<f64>().sqrt()
}

/// What a gradient of length `norm` is multiplied with to be at most `clip` long; 1 where `clip` is 0.
fn clip_factor(norm: f64, clip: f64) -> f64 {
    // `min` with a NaN norm gives 1; the step is skipped then anyway.
    if clip > 0.0 { (clip / (norm + 1e-6)).min(1.0) } else { 1.0 }
}

/// Each of `tensors` (first element, elements) of `grads: [P]`, in place, clipped by its own norm.
pub fn clip_tensors<T: Real>(
    grads: &mut [T],
    scalars: &[T],
    tensors: &[(usize, usize)],
    workspace: &mut [T],
) {
    let clip = scalar(scalars, Scalar::TensorClipNorm).to_f64();
    if clip == 0.0 {
        return;
    }
    for &(start, len) in tensors {
        let grads = &mut grads[start..start + len];
        let partial = &mut workspace[..health_workspace::<T>(len)];
        let factor = T::from_f64(clip_factor(norm(grads, bytemuck::cast_slice_mut(partial)), clip));
        for_elements(grads, |_, grads| grads.iter_mut().for_each(|g| *g *= factor));
    }
}

/// `health: [3]`: norm of `grads`, clip factor, 1 if the step is to be made.
pub fn grad_health<T: Real>(health: &mut [T], grads: &[T], loss: &[T], scalars: &[T], workspace: &mut [T]) {
    let partial = &mut workspace[..health_workspace::<T>(grads.len())];
    let norm = norm(grads, bytemuck::cast_slice_mut(partial));
    let factor = clip_factor(norm, scalar(scalars, Scalar::ClipNorm).to_f64());
    let finite = T::from_f64(norm).is_finite() && loss[0].is_finite();
    health[0] = T::from_f64(norm);
    health[1] = T::from_f64(factor);
    health[2] = if finite { T::ONE } else { T::ZERO };
}

/// What AdamW does to every element of one segment.
#[derive(Clone, Copy)]
struct Rule<T> {
    clip: T,
    shrink: T,
    beta1: T,
    beta2: T,
    step: T,
    root: T,
    eps: T,
    /// Weight of the new parameter in the expert's average.
    follow: T,
}

/// State of the optimizer, updated in place.
pub struct State<'a, T> {
    pub params: &'a mut [T],
    pub m: &'a mut [T],
    pub v: &'a mut [T],
    pub expert: &'a mut [T],
}

/// AdamW on `grads` times the clip factor, then the expert's moving average, in one pass over memory. Parameters
/// outside of `segments` keep their values.
pub fn adamw<T: Real>(
    state: State<'_, T>,
    grads: &[T],
    scalars: &[T],
    health: &[T],
    segments: &[ParamSegment],
) {
    if health[2] == T::ZERO {
        return;
    }
    let s = |which| scalar(scalars, which);
    let rule = Rule {
        clip: health[1],
        shrink: T::ONE,
        beta1: s(Scalar::Beta1),
        beta2: s(Scalar::Beta2),
        step: s(Scalar::LearningRate) / s(Scalar::BiasCorrection1),
        root: s(Scalar::BiasCorrection2).sqrt(),
        eps: s(Scalar::AdamEps),
        follow: T::ONE - s(Scalar::ExpertMomentum),
    };
    let late = [s(Scalar::LateCorrection1), s(Scalar::LateCorrection2)];
    let held = late[0] == T::ZERO;
    let late = Rule { step: s(Scalar::LearningRate) / late[0], root: late[1].sqrt(), ..rule };
    let decay = T::ONE - s(Scalar::LearningRate) * s(Scalar::WeightDecay);
    let State { params, m, v, expert } = state;
    for segment in segments {
        let range = segment.start..segment.start + segment.len;
        if segment.late && held {
            if let Some(at) = segment.expert {
                follow(&mut expert[at..at + segment.len], &params[range], rule.follow);
            }
            continue;
        }
        let rule = if segment.late { late } else { rule };
        let rule = Rule { shrink: if segment.decay { decay } else { T::ONE }, ..rule };
        let (p, m, v, g) =
            (&mut params[range.clone()], &mut m[range.clone()], &mut v[range.clone()], &grads[range]);
        let chunks = p.par_chunks_mut(CHUNK).zip(m.par_chunks_mut(CHUNK)).zip(v.par_chunks_mut(CHUNK));
        let chunks = chunks.zip(g.par_chunks(CHUNK));
        match segment.expert {
            None => chunks.for_each(|(((p, m), v), g)| update(p, m, v, g, None, rule)),
            Some(at) => {
                let expert = &mut expert[at..at + segment.len];
                let chunks = chunks.zip(expert.par_chunks_mut(CHUNK));
                chunks.for_each(|((((p, m), v), g), e)| update(p, m, v, g, Some(e), rule));
            }
        }
    }
}

/// Copies what [`adamw`] updated: `(copy, original)` of the parameters and of the expert.
pub fn copy_segments<T: Real>(
    params: (&mut [T], &[T]),
    expert: (&mut [T], &[T]),
    health: &[T],
    segments: &[ParamSegment],
) {
    if health[2] == T::ZERO {
        return;
    }
    for s in segments {
        let range = s.start..s.start + s.len;
        params.0[range.clone()].copy_from_slice(&params.1[range]);
        if let Some(at) = s.expert {
            expert.0[at..at + s.len].copy_from_slice(&expert.1[at..at + s.len]);
        }
    }
}

/// `from + share (to - from)`, in the form that is exact at the nearer end, as torch.lerp has it.
#[inline(always)]
fn toward<T: Real>(from: T, to: T, share: T) -> T {
    let change = to - from;
    if share < T::from_f64(0.5) { from + share * change } else { to - (T::ONE - share) * change }
}

/// The moving average of parameters that keep their values.
fn follow<T: Real>(expert: &mut [T], params: &[T], share: T) {
    for_elements(expert, |at, expert| {
        for (e, &p) in expert.iter_mut().zip(&params[at..]) {
            *e = toward(*e, p, share);
        }
    });
}

fn update<T: Real>(p: &mut [T], m: &mut [T], v: &mut [T], g: &[T], expert: Option<&mut [T]>, r: Rule<T>) {
    vectorize(
        #[inline(always)]
        || {
            let step = |p: &mut T, m: &mut T, v: &mut T, g: T| {
                let g = g * r.clip;
                *m += (T::ONE - r.beta1) * (g - *m);
                *v = r.beta2 * *v + (T::ONE - r.beta2) * g * g;
                *p = *p * r.shrink - r.step * *m / (v.sqrt() / r.root + r.eps);
            };
            let n = p.len();
            let (m, v, g) = (&mut m[..n], &mut v[..n], &g[..n]);
            match expert {
                None => {
                    for i in 0..n {
                        step(&mut p[i], &mut m[i], &mut v[i], g[i]);
                    }
                }
                Some(e) => {
                    let e = &mut e[..n];
                    for i in 0..n {
                        step(&mut p[i], &mut m[i], &mut v[i], g[i]);
                        e[i] = toward(e[i], p[i], r.follow);
                    }
                }
            }
        },
    );
}

impl<T: Real> Kernel<T> for ops::AccumulateGrads {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        accumulate_grads(io.output(0), io.input(1), io.input(2));
    }
}

impl<T: Real> Kernel<T> for ops::GradHealth {
    fn workspace(&self, inputs: &[&Shape], _: &[&Shape], _: usize) -> usize {
        health_workspace::<T>(inputs[0].count())
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let (health, workspace) = (io.output(0), io.workspace());
        grad_health(health, io.input(0), io.input(1), io.input(2), workspace);
    }
}

impl<T: Real> Kernel<T> for ops::ClipTensors {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        health_workspace::<T>(self.tensors.iter().map(|t| t.1).max().unwrap_or(0))
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let (grads, workspace) = (io.output(0), io.workspace());
        clip_tensors(grads, io.input(1), &self.tensors, workspace);
    }
}

impl<T: Real> Kernel<T> for ops::AdamW {
    fn workspace(&self, _: &[&Shape], _: &[&Shape], _: usize) -> usize {
        0
    }

    fn execute(&self, io: &mut Io<'_, T>) {
        let ops::AdamW { segments, copies } = self;
        let (params, m, v, expert) = (io.output(0), io.output(1), io.output(2), io.output(3));
        let state = State { params: &mut *params, m, v, expert: &mut *expert };
        adamw(state, io.input(1), io.input(5), io.input(6), segments);
        if *copies {
            let [weights, expert_weights] = [4, 5].map(|i| io.output(i));
            copy_segments((weights, params), (expert_weights, expert), io.input(6), segments);
        }
    }
}
