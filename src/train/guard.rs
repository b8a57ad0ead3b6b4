//! Watches a run for steps that are not finite.

use std::io::Write;
use std::path::PathBuf;

use serde_json::json;

use crate::error::{Error, Result};
use crate::files::disk::Growing;

/// Counts skipped steps. A step is skipped when its loss or gradient is not finite; a few are harmless, many in a row
/// mean that the run is lost.
#[derive(Debug)]
pub struct FiniteGuard {
    log: PathBuf,
    max_in_a_row: u64,
    in_a_row: u64,
    total: u64,
}

/// What [`FiniteGuard::observe`] saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Finite,
    /// The step must not be applied; so many in a row up to now.
    Skip {
        in_a_row: u64,
    },
    /// The same, and so many that the run is lost.
    Lost {
        in_a_row: u64,
    },
}

impl FiniteGuard {
    /// `log` is `skipped_steps.jsonl`, created with the first skipped step. `total` counts the steps that were skipped
    /// before a resumed run.
    pub fn new(log: impl Into<PathBuf>, max_in_a_row: u64, total: u64) -> Self {
        FiniteGuard { log: log.into(), max_in_a_row: max_in_a_row.max(1), in_a_row: 0, total }
    }

    /// Steps skipped in the whole run.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Notes one step. The images of a skipped one are logged, because a broken image is a likely cause.
    ///
    /// # Errors
    /// [`Error::Io`] when the log cannot be written.
    pub fn observe(&mut self, step: u64, finite: bool, files: &[String]) -> Result<Verdict> {
        if finite {
            self.in_a_row = 0;
            return Ok(Verdict::Finite);
        }
        self.in_a_row += 1;
        self.total += 1;
        let line = format!("{}\n", json!({"step": step, "in_a_row": self.in_a_row, "files": files}));
        Growing::append(&self.log)
            .and_then(|mut file| file.write_all(line.as_bytes()))
            .map_err(|e| Error::io(&self.log, "append to", e))?;
        let in_a_row = self.in_a_row;
        Ok(if in_a_row < self.max_in_a_row { Verdict::Skip { in_a_row } } else { Verdict::Lost { in_a_row } })
    }

    /// Skipped steps up to the last one.
    pub fn in_a_row(&self) -> u64 {
        self.in_a_row
    }

    /// The error of a run that is lost at `step`, with the `remedy`.
    pub fn lost(&self, step: u64, remedy: &str) -> Error {
        Error::Training(format!(
            "{} steps in a row, up to step {step}, had a loss or gradient that is not finite. Their images are listed in \
             {}. {remedy}",
            self.in_a_row,
            self.log.display()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_steps_are_logged_and_end_the_run_when_in_a_row() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("skipped_steps.jsonl");
        let mut guard = FiniteGuard::new(&log, 3, 5);
        let files = ["a \"b\".jpg".to_string(), "c.jpg".to_string()];
        assert_eq!(guard.observe(0, true, &files).unwrap(), Verdict::Finite);
        assert!(!log.exists());
        for step in [1, 2, 4, 5] {
            if step == 4 {
                guard.observe(3, true, &files).unwrap();
            }
            let in_a_row = if step < 3 { step } else { step - 3 };
            assert_eq!(guard.observe(step, false, &files).unwrap(), Verdict::Skip { in_a_row });
        }
        assert_eq!(guard.observe(6, false, &files).unwrap(), Verdict::Lost { in_a_row: 3 });
        let e = guard.lost(6, "Take care");
        assert!(matches!(e, Error::Training(_)));
        let e = e.to_string();
        assert!(
            e.contains("3 steps in a row") && e.contains("skipped_steps.jsonl") && e.contains("Take care"),
            "{e}"
        );
        assert_eq!(guard.total(), 10);
        let text = std::fs::read_to_string(&log).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines.len(), 5);
        assert_eq!(lines[4], json!({"step": 6, "in_a_row": 3, "files": files}));
    }
}
