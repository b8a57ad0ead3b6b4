//! The scalar block: what the optimizer and the moving average are told.

/// A number that changes from step to step: its place in the scalar block, a vector written like an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum Scalar {
    LearningRate = 0,
    WeightDecay,
    Beta1,
    Beta2,
    AdamEps,
    /// `1 - beta1^t`, `t` counted from 1.
    BiasCorrection1,
    /// `1 - beta2^t`.
    BiasCorrection2,
    /// Largest gradient norm; 0 switches clipping off.
    ClipNorm,
    /// EMA momentum of the expert.
    ExpertMomentum,
    /// Index of the micro step inside an accumulated step, from 0.
    MicroStep,
    /// `1 / micro steps per step`.
    MicroWeight,
    /// Largest norm of a single tensor's gradient; 0 switches that off.
    TensorClipNorm,
    /// `1 - beta1^n` with the `n` updates that parameters which begin late have had with this one; 0 while they are held.
    LateCorrection1,
    /// `1 - beta2^n`.
    LateCorrection2,
}

impl Scalar {
    /// Length of the scalar block.
    pub const COUNT: usize = 14;
}
