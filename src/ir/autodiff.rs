//! Reverse-mode differentiation as a graph-to-graph pass.

use super::graph::{Graph, ValueId};
use crate::error::Result;

/// Appends to `graph` the nodes that compute the derivative of the scalar `loss` (shape `[1]`) with respect to each
/// value of `wrt`; None where the loss does not depend on it.
pub fn differentiate(_graph: &mut Graph, _loss: ValueId, _wrt: &[ValueId]) -> Result<Vec<Option<ValueId>>> {
    todo!()
}
