//! The step that a command plans or times.

use crate::error::{Error, Result};
use crate::train::config::TrainConfig;
use std::path::PathBuf;

/// Arguments that choose a configuration.
#[derive(clap::Args, Clone, Debug)]
pub struct StepArgs {
    /// Built-in configuration (demo, demo-tinyvit, demo-starnet, demo-resnet, saip-vit-tiny,
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
