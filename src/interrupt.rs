//! Signals that ask the process to end: SIGINT (Ctrl-C), SIGTERM, SIGHUP.
//!
//! A thread waits for them. Where nothing would be lost it ends the process at once, whatever the other threads are doing,
//! after removing what was half written. Where there is something to save, an [`Interrupt`] answers instead: the first
//! signal raises it, and the loop that polls it saves and stops; a second signal ends the process at once.

use crate::error::{Error, Result};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Shells add this to a signal's number for the exit status of a process that it ended.
const ENDED_BY: i32 = 128;

/// The one that answers the next signal, if any does.
static ANSWERS: Mutex<Option<Interrupt>> = Mutex::new(None);

/// Tells whether the process was asked to stop, by which signal. Clones share one flag; polling costs one load.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicI32>);

impl Interrupt {
    /// Signals raise this flag, instead of ending the process, until the guard is dropped.
    pub fn answer(&self) -> Answering {
        *ANSWERS.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.clone());
        Answering(())
    }

    /// Whether a signal has come.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }

    /// Asks to stop, as the signal does.
    pub fn request(&self, signal: i32) {
        self.0.store(signal, Ordering::Relaxed);
    }

    /// For work that is given up when a signal has come.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when one has.
    pub fn check(&self) -> Result<()> {
        if self.requested() { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Exit status of the process: 0 unless a signal has come.
    pub fn exit_code(&self) -> i32 {
        match self.0.load(Ordering::Relaxed) {
            0 => 0,
            signal => ENDED_BY + signal,
        }
    }
}

/// While it lives, an [`Interrupt`] answers signals.
#[derive(Debug)]
#[must_use = "signals end the process at once when it is dropped"]
pub struct Answering(());

impl Drop for Answering {
    fn drop(&mut self) {
        *ANSWERS.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Waits for signals for the rest of the process. One that was ignored when the process began stays ignored, as SIGHUP under
/// nohup; but SIGINT always counts, since a shell ignores it for whatever a script starts in the background.
///
/// # Errors
/// [`Error::Device`] when the system refuses.
#[cfg(unix)]
pub fn watch() -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;

    let refused = |e| Error::device("signals", format!("cannot be watched: {e}"));
    let ignored = ignored();
    let watched = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|s| match (ignored, *s) {
        (_, SIGINT) => true,
        (Some(mask), signal) => mask >> (signal - 1) & 1 == 0,
        // Where it cannot be told, SIGHUP keeps its default, which nohup has changed.
        (None, signal) => signal != SIGHUP,
    });
    let mut signals = Signals::new(watched).map_err(refused)?;
    let wait = move || {
        for signal in signals.forever() {
            let answers = ANSWERS.lock().unwrap_or_else(PoisonError::into_inner);
            match &*answers {
                Some(interrupt) if !interrupt.requested() => interrupt.request(signal),
                _ => {
                    let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
                    crate::files::atomic::remove_unfinished(|| {
                        eprintln!("stopped by {name}");
                        signal_hook::low_level::exit(ENDED_BY + signal)
                    })
                }
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).map(drop).map_err(refused)
}

/// No signals are known here.
#[cfg(not(unix))]
pub fn watch() -> Result<()> {
    Ok(())
}

/// The signals that this process ignores, a bit each from 1 on; None where the system does not tell.
#[cfg(unix)]
fn ignored() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_the_flag() {
        let interrupt = Interrupt::default();
        let other = interrupt.clone();
        assert!(other.check().is_ok());
        assert_eq!(other.exit_code(), 0);
        interrupt.request(15);
        assert!(other.requested() && matches!(other.check(), Err(Error::Interrupted)));
        assert_eq!(other.exit_code(), 143);
    }
}
