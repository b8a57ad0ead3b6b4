//! The one error type of the crate. Every variant says what was wrong, where, and what to do about it.

use crate::units::{human_bytes, shown};
use std::path::{Path, PathBuf};

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong, grouped by who can mend it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A command line that cannot be carried out.
    #[error("{0}")]
    Usage(String),
    /// A configuration key that is unknown, ill-typed or out of range.
    #[error("config key `{key}`: {message}")]
    Config { key: String, message: String },
    /// The operating system refused something.
    #[error("{}: cannot {action}: {source}", shown(path))]
    Io {
        path: PathBuf,
        action: &'static str,
        #[source]
        source: std::io::Error,
    },
    /// A file whose contents cannot be used.
    #[error("{}: {message}", shown(path))]
    File { path: PathBuf, message: String },
    /// A layer whose operands do not fit together; `node` is the layer's path, such as `encoder.blocks.3.attn`.
    #[error("{node}: {op}: {message}")]
    Shape { node: String, op: &'static str, message: String },
    /// A compiler pass broke an invariant of the graph or the plan: a defect of this program, not of its input.
    #[error("internal error after {pass}: {message}; please report it")]
    Invariant { pass: &'static str, message: String },
    /// A device or a library that is missing or refuses.
    #[error("device {device}: {message}")]
    Device { device: String, message: String },
    /// A device that has not enough memory left; all in bytes.
    #[error(
        "device {device}: cannot allocate {}, {} of {} are free: {remedy}",
        human_bytes(*asked), human_bytes(*free), human_bytes(*total)
    )]
    Memory { device: String, asked: u64, free: u64, total: u64, remedy: String },
    /// A signal asked to stop.
    #[error("stopped by a signal")]
    Interrupted,
    /// A run of several processes cannot go on; `ranks` names those that are the cause.
    #[error("{ranks}: {message}")]
    Distributed { ranks: String, message: String },
    /// Training cannot go on (collapse, non-finite values in a row).
    #[error("training stopped: {0}")]
    Training(String),
}

impl Error {
    pub fn usage(message: impl Into<String>) -> Self {
        Error::Usage(message.into())
    }
    pub fn config(key: impl Into<String>, message: impl Into<String>) -> Self {
        Error::Config { key: key.into(), message: message.into() }
    }
    /// `action` completes "cannot ...": `"read"`, `"create the folder"`.
    pub fn io(path: impl AsRef<Path>, action: &'static str, source: std::io::Error) -> Self {
        Error::Io { path: path.as_ref().to_owned(), action, source }
    }
    pub fn file(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Error::File { path: path.as_ref().to_owned(), message: message.into() }
    }
    pub fn shape(node: impl Into<String>, op: &'static str, message: impl Into<String>) -> Self {
        Error::Shape { node: node.into(), op, message: message.into() }
    }
    pub fn invariant(pass: &'static str, message: impl Into<String>) -> Self {
        Error::Invariant { pass, message: message.into() }
    }
    /// An allocation of `asked` bytes where `free` of `total` are left.
    pub fn memory(device: impl Into<String>, asked: u64, [free, total]: [u64; 2]) -> Self {
        let remedy = "use a smaller batch".to_owned();
        Error::Memory { device: device.into(), asked, free, total, remedy }
    }
    /// `ranks` is such as `rank 2 (node7, pid 123)`.
    pub fn distributed(ranks: impl Into<String>, message: impl Into<String>) -> Self {
        Error::Distributed { ranks: ranks.into(), message: message.into() }
    }
    pub fn device(device: impl Into<String>, message: impl Into<String>) -> Self {
        Error::Device { device: device.into(), message: message.into() }
    }
}
