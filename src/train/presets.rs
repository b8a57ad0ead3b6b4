//! The built-in configurations, kept as TOML texts that a user can read, copy and change.

use crate::error::{Error, Result};

/// A named configuration: what differs from its parent, or from the defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preset {
    pub name: &'static str,
    /// The preset that it starts from.
    pub parent: Option<&'static str>,
    /// The TOML text.
    pub text: &'static str,
}

/// Preset of a run that names none: minutes on two CPU cores, with synthetic persons.
pub const DEFAULT: &str = "demo-starnet";

/// Preset of a check that names none: the smallest.
pub const CHECKED: &str = "demo";

macro_rules! presets {
    ($($name:literal $(of $parent:literal)?),* $(,)?) => {
        /// All presets, each behind its parent.
        pub const PRESETS: &[Preset] = &[$(Preset {
            name: $name,
            parent: [$(Some($parent),)? None][0],
            text: include_str!(concat!("presets/", $name, ".toml")),
        }),*];
    };
}

presets! {
    "demo",
    "demo-tinyvit" of "demo",
    "demo-starnet" of "demo",
    "demo-resnet" of "demo",
    "saip-vit-tiny",
    "saip-tinyvit-5m",
    "saip-starnet-s3",
}

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

/// The preset of that name behind those that it starts from: the first starts from the defaults.
///
/// # Errors
/// Those of [`find`].
pub fn line(name: &str) -> Result<Vec<Preset>> {
    let preset = find(name)?;
    let mut line = preset.parent.map_or(Ok(Vec::new()), line)?;
    line.push(preset);
    Ok(line)
}
