//! How long ranks wait for each other.

use std::time::Duration;

/// How long ranks wait for each other before they give up. The same on all of them, best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// For all ranks to come to the meeting.
    pub join: Duration,
    /// For the others within a step: counted while nobody is in a phase of its own.
    pub step: Duration,
    /// Without a sign of life from a process.
    pub silence: Duration,
    /// For the main thread to notice that the run has failed, before the process is ended.
    pub grace: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Deadlines {
            join: Duration::from_secs(600),
            step: Duration::from_secs(300),
            silence: Duration::from_secs(30),
            grace: Duration::from_secs(30),
        }
    }
}

impl Deadlines {
    /// Time between two heartbeats.
    pub(super) fn beat(&self) -> Duration {
        (self.silence / 8).clamp(Duration::from_millis(10), Duration::from_secs(2))
    }
}
