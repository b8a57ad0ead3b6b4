//! Weights in the files of other programs: safetensors, and PyTorch's `.pth` / `.pt` / `.bin`, read and written.
//!
//! A file is read into a [`StateDict`]; [`recognise`] tells from names and shapes what encoder it holds; and
//! [`load_into`] hands its tensors to whoever wants them, under timm's names, with a [`LoadReport`] of what happened. Files
//! are data: a pickle is never run, sizes are checked before memory is taken, and every error names the file and the tensor.
//!
//! ```no_run
//! use saip_engine::weights::{self, LoadOptions, Naming, PthLayout};
//!
//! # fn main() -> saip_engine::Result<()> {
//! let state = weights::read("dino_deitsmall16_pretrain.pth")?;
//! let architecture = weights::recognise(&state)?;
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

mod archive;
mod asks;
mod folder;
mod load;
mod names;
mod objects;
mod options;
mod pickle;
mod pth;
mod pth_write;
mod recognise;
mod resample;
pub(crate) mod safetensors;
mod single;
mod tensor;
mod timm;

use std::path::Path;

pub use self::asks::{Asks, Hint};
pub(crate) use self::folder::{TAP_NORM, weights_in};
pub use self::load::{Grid, LoadOptions, LoadReport, Resampled, load_into};
pub use self::names::{EncoderWeights, Naming, encoder};
pub use self::options::{MEAN_KEY, ReadOptions, SIZE_KEY, STD_KEY};
pub use self::pth_write::{PthLayout, write_pth};
pub use self::recognise::recognise;
pub use self::resample::resample_positions;
pub use self::safetensors::{safetensors_bytes, write_safetensors};
pub use self::tensor::{Element, StateDict, Tensor};
pub use self::timm::{timm_element, timm_parameters};
use crate::error::Result;
pub use crate::models::{Architecture, HEADS_KEY, ResNet, StarNet, TAP_KEY, TinyVit, Vit};

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
        false => folder::file(path, options)?,
    };
    state.asks = options.asks;
    Ok(state)
}
