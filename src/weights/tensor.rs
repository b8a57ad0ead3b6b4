//! Tensors of a weights file and the ordered list of them.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};

use super::asks::Asks;
use crate::error::{Error, Result};
use crate::tensor::Shape;

/// Element type of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

impl Element {
    pub const ALL: [Element; 10] = [
        Element::F64,
        Element::F32,
        Element::F16,
        Element::Bf16,
        Element::I64,
        Element::I32,
        Element::I16,
        Element::I8,
        Element::U8,
        Element::Bool,
    ];

    /// Size of one element in bytes.
    pub const fn bytes(self) -> usize {
        match self {
            Element::F64 | Element::I64 => 8,
            Element::F32 | Element::I32 => 4,
            Element::F16 | Element::Bf16 | Element::I16 => 2,
            Element::I8 | Element::U8 | Element::Bool => 1,
        }
    }

    pub const fn is_float(self) -> bool {
        matches!(self, Element::F64 | Element::F32 | Element::F16 | Element::Bf16)
    }

    /// PyTorch's name without `torch.`, such as `float32`.
    pub const fn name(self) -> &'static str {
        match self {
            Element::F64 => "float64",
            Element::F32 => "float32",
            Element::F16 => "float16",
            Element::Bf16 => "bfloat16",
            Element::I64 => "int64",
            Element::I32 => "int32",
            Element::I16 => "int16",
            Element::I8 => "int8",
            Element::U8 => "uint8",
            Element::Bool => "bool",
        }
    }

    /// PyTorch's name of a storage of such elements, without `torch.`.
    pub(super) const fn storage(self) -> &'static str {
        match self {
            Element::F64 => "DoubleStorage",
            Element::F32 => "FloatStorage",
            Element::F16 => "HalfStorage",
            Element::Bf16 => "BFloat16Storage",
            Element::I64 => "LongStorage",
            Element::I32 => "IntStorage",
            Element::I16 => "ShortStorage",
            Element::I8 => "CharStorage",
            Element::U8 => "ByteStorage",
            Element::Bool => "BoolStorage",
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A dense row-major tensor in little-endian bytes. Clones share them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    element: Element,
    shape: Shape,
    bytes: Arc<Vec<u8>>,
}

impl Tensor {
    /// `None` unless `bytes` is as long as `shape` and `element` say.
    pub fn new(element: Element, shape: Shape, bytes: Vec<u8>) -> Option<Self> {
        let expected = byte_len(element, shape.dims())?;
        (expected == bytes.len()).then(|| Tensor { element, shape, bytes: Arc::new(bytes) })
    }

    /// An f32 tensor; `None` unless there are as many `values` as `shape` says.
    pub fn from_f32(shape: Shape, values: &[f32]) -> Option<Self> {
        Self::new(Element::F32, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// A scalar of type `int64`, as BatchNorm's `num_batches_tracked`.
    pub fn from_i64(value: i64) -> Self {
        Tensor {
            element: Element::I64,
            shape: Shape::default(),
            bytes: Arc::new(value.to_le_bytes().to_vec()),
        }
    }

    pub fn element(&self) -> Element {
        self.element
    }

    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Row-major, little-endian.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The values in f32, rounded to nearest where they are wider; `None` for integers.
    pub fn f32s(&self) -> Option<Cow<'_, [f32]>> {
        let b = self.bytes.as_slice();
        match self.element {
            Element::F32 => Some(match bytemuck::try_cast_slice(b) {
                Ok(values) if cfg!(target_endian = "little") => Cow::Borrowed(values),
                _ => Cow::Owned(b.as_chunks::<4>().0.iter().map(|v| f32::from_le_bytes(*v)).collect()),
            }),
            Element::F64 => {
                Some(b.as_chunks::<8>().0.iter().map(|v| f64::from_le_bytes(*v) as f32).collect())
            }
            Element::F16 => {
                Some(b.as_chunks::<2>().0.iter().map(|v| f16::from_le_bytes(*v).to_f32()).collect())
            }
            Element::Bf16 => {
                Some(b.as_chunks::<2>().0.iter().map(|v| bf16::from_le_bytes(*v).to_f32()).collect())
            }
            _ => None,
        }
    }

    /// How many values are NaN or infinite, in f32.
    pub fn non_finite(&self) -> usize {
        self.f32s().map_or(0, |v| v.iter().filter(|x| !x.is_finite()).count())
    }
}

/// Bytes of a dense tensor; `None` when no machine could address it.
pub(super) fn byte_len(element: Element, dims: &[usize]) -> Option<usize> {
    // A dimension of 0 may stand beside others whose product overflows.
    if dims.contains(&0) {
        return Some(0);
    }
    let count = dims.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
    count.checked_mul(element.bytes()).filter(|n| isize::try_from(*n).is_ok())
}

/// An empty buffer with room for `len` bytes.
///
/// # Errors
/// [`Error::File`] instead of an abort when there is not that much memory.
pub(super) fn buffer(path: &Path, len: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match bytes.try_reserve_exact(len) {
        Ok(()) => Ok(bytes),
        Err(_) => Err(Error::file(path, format!("{len} bytes of it do not fit into memory"))),
    }
}

/// Named tensors in the order of their file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StateDict {
    tensors: Vec<(String, Tensor)>,
    index: HashMap<String, usize>,
    /// Where they come from, for messages; empty for what was never in a file.
    pub path: PathBuf,
    /// The entry of a PyTorch checkpoint that was read, such as `teacher` or `model.state_dict`; empty for the whole file.
    pub entry: String,
    /// What else the file holds and was not read.
    pub other_entries: Vec<String>,
    /// What the file says of itself: the metadata of a safetensors file, or what a PyTorch file that was written here says.
    pub metadata: BTreeMap<String, String>,
    /// How another entry can be asked for.
    pub asks: Asks,
}

impl StateDict {
    pub fn new() -> Self {
        Self::default()
    }

    /// Empty, from the file `path`.
    pub(super) fn of(path: &Path) -> Self {
        StateDict { path: path.to_owned(), ..Self::default() }
    }

    /// Appends a tensor.
    ///
    /// # Errors
    /// [`Error::File`] when the name is taken.
    pub fn insert(&mut self, name: impl Into<String>, tensor: Tensor) -> Result<()> {
        let name = name.into();
        if self.index.contains_key(&name) {
            return Err(self.error(format!("the tensor `{name}` occurs twice")));
        }
        self.index.insert(name.clone(), self.tensors.len());
        self.tensors.push((name, tensor));
        Ok(())
    }

    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.index.get(name).map(|&i| &self.tensors[i].1)
    }

    /// In the order of the file.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.iter().map(|(name, _)| name.as_str())
    }

    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Only the tensors whose names begin with `prefix`, without it: how one of several encoders in a file is chosen.
    pub fn under(&self, prefix: &str) -> StateDict {
        self.renamed(|name| name.strip_prefix(prefix).map(str::to_owned))
    }

    /// [`StateDict::under`] of what stands before the names of one of several encoders, with or without its dot.
    ///
    /// # Errors
    /// [`Error::File`] when no name begins so; tells how they begin.
    pub(super) fn entry(&self, name: &str) -> Result<StateDict> {
        let prefix = format!("{}.", name.trim_end_matches('.'));
        let mut found = self.under(&prefix);
        if found.is_empty() {
            let first = self.names().map(|n| n.split('.').next().unwrap_or(n));
            let first: Vec<_> = first.collect::<BTreeSet<_>>().into_iter().take(12).collect();
            return Err(
                self.error(format!("has no entry `{name}`: its names begin with `{}`", first.join("`, `")))
            );
        }
        found.entry = name.trim_end_matches('.').to_owned();
        Ok(found)
    }

    /// The tensors that `rename` keeps, under its names; a name that two of them would take keeps the first.
    pub fn renamed(&self, rename: impl Fn(&str) -> Option<String>) -> StateDict {
        let mut out = StateDict {
            path: self.path.clone(),
            entry: self.entry.clone(),
            other_entries: self.other_entries.clone(),
            metadata: self.metadata.clone(),
            asks: self.asks,
            ..StateDict::default()
        };
        for (name, tensor) in &self.tensors {
            if let Some(new) = rename(name)
                && !out.index.contains_key(&new)
            {
                out.index.insert(new.clone(), out.tensors.len());
                out.tensors.push((new, tensor.clone()));
            }
        }
        out
    }

    /// [`Error::File`] about these tensors.
    pub(super) fn error(&self, message: impl Into<String>) -> Error {
        let path = if self.path.as_os_str().is_empty() { Path::new("weights in memory") } else { &self.path };
        Error::file(path, message)
    }
}

/// Nothing is exported that another program could only fail on.
pub(super) fn check_writable(path: &Path, state: &StateDict) -> Result<()> {
    for (name, tensor) in state.iter() {
        let bad = tensor.non_finite();
        if bad > 0 {
            let message = format!("not written: {bad} values of tensor `{name}` are NaN or infinite");
            return Err(Error::file(path, message));
        }
    }
    Ok(())
}
