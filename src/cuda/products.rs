//! The matrix products of a plan.

use super::driver::DeviceInfo;
use super::gemm::Product;
use super::lower::{self, Operands};
use super::program::with_shapes;
use super::tiles::Choices;
use crate::error::{Error, Result};
use crate::plan::{Plan, Slot, Space};
use crate::tensor::DType;

/// A matrix product that a step of a plan asks for.
#[derive(Clone, Debug)]
pub struct PlannedProduct {
    /// Path of the step, such as `student.blocks.0.mlp.fc1`.
    pub path: String,
    /// What the choice of its tile depends on.
    pub key: String,
    /// Its addresses tell alignment, and by 0 what is absent; nothing is there.
    pub product: Product,
    pub element: DType,
}

/// The matrix products of `plan`, in its order; of those in one step that share a key the first.
///
/// # Errors
/// [`Error::Device`] naming the path of a step that no kernel takes.
pub fn products(plan: &Plan) -> Result<Vec<PlannedProduct>> {
    // Any device will do: which products there are does not depend on it.
    let choices = Choices::new(&DeviceInfo { name: String::new(), capability: (9, 0), multiprocessors: 132 });
    let mut all = Vec::new();
    for step in &plan.steps {
        let at = |slots: &[Slot]| slots.iter().map(address).collect::<Vec<_>>();
        let (inputs, outputs) = (at(&step.inputs), at(&step.outputs));
        let (inputs, outputs) = (with_shapes(&step.inputs, &inputs), with_shapes(&step.outputs, &outputs));
        let scratch = BASE + step.workspace.0 as u64;
        let operands = Operands { inputs: &inputs, outputs: &outputs, scratch, choices: &choices };
        lower::lower(&step.op, &operands)
            .map_err(|why| Error::device("cuda", format!("{}: {} {why}", step.path, step.op.name())))?;
        // Lowering asked for a tile for each.
        all.extend(choices.take_unmeasured().into_iter().map(|(key, (product, element))| PlannedProduct {
            path: step.path.clone(),
            key,
            product,
            element,
        }));
    }
    Ok(all)
}

/// Where memory is pretended to be: aligned as allocations are.
const BASE: u64 = 1 << 40;

fn address(slot: &Slot) -> u64 {
    if slot.space == Space::Unused { 0 } else { BASE + slot.offset as u64 }
}
