//! What the op, gradient and backend tests share: a naive f64 reference of every op, one table of cases, a runner for
//! any backend, and the checks that compare them.
#![allow(dead_code, unused_imports)] // Each test binary uses a part.

pub mod cases;
pub mod check;
pub mod device;
pub mod judge;
pub mod reference;
pub mod runner;
pub mod tensor;
