//! Figures of a benchmark, kept in a file and compared with later ones.

use crate::error::{Error, Result};
use crate::files::atomic;
use crate::report::table::table;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where figures are kept and found.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct BaselineArgs {
    /// Keep the figures in FILE, to compare later ones with
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// Compare with the figures that --save kept in FILE
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,
}

/// Largest file that is read, bytes.
const MOST: u64 = 64 << 20;

/// Named figures of named measurements, all of which are better when they are smaller.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures(BTreeMap<String, BTreeMap<String, f64>>);

impl Figures {
    /// Adds to a figure of a measurement.
    pub fn add(&mut self, name: &str, figure: &str, value: f64) {
        *self.0.entry(name.to_owned()).or_default().entry(figure.to_owned()).or_default() += value;
    }

    fn read(path: &Path) -> Result<Figures> {
        let bytes = std::fs::metadata(path).map_err(|e| Error::io(path, "read", e))?.len();
        if bytes > MOST {
            return Err(Error::file(
                path,
                format!("{bytes} bytes are too many for figures that --save kept"),
            ));
        }
        let text = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
        let wrong = |e| Error::file(path, format!("holds no figures that --save kept: {e}"));
        serde_json::from_slice(&text).map_err(wrong)
    }

    /// Those of both, with their ratio.
    fn against(&self, before: &Figures) -> Vec<Vec<String>> {
        let pairs = self.0.iter().filter_map(|(name, now)| Some((name, now, before.0.get(name)?)));
        let rows = pairs.flat_map(|(name, now, before)| {
            now.iter().filter_map(|(figure, now)| {
                let before = before.get(figure)?;
                let ratio = if *before == 0.0 { String::new() } else { format!("{:.3}", now / before) };
                Some(vec![name.clone(), figure.clone(), short(*before), short(*now), ratio])
            })
        });
        rows.collect()
    }

    /// Prints them beside those of a file and keeps them in another one, as `args` ask.
    ///
    /// # Errors
    /// Files that cannot be read or written; figures that have nothing in common.
    pub fn settle(&self, args: &BaselineArgs) -> Result<()> {
        if let Some(path) = &args.baseline {
            let rows = self.against(&Figures::read(path)?);
            if rows.is_empty() {
                return Err(Error::file(path, "holds other measurements: none of these is among them"));
            }
            println!(
                "\nBeside {}:\n{}",
                path.display(),
                table(&["measurement", "figure", "before", "now", "ratio"], &rows)
            );
        }
        if let Some(path) = &args.save {
            let text = serde_json::to_string_pretty(self)
                .map_err(|e| Error::invariant("keeping figures", format!("no JSON: {e}")))?;
            atomic::write(path, text.as_bytes())?;
        }
        Ok(())
    }
}

/// Four significant digits.
fn short(x: f64) -> String {
    if x != 0.0 && !(1e-2..1e6).contains(&x.abs()) { format!("{x:.3e}") } else { format!("{x:.4}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_kept_and_compared() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("before.json");
        let mut before = Figures::default();
        before.add("linear 8x8", "seconds", 2.0);
        before.add("linear 8x8", "seconds", 2.0);
        before.add("gelu", "seconds", 0.0);
        before.settle(&BaselineArgs { save: Some(path.clone()), baseline: None }).unwrap();
        assert_eq!(Figures::read(&path).unwrap(), before);
        let mut now = Figures::default();
        now.add("linear 8x8", "seconds", 1.0);
        now.add("gelu", "seconds", 1e-9);
        now.add("new", "seconds", 1.0);
        let rows = now.against(&before);
        assert_eq!(rows[1], ["linear 8x8", "seconds", "4.0000", "1.0000", "0.250"]);
        assert_eq!(rows[0], ["gelu", "seconds", "0.0000", "1.000e-9", ""]);
        assert_eq!(rows.len(), 2);
    }

    #[test]
    fn other_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("other.json");
        std::fs::write(&path, "[1]").unwrap();
        let asked = BaselineArgs { save: None, baseline: Some(path.clone()) };
        let message = Figures::default().settle(&asked).unwrap_err().to_string();
        assert!(message.contains("other.json") && message.contains("--save"), "{message}");
        std::fs::write(&path, "{}").unwrap();
        let message = Figures::default().settle(&asked).unwrap_err().to_string();
        assert!(message.contains("none of these"), "{message}");
    }
}
