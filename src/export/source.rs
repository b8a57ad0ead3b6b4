//! Where an encoder comes from: a run, one of its checkpoints, or a file of weights.

use crate::error::{Error, Result};
use crate::ir::{Op, Region};
use crate::nn::timm_name;
use crate::saip::config::{EncoderConfig, PATCH};
use crate::saip::{StepOptions, build_step};
use crate::tensor::{DType, Shape};
use crate::train::checkpoint::{Checkpoints, Loaded, RunState, step_of};
use crate::train::config::TrainConfig;
use crate::train::pretrained::{Hints, recognise};
use crate::weights::{
    self, Architecture, StateDict, Tensor, resample_positions, timm_element, timm_parameters,
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
    /// Reads `source`: a run folder (its newest intact checkpoint, or that of `step`), a checkpoint's folder, timm's folder, or a file of
    /// weights. `expert` chooses the expert's encoder.
    ///
    /// # Errors
    /// When there is no such run, checkpoint or file, or its values are not finite; names it and the remedy.
    pub fn read(source: &Path, expert: bool, step: Option<u64>) -> Result<Self> {
        let timm = source.join("model.safetensors");
        if source.is_file() || (timm.is_file() && source.join("config.json").is_file()) {
            if expert || step.is_some() {
                return Err(Error::usage(format!(
                    "{} is a file of weights: expert and step are chosen of a run",
                    source.display()
                )));
            }
            return if source.is_file() {
                Self::of_file(source, None)
            } else {
                Self::of_file(&timm, Some(source))
            };
        }
        let name = source.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (folder, loaded) = match step_of(&name) {
            Some(own) => {
                let store = source.parent().unwrap_or(Path::new("."));
                let folder = store.parent().unwrap_or(Path::new("..")).to_owned();
                if step.is_some_and(|step| step != own) {
                    return Err(Error::usage(format!(
                        "{}: name the run folder with --step",
                        source.display()
                    )));
                }
                (folder, Checkpoints::for_reading(store).at(own)?)
            }
            None => {
                let store = Checkpoints::for_reading(source.join("checkpoints"));
                if !crate::atomic::exists(&source.join("config.toml"))? {
                    return Err(Error::usage(format!(
                        "{}: is no run (no config.toml), no checkpoint, no folder of timm's and no file of weights",
                        source.display()
                    )));
                }
                let loaded = match step {
                    Some(step) => Some(store.at(step)?),
                    None => store.latest()?,
                };
                let none = || Error::usage(format!("{}: the run has no checkpoint yet", source.display()));
                (source.to_owned(), loaded.ok_or_else(none)?)
            }
        };
        Self::of_checkpoint(folder, loaded, expert)
    }

    /// `folder` is timm's, in which the norm of the tapped block may lie, too.
    fn of_file(path: &Path, folder: Option<&Path>) -> Result<Self> {
        let whole = weights::read(path)?;
        let (mut state, grid) = (weights::encoder(&whole)?.state, stored_grid(&whole));
        let norm = folder.map(|f| f.join(super::TAP_NORM)).filter(|f| f.is_file());
        for (name, tensor) in norm.map(weights::read).transpose()?.unwrap_or_default().iter() {
            state.insert(name, tensor.clone())?;
        }
        let number = |key: &str| whole.metadata.get(key).and_then(|n| n.parse().ok());
        let (num_heads, tap) = (number(super::HEADS_KEY), number(super::TAP_KEY));
        let hints = Hints { key: "file", num_heads, tap, grid, usual_grid: None };
        let config = recognise(&state, &hints)?;
        let size = match config {
            EncoderConfig::Vit { img_size, .. } => img_size,
            _ => grid.map_or([256, 128], |g| g.map(|n| n * PATCH)),
        };
        let architecture = Architecture::recognise(&state)?;
        let counter = |name: &str| state.get(name).cloned().unwrap_or_else(|| Tensor::from_i64(0));
        let mut ordered = ordered(&architecture, &state, counter)?;
        if let (EncoderConfig::Vit { embed_dim, .. }, None) = (&config, ordered.get("tap_norm.weight")) {
            // As a norm begins: patch tokens are normalised, whether or not their norm was trained.
            for (name, value) in [("tap_norm.weight", 1.0), ("tap_norm.bias", 0.0)] {
                let tensor = Tensor::from_f32([*embed_dim].into(), &vec![value; *embed_dim]);
                ordered.insert(name, tensor.unwrap_or_else(|| Tensor::from_i64(0)))?;
            }
        }
        TrainedEncoder { config, architecture, state: ordered, size, run: None }.finite()
    }

    fn of_checkpoint(folder: PathBuf, mut loaded: Loaded, expert: bool) -> Result<Self> {
        let config = TrainConfig::load(&folder.join("config.toml"))?;
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
        let frozen = expert && config.expert.path.is_some();
        let encoder = match frozen {
            true => recognise(&state, &Hints::of_expert(&config))?,
            false => config.encoder.architecture.clone(),
        };
        let batches = if frozen { 0 } else { batches_tracked(&config, &loaded.state, expert)? };
        let architecture = Architecture::recognise(&state)?;
        let state = ordered(&architecture, &state, |_| Tensor::from_i64(batches))?;
        let size = config.views.global_size;
        let (checkpoint, run_state) = (loaded.path.clone(), loaded.state.clone());
        let run = RunFacts { config, state: run_state, folder, checkpoint, expert };
        TrainedEncoder { config: encoder, architecture, state, size, run: Some(run) }.finite()
    }

    /// The encoder for images of `size` pixels: a ViT's positions are resampled, the others take any size.
    ///
    /// # Errors
    /// [`Error::Usage`] for sizes that are no multiples of 16.
    pub fn resized(mut self, size: [usize; 2]) -> Result<Self> {
        let [h, w] = size;
        if size.iter().any(|s| *s == 0 || !s.is_multiple_of(PATCH)) {
            return Err(Error::usage(format!("--img-size {h} {w}: sizes must be multiples of {PATCH}")));
        }
        self.size = size;
        let EncoderConfig::Vit { img_size, embed_dim, .. } = &mut self.config else { return Ok(self) };
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
        self.architecture = Architecture::recognise(&self.state)?;
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
    let step = config.step_config(config.views.local_size, config.views.global_size);
    let micro_steps = config.optim.accumulation(1)?;
    let options = StepOptions { dtype: DType::F32, micro_steps, drop_path: 0.0 };
    let region = if expert { Region::ExpertBuffers } else { Region::Buffers };
    let graph = build_step(&step, &options)?.graph;
    let groups = graph.nodes.iter().find_map(|node| match &node.op {
        Op::RunningStatistics { groups, .. } => {
            let binding = graph.value(node.outputs[0]).binding;
            binding.filter(|b| b.region == region).map(|_| groups.len())
        }
        _ => None,
    });
    let count = groups.unwrap_or(0) as u64 * micro_steps as u64;
    Ok(i64::try_from(count.saturating_mul(state.step)).unwrap_or(i64::MAX))
}

/// The grid that an exported file says it is for.
fn stored_grid(state: &StateDict) -> Option<[usize; 2]> {
    let (h, w) = state.metadata.get(super::SIZE_KEY)?.split_once('x')?;
    let grid = [h.parse::<usize>().ok()? / PATCH, w.parse::<usize>().ok()? / PATCH];
    (!grid.contains(&0)).then_some(grid)
}
