//! Who takes part, and why a run of them ends.

use crate::error::Error;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// What a rank tells about itself at the meeting, and what must be the same everywhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// Of the engine; the same on all ranks.
    pub version: String,
    /// Hash of the configuration; the same on all ranks.
    pub config: String,
    /// What the rank computes on: `cpu`, or a GPU by its uuid, as no two ranks share one. Its number would not do: where each rank
    /// sees its own GPU only, all are number 0.
    pub device: String,
}

/// A process of the run, as the others know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub rank: usize,
    pub host: String,
    pub pid: u32,
    /// Where it takes data connections, as this process reaches it.
    pub address: SocketAddr,
}

impl std::fmt::Display for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} ({}, pid {})", self.rank, plain(&self.host), self.pid)
    }
}

/// Why the run cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Failure {
    /// The cause, such as `rank 2 (node7, pid 123)`.
    pub ranks: String,
    pub message: String,
}

impl Failure {
    pub fn new(ranks: impl ToString, message: impl Into<String>) -> Self {
        Failure { ranks: plain(&ranks.to_string()), message: plain(&message.into()) }
    }

    pub fn error(&self) -> Error {
        Error::distributed(plain(&self.ranks), plain(&self.message))
    }
}

/// `text` of another process, fit to be printed: no control characters, and no more of it than one reads.
pub(super) fn plain(text: &str) -> String {
    const LONGEST: usize = 4000;
    let line = text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c });
    line.take(LONGEST).collect()
}

/// This machine's name, and something that tells it from others of that name.
pub(super) fn this_host() -> (String, String) {
    let name = hostname::get().map_or_else(|_| "localhost".to_owned(), |h| h.to_string_lossy().into_owned());
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let machine = format!("{name} {}", boot.trim());
    (name, machine)
}

/// Something that no other process draws, in hexadecimal.
pub(super) fn nonce() -> String {
    use std::hash::{BuildHasher, RandomState};
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    // Each state is keyed by the system's randomness.
    let draw = |salt: u8| RandomState::new().hash_one((salt, time, std::process::id()));
    format!("{:016x}{:016x}", draw(0), draw(1))
}
