//! Reading a checkpoint that may be damaged: nothing is allocated or trusted before its size has been checked.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::de::DeserializeOwned;

use super::format::{FORMAT, MANIFEST, MODEL, Manifest, RUN, RunState, Written};
use crate::error::{Error, Result};
use crate::weights;

/// Bytes read at a time.
const CHUNK: usize = 1 << 18;
/// The two JSON files are kilobytes.
const MAX_JSON: u64 = 64 << 20;

/// An intact checkpoint. Its tensors are read into the caller's own buffers, one at a time.
#[derive(Debug)]
pub struct Loaded {
    pub path: PathBuf,
    pub state: RunState,
    /// Newer checkpoints that were damaged, a sentence each.
    pub warnings: Vec<String>,
    model: PathBuf,
    file: File,
    /// Offset of the first tensor's data.
    data_start: u64,
    tensors: BTreeMap<String, TensorInfo>,
}

impl Loaded {
    pub(super) fn open(folder: &Path, step: u64) -> Result<Self> {
        let manifest: Manifest = read_json(&folder.join(MANIFEST))?;
        if manifest.format != FORMAT {
            return Err(Error::file(
                folder,
                format!(
                    "has format {}, this engine reads {FORMAT}: use the engine that wrote it",
                    manifest.format
                ),
            ));
        }
        for name in [MODEL, RUN] {
            let expected = manifest.files.get(name);
            let expected = expected
                .ok_or_else(|| Error::file(folder.join(MANIFEST), format!("does not list {name}")))?;
            check_sum(&folder.join(name), expected)?;
        }
        let state: RunState = read_json(&folder.join(RUN))?;
        if state.step != step {
            return Err(Error::file(
                folder,
                format!("holds step {}, not the {step} of its name", state.step),
            ));
        }
        let model = folder.join(MODEL);
        let mut file = File::open(&model).map_err(|e| Error::io(&model, "open", e))?;
        let (data_start, tensors) = read_header(&model, &mut file)?;
        let path = folder.to_owned();
        Ok(Loaded { path, state, warnings: Vec::new(), model, file, data_start, tensors })
    }

    /// The file of the tensors.
    pub fn model(&self) -> &Path {
        &self.model
    }

    /// Name and shape of each tensor, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.tensors.iter().map(|(name, info)| (name.as_str(), info.shape.as_slice()))
    }

    /// Checks that the tensors are exactly those of `expected`, before any of them is read.
    ///
    /// # Errors
    /// [`Error::File`] that names the first missing, surplus or differently shaped tensor.
    pub fn check<'a>(&self, expected: impl IntoIterator<Item = (&'a str, &'a [usize])>) -> Result<()> {
        let remedy = "was the configuration changed? Resume with the one in the run folder";
        let mut surplus: BTreeMap<&str, &[usize]> = self.tensors().collect();
        for (name, shape) in expected {
            match surplus.remove(name) {
                Some(found) if found == shape => {}
                Some(found) => {
                    let message =
                        format!("tensor `{name}` has shape {found:?}, expected {shape:?}; {remedy}");
                    return Err(Error::file(&self.model, message));
                }
                None => {
                    return Err(Error::file(&self.model, format!("tensor `{name}` is missing; {remedy}")));
                }
            }
        }
        match surplus.keys().next() {
            Some(name) => {
                Err(Error::file(&self.model, format!("tensor `{name}` has no place in this model; {remedy}")))
            }
            None => Ok(()),
        }
    }

    /// Reads a tensor into `out`, row-major.
    ///
    /// # Errors
    /// [`Error::File`] when there is no such tensor or `out` has another length, [`Error::Io`] when reading fails.
    pub fn read_into(&mut self, name: &str, out: &mut [f32]) -> Result<()> {
        let info = self
            .tensors
            .get(name)
            .ok_or_else(|| Error::file(&self.model, format!("tensor `{name}` is missing")))?;
        let (start, end) = info.data_offsets;
        if (end - start) / size_of::<f32>() != out.len() {
            let message =
                format!("tensor `{name}` has shape {:?}, expected {} values", info.shape, out.len());
            return Err(Error::file(&self.model, message));
        }
        let from = SeekFrom::Start(self.data_start + start as u64);
        self.file
            .seek(from)
            .and_then(|_| read_floats(&mut self.file, out))
            .map_err(|e| Error::io(&self.model, "read the checkpoint", e))
    }
}

fn read_floats(file: &mut File, out: &mut [f32]) -> io::Result<()> {
    let mut buffer = vec![0u8; CHUNK.min(size_of_val(out))];
    for values in out.chunks_mut(CHUNK / size_of::<f32>()) {
        let bytes = &mut buffer[..size_of_val(values)];
        file.read_exact(bytes)?;
        for (value, raw) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *value = f32::from_le_bytes(*raw);
        }
    }
    Ok(())
}

pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let io_error = |e| Error::io(path, "read the checkpoint", e);
    let file = File::open(path).map_err(io_error)?;
    let length = file.metadata().map_err(io_error)?.len();
    if length > MAX_JSON {
        return Err(Error::file(path, format!("{length} bytes are too many for this file")));
    }
    let mut bytes = Vec::with_capacity(length as usize);
    file.take(MAX_JSON).read_to_end(&mut bytes).map_err(io_error)?;
    serde_json::from_slice(&bytes).map_err(|e| Error::file(path, format!("not readable as JSON: {e}")))
}

fn check_sum(path: &Path, expected: &Written) -> Result<()> {
    let io_error = |e| Error::io(path, "read the checkpoint", e);
    let mut file = File::open(path).map_err(io_error)?;
    let length = file.metadata().map_err(io_error)?.len();
    if length != expected.bytes {
        return Err(Error::file(path, format!("{length} bytes long, {} were written", expected.bytes)));
    }
    let mut sum = Written::NOTHING;
    let mut buffer = vec![0u8; CHUNK];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => sum.add(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(io_error(e)),
        }
    }
    match sum == *expected {
        true => Ok(()),
        false => Err(Error::file(path, "its checksum is not that of what was written")),
    }
}

/// Offset of the data and the tensors, all of them f32.
fn read_header(path: &Path, file: &mut File) -> Result<(u64, BTreeMap<String, TensorInfo>)> {
    let (data_start, header) = weights::safetensors::read_header(path, file)?;
    let tensors: BTreeMap<_, _> =
        header.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect();
    match tensors.iter().find(|(_, info)| info.dtype != Dtype::F32) {
        Some((name, info)) => {
            let message =
                format!("not a valid safetensors file: tensor `{name}` is {:?}, expected F32", info.dtype);
            Err(Error::file(path, message))
        }
        None => Ok((data_start, tensors)),
    }
}
