//! The step that a command plans or times.

use crate::error::{Error, Result};
use crate::ir::PATCH;
use crate::objectives::saip::config::StepConfig;
use crate::train::config::TrainConfig;
use std::path::PathBuf;

/// Arguments that choose a configuration.
#[derive(clap::Args, Debug)]
pub struct StepArgs {
    /// Built-in configuration (demo, demo-tinyvit, demo-starnet, saip-vit-tiny,
    /// saip-tinyvit-5m, saip-starnet-s3)
    #[arg(long, default_value = "saip-vit-tiny")]
    pub preset: String,
    /// TOML file with keys that override the preset
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Single keys that override everything else
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
}

impl StepArgs {
    /// The configuration; an update takes `batch` images in one micro step if given.
    ///
    /// # Errors
    /// Those of [`TrainConfig::resolve`]; a batch among the single keys beside `batch`.
    pub fn resolve(&self, batch: Option<usize>) -> Result<TrainConfig> {
        let mut sets = self.sets.clone();
        if let Some(batch) = batch {
            let key = |set: &&String| {
                set.split('=')
                    .next()
                    .is_some_and(|k| ["optim.batch", "optim.effective_batch"].contains(&k.trim()))
            };
            if let Some(set) = sets.iter().find(key) {
                return Err(Error::usage(format!(
                    "--set {set} has no effect beside --batch {batch}, the images of a step: give the number by --batch"
                )));
            }
            sets.extend([format!("optim.batch={batch}"), format!("optim.effective_batch={batch}")]);
        }
        TrainConfig::resolve(Some(&self.preset), self.config.as_deref(), &sets)
    }
}

/// `base` with the views of `scale`, as `--scale` gives it.
///
/// # Errors
/// [`Error::Usage`] for a scale at which no step can be built.
pub fn at_scale(base: &StepConfig, scale: f64) -> Result<StepConfig> {
    // As `views.scale` is limited.
    if !(scale > 0.0 && scale <= 16.0) {
        return Err(Error::usage(format!("--scale {scale}: it must be above 0 and at most 16")));
    }
    let step = base.at_scale(scale);
    let patches = step.masked_size.iter().map(|s| s / PATCH).product::<usize>();
    if !(1..patches).contains(&step.visible_patches()) {
        return Err(Error::usage(format!(
            "--scale {scale} leaves {} of {patches} patches of the masked view visible, but at least 1 must be visible and \
             1 hidden: take a larger --scale, or --set views.mask_ratio=0.5",
            step.visible_patches()
        )));
    }
    Ok(step)
}
