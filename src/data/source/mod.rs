//! Where pictures come from: one file a kind of source and its row in `registry.rs`; what they are to others, their classes,
//! and what happens to pictures that cannot be used.

mod classes;
mod files;
mod folder;
mod image_source;
mod list;
mod quarantine;
mod registry;
mod synth;
mod table;
#[cfg(test)]
mod tests;

pub use classes::ClassSource;
pub use files::FileSource;
pub use image_source::ImageSource;
pub use quarantine::Quarantine;
pub use registry::{KINDS_TOLD, open_source};
pub use synth::SynthSource;
