//! Values of a run's state outside the device.

use crate::error::{Error, Result};
use crate::nn::ParamRegistry;
use std::collections::HashMap;

/// Name, shape, values.
pub type NamedTensor = (String, Vec<usize>, Vec<f64>);

/// Values that stand in for drawn ones, by the names of parameters and running statistics.
#[derive(Clone, Debug, Default)]
pub struct Initial {
    pub student: HashMap<String, Vec<f32>>,
    pub expert: HashMap<String, Vec<f32>>,
}

/// The flat buffer `values` with those of `over` in their places.
pub(super) fn overlaid(
    registry: &ParamRegistry,
    mut values: Vec<f32>,
    over: &HashMap<String, Vec<f32>>,
) -> Result<Vec<f32>> {
    for p in registry {
        let Some(new) = over.get(&p.name) else { continue };
        if new.len() != p.len {
            let message = format!("`{}` has {} values, not {}", p.name, p.len, new.len());
            return Err(Error::invariant("initial weights", message));
        }
        values[p.offset..p.offset + p.len].copy_from_slice(new);
    }
    Ok(values)
}

/// A copy of the state: named tensors over flat buffers.
#[derive(Clone, Debug, Default)]
pub struct EngineState {
    pub(super) buffers: Vec<Vec<f32>>,
    /// Name, shape, buffer, first element.
    pub(super) tensors: Vec<(String, Vec<usize>, usize, usize)>,
}

impl EngineState {
    /// `(name, shape, values)` in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[usize], &[f32])> {
        self.tensors.iter().map(|(name, shape, buffer, offset)| {
            let len = shape.iter().product::<usize>();
            (name.as_str(), shape.as_slice(), &self.buffers[*buffer][*offset..offset + len])
        })
    }
}
