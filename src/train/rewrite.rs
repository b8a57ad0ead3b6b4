//! A run's report written again from its folder, and several runs on one page.

use super::checkpoint::Checkpoints;
use super::config::TrainConfig;
use super::engine::{Engine, EngineOptions};
use super::folder::{OUTCOME, Outcome};
use super::metrics::{self, Record};
use super::objective::with_expert;
use super::pretrained::Pretrained;
use super::probe::Probe;
use super::resume::restore;
use super::sources;
use super::summary::{self, Drawn, Inputs, Shown};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::objectives::Objective;
use crate::report::{Compared, write_comparison};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// No file that says how a run ended is larger.
const MAX_OUTCOME: u64 = 16 << 20;
const SPEED: &str = "speed/images_per_second";

/// What a run folder tells without its model.
struct Told {
    cfg: TrainConfig,
    records: Vec<Record>,
    outcome: Outcome,
}

impl Told {
    fn read(run: &Path) -> Result<Self> {
        let config = run.join("config.toml");
        if !crate::files::atomic::exists(&config)? {
            return Err(Error::usage(format!(
                "{}: is no run (no config.toml): name the folder that `train` wrote with --out",
                run.display()
            )));
        }
        let records = metrics::read(&run.join("metrics.jsonl"))?;
        let cfg = TrainConfig::load(&config)?;
        let outcome = outcome(run, &cfg, &records)?;
        Ok(Told { cfg, records, outcome })
    }

    fn inputs(&self, run: &Path) -> Inputs<'_> {
        let title = run.display().to_string();
        Inputs { cfg: &self.cfg, title, records: self.records.clone(), outcome: &self.outcome }
    }
}

/// How the run ended, as it wrote down itself; for one that is under way, was killed, or is of an older version, as far as its
/// log tells.
fn outcome(run: &Path, cfg: &TrainConfig, records: &[Record]) -> Result<Outcome> {
    let path = run.join(OUTCOME);
    let last = records.iter().filter_map(|r| r.get("step")?.as_u64()).max().unwrap_or(0);
    if crate::files::atomic::exists(&path)? {
        let bytes = std::fs::metadata(&path).map_err(|e| Error::io(&path, "read", e))?.len();
        if bytes > MAX_OUTCOME {
            return Err(Error::file(&path, format!("has {bytes} bytes and is none of ours: remove it")));
        }
        let text = std::fs::read(&path).map_err(|e| Error::io(&path, "read", e))?;
        let outcome: Outcome = serde_json::from_slice(&text).map_err(|e| {
            Error::file(&path, format!("is damaged ({e}): remove it, the log tells most of it"))
        })?;
        // A run that was resumed and is under way, or was killed, has gone on since.
        if outcome.steps >= last {
            return Ok(outcome);
        }
    }
    let speeds: Vec<f64> =
        records.iter().filter_map(|r| r.get(SPEED)?.as_f64()).filter(|s| *s > 0.0).collect();
    // Each logged step has the same number of images: their mean time is what counts.
    let speed = match speeds.len() {
        0 => 0.0,
        n => n as f64 / speeds.iter().map(|s| 1.0 / s).sum::<f64>(),
    };
    let images = (cfg.optim.effective_batch as u64 * last) as f64;
    Ok(Outcome {
        steps: last,
        interrupted: true,
        seconds: if speed > 0.0 { images / speed } else { f64::NAN },
        images_per_second: speed,
        device: String::new(),
        skipped_steps: metrics::read(&run.join("skipped_steps.jsonl"))?.len() as u64,
        warnings: vec![
            "the run has not written how it ended (under way, killed, or of an older version): times are estimated \
             from its log, and its own alarms are not known"
                .to_owned(),
        ],
    })
}

/// Writes the report of the folder `run` to `out`. Pictures are computed on what `backend` opens from the newest checkpoint and
/// the images; where that cannot be done the report says why, and so does the result.
///
/// # Errors
/// When the folder holds no run, its log is damaged, or the report cannot be written.
pub fn rewrite(
    run: &Path,
    out: &Path,
    backend: impl FnOnce(&TrainConfig) -> Result<Box<dyn Backend>>,
) -> Result<Option<String>> {
    let mut told = Told::read(run)?;
    let drawn = backend(&told.cfg).and_then(|backend| draw(&told.cfg, run, backend));
    let missing = drawn.as_ref().err().map(|e| format!("the pictures are left out: {e}"));
    told.outcome.warnings.extend(missing.clone());
    summary::write(out, &told.inputs(run), drawn.as_ref().ok())?;
    Ok(missing)
}

fn draw(cfg: &TrainConfig, run: &Path, backend: Box<dyn Backend>) -> Result<Drawn> {
    let none = || Error::usage(format!("{}: the run has no checkpoint yet", run.display()));
    let loaded = Checkpoints::for_reading(run.join("checkpoints")).latest()?.ok_or_else(none)?;
    let source = sources::training_source(cfg)?;
    let probe_set = sources::probe_set(cfg)?;
    let pretrained = Pretrained::resumed(cfg, loaded.model())?;
    // Pictures are drawn at the first scale.
    let objective: Arc<dyn Objective> = Arc::from(with_expert(cfg, pretrained.expert.clone(), &[])?.only(0)?);
    let options = EngineOptions {
        micro_steps: cfg.optim.accumulation(1)?,
        drop_path: cfg.encoder.drop_path,
        recompute: cfg.run.recompute,
        seed: cfg.data.seed,
    };
    let mut engine = Engine::new(backend, Arc::clone(&objective), options)?;
    restore(&mut engine, Some(loaded), &pretrained.initial, &mut Vec::new())?;
    let probe = match probe_set {
        Some(set) => Some(Probe::new(&mut engine, cfg, set)?),
        None => None,
    };
    let result = probe.as_ref().map(|probe| probe.run(&mut engine, &Interrupt::default())).transpose()?;
    let shown = Shown { probe: probe.as_ref().zip(result.as_ref()), source, objective: &*objective };
    summary::draw(Some(&shown), &mut engine)
}

/// Writes one page on which the folders `runs` lie beside each other to `out`.
///
/// # Errors
/// When one holds no run, a log is damaged, or the page cannot be written.
pub fn compare(runs: &[PathBuf], out: &Path) -> Result<()> {
    let compared = runs
        .iter()
        .map(|run| {
            let told = Told::read(run)?;
            let (summary, curves) = summary::numbers(&told.inputs(run))?;
            Ok(Compared { settings: settings(&summary.config_toml)?, summary, curves })
        })
        .collect::<Result<Vec<_>>>()?;
    write_comparison(out, &compared)
}

/// Keys, dotted, and values of a configuration.
fn settings(text: &str) -> Result<Vec<(String, String)>> {
    let value: Value = toml::from_str(text).map_err(|e| Error::invariant("comparing runs", e.to_string()))?;
    let mut all = Vec::new();
    flatten("", &value, &mut all);
    Ok(all)
}

fn flatten(prefix: &str, value: &Value, out: &mut Vec<(String, String)>) {
    match value {
        Value::Object(table) => {
            for (key, value) in table {
                let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&key, value, out);
            }
        }
        other => out.push((prefix.to_owned(), other.to_string())),
    }
}
