//! The CPU backend: every op over f32 (training) or f64 (checking), threaded, deterministic.

mod buffers;
mod dispatch;
mod program;
mod real;

pub use program::CpuBackend;
pub use real::Real;
