//! Weights from files in a run: a frozen pretrained expert, and a student that does not start at random.

use super::config::{ExpertSection, TrainConfig};
use super::engine::Initial;
use crate::error::{Error, Result};
use crate::nn::{Encoder, ParamRegistry, timm_name};
use crate::saip::config::{EncoderConfig, PATCH, StepConfig};
use crate::tensor::Shape;
use crate::weights::{self, Architecture, Grid, LoadOptions, LoadReport, StateDict, timm_parameters};
use std::collections::HashMap;
use std::path::Path;

/// What the files that a configuration names give.
#[derive(Debug, Default)]
pub struct Pretrained {
    /// The encoder of a frozen expert.
    pub expert: Option<EncoderConfig>,
    /// Values that stand in for drawn ones.
    pub initial: Initial,
    /// What was read, for the user.
    pub reports: Vec<String>,
}

impl Pretrained {
    /// Reads the files of `cfg`.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::File`] for a file that cannot be read or does not fit, naming tensor and shapes;
    /// [`Error::Config`] for a key that does not fit the file.
    pub fn open(cfg: &TrainConfig) -> Result<Self> {
        let mut all = Pretrained::default();
        if let Some(path) = &cfg.expert.path {
            let state = weights::read(path)?;
            let config = expert_config(cfg, &state)?;
            let (values, report) = load(&config, &state, None)?;
            all.reports.push(format!("frozen expert: {report}{}", grid_note(&config)));
            all.initial.expert = values;
            all.expert = Some(config);
        }
        if let Some(path) = &cfg.encoder.init {
            let to = match cfg.encoder.architecture {
                EncoderConfig::Vit { img_size, .. } => img_size.map(|s| s / PATCH),
                _ => [0; 2],
            };
            let grid = Grid { from: cfg.encoder.init_grid, to };
            let (values, report) = load(&cfg.encoder.architecture, &weights::read(path)?, Some(grid))?;
            all.reports.push(format!("student starts from: {report}"));
            all.initial.student = values;
        }
        Ok(all)
    }

    /// The same for a run that goes on from `checkpoint`, the file of its tensors: they have all values, and tell the shape of an
    /// expert whose file is gone.
    ///
    /// # Errors
    /// Those of [`Pretrained::open`].
    pub fn resumed(cfg: &TrainConfig, checkpoint: &Path) -> Result<Self> {
        let Some(path) = &cfg.expert.path else { return Ok(Pretrained::default()) };
        let state = match path.exists() {
            true => weights::read(path)?,
            false => weights::read(checkpoint)?.under("expert."),
        };
        Ok(Pretrained { expert: Some(expert_config(cfg, &state)?), ..Pretrained::default() })
    }
}

/// The step of `cfg` at scale 1, with the expert of its file.
///
/// # Errors
/// Those of [`Pretrained::open`].
pub fn base_step(cfg: &TrainConfig) -> Result<StepConfig> {
    let expert = match &cfg.expert.path {
        Some(path) => Some(expert_config(cfg, &weights::read(path)?)?),
        None => None,
    };
    Ok(StepConfig { expert_encoder: expert, ..cfg.step_config(cfg.views.local_size, cfg.views.global_size) })
}

/// What the tensors of a ViT do not tell. Absent: what is usual.
#[derive(Clone, Copy, Debug)]
pub struct Hints {
    /// Where these keys stand in the configuration, for messages.
    pub key: &'static str,
    /// Attention heads; absent: one per 64 channels.
    pub num_heads: Option<usize>,
    /// Block whose output gives the patch tokens; absent: the middle one.
    pub tap: Option<usize>,
    /// Grid of the position table, height and width; absent: a square, or `usual_grid`.
    pub grid: Option<[usize; 2]>,
    pub usual_grid: Option<[usize; 2]>,
}

impl Hints {
    /// Of a run's expert.
    pub fn of_expert(cfg: &TrainConfig) -> Self {
        let ExpertSection { num_heads, tap, grid, .. } = cfg.expert;
        Hints {
            key: "expert",
            num_heads,
            tap,
            grid,
            usual_grid: Some(cfg.views.global_size.map(|s| s / PATCH)),
        }
    }
}

fn expert_config(cfg: &TrainConfig, state: &StateDict) -> Result<EncoderConfig> {
    recognise(state, &Hints::of_expert(cfg))
}

/// The encoder of a file as this engine builds it, which must be exactly that.
///
/// # Errors
/// [`Error::File`] for an encoder that is not built here, naming a tensor; [`Error::Config`] for a hint that does not fit.
pub fn recognise(state: &StateDict, hints: &Hints) -> Result<EncoderConfig> {
    let architecture = Architecture::recognise(state)?;
    let config = match &architecture {
        Architecture::Vit(v) => EncoderConfig::Vit {
            img_size: position_grid(hints, v.positions.saturating_sub(1))?.map(|n| n * PATCH),
            embed_dim: v.dim,
            depth: v.depth,
            num_heads: hints.num_heads.unwrap_or_else(|| v.usual_heads()),
            tap: hints.tap.unwrap_or(v.depth / 2),
        },
        Architecture::TinyVit(t) => {
            let behind_first = |of: &[usize], first| four(&[&[first], of].concat(), state);
            EncoderConfig::TinyVit {
                embed_dims: four(&t.widths, state)?,
                depths: four(&t.depths, state)?,
                // The first stage has no attention.
                num_heads: behind_first(&t.heads, 1)?,
                window_sizes: behind_first(&t.windows, 7)?,
            }
        }
        Architecture::StarNet(s) => EncoderConfig::StarNet {
            base_dim: four(&s.widths, state)?[0],
            depths: four(&s.depths, state)?,
            mlp_ratio: s.expansion,
        },
    };
    let ours: HashMap<String, Shape> =
        parameters(&config, hints.key)?.into_iter().map(|p| (p.1, p.2)).collect();
    for (name, shape) in timm_parameters(&architecture) {
        if weights::timm_element(&name).is_float() && ours.get(&name) != Some(&shape) {
            let expected =
                ours.get(&name).map_or("which has no place here".to_owned(), |s| format!("expected {s}"));
            return Err(Error::file(
                &state.path,
                format!(
                    "its {architecture} is not built here: `{name}` has shape {shape}, {expected}. Encoders are timm's ViT with \
                     16x16 patches, a class token, and neither registers nor LayerScale, of any width and depth; its \
                     TinyViT; its StarNet"
                ),
            ));
        }
    }
    Ok(config)
}

fn four(of: &[usize], state: &StateDict) -> Result<[usize; 4]> {
    of.try_into()
        .map_err(|_| Error::file(&state.path, format!("its encoder has {} stages, expected 4", of.len())))
}

/// Height and width of a position table of `rows` patches: as hinted, a square, or what is usual.
fn position_grid(hints: &Hints, rows: usize) -> Result<[usize; 2]> {
    let fits = |[h, w]: &[usize; 2]| h.checked_mul(*w) == Some(rows);
    let square = Some([rows.isqrt(); 2]);
    let key = format!("{}.grid", hints.key);
    if let Some([h, w]) = hints.grid.filter(|g| !fits(g)) {
        return Err(Error::config(key, format!("{h}x{w} are not the {rows} patches of the position table")));
    }
    hints.grid.or(square.filter(fits)).or(hints.usual_grid.filter(fits)).ok_or_else(|| {
        let message = format!(
            "the position table has {rows} patches, which are no square: set it to their [height, width]"
        );
        Error::config(key, message)
    })
}

fn grid_note(config: &EncoderConfig) -> String {
    match config {
        EncoderConfig::Vit { img_size, num_heads, tap, .. } => {
            let [h, w] = img_size.map(|s| s / PATCH);
            format!(
                "\n  {num_heads} heads, patch tokens of block {tap}, positions of a {h}x{w} grid resampled to every view's"
            )
        }
        _ => String::new(),
    }
}

/// Own name, timm's name and shape of every parameter and running statistic of an encoder; `key` is its place in the
/// configuration.
fn parameters(config: &EncoderConfig, key: &str) -> Result<Vec<(String, String, Shape)>> {
    let encoder = Encoder::new(config, key)?;
    let mut registry = ParamRegistry::new();
    encoder.register(&mut registry)?;
    let mut buffers = ParamRegistry::new();
    encoder.register_buffers(&mut buffers)?;
    Ok(registry
        .iter()
        .chain(&buffers)
        .filter_map(|p| Some((p.name.clone(), timm_name(&p.name)?.to_owned(), p.shape.as_slice().into())))
        .collect())
}

/// The values of `config`'s encoder out of a file.
fn load(
    config: &EncoderConfig,
    state: &StateDict,
    grid: Option<Grid>,
) -> Result<(HashMap<String, Vec<f32>>, LoadReport)> {
    let all = parameters(config, "encoder")?;
    let wanted: Vec<_> = all.iter().map(|(_, timm, shape)| (timm.clone(), shape.clone())).collect();
    let own: HashMap<_, _> = all.into_iter().map(|(own, timm, _)| (timm, own)).collect();
    // A norm that only SAIP's encoders have; a fresh one leaves the tokens as they are, up to their scale.
    let options = LoadOptions { grid, optional: &|name| name.starts_with("tap_norm.") };
    let mut values = HashMap::new();
    let report = weights::load_into(state, &wanted, &options, |name, v| {
        if let Some(own) = own.get(name) {
            values.insert(own.clone(), v.to_vec());
        }
        Ok(())
    })?;
    Ok((values, report))
}
