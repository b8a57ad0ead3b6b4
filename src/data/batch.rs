//! One batch: named tensors.

use crate::backend::HostSlice;
use crate::error::{Error, Result};
use crate::tensor::{DType, TensorSpec};

/// The values of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// Pixels are normalised with the ImageNet mean and deviation.
    F32(Vec<f32>),
    I32(Vec<i32>),
}

impl Values {
    /// Room for what `spec` says, in the memory of `old` where that is of the same type.
    pub fn room(spec: &TensorSpec, old: Option<Values>) -> Self {
        // Every element is overwritten: only growth needs initialising.
        let count = spec.shape.count();
        match (spec.dtype, old) {
            (DType::I32, Some(Values::I32(mut v))) => {
                v.resize(count, 0);
                Values::I32(v)
            }
            (DType::I32, _) => Values::I32(vec![0; count]),
            (_, Some(Values::F32(mut v))) => {
                v.resize(count, 0.0);
                Values::F32(v)
            }
            _ => Values::F32(vec![0.0; count]),
        }
    }

    pub fn host(&self) -> HostSlice<'_> {
        match self {
            Values::F32(v) => HostSlice::F32(v),
            Values::I32(v) => HostSlice::I32(v),
        }
    }
}

/// One batch, as its recipe describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// The recipe's bucket: which shapes the tensors have.
    pub bucket: usize,
    pub tensors: Vec<(TensorSpec, Values)>,
    /// Where each image came from (a path, or the generator's name for it), for messages.
    pub names: Vec<String>,
}

impl Batch {
    /// # Errors
    /// [`Error::Invariant`] when there is no tensor of that name.
    pub fn tensor(&self, name: &str) -> Result<(&TensorSpec, &Values)> {
        let found = self.tensors.iter().find(|t| t.0.name == name).map(|t| (&t.0, &t.1));
        found.ok_or_else(|| Error::invariant("reading a batch", format!("it has no tensor `{name}`")))
    }

    /// The values of a tensor of floats.
    ///
    /// # Errors
    /// [`Error::Invariant`] when there is no such tensor.
    pub fn f32s(&self, name: &str) -> Result<&[f32]> {
        match self.tensor(name)?.1 {
            Values::F32(v) => Ok(v),
            Values::I32(_) => Err(Error::invariant("reading a batch", format!("`{name}` holds indices"))),
        }
    }

    /// The values of a tensor of indices.
    ///
    /// # Errors
    /// [`Error::Invariant`] when there is no such tensor.
    pub fn i32s(&self, name: &str) -> Result<&[i32]> {
        match self.tensor(name)?.1 {
            Values::I32(v) => Ok(v),
            Values::F32(_) => Err(Error::invariant("reading a batch", format!("`{name}` holds numbers"))),
        }
    }
}
