//! From a graph to a plan: fusion, schedule, liveness, arena offsets.
#[derive(Clone, Debug)]
pub struct Plan {}
