//! Metrics of frozen features: person retrieval and nearest-neighbour classification.

pub mod features;
pub mod knn;
pub mod retrieval;

pub use features::Features;
