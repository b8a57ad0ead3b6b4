//! What a report shows: plain data.

use image::RgbImage;

/// What a run was and how it went.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunSummary {
    /// Heading, such as the preset's name.
    pub title: String,
    /// The device in words.
    pub device: String,
    /// Optimizer steps done.
    pub steps: u64,
    pub images_seen: u64,
    /// Wall-clock seconds of training.
    pub seconds: f64,
    pub images_per_second: f64,
    /// Steps whose update was skipped because a value was not finite.
    pub skipped_steps: u64,
    /// The resolved configuration.
    pub config_toml: String,
    /// Alarms raised during the run (collapse, overflow, stalled loss ...), one sentence each.
    pub warnings: Vec<String>,
}

/// One curve. Points whose step or value is not finite are marked in the chart, never dropped silently.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    pub name: String,
    /// (step, value), ascending in step.
    pub points: Vec<(f64, f64)>,
}

/// A horizontal line to compare a curve with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Baseline {
    /// What the line is, such as "untrained encoder".
    pub label: String,
    pub value: f64,
}

/// A curve and the values to compare it with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curve {
    pub series: Series,
    pub baselines: Vec<Baseline>,
}

/// Everything that is drawn over steps. Empty series are left out of the report.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curves {
    /// Raw losses, the total first; the report adds the smoothed curve.
    pub losses: Vec<Series>,
    pub learning_rate: Series,
    /// Momentum of the expert's moving average.
    pub ema_momentum: Series,
    /// L2 norm of the whole gradient before clipping.
    pub gradient_norm: Series,
    /// Retrieval metrics of the frozen encoder as fractions in 0..1 (mAP first, then rank-1), each with
    /// the values of the untrained encoder (first) and of the reference lines as baselines.
    pub probe: Vec<Curve>,
    /// Indicators of collapse, such as the entropy of the expert's mean prediction.
    pub collapse: Vec<Curve>,
    /// How several ranks got on with each other; empty where there was one.
    pub ranks: Vec<Series>,
}

/// Pictures of what the model does; every list may be empty.
#[derive(Clone, Debug, Default)]
pub struct Pictures {
    pub reconstructions: Vec<Reconstruction>,
    pub scenes: Vec<SceneResult>,
    pub attention: Vec<AttentionMap>,
    pub neighbours: Vec<Neighbours>,
}

/// CSR: one image, what the encoder saw of it, and what the decoder made of that. All of one size.
#[derive(Clone, Debug)]
pub struct Reconstruction {
    pub input: RgbImage,
    pub masked: RgbImage,
    pub predicted: RgbImage,
}

/// CSS: a multi-person image and the search for each of its instances.
#[derive(Clone, Debug)]
pub struct SceneResult {
    pub scene: RgbImage,
    pub instances: Vec<InstanceResult>,
    /// Token rows and columns of the scene.
    pub grid: [usize; 2],
}

/// The search for one instance; grids are row-major, `grid[0] * grid[1]` values.
#[derive(Clone, Debug)]
pub struct InstanceResult {
    pub query: RgbImage,
    /// 1 on the tokens of the instance, else 0.
    pub truth: Vec<f32>,
    /// Probability per token.
    pub predicted: Vec<f32>,
}

/// Attention from the image token to the patch tokens.
#[derive(Clone, Debug)]
pub struct AttentionMap {
    pub image: RgbImage,
    /// One row-major map of `grid[0] * grid[1]` weights per head.
    pub heads: Vec<Vec<f32>>,
    pub grid: [usize; 2],
}

/// A query and its nearest images in feature space, nearest first.
#[derive(Clone, Debug)]
pub struct Neighbours {
    pub query: RgbImage,
    /// (image, same identity as the query, distance, caption)
    pub results: Vec<(RgbImage, bool, f32, String)>,
}

/// Planned memory of one step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MemoryPicture {
    /// Name and bytes of each region of device memory, the arena among them.
    pub regions: Vec<(String, u64)>,
    pub arena_bytes: u64,
    /// The largest sum of live buffers over all schedule steps: no placement can need less.
    pub lower_bound_bytes: u64,
    pub buffers: Vec<BufferSpan>,
}

/// One buffer of the arena.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BufferSpan {
    /// Name in messages. The first word (up to `:`, `/`, `.`, `_` or a space) names the kind: `forward`/`fwd`,
    /// `backward`/`bwd`/`grad`, `optimizer`/`opt`/`adamw`/`ema`, `workspace`/`scratch`; anything else is "other".
    pub label: String,
    /// First and last schedule step (inclusive) in which the buffer is live.
    pub start_step: usize,
    pub end_step: usize,
    /// Bytes from the start of the arena.
    pub offset: u64,
    pub bytes: u64,
}
