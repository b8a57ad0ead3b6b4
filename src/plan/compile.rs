//! From a differentiated graph to a plan, each pass verified.

use super::fuse::fuse;
use super::layout::{Plan, plan};
use super::recompute::recompute;
use super::target::Target;
use crate::error::Result;
use crate::ir::{Graph, verify};

/// Plans `graph` for `target`, its ops fused, its blocks computed a second time in the backward pass if `again`.
///
/// # Errors
/// Those of planning; they are defects of the program, not of its input.
pub fn compile(mut graph: Graph, again: bool, target: &dyn Target) -> Result<Plan> {
    verify(&graph, "building the step")?;
    if again {
        recompute(&mut graph);
        verify(&graph, "recomputation")?;
    }
    fuse(&mut graph, target);
    verify(&graph, "fusion")?;
    plan(&graph, target)
}
