//! The scalar block of one step.

use crate::ir::Scalar;

/// The paper's decay rates.
pub const BETAS: [f64; 2] = [0.9, 0.95];

/// What changes from step to step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepPoint {
    /// Optimizer step, counted from 1.
    pub t: u64,
    pub learning_rate: f64,
    pub weight_decay: f64,
    /// EMA momentum of the expert.
    pub momentum: f64,
    /// AdamW's decay rates of the first and the second moment.
    pub betas: [f64; 2],
    pub adam_eps: f64,
    /// Largest norm of the whole gradient; None switches clipping off.
    pub clip_norm: Option<f64>,
    /// Largest norm of a single tensor's gradient, where the step clips tensor by tensor; None switches that off.
    pub tensor_clip_norm: Option<f64>,
    /// Optimizer step of the parameters that begin late, counted from 1; 0 while they are held.
    pub late_t: u64,
    /// Index of the micro step among those of this rank, from 0.
    pub micro_step: usize,
    /// Micro steps per step on all ranks together, at least 1.
    pub micro_steps: usize,
    /// The objective's own scalars, in the order in which it reads them.
    pub own: Vec<f64>,
}

impl StepPoint {
    /// The values of the scalar block, by [`Scalar`].
    pub fn block(&self) -> [f64; Scalar::COUNT] {
        let [beta1, beta2] = self.betas;
        let t = self.t.max(1) as f64;
        let mut block = [0.0; Scalar::COUNT];
        let mut set = |scalar: Scalar, value: f64| block[scalar as usize] = value;
        set(Scalar::LearningRate, self.learning_rate);
        set(Scalar::WeightDecay, self.weight_decay);
        set(Scalar::Beta1, beta1);
        set(Scalar::Beta2, beta2);
        set(Scalar::AdamEps, self.adam_eps);
        set(Scalar::BiasCorrection1, 1.0 - beta1.powf(t));
        set(Scalar::BiasCorrection2, 1.0 - beta2.powf(t));
        set(Scalar::ClipNorm, self.clip_norm.unwrap_or(0.0));
        set(Scalar::ExpertMomentum, self.momentum);
        set(Scalar::MicroStep, self.micro_step as f64);
        // A power of 0 is 1: what is held has corrections of 0, and nothing else has.
        set(Scalar::TensorClipNorm, self.tensor_clip_norm.unwrap_or(0.0));
        set(Scalar::LateCorrection1, 1.0 - beta1.powf(self.late_t as f64));
        set(Scalar::LateCorrection2, 1.0 - beta2.powf(self.late_t as f64));
        set(Scalar::MicroWeight, 1.0 / self.micro_steps.max(1) as f64);
        block
    }
}
