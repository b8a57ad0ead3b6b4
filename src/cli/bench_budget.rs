//! `saip-engine bench ops --budget`: holds what steps cost by the model against figures that a file keeps.

use super::bench_model::{Asked, ModelledStep, Totals};
use super::bench_ops_groups::BenchOpsArgs;
use super::plan_ranks::machine;
use super::step::StepArgs;
use crate::error::{Error, Result};
use crate::files::atomic;
use crate::report::table::table;
use crate::tensor::DType;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// What a figure may grow by.
const SLACK: f64 = 1.02;

/// What stands above the figures.
const HEAD: &str = "# What a step costs by the model of `saip-engine bench ops --model`. `saip-engine bench ops --budget FILE` fails when a
# figure has grown by more than 2 %; with --update it writes today's.
";

/// The file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Budget {
    machine: String,
    batch: usize,
    scale: f64,
    presets: BTreeMap<String, Figures>,
}

/// Of one step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Figures {
    launches: usize,
    /// Gigabytes of all operands.
    gigabytes: f64,
    floor_ms: f64,
    predicted_ms: f64,
}

impl Figures {
    fn of(t: &Totals) -> Self {
        let rounded = |x: f64| (x * 100.0).round() / 100.0;
        let (launches, gigabytes) = (t.launches, rounded(t.bytes as f64 * 1e-9));
        let (floor_ms, predicted_ms) = (rounded(t.floor_seconds * 1e3), rounded(t.seconds * 1e3));
        Figures { launches, gigabytes, floor_ms, predicted_ms }
    }

    fn named(&self) -> [(&'static str, f64); 4] {
        [
            ("launches", self.launches as f64),
            ("GB", self.gigabytes),
            ("floor ms", self.floor_ms),
            ("predicted ms", self.predicted_ms),
        ]
    }

    /// Those that are larger than `budget` allows.
    fn beyond(&self, budget: &Figures) -> Vec<&'static str> {
        let pairs = self.named().into_iter().zip(budget.named());
        pairs.filter(|(now, then)| now.1 > then.1 * SLACK).map(|(now, _)| now.0).collect()
    }
}

fn read(path: &Path) -> Result<Budget> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", e))?;
    toml::from_str(&text).map_err(|e| Error::file(path, e.to_string().trim_end().to_owned()))
}

/// Compares and prints; 1 when a figure is beyond its budget.
///
/// # Errors
/// A file that cannot be read or written; a preset or device that is not known; those of the compiler.
pub fn run(path: &Path, args: &BenchOpsArgs) -> Result<i32> {
    let mut budget = read(path)?;
    let machine = machine(&budget.machine)?;
    let (mut rows, mut beyond) = (Vec::new(), Vec::new());
    for (preset, figures) in &mut budget.presets {
        let step = StepArgs { preset: preset.clone(), config: None, sets: Vec::new() };
        let (batch, scale, dtype) = (budget.batch, budget.scale, DType::Bf16);
        let asked = Asked { step: &step, batch, scale, dtype, recompute: args.recompute };
        let now = Figures::of(&ModelledStep::new(machine, &asked)?.totals());
        for ((what, now), (_, then)) in now.named().into_iter().zip(figures.named()) {
            let change = format!("{:+.1} %", 100.0 * (now / then - 1.0));
            rows.push(vec![preset.clone(), what.to_owned(), then.to_string(), now.to_string(), change]);
        }
        beyond.extend(now.beyond(figures).into_iter().map(|what| format!("{what} of {preset}")));
        *figures = now;
    }
    println!(
        "batch {}, scale {}, predicted for one {}\n{}",
        budget.batch,
        budget.scale,
        budget.machine,
        table(&["preset", "figure", "budget", "now", "change"], &rows)
    );
    if args.update {
        let text = toml::to_string(&budget)
            .map_err(|e| Error::invariant("updating the budget", format!("no TOML: {e}")))?;
        atomic::write(path, format!("{HEAD}{text}").as_bytes())?;
        println!("written: {}", path.display());
        return Ok(0);
    }
    if !beyond.is_empty() {
        eprintln!(
            "more than 2 % beyond {}: {}; if that is worth it, pass --update and say why",
            path.display(),
            beyond.join(", ")
        );
        return Ok(1);
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_percent_more_are_too_much() {
        let budget = Figures { launches: 1000, gigabytes: 100.0, floor_ms: 30.0, predicted_ms: 60.0 };
        let same = |change: fn(&mut Figures)| {
            let mut now = budget;
            change(&mut now);
            now.beyond(&budget)
        };
        assert!(same(|_| ()).is_empty());
        assert!(same(|now| (now.launches, now.predicted_ms) = (1020, 61.2)).is_empty());
        assert!(same(|now| now.gigabytes = 1.0).is_empty());
        assert_eq!(same(|now| now.launches = 1021), ["launches"]);
        assert_eq!(same(|now| (now.gigabytes, now.predicted_ms) = (102.1, 61.3)), ["GB", "predicted ms"]);
        assert_eq!(same(|now| now.floor_ms = 30.7), ["floor ms"]);
    }
}
