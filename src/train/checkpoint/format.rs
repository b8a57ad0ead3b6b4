//! What a checkpoint is made of.

use crate::train::image_set::ImageSet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub(super) const MODEL: &str = "model.safetensors";
pub(super) const RUN: &str = "run.json";
pub(super) const MANIFEST: &str = "manifest.json";
/// Layout of the folder; raised when an older engine could not read it.
pub(super) const FORMAT: u32 = 1;

/// A tensor to be saved. The data stay where they are and are streamed to the disk.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    pub name: &'a str,
    pub shape: &'a [usize],
    /// Row-major; as many as the product of `shape`.
    pub data: &'a [f32],
}

/// Where a run stands: what a resumed run needs beside the tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Completed updates.
    pub step: u64,
    pub epoch: u64,
    pub seed: u64,
    /// [`TrainConfig::fingerprint`](crate::train::config::TrainConfig::fingerprint) of the run.
    pub config_hash: String,
    pub engine_version: String,
    /// The images that the run is trained on; absent in checkpoints of earlier versions.
    #[serde(default)]
    pub images: Option<ImageSet>,
    /// Type that the run computes in; absent in checkpoints of earlier versions.
    #[serde(default)]
    pub dtype: Option<String>,
    /// Counters of the loop, such as images seen, skipped steps, position in the data.
    #[serde(default)]
    pub counters: BTreeMap<String, u64>,
    /// The last losses, for the report and the progress bar.
    #[serde(default)]
    pub history: serde_json::Value,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub format: u32,
    pub files: BTreeMap<String, Written>,
}

/// What the manifest keeps of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    pub bytes: u64,
    pub crc32c: u32,
}
