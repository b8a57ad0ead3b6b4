//! What is learned from unlabelled images: one module an objective.

pub mod saip;
