//! Ctrl-C and SIGTERM: the first asks the loop to save and stop, the second ends the process at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::error::{Error, Result};

/// Exit status of a process that a signal ended, as shells give it for SIGINT.
pub const INTERRUPTED: i32 = 130;

/// Tells whether the run was asked to stop. Clones share one flag.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Watches SIGINT and SIGTERM for the rest of the process.
    ///
    /// # Errors
    /// [`Error::Device`] when the system refuses to install the handlers.
    pub fn install() -> Result<Self> {
        let interrupt = Interrupt::default();
        for signal in [SIGINT, SIGTERM] {
            // In this order: the first signal finds the flag down and raises it, the second finds it up and exits.
            flag::register_conditional_shutdown(signal, INTERRUPTED, interrupt.0.clone())
                .and_then(|_| flag::register(signal, interrupt.0.clone()))
                .map_err(|e| Error::device("signals", format!("cannot watch signal {signal}: {e}")))?;
        }
        Ok(interrupt)
    }

    /// Whether a signal has come.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Asks the loop to stop, as a signal does.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::process::Command;

    const SIGNALS: &str = "SAIP_TEST_SIGNALS";

    /// Runs in a process of its own: raises as many signals as the variable says and tells how it went on.
    #[test]
    #[ignore = "helper process of the other tests"]
    fn raise() {
        let Ok(count) = std::env::var(SIGNALS) else { return };
        let interrupt = Interrupt::install().unwrap();
        assert!(!interrupt.requested());
        for signal in [SIGTERM, SIGINT].into_iter().take(count.parse().unwrap()) {
            signal_hook::low_level::raise(signal).unwrap();
            assert!(interrupt.requested() && interrupt.clone().requested());
        }
    }

    fn exit_code(signals: &str) -> Option<i32> {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "train::signals::tests::raise", "--ignored"])
            .env(SIGNALS, signals)
            .output()
            .unwrap()
            .status
            .code()
    }

    #[test]
    fn the_first_signal_asks_and_the_second_ends() {
        assert_eq!(exit_code("0"), Some(0));
        assert_eq!(exit_code("1"), Some(0));
        assert_eq!(exit_code("2"), Some(INTERRUPTED));
    }
}
