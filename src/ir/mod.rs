//! The graph of one step: typed nodes, shape inference, reverse-mode autodiff as a graph-to-graph pass, verification
//! and a stable text dump.

mod autodiff;
mod dump;
mod graph;
mod infer;
mod op;
mod types;
mod verify;
mod work;

pub use autodiff::differentiate;
pub use dump::dump;
pub use graph::{Binding, Graph, Node, NodeId, Region, Value, ValueId};
pub use op::{
    AttentionLayout, ConvGeometry, Epilogue, FeatureMap, Op, OpKind, ParamSegment, RowRun, Scalar,
    SegmentRun, Segments, TokenLayout, TokenView,
};
pub use types::{Role, input_role, output_role};
pub(crate) use verify::region_order;
pub use verify::verify;
pub use work::matrix_flops;
