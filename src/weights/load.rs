//! Weights of a file for an encoder: what fits is handed over, what does not is an error before anything is.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::PathBuf;

use super::names::{EncoderWeights, Naming, encoder};
use super::recognise::of_timm;
use super::resample::resample_positions;
use super::tensor::{Element, StateDict, Tensor};
use super::timm::timm_element;
use crate::error::Result;
use crate::models::Architecture;
use crate::tensor::Shape;

/// The patch grid of a position table, height and width, for which it is resampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// That of the file; `None` for a square one.
    pub from: Option<[usize; 2]>,
    pub to: [usize; 2],
}

/// How strictly tensors must match.
#[derive(Clone, Copy)]
pub struct LoadOptions<'a> {
    /// Resamples `pos_embed`; without it, its shape must be the one wanted.
    pub grid: Option<Grid>,
    /// Tensors that may be missing in the file, such as the norm of a tapped block; they are then not handed over.
    pub optional: &'a dyn Fn(&str) -> bool,
}

impl Default for LoadOptions<'_> {
    fn default() -> Self {
        LoadOptions { grid: None, optional: &|_| false }
    }
}

/// Two patch grids, height and width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resampled {
    pub from: [usize; 2],
    pub to: [usize; 2],
}

/// What happened to the tensors of a file. Prints as a few lines.
#[derive(Clone, Debug)]
pub struct LoadReport {
    pub path: PathBuf,
    /// The entry of the checkpoint and the prefix in it.
    pub entry: String,
    pub prefix: String,
    pub naming: Naming,
    pub architecture: Architecture,
    /// Tensors handed over, in timm's names, and their element types in the file.
    pub loaded: Vec<(String, Element)>,
    /// Number of their values.
    pub values: usize,
    /// The grid of `pos_embed` in the file and as it was handed over, where they differ.
    pub resampled: Option<Resampled>,
    /// Optional tensors that the file does not have.
    pub missing: Vec<String>,
    /// Tensors and entries of the file that were not wanted, in its names.
    pub left_out: Vec<String>,
}

/// Hands every tensor of `wanted` (timm's names, such as those of [`timm_parameters`](super::timm_parameters)) to `take`, in
/// f32 and row-major, in the order of `wanted`. Counters of type int64 are skipped.
///
/// # Errors
/// [`Error::File`](crate::Error::File) before the first call of `take`, when the file holds no encoder that is known, a tensor
/// is missing, has another shape (both are named), or has values that are not finite. Then those of `take`.
pub fn load_into(
    state: &StateDict,
    wanted: &[(String, Shape)],
    options: &LoadOptions<'_>,
    mut take: impl FnMut(&str, &[f32]) -> Result<()>,
) -> Result<LoadReport> {
    let found = encoder(state)?;
    let architecture = of_timm(&found.state)?;
    let mut report = LoadReport {
        path: state.path.clone(),
        entry: state.entry.clone(),
        prefix: found.prefix.clone(),
        naming: found.naming,
        architecture,
        loaded: Vec::new(),
        values: 0,
        resampled: None,
        missing: Vec::new(),
        left_out: Vec::new(),
    };
    let mut ready = Vec::new();
    let mut wrong = Vec::new();
    for (name, shape) in wanted.iter().filter(|(name, _)| timm_element(name).is_float()) {
        match found.state.get(name) {
            None if (options.optional)(name) => report.missing.push(name.clone()),
            None => wrong.push(format!("`{name}` {shape} is missing")),
            Some(tensor) => match fit(&report.architecture, name, tensor, shape, options.grid) {
                Ok((values, grids)) => {
                    report.resampled = report.resampled.or(grids);
                    report.loaded.push((name.clone(), tensor.element()));
                    report.values += values.len();
                    ready.push((name, values));
                }
                Err(message) => wrong.push(format!("`{name}` {message}")),
            },
        }
    }
    if !wrong.is_empty() {
        return Err(state.error(mismatch(&report.architecture, wrong)));
    }
    report.left_out = left_out(state, &found, wanted);
    for (name, values) in ready {
        take(name, &values)?;
    }
    Ok(report)
}

fn mismatch(architecture: &Architecture, mut wrong: Vec<String>) -> String {
    const SHOWN: usize = 8;
    let more = wrong.len().saturating_sub(SHOWN);
    wrong.truncate(SHOWN);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    format!(
        "its {architecture} does not fit the encoder: {}{more}; choose the encoder of the file in the configuration, or another file",
        wrong.join("; ")
    )
}

/// The values of a tensor in the shape wanted, and the grids between which they were resampled.
fn fit<'t>(
    architecture: &Architecture,
    name: &str,
    tensor: &'t Tensor,
    shape: &Shape,
    grid: Option<Grid>,
) -> std::result::Result<(Cow<'t, [f32]>, Option<Resampled>), String> {
    let values = tensor
        .f32s()
        .ok_or_else(|| format!("has element type {}, floating point is expected", tensor.element()))?;
    let bad = values.iter().filter(|v| !v.is_finite()).count();
    if bad > 0 {
        return Err(format!("has {bad} values of {} that are NaN or infinite", values.len()));
    }
    let differs = || format!("has shape {}, expected {shape}", tensor.shape());
    match (architecture, grid, tensor.shape().dims(), shape.dims()) {
        (Architecture::Vit(vit), Some(grid), &[1, rows, dim], &[1, wanted, width])
            if name == "pos_embed" && dim == width =>
        {
            // A grid that is given decides how many rows stand before it.
            let prefix = match grid.from {
                Some([h, w]) => h.checked_mul(w).and_then(|n| rows.checked_sub(n)),
                None => Some(vit.prefix_rows()),
            };
            let prefix = prefix.filter(|p| *p <= 2 + vit.registers).ok_or_else(differs)?;
            let patches = rows.saturating_sub(prefix);
            let side = patches.isqrt();
            let from = grid.from.unwrap_or(match side * side == patches || rows != wanted {
                true => [side, side],
                // As many rows as wanted and no square: the same grid.
                false => grid.to,
            });
            if grid.to[0].checked_mul(grid.to[1]).and_then(|n| n.checked_add(prefix)) != Some(wanted) {
                return Err(format!("{}: the grid {:?} with {prefix} rows before it", differs(), grid.to));
            }
            let table = resample_positions(&values, prefix, from, grid.to, dim);
            let table = table.ok_or_else(|| {
                format!("{}: its {rows} rows are no square grid, say which grid they are", differs())
            })?;
            Ok((Cow::Owned(table), (from != grid.to).then_some(Resampled { from, to: grid.to })))
        }
        _ if tensor.shape() == shape => Ok((values, None)),
        _ => Err(differs()),
    }
}

/// What the file has beside the tensors wanted, in its own names.
fn left_out(state: &StateDict, found: &EncoderWeights, wanted: &[(String, Shape)]) -> Vec<String> {
    let wanted: HashSet<&str> = wanted.iter().map(|(name, _)| name.as_str()).collect();
    let is_wanted = |name: &str| {
        let timm = name.strip_prefix(found.prefix.as_str()).and_then(|rest| found.naming.to_timm(rest));
        timm.is_some_and(|n| wanted.contains(n.as_str()))
    };
    let tensors = state.names().filter(|n| !is_wanted(n)).map(str::to_owned);
    tensors.chain(state.other_entries.iter().map(|e| format!("entry {e}"))).collect()
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.architecture)?;
        let mut from = Vec::new();
        if !self.entry.is_empty() {
            from.push(format!("entry `{}`", self.entry));
        }
        if !self.prefix.is_empty() {
            from.push(format!("prefix `{}`", self.prefix));
        }
        if self.naming != Naming::Timm {
            from.push(format!("{} names", self.naming));
        }
        if !from.is_empty() {
            write!(f, " ({})", from.join(", "))?;
        }
        let types: std::collections::BTreeSet<_> = self.loaded.iter().map(|(_, e)| e.name()).collect();
        let types: Vec<_> = types.into_iter().collect();
        write!(
            f,
            "\n  loaded: {} tensors, {} values, {}",
            self.loaded.len(),
            self.values,
            types.join(" and ")
        )?;
        if let Some(Resampled { from, to }) = &self.resampled {
            write!(f, "\n  resampled: pos_embed {}x{} to {}x{}", from[0], from[1], to[0], to[1])?;
        }
        if !self.missing.is_empty() {
            write!(f, "\n  not in the file: {}", grouped(&self.missing))?;
        }
        if !self.left_out.is_empty() {
            write!(f, "\n  left out: {}", grouped(&self.left_out))?;
        }
        Ok(())
    }
}

/// `head.* (3), mask_token`: names by what stands before their first dot.
fn grouped(names: &[String]) -> String {
    let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for name in names {
        groups.entry(name.split('.').next().unwrap_or(name)).or_default().push(name);
    }
    let one = |(group, members): (&str, Vec<&str>)| match members.as_slice() {
        [only] => (*only).to_owned(),
        many => format!("{group}.* ({})", many.len()),
    };
    groups.into_iter().map(one).collect::<Vec<_>>().join(", ")
}
