//! The table of an encoder's tensors under timm's names, in timm's order: what is registered, recognised in files, read and
//! written follows from it.

use crate::error::Result;
use crate::nn::{Init, ParamRegistry};

/// What a tensor is to training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Holds {
    /// Trained; it begins like this.
    Parameter(Init),
    /// A running statistic of batch normalisation; it begins like this.
    Statistic(Init),
    /// How often PyTorch's batch normalisation was called; no part of a step.
    Counter,
}

/// One tensor of timm's state dict.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerTensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub holds: Holds,
}

/// All tensors of an encoder.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layers(Vec<LayerTensor>);

impl Layers {
    pub fn iter(&self) -> std::slice::Iter<'_, LayerTensor> {
        self.0.iter()
    }

    fn add(&mut self, name: String, shape: &[usize], holds: Holds) {
        self.0.push(LayerTensor { name, shape: shape.to_vec(), holds });
    }

    /// A tensor by itself.
    pub fn parameter(&mut self, name: impl Into<String>, shape: &[usize], init: Init) {
        self.add(name.into(), shape, Holds::Parameter(init));
    }

    /// `{path}.weight: [outputs, inputs / groups, kernel, kernel]` that begins as `weight`, or else as PyTorch's default, and
    /// `{path}.bias` if `bias`.
    pub fn conv(&mut self, path: &str, shape: [usize; 4], weight: Option<Init>, bias: bool) {
        let usual = Init::fan_in(shape[1..].iter().product());
        self.parameter(format!("{path}.weight"), &shape, weight.unwrap_or(usual));
        if bias {
            self.parameter(format!("{path}.bias"), &shape[..1], usual);
        }
    }

    /// `{path}.weight` that begins as `weight`, `{path}.bias`, `{path}.running_mean`, `{path}.running_var`, and PyTorch's counter.
    pub fn batch_norm(&mut self, path: &str, width: usize, weight: Init) {
        self.parameter(format!("{path}.weight"), &[width], weight);
        self.parameter(format!("{path}.bias"), &[width], Init::Zeros);
        self.add(format!("{path}.running_mean"), &[width], Holds::Statistic(Init::Zeros));
        self.add(format!("{path}.running_var"), &[width], Holds::Statistic(Init::Ones));
        self.add(format!("{path}.num_batches_tracked"), &[], Holds::Counter);
    }

    /// `{path}.weight` of ones and `{path}.bias` of zeros.
    pub fn layer_norm(&mut self, path: &str, width: usize) {
        self.parameter(format!("{path}.weight"), &[width], Init::Ones);
        self.parameter(format!("{path}.bias"), &[width], Init::Zeros);
    }

    /// timm's linear layer of a transformer: truncated normal weight, no bias at first.
    pub fn linear(&mut self, path: &str, outputs: usize, inputs: usize) {
        self.parameter(format!("{path}.weight"), &[outputs, inputs], Init::TruncNormal { std: 0.02 });
        self.parameter(format!("{path}.bias"), &[outputs], Init::Zeros);
    }

    /// Appends the parameters, their names behind `prefix`.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn register(&self, prefix: &str, reg: &mut ParamRegistry) -> Result<()> {
        self.append(prefix, reg, |holds| match holds {
            Holds::Parameter(init) => Some(init),
            Holds::Statistic(_) | Holds::Counter => None,
        })
    }

    /// Appends the running statistics in the same way.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn register_statistics(&self, prefix: &str, reg: &mut ParamRegistry) -> Result<()> {
        self.append(prefix, reg, |holds| match holds {
            Holds::Statistic(init) => Some(init),
            Holds::Parameter(_) | Holds::Counter => None,
        })
    }

    fn append(
        &self,
        prefix: &str,
        reg: &mut ParamRegistry,
        takes: impl Fn(Holds) -> Option<Init>,
    ) -> Result<()> {
        for t in &self.0 {
            if let Some(init) = takes(t.holds) {
                reg.register(format!("{prefix}{}", t.name), &t.shape, init)?;
            }
        }
        Ok(())
    }
}
