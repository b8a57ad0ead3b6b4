//! The safetensors format: a length, a JSON header, and the data.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde_json::{Map, Value, json};

use super::tensor::{Element, StateDict, Tensor, buffer};
use crate::error::{Error, Result};
use crate::files::atomic;

/// A header of thousands of tensors is less than a megabyte.
const MAX_HEADER: u64 = 64 << 20;

/// Offset of the data, and the header. Checked: the header lies inside the file, tensors follow each other without gap or
/// overlap and fill the file, sizes agree with shapes.
///
/// # Errors
/// [`Error::Io`] and [`Error::File`]; nothing is allocated before its size has been checked.
pub(crate) fn read_header(path: &Path, file: &mut File) -> Result<(u64, Metadata)> {
    let io_error = |e| Error::io(path, "read", e);
    let length = file.metadata().map_err(io_error)?.len();
    let bad = |message: String| Error::file(path, format!("not a valid safetensors file: {message}"));
    if length < 8 {
        return Err(bad(format!("{length} bytes are too few")));
    }
    let mut prefix = [0u8; 8];
    file.read_exact(&mut prefix).map_err(io_error)?;
    let header = u64::from_le_bytes(prefix);
    if header > MAX_HEADER || header > length - 8 {
        return Err(bad(format!("a header of {header} bytes in a file of {length}")));
    }
    let mut bytes = vec![0u8; header as usize];
    file.read_exact(&mut bytes).map_err(io_error)?;
    let metadata: Metadata = serde_json::from_slice(&bytes).map_err(|e| bad(format!("header: {e}")))?;
    let (data_start, data) = (8 + header, metadata.data_len() as u64);
    match length - data_start == data {
        true => Ok((data_start, metadata)),
        false => Err(bad(format!("{} bytes of data, the header tells of {data}", length - data_start))),
    }
}

/// All tensors, in the order of their data.
pub(super) fn read(path: &Path, file: &mut File) -> Result<StateDict> {
    let io_error = |e| Error::io(path, "read", e);
    let (data_start, header) = read_header(path, file)?;
    let mut infos: Vec<_> = header.tensors().into_iter().collect();
    infos.sort_by(|(a, x), (b, y)| x.data_offsets.cmp(&y.data_offsets).then_with(|| a.cmp(b)));
    let mut state = StateDict::of(path);
    if let Some(metadata) = header.metadata() {
        state.metadata = metadata.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    }
    for (name, info) in infos {
        let element = element(info.dtype).ok_or_else(|| {
            Error::file(
                path,
                format!(
                    "tensor `{name}` has type {:?}, which is not read: save it as float32 or bfloat16",
                    info.dtype
                ),
            )
        })?;
        let (start, end) = info.data_offsets;
        file.seek(SeekFrom::Start(data_start + start as u64)).map_err(io_error)?;
        let mut bytes = buffer(path, end - start)?;
        file.take((end - start) as u64).read_to_end(&mut bytes).map_err(io_error)?;
        let tensor = Tensor::new(element, info.shape.as_slice().into(), bytes).ok_or_else(|| {
            Error::file(
                path,
                format!("tensor `{name}`: {} bytes are not its shape {:?}", end - start, info.shape),
            )
        })?;
        state.insert(name, tensor)?;
    }
    Ok(state)
}

/// Writes a safetensors file as a whole or not at all. The bytes depend on `state` and its
/// [`metadata`](StateDict::metadata) only.
///
/// # Errors
/// [`Error::Io`]; [`Error::File`] for a tensor with NaN or infinite values, or one named `__metadata__`.
pub fn write_safetensors(path: impl AsRef<Path>, state: &StateDict) -> Result<()> {
    let path = path.as_ref();
    atomic::write(path, &safetensors_bytes(path, state)?)
}

/// What [`write_safetensors`] writes; `path` stands for the file in messages.
///
/// # Errors
/// [`Error::File`] for a tensor with NaN or infinite values, or one named `__metadata__`; too little memory.
pub fn safetensors_bytes(path: &Path, state: &StateDict) -> Result<Vec<u8>> {
    super::tensor::check_writable(path, state)?;
    let mut tensors: Vec<_> = state.iter().collect();
    // Wide elements first: every tensor is then aligned to its element, which readers that map the file rely on.
    tensors.sort_by_key(|(_, t)| std::cmp::Reverse(t.element().bytes()));
    let mut entries = Map::new();
    // PyTorch's loaders refuse a file that does not say `pt`.
    let mut metadata = BTreeMap::from([("format", "pt")]);
    metadata.extend(state.metadata.iter().map(|(k, v)| (k.as_str(), v.as_str())));
    entries.insert("__metadata__".into(), json!(metadata));
    let mut offset = 0;
    for (name, tensor) in &tensors {
        if *name == "__metadata__" {
            return Err(Error::file(path, "a tensor cannot be named `__metadata__`: rename it"));
        }
        let end = offset + tensor.bytes().len();
        let dtype = json!(dtype(tensor.element()));
        let entry = json!({ "dtype": dtype, "shape": tensor.shape().dims(), "data_offsets": [offset, end] });
        entries.insert((*name).to_owned(), entry);
        offset = end;
    }
    let mut header = Value::Object(entries).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut bytes = buffer(path, 8 + header.len() + offset)?;
    bytes.extend_from_slice(&(header.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&header);
    tensors.iter().for_each(|(_, t)| bytes.extend_from_slice(t.bytes()));
    Ok(bytes)
}

fn element(dtype: Dtype) -> Option<Element> {
    Element::ALL.into_iter().find(|e| self::dtype(*e) == dtype)
}

fn dtype(element: Element) -> Dtype {
    match element {
        Element::F64 => Dtype::F64,
        Element::F32 => Dtype::F32,
        Element::F16 => Dtype::F16,
        Element::Bf16 => Dtype::BF16,
        Element::I64 => Dtype::I64,
        Element::I32 => Dtype::I32,
        Element::I16 => Dtype::I16,
        Element::I8 => Dtype::I8,
        Element::U8 => Dtype::U8,
        Element::Bool => Dtype::BOOL,
    }
}
