//! The scalar block of one step.

use super::config::StepConfig;
use crate::ir::Scalar;

/// The paper's decay rates.
pub const BETAS: [f64; 2] = [0.9, 0.95];

/// What changes from step to step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepPoint {
    /// Optimizer step, counted from 1.
    pub t: u64,
    pub learning_rate: f64,
    pub weight_decay: f64,
    /// EMA momentum of the expert.
    pub momentum: f64,
    pub teacher_temp: f64,
    /// Weight of the old center of the expert's logits in the new one.
    pub center_momentum: f64,
    /// AdamW's decay rates of the first and the second moment.
    pub betas: [f64; 2],
    /// Index of the micro step, from 0.
    pub micro_step: usize,
    /// Micro steps per step, at least 1.
    pub micro_steps: usize,
}

impl StepPoint {
    /// Step `t` with the constants of `cfg`, without accumulation.
    pub fn constant(cfg: &StepConfig, t: u64) -> Self {
        StepPoint {
            t,
            learning_rate: cfg.lr,
            weight_decay: cfg.weight_decay,
            momentum: cfg.momentum,
            teacher_temp: cfg.teacher_temp,
            center_momentum: cfg.center_momentum,
            betas: BETAS,
            micro_step: 0,
            micro_steps: 1,
        }
    }
}

/// The values of the scalar block, by [`Scalar`].
pub fn scalar_block(cfg: &StepConfig, at: &StepPoint) -> [f64; Scalar::COUNT] {
    let [beta1, beta2] = at.betas;
    let t = at.t.max(1) as f64;
    let mut block = [0.0; Scalar::COUNT];
    let mut set = |scalar: Scalar, value: f64| block[scalar as usize] = value;
    set(Scalar::LearningRate, at.learning_rate);
    set(Scalar::WeightDecay, at.weight_decay);
    set(Scalar::Beta1, beta1);
    set(Scalar::Beta2, beta2);
    set(Scalar::AdamEps, cfg.adam_eps);
    set(Scalar::BiasCorrection1, 1.0 - beta1.powf(t));
    set(Scalar::BiasCorrection2, 1.0 - beta2.powf(t));
    set(Scalar::ClipNorm, cfg.clip_norm.unwrap_or(0.0));
    set(Scalar::ExpertMomentum, at.momentum);
    set(Scalar::StudentTemp, cfg.student_temp);
    set(Scalar::TeacherTemp, at.teacher_temp);
    set(Scalar::CenterMomentum, at.center_momentum);
    set(Scalar::MicroStep, at.micro_step as f64);
    set(Scalar::MicroWeight, 1.0 / at.micro_steps.max(1) as f64);
    block
}
