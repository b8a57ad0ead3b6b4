//! Where an encoder's weights lie: in a run, one of its checkpoints, or files of weights.

use super::checkpoint::{Checkpoints, Loaded, step_of};
use super::config::TrainConfig;
use crate::error::{Error, Result};
use crate::models::timm_name;
use crate::models::{EncoderConfig, VitConfig};
use crate::tensor::Shape;
use crate::weights::{self, HEADS_KEY, ReadOptions, SIZE_KEY, StateDict, TAP_KEY, Tensor};
use std::path::{Path, PathBuf};

/// What a path names.
pub enum WeightsSource {
    /// A run, and one of its checkpoints.
    Run { folder: PathBuf, loaded: Box<Loaded> },
    /// A file of weights, or a folder with one.
    File(PathBuf),
}

impl WeightsSource {
    /// Looks at `source`: a run folder (its newest intact checkpoint, or that of `step`), a checkpoint's folder, a folder with a file
    /// of weights such as timm's, or such a file.
    ///
    /// # Errors
    /// When there is no such thing; [`Error::Usage`] for a step of what is no run.
    pub fn find(source: &Path, step: Option<u64>) -> Result<Self> {
        let kind = std::fs::metadata(source).map_err(|e| Error::io(source, "read", e))?;
        let name = source.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(own) = step_of(&name).filter(|_| kind.is_dir()) {
            let store = source.parent().unwrap_or(Path::new("."));
            let folder = store.parent().unwrap_or(Path::new("..")).to_owned();
            if step.is_some_and(|step| step != own) {
                return Err(Error::usage(format!("{}: name the run folder with --step", source.display())));
            }
            let loaded = Box::new(Checkpoints::for_reading(store).at(own)?);
            return Ok(WeightsSource::Run { folder, loaded });
        }
        if kind.is_dir() && crate::files::atomic::exists(&source.join("config.toml"))? {
            let store = Checkpoints::for_reading(source.join("checkpoints"));
            let loaded = match step {
                Some(step) => Some(store.at(step)?),
                None => store.latest()?,
            };
            let none = || Error::usage(format!("{}: the run has no checkpoint yet", source.display()));
            let loaded = Box::new(loaded.ok_or_else(none)?);
            return Ok(WeightsSource::Run { folder: source.to_owned(), loaded });
        }
        if kind.is_dir() && weights::weights_in(source).is_none() {
            return Err(Error::usage(format!(
                "{}: is no run (no config.toml), no checkpoint, no folder of timm's and no file of weights",
                source.display()
            )));
        }
        if step.is_some() {
            return Err(Error::usage(format!(
                "{}: is a file of weights; --step chooses a checkpoint of a run",
                source.display()
            )));
        }
        Ok(WeightsSource::File(source.to_owned()))
    }
}

/// What a configuration names, which a training begins with: the tensors of an encoder, and what there is to say about them.
pub(super) fn read(source: &Path, options: &ReadOptions) -> Result<(StateDict, Vec<String>)> {
    match WeightsSource::find(source, None)? {
        WeightsSource::File(path) => Ok((weights::read_with(path, options)?, Vec::new())),
        WeightsSource::Run { folder, mut loaded } => {
            let expert = match options.entry.as_deref() {
                None | Some("student") => false,
                Some("expert") => true,
                Some(other) => {
                    let message = format!("`{other}` is nothing in a run: choose student or expert");
                    return Err(options.asks.error(weights::Hint::Entry, source, message));
                }
            };
            let config = TrainConfig::load(&folder.join("config.toml"))?;
            let mut state = encoder_of(&config, &mut loaded, expert)?;
            state.asks = options.asks;
            state.entry = if expert { "expert" } else { "student" }.to_owned();
            Ok((state, std::mem::take(&mut loaded.warnings)))
        }
    }
}

/// The student's or the expert's encoder in a checkpoint, under timm's names, with what the run's configuration knows of it.
///
/// # Errors
/// Those of reading the checkpoint.
pub fn encoder_of(config: &TrainConfig, loaded: &mut Loaded, expert: bool) -> Result<StateDict> {
    let prefix = if expert { "expert." } else { "student." };
    let mut state = StateDict::new();
    state.path = loaded.model().to_owned();
    let tensors: Vec<_> = loaded.tensors().map(|(n, s)| (n.to_owned(), s.to_vec())).collect();
    for (name, shape) in tensors {
        let Some(timm) = name.strip_prefix(prefix).and_then(timm_name) else { continue };
        let mut values = vec![0.0; shape.iter().product()];
        loaded.read_into(&name, &mut values)?;
        let tensor = Tensor::from_f32(Shape::new(shape), &values)
            .ok_or_else(|| Error::invariant("reading a checkpoint", format!("`{name}` has no shape")))?;
        state.insert(timm, tensor)?;
    }
    if expert && state.is_empty() {
        return Err(Error::usage(format!(
            "{}: a run of {} has no expert: take its encoder, the student's",
            state.path.display(),
            config.objective
        )));
    }
    let mut tell = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            state.metadata.insert(key.to_owned(), value);
        }
    };
    let size = |[h, w]: [usize; 2]| format!("{h}x{w}");
    if expert && config.expert.path.is_some() {
        tell(HEADS_KEY, config.expert.num_heads.map(|n| n.to_string()));
        tell(TAP_KEY, config.expert.tap.map(|n| n.to_string()));
        tell(SIZE_KEY, config.expert.grid.map(|grid| size(grid.map(|n| n * crate::ir::PATCH))));
    } else if let EncoderConfig::Vit(VitConfig { img_size, num_heads, tap, .. }) = config.encoder.architecture
    {
        tell(HEADS_KEY, Some(num_heads.to_string()));
        tell(TAP_KEY, Some(tap.to_string()));
        tell(SIZE_KEY, Some(size(img_size)));
    }
    Ok(state)
}
