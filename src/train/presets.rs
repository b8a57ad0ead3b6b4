//! The built-in configurations, kept as TOML texts that a user can read, copy and change.

use crate::error::{Error, Result};

/// A named configuration in which every key is set, except those that follow from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preset {
    pub name: &'static str,
    /// The TOML text.
    pub text: &'static str,
}

/// Preset of a run that names none: minutes on two CPU cores, with synthetic persons.
pub const DEFAULT: &str = "demo";

/// All presets.
pub const PRESETS: &[Preset] = &[
    Preset { name: "demo", text: include_str!("presets/demo.toml") },
    Preset { name: "demo-tinyvit", text: include_str!("presets/demo-tinyvit.toml") },
    Preset { name: "demo-starnet", text: include_str!("presets/demo-starnet.toml") },
    Preset { name: "demo-resnet", text: include_str!("presets/demo-resnet.toml") },
    Preset { name: "saip-vit-tiny", text: include_str!("presets/saip-vit-tiny.toml") },
    Preset { name: "saip-tinyvit-5m", text: include_str!("presets/saip-tinyvit-5m.toml") },
    Preset { name: "saip-starnet-s3", text: include_str!("presets/saip-starnet-s3.toml") },
];

/// The preset of that name.
///
/// # Errors
/// [`Error::Usage`] that lists the names when there is no such preset.
pub fn find(name: &str) -> Result<Preset> {
    PRESETS.iter().copied().find(|p| p.name == name).ok_or_else(|| {
        let names: Vec<_> = PRESETS.iter().map(|p| p.name).collect();
        Error::usage(format!("there is no preset `{name}`: choose one of {}", names.join(", ")))
    })
}
