//! Where an encoder comes from: a run, one of its checkpoints, or a file of weights.

use crate::data::augment::normalize::{MEAN, STD};
use crate::error::{Error, Result};
use crate::ir::PATCH;
use crate::keys::MAX_EDGE;
use crate::models::{EncoderConfig, VitConfig};
use crate::train::checkpoint::{Loaded, RunState};
use crate::train::config::TrainConfig;
use crate::train::objective::with_expert;
use crate::train::pretrained::{expert_options, recognise, usual_grid};
use crate::train::source::{WeightsSource, encoder_of};
use crate::weights::{
    self, Architecture, Hint, ReadOptions, StateDict, Tensor, resample_positions, timm_element,
    timm_parameters,
};
use std::path::{Path, PathBuf};

/// An encoder with its weights.
#[derive(Clone, Debug)]
pub struct TrainedEncoder {
    pub config: EncoderConfig,
    pub architecture: Architecture,
    /// timm's names and order, counters included; behind them the norm of a ViT's tapped block (`tap_norm.*`), if known.
    pub state: StateDict,
    /// `[height, width]` of the images that it is meant for, in pixels.
    pub size: [usize; 2],
    /// Mean and deviation of the channels with which its images are normalised, for values in `[0, 1]`.
    pub mean: [f32; 3],
    pub std: [f32; 3],
    /// What whoever uses it should know: an older checkpoint was taken, or something was guessed.
    pub notes: Vec<String>,
    /// The run that it comes from, unless it is a file's.
    pub run: Option<RunFacts>,
}

/// What a run tells of its encoder.
#[derive(Clone, Debug)]
pub struct RunFacts {
    pub config: TrainConfig,
    pub state: RunState,
    /// The run folder.
    pub folder: PathBuf,
    pub checkpoint: PathBuf,
    /// The expert's encoder, not the student's.
    pub expert: bool,
}

impl TrainedEncoder {
    /// [`TrainedEncoder::read_with`] nothing told.
    ///
    /// # Errors
    /// Those of [`TrainedEncoder::read_with`].
    pub fn read(source: &Path, expert: bool, step: Option<u64>) -> Result<Self> {
        Self::read_with(source, expert, step, &ReadOptions::default())
    }

    /// Reads `source`: a run folder (its newest intact checkpoint, or that of `step`), a checkpoint's folder, a folder with a file of
    /// weights such as timm's, or such a file. `expert` chooses the expert's encoder of a run; `options` tell what a file does not.
    ///
    /// # Errors
    /// When there is no such run, checkpoint or file, its values are not finite, or something is told that it has no use for; names it
    /// and the remedy.
    pub fn read_with(source: &Path, expert: bool, step: Option<u64>, options: &ReadOptions) -> Result<Self> {
        options.check(source)?;
        match WeightsSource::find(source, step)? {
            WeightsSource::File(_) if expert => Err(Error::usage(format!(
                "{}: is a file of weights; --expert chooses of a run, {} of a file",
                source.display(),
                options.asks.name(Hint::Entry)
            ))),
            WeightsSource::File(path) => Self::of_file(&path, options),
            WeightsSource::Run { folder, loaded } => match options.given() {
                Some(name) => Err(Error::usage(format!(
                    "{}: is a run, which tells all of its encoder; {name} is for files of weights",
                    source.display()
                ))),
                None => Self::of_checkpoint(folder, *loaded, expert),
            },
        }
    }

    fn of_file(path: &Path, options: &ReadOptions) -> Result<Self> {
        let state = weights::encoder(&weights::read_with(path, options)?)?.state;
        let config = recognise(&state, options, None)?;
        let told = options.or_as_told(&state);
        let size = match config {
            EncoderConfig::Vit(VitConfig { img_size, .. }) => img_size,
            _ => told.grid.map_or([256, 128], |g| g.map(|n| n * PATCH)),
        };
        let architecture = weights::recognise(&state)?;
        let counter = |name: &str| state.get(name).cloned().unwrap_or_else(|| Tensor::from_i64(0));
        let mut ordered = ordered(&architecture, &state, counter)?;
        let mut notes = guessed(&architecture, &config, &told);
        if let (EncoderConfig::Vit(VitConfig { embed_dim, .. }), None) =
            (&config, ordered.get("tap_norm.weight"))
        {
            // As a norm begins: patch tokens are normalised, whether or not their norm was trained.
            for (name, value) in [("tap_norm.weight", 1.0), ("tap_norm.bias", 0.0)] {
                let tensor = Tensor::from_f32([*embed_dim].into(), &vec![value; *embed_dim]);
                ordered.insert(name, tensor.unwrap_or_else(|| Tensor::from_i64(0)))?;
            }
            notes.push("the file has no norm of its patch tokens: theirs is that of an untrained one".into());
        }
        let (mean, std) = (told.mean.unwrap_or(MEAN), told.std.unwrap_or(STD));
        TrainedEncoder { config, architecture, state: ordered, size, mean, std, notes, run: None }.finite()
    }

    fn of_checkpoint(folder: PathBuf, mut loaded: Loaded, expert: bool) -> Result<Self> {
        let config = TrainConfig::load(&folder.join("config.toml"))?;
        let state = encoder_of(&config, &mut loaded, expert)?;
        let frozen = expert && config.expert.path.is_some();
        let encoder = match frozen {
            true => recognise(&state, &expert_options(&config), usual_grid(&config))?,
            false => config.encoder.architecture.clone(),
        };
        let batches = if frozen { 0 } else { batches_tracked(&config, &loaded.state, expert)? };
        let architecture = weights::recognise(&state)?;
        let mut state = ordered(&architecture, &state, |_| Tensor::from_i64(batches))?;
        state.metadata.clear();
        let size = config.views.global_size;
        let (checkpoint, run_state, notes) = (loaded.path.clone(), loaded.state.clone(), loaded.warnings);
        let run = RunFacts { config, state: run_state, folder, checkpoint, expert };
        let (mean, std) = (MEAN, STD);
        TrainedEncoder { config: encoder, architecture, state, size, mean, std, notes, run: Some(run) }
            .finite()
    }

    /// The encoder for images of `size` pixels: a ViT's positions are resampled, the others take any size.
    ///
    /// # Errors
    /// [`Error::Usage`] for sizes that are no multiples of 16, or larger than a configuration may have.
    pub fn resized(mut self, size: [usize; 2]) -> Result<Self> {
        let [h, w] = size;
        if size.iter().any(|s| *s == 0 || !s.is_multiple_of(PATCH)) {
            return Err(Error::usage(format!("--img-size {h} {w}: sizes must be multiples of {PATCH}")));
        }
        if size.iter().any(|s| *s > MAX_EDGE) {
            return Err(Error::usage(format!("--img-size {h} {w}: sizes must be at most {MAX_EDGE}")));
        }
        self.size = size;
        let EncoderConfig::Vit(VitConfig { img_size, embed_dim, .. }) = &mut self.config else {
            return Ok(self);
        };
        let (from, to) = (img_size.map(|s| s / PATCH), size.map(|s| s / PATCH));
        let dim = *embed_dim;
        *img_size = size;
        let name = "pos_embed";
        let table = self.state.get(name).and_then(Tensor::f32s);
        let table = table.and_then(|t| resample_positions(&t, 1, from, to, dim));
        let shape = [1, 1 + to[0] * to[1], dim];
        let tensor = table.and_then(|t| Tensor::from_f32(shape.into(), &t)).ok_or_else(|| {
            Error::invariant("resampling positions", format!("`{name}` is no table of {from:?} patches"))
        })?;
        self.state = replaced(&self.state, name, tensor)?;
        self.architecture = weights::recognise(&self.state)?;
        Ok(self)
    }

    /// timm's own tensors only.
    pub fn timm_state(&self) -> StateDict {
        self.state.renamed(|name| (!name.starts_with("tap_norm.")).then(|| name.to_owned()))
    }

    /// Nothing is made of weights that would only give NaN.
    fn finite(self) -> Result<Self> {
        let Some((name, bad)) = self.state.iter().map(|(n, t)| (n, t.non_finite())).find(|(_, bad)| *bad > 0)
        else {
            return Ok(self);
        };
        let remedy = match self.run {
            Some(_) => "choose an earlier checkpoint with --step",
            None => "the file is damaged, or its training diverged",
        };
        let message = format!("{bad} values of `{name}` are NaN or infinite: {remedy}");
        Err(Error::file(&self.state.path, message))
    }
}

/// The tensors in timm's order, with counters, then what timm does not have.
fn ordered(
    architecture: &Architecture,
    state: &StateDict,
    counter: impl Fn(&str) -> Tensor,
) -> Result<StateDict> {
    let mut out = StateDict::new();
    (out.path, out.metadata) = (state.path.clone(), state.metadata.clone());
    for (name, _) in timm_parameters(architecture) {
        let tensor = match (timm_element(&name).is_float(), state.get(&name)) {
            (true, Some(tensor)) => tensor.clone(),
            (true, None) => return Err(Error::file(&state.path, format!("tensor `{name}` is missing"))),
            (false, _) => counter(&name),
        };
        out.insert(name, tensor)?;
    }
    for (name, tensor) in state.iter().filter(|(name, _)| name.starts_with("tap_norm.")) {
        out.insert(name, tensor.clone())?;
    }
    Ok(out)
}

fn replaced(state: &StateDict, name: &str, tensor: Tensor) -> Result<StateDict> {
    let mut out = StateDict::new();
    (out.path, out.metadata) = (state.path.clone(), state.metadata.clone());
    for (n, t) in state.iter() {
        out.insert(n, if n == name { tensor.clone() } else { t.clone() })?;
    }
    Ok(out)
}

/// How often PyTorch would have counted: its batch normalisation is called once per group of rows with statistics of their
/// own, in every micro step.
fn batches_tracked(config: &TrainConfig, state: &RunState, expert: bool) -> Result<i64> {
    let micro_steps = config.optim.accumulation(1)?;
    let [student, own] = with_expert(config, None, &[])?.encoder_calls()?;
    let calls = if expert { own } else { student };
    let count = calls * micro_steps as u64;
    Ok(i64::try_from(count.saturating_mul(state.step)).unwrap_or(i64::MAX))
}

/// What was neither given nor told, for the user to see.
fn guessed(architecture: &Architecture, config: &EncoderConfig, told: &ReadOptions) -> Vec<String> {
    let (Architecture::Vit(v), EncoderConfig::Vit(VitConfig { img_size, num_heads, tap, .. })) =
        (architecture, config)
    else {
        return Vec::new();
    };
    let name = |hint| told.asks.name(hint);
    let mut notes = Vec::new();
    if told.heads.is_none() || told.tap.is_none() {
        notes.push(format!(
            "{num_heads} attention heads, patch tokens of block {tap}: {} and {} tell others",
            name(Hint::Heads),
            name(Hint::Tap)
        ));
    }
    let [h, w] = img_size.map(|s| s / PATCH);
    let patches = v.positions.saturating_sub(1);
    if told.grid.is_none_or(|grid| grid != [h, w]) && h != w {
        notes.push(format!(
            "its {patches} positions are taken for a grid of {h}x{w} patches (height x width): {} tells another",
            name(Hint::Grid)
        ));
    }
    notes
}
