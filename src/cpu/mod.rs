//! The CPU backend: every op over f32 (training) or f64 (checking), threaded, deterministic.

mod buffers;
mod real;

pub use real::Real;
