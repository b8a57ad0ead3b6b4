//! The matrix products of a plan.

use super::choices::Choices;
use super::driver::DeviceInfo;
use super::planning::lowered;
use super::product::Product;
use crate::error::Result;
use crate::plan::Plan;
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
        lowered(step, &choices)?;
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
