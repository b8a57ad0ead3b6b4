//! One file of weights, of whatever format.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use super::options::ReadOptions;
use super::tensor::StateDict;
use super::{pth, safetensors};
use crate::error::{Error, Result};

/// The weights of a file; `None` of an index of several.
pub(super) fn single(path: &Path, options: &ReadOptions) -> Result<Option<StateDict>> {
    let io_error = |e| Error::io(path, "read", e);
    let mut file = File::open(path).map_err(io_error)?;
    let mut start = Vec::new();
    (&mut file).take(16).read_to_end(&mut start).map_err(io_error)?;
    file.seek(SeekFrom::Start(0)).map_err(io_error)?;
    let entry = options.entry.as_deref();
    match start.as_slice() {
        [b'P', b'K', 3, 4, ..] => pth::read(path, file, entry, options.asks).map(Some),
        // A pickle of its own: torch.save before PyTorch 1.6, or with `_use_new_zipfile_serialization=False`.
        [0x80, 0..=5, ..] => Err(Error::file(
            path,
            "is in PyTorch's format from before 1.6, which is not read: convert it where you trust it, with \
             torch.save(torch.load(path), path)",
        )),
        // The length of a header has bytes that no text has.
        [b'{', ..] if !start.contains(&0) => Ok(None),
        [_, _, _, _, _, _, _, _, b'{', ..] => {
            let state = safetensors::read(path, &mut file)?;
            entry.map_or(Ok(state.clone()), |name| state.entry(name)).map(Some)
        }
        _ => Err(Error::file(
            path,
            "is neither a safetensors file nor one of PyTorch's torch.save: was the copy or download cut off?",
        )),
    }
}
