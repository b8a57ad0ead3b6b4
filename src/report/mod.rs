//! The run report: one `report.html` that explains a run to someone who looks before reading.
//!
//! The file is self-contained (no scripts, nothing loaded from elsewhere): verdict tiles, curves, pictures, the
//! memory picture, the resolved configuration. The types here are plain data, so that the report depends on no other
//! part of the engine. All text is untrusted (file names reach captions) and is escaped.

mod chart;
mod color;
mod compare;
mod memory;
mod page;
mod patches;
mod pictures;
mod smooth;
pub mod table;

#[cfg(test)]
mod tests;

use std::path::Path;

use image::RgbImage;

use crate::error::Result;

pub use compare::{Compared, write_comparison};
pub use memory::memory_svg;
pub use patches::{assemble_patches, reconstruct};

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

/// Writes the report to `path`, atomically: a reader sees the old file or the new one, never half of one.
///
/// # Errors
/// When a picture is empty or a map does not fit its grid, or when the file cannot be written.
pub fn write_report(
    path: &Path,
    summary: &RunSummary,
    curves: &Curves,
    pictures: Option<&Pictures>,
    memory: Option<&MemoryPicture>,
) -> Result<()> {
    write_page(path, &page::html(summary, curves, pictures, memory)?)
}

/// Whether the file at `path` is a page that this module wrote.
pub fn is_report(path: &Path) -> bool {
    let mut head = [0u8; 512];
    let read = std::fs::File::open(path).and_then(|mut file| std::io::Read::read(&mut file, &mut head));
    read.is_ok_and(|n| String::from_utf8_lossy(&head[..n]).contains(page::GENERATOR))
}

fn write_page(path: &Path, html: &str) -> Result<()> {
    crate::atomic::write(path, html.as_bytes())
}
/// Text made safe inside HTML and SVG, in element content and in quoted attributes. Control characters, which XML
/// forbids, become U+FFFD.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            // U+FFFE and U+FFFF are not XML characters either.
            c if c.is_control() || matches!(c, '\u{FFFE}' | '\u{FFFF}') => out.push('\u{FFFD}'),
            c => out.push(c),
        }
    }
    out
}
