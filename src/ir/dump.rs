use super::graph::Graph;
/// Stable text form.
pub fn dump(_graph: &Graph) -> String {
    todo!()
}
