//! How whoever reads a file is told what it does not tell.

use crate::error::Error;
use std::fmt::Display;
use std::path::Path;

/// How whoever reads a file can be told what it does not tell: for messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Asks {
    /// By options of the command.
    #[default]
    Options,
    /// By keys of the configuration, for the expert.
    Expert,
    /// By keys of the configuration, for the encoder's first values.
    Init,
}

/// One thing that can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    Entry,
    Heads,
    Tap,
    Grid,
    Mean,
    Std,
}

impl Hint {
    /// Its option, and its keys for the expert and for the encoder's first values.
    const fn names(self) -> [&'static str; 3] {
        match self {
            Hint::Entry => ["--from-entry", "expert.entry", "encoder.init_entry"],
            Hint::Heads => ["--heads", "expert.num_heads", "encoder.num_heads"],
            Hint::Tap => ["--tap", "expert.tap", "encoder.tap"],
            Hint::Grid => ["--grid", "expert.grid", "encoder.init_grid"],
            Hint::Mean => ["--mean", "expert.mean", "encoder.init_mean"],
            Hint::Std => ["--std", "expert.std", "encoder.init_std"],
        }
    }
}

impl Asks {
    /// The option or key by which `hint` is given.
    pub const fn name(self, hint: Hint) -> &'static str {
        let [option, expert, init] = hint.names();
        match self {
            Asks::Options => option,
            Asks::Expert => expert,
            Asks::Init => init,
        }
    }

    /// An error about `hint`, which was given or is needed for the file `path`.
    pub fn error(self, hint: Hint, path: &Path, message: impl Display) -> Error {
        match self {
            Asks::Options => Error::usage(format!("{}: {}: {message}", path.display(), self.name(hint))),
            _ => Error::config(self.name(hint), message.to_string()),
        }
    }

    /// The place of an encoder in the configuration, under which its own checks name keys.
    pub(crate) const fn section(self) -> &'static str {
        match self {
            Asks::Expert => "expert",
            Asks::Options | Asks::Init => "encoder",
        }
    }

    /// What an encoder refuses, in the words of this command: it names keys of the configuration.
    pub(crate) fn translated(self, path: &Path, error: Error) -> Error {
        let Error::Config { key, message } = &error else { return error };
        let hint = match key.rsplit('.').next() {
            Some("num_heads") => Hint::Heads,
            Some("tap") => Hint::Tap,
            Some("img_size") => Hint::Grid,
            _ => return error,
        };
        self.error(hint, path, message)
    }
}
