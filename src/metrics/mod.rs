//! Metrics of frozen features: person retrieval and nearest-neighbour classification, and features that nobody trained
//! to compare with.

pub mod features;
pub mod knn;
pub mod reference;
pub mod retrieval;
pub mod stripes;

pub use features::Features;
