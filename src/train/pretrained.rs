//! Weights from files in a run: a frozen pretrained expert, and a student that does not start at random.

use super::config::{ExpertSection, TrainConfig};
use super::engine::Initial;
use super::source;
use crate::data::augment::normalize::{MEAN, STD};
use crate::error::{Error, Result};
use crate::ir::PATCH;
use crate::models::{EncoderConfig, VitConfig};
use crate::models::{KINDS, timm_name};
use crate::nn::ParamRegistry;
use crate::tensor::Shape;
use crate::weights::{
    self, Architecture, Asks, Grid, Hint, LoadOptions, LoadReport, ReadOptions, StateDict, Vit,
    timm_parameters,
};
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
    /// Reads the files and runs that `cfg` names.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::File`] for a file that cannot be read or does not fit, naming tensor and shapes;
    /// [`Error::Config`] for a key that does not fit the file.
    pub fn open(cfg: &TrainConfig) -> Result<Self> {
        let mut all = Pretrained::default();
        if let Some(path) = &cfg.expert.path {
            let options = expert_options(cfg);
            let (state, notes) = source::read(path, &options)?;
            let config = recognise(&state, &options, usual_grid(cfg))?;
            let (mut values, report) = load(&config, &state, None)?;
            renormalise(&mut values, &config, &state, &options)?;
            all.reports.extend(notes);
            all.reports.push(format!("frozen expert: {report}{}", grid_note(&config)));
            all.initial.expert = values;
            all.expert = Some(config);
        }
        if let Some(path) = &cfg.encoder.init {
            let options = init_options(cfg);
            let (state, notes) = source::read(path, &options)?;
            let from = init_grid(cfg, &state, &options)?;
            let architecture = &cfg.encoder.architecture;
            let grid = match (architecture, from) {
                (EncoderConfig::Vit(VitConfig { img_size, .. }), Some(_)) => {
                    Some(Grid { from, to: img_size.map(|s| s / PATCH) })
                }
                _ => None,
            };
            let (mut values, report) = load(architecture, &state, grid)?;
            renormalise(&mut values, architecture, &state, &options)?;
            all.reports.extend(notes);
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
            true => source::read(path, &expert_options(cfg))?.0,
            false => weights::read(checkpoint)?.under("expert."),
        };
        let config = recognise(&state, &expert_options(cfg), usual_grid(cfg))?;
        Ok(Pretrained { expert: Some(config), ..Pretrained::default() })
    }
}

/// The encoder of a frozen expert, as its file has it.
///
/// # Errors
/// Those of [`Pretrained::open`].
pub fn expert_encoder(cfg: &TrainConfig) -> Result<Option<EncoderConfig>> {
    let Some(path) = &cfg.expert.path else { return Ok(None) };
    let options = expert_options(cfg);
    recognise(&source::read(path, &options)?.0, &options, usual_grid(cfg)).map(Some)
}

/// `cfg` with what the expert's file says of itself and no shape shows, so that the run goes on without the file.
///
/// # Errors
/// Those of [`Pretrained::open`].
pub fn settled(mut cfg: TrainConfig) -> Result<TrainConfig> {
    let Some(path) = &cfg.expert.path else { return Ok(cfg) };
    let options = expert_options(&cfg);
    let state = source::read(path, &options)?.0;
    if let EncoderConfig::Vit(VitConfig { img_size, .. }) = recognise(&state, &options, usual_grid(&cfg))? {
        let told = options.or_as_told(&state);
        (cfg.expert.num_heads, cfg.expert.tap) = (told.heads, told.tap);
        let grid = img_size.map(|s| s / PATCH);
        cfg.expert.grid = cfg.expert.grid.or(told.grid.filter(|told| *told == grid));
    }
    Ok(cfg)
}

/// What a configuration tells of its expert's file.
pub fn expert_options(cfg: &TrainConfig) -> ReadOptions {
    let ExpertSection { ref entry, num_heads, tap, grid, mean, std, .. } = cfg.expert;
    ReadOptions { entry: entry.clone(), heads: num_heads, tap, grid, mean, std, asks: Asks::Expert }
}

/// The grid of the global views, which the expert's table may well have.
pub fn usual_grid(cfg: &TrainConfig) -> Option<[usize; 2]> {
    Some(cfg.views.global_size.map(|s| s / PATCH))
}

/// What it tells of the file that the encoder starts from.
fn init_options(cfg: &TrainConfig) -> ReadOptions {
    let e = &cfg.encoder;
    ReadOptions {
        entry: e.init_entry.clone(),
        grid: e.init_grid,
        mean: e.init_mean,
        std: e.init_std,
        asks: Asks::Init,
        ..ReadOptions::default()
    }
}

/// The grid of the position table in the file of the first values; refuses an encoder that computes something else than `cfg`'s
/// although its tensors have the same shapes.
fn init_grid(cfg: &TrainConfig, state: &StateDict, options: &ReadOptions) -> Result<Option<[usize; 2]>> {
    let EncoderConfig::Vit(VitConfig { num_heads, img_size, .. }) = cfg.encoder.architecture else {
        return Ok(None);
    };
    let told = options.or_as_told(state);
    if let Some(heads) = told.heads.filter(|heads| *heads != num_heads) {
        let message =
            format!("is {num_heads}, but the file's encoder has {heads} attention heads: set it to {heads}");
        return Err(options.asks.error(Hint::Heads, &state.path, message));
    }
    // Heads and tap are the configuration's own.
    let vit = matches!(weights::recognise(state)?, Architecture::Vit(_));
    let shapes = ReadOptions { heads: vit.then_some(1), tap: vit.then_some(0), ..options.clone() };
    match recognise(state, &shapes, Some(img_size.map(|s| s / PATCH)))? {
        EncoderConfig::Vit(VitConfig { img_size, .. }) => Ok(Some(img_size.map(|s| s / PATCH))),
        _ => Ok(None),
    }
}

/// The encoder of a file as this engine builds it, which must be exactly that. What `options` do not give is what the file says of
/// itself, else what is usual; `usual_grid` is a grid that its positions may have.
///
/// # Errors
/// [`Error::File`] for an encoder that is not built here, naming a tensor; an error that names the option or key for one that does
/// not fit.
pub fn recognise(
    state: &StateDict,
    options: &ReadOptions,
    usual_grid: Option<[usize; 2]>,
) -> Result<EncoderConfig> {
    let architecture = weights::recognise(state)?;
    let config = architecture.config().map_err(|message| Error::file(&state.path, message))?;
    built_here(&architecture, &config, state, options.asks)?;
    match &architecture {
        Architecture::Vit(v) => told_vit(v, config, state, options, usual_grid),
        other => {
            let of_vit = [
                (Hint::Heads, options.heads.is_some()),
                (Hint::Tap, options.tap.is_some()),
                (Hint::Grid, options.grid.is_some()),
            ];
            match of_vit.iter().find(|(_, given)| *given) {
                Some((hint, _)) => {
                    let message = format!("is for a ViT, the file holds a {other}: leave it away");
                    Err(options.asks.error(*hint, &state.path, message))
                }
                None => Ok(config),
            }
        }
    }
}

/// Refuses an encoder with tensors that are not built here, or without some that are.
fn built_here(
    architecture: &Architecture,
    config: &EncoderConfig,
    state: &StateDict,
    asks: Asks,
) -> Result<()> {
    let ours: HashMap<String, Shape> =
        parameters(config, asks.section())?.into_iter().map(|p| (p.1, p.2)).collect();
    let theirs: HashMap<String, Shape> = timm_parameters(architecture).into_iter().collect();
    let built = KINDS.iter().map(|kind| kind.built).collect::<Vec<_>>().join("; its ");
    let refused = |what: String| {
        Error::file(
            &state.path,
            format!("its {architecture} is not built here: {what}. Encoders are timm's {built}"),
        )
    };
    for (name, shape) in timm_parameters(architecture) {
        if weights::timm_element(&name).is_float() && ours.get(&name) != Some(&shape) {
            let expected =
                ours.get(&name).map_or("which has no place here".to_owned(), |s| format!("expected {s}"));
            return Err(refused(format!("`{name}` has shape {shape}, {expected}")));
        }
    }
    let mut missing: Vec<_> =
        ours.keys().filter(|n| !theirs.contains_key(*n) && !n.starts_with("tap_norm.")).collect();
    missing.sort();
    missing.first().map_or(Ok(()), |name| Err(refused(format!("it has no `{name}`"))))
}

/// A ViT with what its tensors do not tell.
fn told_vit(
    v: &Vit,
    mut config: EncoderConfig,
    state: &StateDict,
    options: &ReadOptions,
    usual_grid: Option<[usize; 2]>,
) -> Result<EncoderConfig> {
    let told = options.or_as_told(state);
    let grid = position_grid(v.positions.saturating_sub(1), state, options, usual_grid)?;
    if let EncoderConfig::Vit(VitConfig { img_size, num_heads, tap, .. }) = &mut config {
        *img_size = grid.map(|n| n * PATCH);
        *num_heads = told.heads.unwrap_or_else(|| v.usual_heads());
        *tap = told.tap.unwrap_or(v.depth / 2);
    }
    config.open(options.asks.section()).map_err(|e| options.asks.translated(&state.path, e))?;
    Ok(config)
}

/// Height and width of a position table of `rows` patches: as given, as the file says, a square, what is usual, or twice as high as
/// wide, which pictures of persons commonly are.
fn position_grid(
    rows: usize,
    state: &StateDict,
    options: &ReadOptions,
    usual_grid: Option<[usize; 2]>,
) -> Result<[usize; 2]> {
    let fits = |[h, w]: &[usize; 2]| h.checked_mul(*w) == Some(rows);
    if let Some([h, w]) = options.grid.filter(|g| !fits(g)) {
        let message = format!("{h}x{w} are not the {rows} patches of the position table");
        return Err(options.asks.error(Hint::Grid, &state.path, message));
    }
    let half = (rows / 2).isqrt();
    let guesses =
        [options.or_as_told(state).grid, Some([rows.isqrt(); 2]), usual_grid, Some([2 * half, half])];
    guesses.into_iter().flatten().find(fits).ok_or_else(|| {
        let message = format!(
            "the position table has {rows} patches, which are no square: give their height and width in patches"
        );
        options.asks.error(Hint::Grid, &state.path, message)
    })
}

/// Puts the difference of two normalisations into the first layer: the views are normalised with ImageNet's mean and deviation, and
/// the weights were made for others.
fn renormalise(
    values: &mut HashMap<String, Vec<f32>>,
    config: &EncoderConfig,
    state: &StateDict,
    options: &ReadOptions,
) -> Result<()> {
    options.check(&state.path)?;
    let told = options.or_as_told(state);
    let (mean, std) = (told.mean.unwrap_or(MEAN), told.std.unwrap_or(STD));
    if near(mean, MEAN) && near(std, STD) {
        return Ok(());
    }
    let EncoderConfig::Vit(_) = config else {
        let message = format!(
            "the file is for images less {mean:?} over {std:?}, which only a ViT's first layer can take up exactly: set {} to \
             {MEAN:?} and {} to {STD:?} to give it the views as they are",
            options.asks.name(Hint::Mean),
            options.asks.name(Hint::Std)
        );
        return Err(options.asks.error(Hint::Mean, &state.path, message));
    };
    let (weight, bias) = ("encoder.vit.patch_embed.proj.weight", "encoder.vit.patch_embed.proj.bias");
    let (Some(mut w), Some(mut b)) = (values.remove(weight), values.remove(bias)) else {
        return Err(Error::invariant("renormalising", format!("no `{weight}`")));
    };
    let per_output = w.len() / b.len().max(1);
    for (row, b) in w.chunks_exact_mut(per_output.max(1)).zip(&mut b) {
        let mut shift = 0.0;
        for (c, channel) in row.chunks_exact_mut((per_output / 3).max(1)).enumerate().take(3) {
            let [ours, theirs] = [(MEAN, STD), (mean, std)].map(|(m, s)| [f64::from(m[c]), f64::from(s[c])]);
            shift += channel.iter().map(|v| f64::from(*v)).sum::<f64>() * (ours[0] - theirs[0]) / theirs[1];
            channel.iter_mut().for_each(|v| *v = (f64::from(*v) * ours[1] / theirs[1]) as f32);
        }
        *b = (f64::from(*b) + shift) as f32;
    }
    values.extend([(weight.to_owned(), w), (bias.to_owned(), b)]);
    Ok(())
}

/// Equal but for the rounding of a decimal number.
fn near(a: [f32; 3], b: [f32; 3]) -> bool {
    a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6)
}

fn grid_note(config: &EncoderConfig) -> String {
    match config {
        EncoderConfig::Vit(VitConfig { img_size, num_heads, tap, .. }) => {
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
    let encoder = config.open(key)?;
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
