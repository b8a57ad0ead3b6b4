//! The CPU backend: every op over f32 (training) or f64 (checking), threaded, deterministic.

mod attention;
mod batch_norm;
mod buffers;
mod column_sums;
mod conv;
mod dense_loss;
mod depthwise_conv;
mod embed;
mod gemm;
mod host_memory;
mod kernel;
mod layer_norm;
mod layout;
mod linear;
mod mixup;
mod optim;
mod par;
mod pointwise;
mod pool;
mod positions;
mod program;
mod prototype_ce;
mod real;
mod simd;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod window_attention;
mod windows;

pub use program::CpuBackend;
pub use real::Real;
