//! Weights in the files of other programs: safetensors, and PyTorch's `.pth` / `.pt` / `.bin`, read and written.
//!
//! A file is read into a [`StateDict`]; [`Architecture::recognise`] tells from names and shapes what encoder it holds; and
//! [`load_into`] hands its tensors to whoever wants them, under timm's names, with a [`LoadReport`] of what happened. Files
//! are data: a pickle is never run, sizes are checked before memory is taken, and every error names the file and the tensor.
//!
//! ```no_run
//! use saip_engine::weights::{self, Architecture, LoadOptions, Naming, PthLayout};
//!
//! # fn main() -> saip_engine::Result<()> {
//! let state = weights::read("dino_deitsmall16_pretrain.pth")?;
//! let architecture = Architecture::recognise(&state)?;
//! println!("{architecture}");
//! let wanted = weights::timm_parameters(&architecture);
//! let mut values = std::collections::BTreeMap::new();
//! let report = weights::load_into(&state, &wanted, &LoadOptions::default(), |name, tensor| {
//!     values.insert(name.to_owned(), tensor.to_vec());
//!     Ok(())
//! })?;
//! println!("{report}");
//! // The same weights for mmpose: `backbone.*` under `state_dict`, in mmpretrain's names.
//! let encoder = weights::encoder(&state)?.state;
//! let layout = PthLayout { entry: Some("state_dict"), prefix: "backbone.", naming: Naming::Mmpretrain };
//! weights::write_pth("backbone.pth", &encoder, &layout)?;
//! # Ok(())
//! # }
//! ```

mod arch;
mod archive;
mod folder;
mod load;
mod names;
mod objects;
mod options;
mod pickle;
mod pth;
mod pth_write;
mod resample;
pub(crate) mod safetensors;
mod tensor;
mod timm;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

pub use self::arch::{Architecture, StarNet, TinyVit, Vit};
pub(crate) use self::folder::{TAP_NORM, weights_in};
pub use self::load::{Grid, LoadOptions, LoadReport, Resampled, load_into};
pub use self::names::{EncoderWeights, Naming, encoder};
pub use self::options::{Asks, HEADS_KEY, Hint, MEAN_KEY, ReadOptions, SIZE_KEY, STD_KEY, TAP_KEY};
pub use self::pth_write::{PthLayout, write_pth};
pub use self::resample::resample_positions;
pub use self::safetensors::{safetensors_bytes, write_safetensors};
pub use self::tensor::{Element, StateDict, Tensor};
pub use self::timm::{timm_element, timm_parameters};
use crate::error::{Error, Result};

/// Reads the weights of a file, which is told by its first bytes, not by its name: safetensors, PyTorch's, or the index of several
/// such files; or of a folder with one of them, such as timm's. Of a training checkpoint, the entry is read that its users load:
/// `teacher` (DINO), an average of the weights, `state_dict`, `model`, `student`.
///
/// # Errors
/// [`Error::Io`]; [`Error::File`] that names what is wrong and the tensor concerned.
pub fn read(path: impl AsRef<Path>) -> Result<StateDict> {
    read_with(path, &ReadOptions::default())
}

/// Reads the weights under `entry`, such as `student`: an entry of a PyTorch checkpoint, or what stands before the names of one of
/// several encoders.
///
/// # Errors
/// Those of [`read`]; [`Error::File`] that lists the entries when there is none of that name.
pub fn read_entry(path: impl AsRef<Path>, entry: &str) -> Result<StateDict> {
    read_with(path, &ReadOptions { entry: Some(entry.to_owned()), ..ReadOptions::default() })
}

/// Reads the weights that `options` ask for; of these, only the entry matters here.
///
/// # Errors
/// Those of [`read_entry`].
pub fn read_with(path: impl AsRef<Path>, options: &ReadOptions) -> Result<StateDict> {
    let path = path.as_ref();
    let mut state = match path.is_dir() {
        true => folder::read(path, options)?,
        false => file(path, options)?,
    };
    state.asks = options.asks;
    Ok(state)
}

/// The weights of a file, or of the files that it lists.
fn file(path: &Path, options: &ReadOptions) -> Result<StateDict> {
    match single(path, options)? {
        Some(state) => Ok(state),
        None => folder::read_index(path, options),
    }
}

/// The weights of a file; `None` of an index of several.
fn single(path: &Path, options: &ReadOptions) -> Result<Option<StateDict>> {
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

/// Nothing is exported that another program could only fail on.
fn check_writable(path: &Path, state: &StateDict) -> Result<()> {
    for (name, tensor) in state.iter() {
        let bad = tensor.non_finite();
        if bad > 0 {
            let message = format!("not written: {bad} values of tensor `{name}` are NaN or infinite");
            return Err(Error::file(path, message));
        }
    }
    Ok(())
}
