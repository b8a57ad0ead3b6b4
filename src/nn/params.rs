//! The parameter registry: names, shapes, initial distributions, and places in one flat buffer.

use std::collections::HashMap;

use crate::error::{Error, Result};

/// Every parameter starts at a multiple of this many elements, so that kernels may use aligned vector accesses.
/// The elements between two parameters stay 0.
pub const ALIGNMENT: usize = 64;

/// Parameters of these names are not decayed, whatever their rank: tables of tokens, positions and biases.
const NO_DECAY: [&str; 5] = ["pos_embed", "cls_token", "mask_token", "query_token", "attention_biases"];

/// How the initial values of a parameter are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Normal with deviation `std`, redrawn beyond +-2 (absolute, as timm's `trunc_normal_`).
    TruncNormal {
        std: f64,
    },
    /// Normal with deviation `std`.
    Normal {
        std: f64,
    },
    /// Uniform in `[-bound, bound)`.
    Uniform {
        bound: f64,
    },
    Zeros,
    Ones,
}

impl Init {
    /// PyTorch's default for the weight and the bias of a linear layer or a convolution with `fan_in` inputs.
    pub fn fan_in(fan_in: usize) -> Self {
        Init::Uniform { bound: 1.0 / (fan_in.max(1) as f64).sqrt() }
    }
}

/// One parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamSpec {
    /// The name in the state dict, such as `encoder.vit.blocks.0.attn.qkv.weight`.
    pub name: String,
    pub shape: Vec<usize>,
    pub init: Init,
    /// Whether weight decay applies, by the paper's rule.
    pub decay: bool,
    /// Whether it is a weight matrix, which products read in the type that a step computes in; all others are read as they are kept.
    pub matrix: bool,
    /// First element in the flat buffer.
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
}

/// An ordered list of parameters with their places in one flat buffer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ParamRegistry {
    specs: Vec<ParamSpec>,
    index: HashMap<String, usize>,
    len: usize,
}

impl ParamRegistry {
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a parameter behind all others: of more than one axis it is a weight matrix, unless its name is a table's.
    ///
    /// # Errors
    /// [`Error::Invariant`] when the name is taken.
    pub fn register(&mut self, name: impl Into<String>, shape: &[usize], init: Init) -> Result<()> {
        self.append(name.into(), shape, init, true)
    }

    /// Appends `[rows, 1]` factors of the rows of a matrix, which decay as matrices do and are read as they are kept.
    ///
    /// # Errors
    /// Those of [`ParamRegistry::register`].
    pub fn row_scales(&mut self, name: &str, rows: usize, init: Init) -> Result<()> {
        self.append(name.to_owned(), &[rows, 1], init, false)
    }

    fn append(&mut self, name: String, shape: &[usize], init: Init, product: bool) -> Result<()> {
        if self.index.contains_key(&name) {
            return Err(Error::invariant(
                "parameter registration",
                format!("the parameter `{name}` is registered twice"),
            ));
        }
        let (offset, len) = (self.len, shape.iter().product::<usize>());
        let decay = shape.len() > 1 && !NO_DECAY.iter().any(|k| name.contains(k));
        self.index.insert(name.clone(), self.specs.len());
        let matrix = decay && product;
        self.specs.push(ParamSpec { name, shape: shape.to_vec(), init, decay, matrix, offset, len });
        self.len = (offset + len).next_multiple_of(ALIGNMENT);
        Ok(())
    }

    /// `{path}.weight: [outputs, inputs]` and `{path}.bias: [outputs]` with PyTorch's default initial values.
    pub fn linear(&mut self, path: &str, outputs: usize, inputs: usize) -> Result<()> {
        self.linear_with(path, outputs, inputs, Init::fan_in(inputs), Init::fan_in(inputs))
    }

    /// [`ParamRegistry::linear`] with other initial values.
    pub fn linear_with(
        &mut self,
        path: &str,
        outputs: usize,
        inputs: usize,
        weight: Init,
        bias: Init,
    ) -> Result<()> {
        self.register(format!("{path}.weight"), &[outputs, inputs], weight)?;
        self.register(format!("{path}.bias"), &[outputs], bias)
    }

    /// `{path}.weight: [outputs, channels, kernel, kernel]` and `{path}.bias: [outputs]` with PyTorch's defaults.
    pub fn conv(&mut self, path: &str, outputs: usize, channels: usize, kernel: usize) -> Result<()> {
        let init = Init::fan_in(channels * kernel * kernel);
        self.register(format!("{path}.weight"), &[outputs, channels, kernel, kernel], init)?;
        self.register(format!("{path}.bias"), &[outputs], init)
    }

    /// `{path}.weight` of ones and `{path}.bias` of zeros, each `[width]`.
    pub fn norm(&mut self, path: &str, width: usize) -> Result<()> {
        self.register(format!("{path}.weight"), &[width], Init::Ones)?;
        self.register(format!("{path}.bias"), &[width], Init::Zeros)
    }

    /// Elements of the flat buffer, the gaps of the alignment included.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.specs.is_empty()
    }

    /// Number of trained values, without the gaps.
    pub fn parameter_count(&self) -> usize {
        self.specs.iter().map(|s| s.len).sum()
    }

    pub fn get(&self, name: &str) -> Option<&ParamSpec> {
        self.index.get(name).map(|&i| &self.specs[i])
    }

    /// In order of their places.
    pub fn iter(&self) -> std::slice::Iter<'_, ParamSpec> {
        self.specs.iter()
    }
}

impl<'a> IntoIterator for &'a ParamRegistry {
    type Item = &'a ParamSpec;
    type IntoIter = std::slice::Iter<'a, ParamSpec>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_aligned_and_do_not_overlap() {
        let mut r = ParamRegistry::new();
        r.linear("a", 3, 5).unwrap();
        r.norm("b", 65).unwrap();
        let offsets: Vec<_> = r.iter().map(|s| (s.offset, s.len)).collect();
        assert_eq!(offsets, [(0, 15), (64, 3), (128, 65), (256, 65)]);
        assert_eq!((r.len(), r.parameter_count()), (384, 148));
        assert_eq!(r.get("b.bias").map(|s| s.offset), Some(256));
        assert!(r.get("c").is_none());
    }

    #[test]
    fn a_name_is_taken_once() {
        let mut r = ParamRegistry::new();
        r.norm("a", 4).unwrap();
        let e = r.linear("a", 4, 4).unwrap_err().to_string();
        assert!(e.contains("a.weight") && e.contains("twice"), "{e}");
    }

    #[test]
    fn vectors_tokens_and_positions_are_not_decayed() {
        let mut r = ParamRegistry::new();
        for (name, shape, decay) in [
            ("fc.weight", &[2usize, 2][..], true),
            ("fc.bias", &[2], false),
            ("encoder.vit.pos_embed", &[1, 9, 2], false),
            ("encoder.vit.cls_token", &[1, 1, 2], false),
            ("csr.mask_token", &[1, 1, 2], false),
            ("css.query_token", &[1, 1, 2], false),
            ("attn.attention_biases", &[2, 49], false),
            ("csm.prototypes", &[8, 2], true),
        ] {
            r.register(name, shape, Init::Zeros).unwrap();
            assert_eq!(r.get(name).map(|s| (s.decay, s.matrix)), Some((decay, decay)), "{name}");
        }
        // No product reads the factors of a matrix's rows.
        r.row_scales("csm.gain", 8, Init::Ones).unwrap();
        let gain = r.get("csm.gain").unwrap();
        assert_eq!((gain.shape.as_slice(), gain.decay, gain.matrix), (&[8, 1][..], true, false));
    }
}
