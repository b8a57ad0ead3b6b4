//! The files of a checkpoint, streamed to the disk with their checksum.

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::format::{TensorView, Written};
use crate::error::{Error, Result};
use crate::files::disk::Growing;

/// Values converted and written at a time: 256 KiB.
const CHUNK: usize = 1 << 16;

/// A file to write to. Tests put one in that fails.
pub(super) trait Sink: Write {
    /// Makes what was written survive a power failure.
    fn sync(&mut self) -> io::Result<()>;
}

impl Sink for Growing {
    fn sync(&mut self) -> io::Result<()> {
        Growing::sync(self)
    }
}

pub(super) type Create = fn(&Path) -> io::Result<Box<dyn Sink>>;

pub(super) fn create_file(path: &Path) -> io::Result<Box<dyn Sink>> {
    Ok(Box::new(Growing::create_new(path)?))
}

impl Written {
    pub(super) const NOTHING: Written = Written { bytes: 0, crc32c: 0 };

    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.crc32c = crc32c::crc32c_append(self.crc32c, bytes);
    }
}

struct Summing {
    sink: Box<dyn Sink>,
    sum: Written,
}

impl Summing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sink.write_all(bytes)?;
        self.sum.add(bytes);
        Ok(())
    }
}

fn write_file(
    create: Create,
    path: &Path,
    fill: impl FnOnce(&mut Summing) -> io::Result<()>,
) -> Result<Written> {
    let write = || -> io::Result<Written> {
        let mut file = Summing { sink: create(path)?, sum: Written::NOTHING };
        fill(&mut file)?;
        file.sink.sync()?;
        Ok(file.sum)
    };
    write().map_err(|e| Error::io(path, "write the checkpoint", e))
}

pub(super) fn bytes(create: Create, path: &Path, bytes: &[u8]) -> Result<Written> {
    write_file(create, path, |file| file.write(bytes))
}

/// A safetensors file of f32 tensors in the order given.
pub(super) fn model(create: Create, path: &Path, tensors: &[TensorView<'_>]) -> Result<Written> {
    let header = header(path, tensors)?;
    write_file(create, path, |file| {
        file.write(&(header.len() as u64).to_le_bytes())?;
        file.write(&header)?;
        let mut buffer = Vec::with_capacity(CHUNK * size_of::<f32>());
        for values in tensors.iter().flat_map(|t| t.data.chunks(CHUNK)) {
            buffer.clear();
            buffer.extend(values.iter().flat_map(|v| v.to_le_bytes()));
            file.write(&buffer)?;
        }
        Ok(())
    })
}

/// The JSON header, padded so that the data begin at a multiple of 8 bytes.
fn header(path: &Path, tensors: &[TensorView<'_>]) -> Result<Vec<u8>> {
    let mut entries = Map::new();
    let mut seen = HashSet::new();
    let mut offset = 0usize;
    for tensor in tensors {
        let fits = tensor.shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)) == Some(tensor.data.len());
        if !fits {
            let message = format!(
                "tensor `{}` of shape {:?} has {} values",
                tensor.name,
                tensor.shape,
                tensor.data.len()
            );
            return Err(Error::file(path, message));
        }
        if tensor.name == "__metadata__" || !seen.insert(tensor.name) {
            return Err(Error::file(
                path,
                format!("the tensor name `{}` is taken: choose another", tensor.name),
            ));
        }
        let end = offset + size_of_val(tensor.data);
        let entry = json!({ "dtype": "F32", "shape": tensor.shape, "data_offsets": [offset, end] });
        entries.insert(tensor.name.to_string(), entry);
        offset = end;
    }
    let mut header = Value::Object(entries).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}
