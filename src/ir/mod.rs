//! The graph of one step: typed nodes, shape inference, reverse-mode autodiff as a graph-to-graph pass, verification
//! and a stable text dump.

mod autodiff;
mod dump;
mod graph;
mod infer;
mod maps;
mod op;
pub mod ops;
mod resample;
mod rules;
mod scalar;
mod verify;
mod vjp;

pub use autodiff::differentiate;
pub use dump::dump;
pub use graph::{Binding, NodeId, Region, Value, ValueId};
pub use maps::{ConvGeometry, FeatureMap};
pub(crate) use op::for_op;
pub use op::{Op, OpKind};
pub use ops::{
    AttentionLayout, Epilogue, InputEpilogue, ParamSegment, RowRun, SegmentRun, Segments, TokenLayout,
    TokenView,
};
pub use resample::resample_weights;
pub use rules::{Activation, Applies, Facts, Fusion, PATCH, PATCH_VALUES, Role, Rules};
pub use scalar::Scalar;
pub(crate) use verify::region_order;
pub use verify::verify;

/// A graph of [`Op`]s.
pub type Graph = graph::Graph<Op>;
/// One application of an [`Op`].
pub type Node = graph::Node<Op>;
