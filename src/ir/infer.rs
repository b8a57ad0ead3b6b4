//! Shape and type inference. Every complaint names the layer, the op, what came and what was expected.

use super::rules::{Cx, Facts, OpSet, Operand, Role};
use crate::error::Result;
use crate::tensor::{DType, Shape};

/// Shapes and types of the op's outputs, or why its operands do not fit.
pub(crate) fn infer<O: OpSet>(path: &str, op: &O, inputs: &[Operand<'_>]) -> Result<Vec<(Shape, DType)>> {
    let cx = Cx { path, op: op.name(), inputs };
    let (shapes, facts) = (op.shapes(&cx)?, op.facts());
    let floats = inputs.iter().map(|o| o.dtype).enumerate().filter(|(_, t)| t.is_float());
    let element = match element_type(&facts, floats) {
        Ok(element) => element,
        Err((i, want)) => {
            return cx.err(format!("operand {i} must be {want}, got {}", inputs[i].dtype));
        }
    };
    let typed = |(slot, dims): (usize, Vec<usize>)| {
        let followed = facts.follows.filter(|_| slot == 0).map(|i| inputs[i].dtype);
        let dtype = facts.gives.or(followed).or(match facts.output_role(slot) {
            Role::Element => element,
            Role::Wide => element.map(DType::accumulator),
        });
        match dtype {
            Some(dtype) => Ok((Shape::new(dims), dtype)),
            None => cx.err("needs a floating-point operand".into()),
        }
    };
    shapes.into_iter().enumerate().map(typed).collect()
}

/// The type that an op computes in, from the types of its float inputs; or which input has the wrong type, and what it
/// should be.
fn element_type(
    facts: &Facts,
    inputs: impl Iterator<Item = (usize, DType)> + Clone,
) -> std::result::Result<Option<DType>, (usize, DType)> {
    let free = |i: usize| facts.follows == Some(i);
    let first = |(i, _): &(usize, DType)| !free(*i) && facts.input_role(*i) == Role::Element;
    let element = inputs.clone().find(first).map(|(_, dtype)| dtype);
    let wide = element.or_else(|| inputs.clone().next().map(|(_, t)| t)).map(DType::accumulator);
    for (i, dtype) in inputs {
        let Some(wide) = wide else { break };
        let want = match facts.input_role(i) {
            Role::Element => element.unwrap_or(wide),
            Role::Wide => wide,
        };
        if dtype != want && !(free(i) && dtype == wide) {
            return Err((i, want));
        }
    }
    Ok(element.or(wide))
}
