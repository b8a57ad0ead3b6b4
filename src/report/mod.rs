//! The run report: one `report.html` that explains a run to someone who looks before reading.
//!
//! The file is self-contained (no scripts, nothing loaded from elsewhere): verdict tiles, curves, pictures, the
//! memory picture, the resolved configuration. The types here are plain data, so that the report depends on no other
//! part of the engine. All text is untrusted (file names reach captions) and is escaped.

mod chart;
mod color;
mod compare;
mod data;
mod escape;
mod memory;
mod page;
mod patches;
mod pictures;
mod smooth;
pub mod table;

#[cfg(test)]
mod tests;

use std::path::Path;

use crate::error::Result;

pub use compare::{Compared, write_comparison};
pub use data::{
    AttentionMap, Baseline, BufferSpan, Curve, Curves, InstanceResult, MemoryPicture, Neighbours, Pictures,
    Reconstruction, RunSummary, SceneResult, Series,
};
pub use escape::escape;
pub use memory::memory_svg;
pub use patches::{assemble_patches, reconstruct};

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
    crate::files::atomic::write(path, html.as_bytes())
}
