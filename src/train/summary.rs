//! The end of a run: what the report shows, gathered from the log, the model and the plan.

use super::config::TrainConfig;
use super::engine::{Engine, write_checked};
use super::folder::Outcome;
use super::metrics;
use super::probe::{Probe, ProbeResult};
use super::record::{EXPOSED, PROBE_MAP, PROBE_RANK1, SLOWEST, SPREAD, reference_tag};
use crate::backend::{HostSliceMut, ProgramId};
use crate::data::loader::{Loader, LoaderConfig};
use crate::data::source::ImageSource;
use crate::error::Result;
use crate::metrics::reference::Reference;
use crate::objectives::{Inspect, Objective};
use crate::plan::{self, Plan};
use crate::report::{
    Baseline, BufferSpan, Curve, Curves, MemoryPicture, Neighbours, Pictures, RunSummary, Series,
    write_report,
};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

/// Images that the report shows of each kind.
const SHOWN: usize = 6;
/// Neighbours of each query.
const NEIGHBOURS: usize = 8;
/// The seed of the pictures' views differs from the run's, so that they are not views that were trained on.
const PICTURE_SEED: u64 = 0x7069_6374;

/// What the probe at step 0 is called: that of the weights with which the run began.
pub const STEP_ZERO: &str = "untrained encoder";

/// What the report's numbers are made of.
pub struct Inputs<'a> {
    pub cfg: &'a TrainConfig,
    pub title: String,
    /// The run's log.
    pub records: Vec<metrics::Record>,
    pub outcome: &'a Outcome,
}

/// What the report's pictures are made of.
pub struct Shown<'a> {
    pub probe: Option<(&'a Probe, &'a ProbeResult)>,
    pub source: Arc<dyn ImageSource>,
    pub objective: &'a dyn Objective,
}

/// What takes the model to draw.
pub struct Drawn {
    /// `None` when nothing is to be shown.
    pub pictures: Option<Pictures>,
    pub memory: Option<MemoryPicture>,
}

/// Draws what the model does.
///
/// # Errors
/// When no picture can be made, or the backend fails.
pub fn draw(shown: Option<&Shown<'_>>, engine: &mut Engine) -> Result<Drawn> {
    let memory = engine.largest_plan().map(memory_picture);
    Ok(Drawn { pictures: shown.map(|shown| pictures(shown, engine)).transpose()?, memory })
}

/// Writes the report to `path`.
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &Path, inputs: &Inputs<'_>, drawn: Option<&Drawn>) -> Result<()> {
    let (summary, curves) = numbers(inputs)?;
    let memory = drawn.and_then(|d| d.memory.as_ref());
    write_report(path, &summary, &curves, drawn.and_then(|d| d.pictures.as_ref()), memory)
}

/// The numbers and curves of a run.
///
/// # Errors
/// When the configuration cannot be written out.
pub fn numbers(inputs: &Inputs<'_>) -> Result<(RunSummary, Curves)> {
    let outcome = inputs.outcome;
    let summary = RunSummary {
        title: inputs.title.clone(),
        device: outcome.device.clone(),
        steps: outcome.steps,
        images_seen: inputs.cfg.optim.effective_batch as u64 * outcome.steps,
        seconds: outcome.seconds,
        images_per_second: outcome.images_per_second,
        skipped_steps: outcome.skipped_steps,
        config_toml: inputs.cfg.to_toml()?,
        warnings: outcome.warnings.clone(),
    };
    let mut curves = curves(&inputs.records);
    if inputs.cfg.encoder.init.is_some() {
        // Step 0 is then no untrained encoder.
        let baselines = curves.probe.iter_mut().flat_map(|c| &mut c.baselines);
        baselines.filter(|b| b.label == STEP_ZERO).for_each(|b| b.label = "at step 0".to_owned());
    }
    Ok((summary, curves))
}

/// What a probe's `metric` is compared with: the probe at step 0, and the reference lines, as far as they are in the log.
pub fn baselines(records: &[metrics::Record], metric: &str) -> Vec<Baseline> {
    let value = |r: &metrics::Record, tag: &str| r.get(tag).and_then(serde_json::Value::as_f64);
    let at_zero = |r: &&metrics::Record| r.get("step").and_then(serde_json::Value::as_u64) == Some(0);
    let first = records.iter().filter(at_zero).find_map(|r| value(r, metric));
    let reference = |r: Reference| {
        let tag = reference_tag(r, metric);
        let value = records.iter().find_map(|record| value(record, &tag))?;
        Some(Baseline { label: r.name().to_owned(), value })
    };
    let first = first.map(|value| Baseline { label: STEP_ZERO.to_owned(), value });
    first.into_iter().chain(Reference::ALL.into_iter().filter_map(reference)).collect()
}

/// What the report and the `plan` command draw of a plan.
pub fn memory_picture(plan: &Plan) -> MemoryPicture {
    let kind = |label: &str| match label {
        l if l.starts_with("workspace") => "workspace",
        l if l.contains("/grad") || l == "seed" => "backward",
        _ => "forward",
    };
    let mut regions: Vec<(String, u64)> =
        plan.regions.iter().map(|r| (r.region.name().to_owned(), r.bytes() as u64)).collect();
    regions.push(("arena".into(), plan.arena_bytes as u64));
    MemoryPicture {
        regions,
        arena_bytes: plan.arena_bytes as u64,
        lower_bound_bytes: plan.lower_bound_bytes as u64,
        buffers: plan
            .buffers
            .iter()
            .map(|b| BufferSpan {
                label: format!("{}: {}", kind(&b.label), b.label),
                start_step: b.start,
                end_step: b.end,
                offset: b.offset as u64,
                bytes: b.bytes as u64,
            })
            .collect(),
    }
}

fn curves(records: &[metrics::Record]) -> Curves {
    let series = |name: &str, tag: &str| {
        let point = |r: &metrics::Record| {
            let value = r.get(tag)?;
            Some((r.get("step")?.as_f64()?, value.as_f64().unwrap_or(f64::NAN)))
        };
        Series { name: name.into(), points: records.iter().filter_map(point).collect() }
    };
    let probe =
        |name: &str, tag: &str| Curve { series: series(name, tag), baselines: baselines(records, tag) };
    // The sum before its parts.
    let tags = records.iter().flat_map(|r| r.keys()).filter_map(|tag| tag.strip_prefix("loss/"));
    let parts: BTreeSet<&str> = tags.filter(|name| *name != "total").collect();
    let losses: Vec<&str> = std::iter::once("total").chain(parts).collect();
    let collapse = |name: &str, tag: &str| Curve { series: series(name, tag), baselines: Vec::new() };
    Curves {
        losses: losses.iter().map(|name| series(name, &format!("loss/{name}"))).collect(),
        learning_rate: series("learning rate", "schedule/lr"),
        ema_momentum: series("EMA momentum", "schedule/ema_momentum"),
        gradient_norm: series("gradient norm", "health/grad_norm"),
        probe: vec![probe("mAP", PROBE_MAP), probe("rank-1", PROBE_RANK1)],
        collapse: vec![
            collapse("entropy of a target, share of ln K", "health/sample_entropy"),
            collapse("entropy of the mean target, share of its maximum", "health/mean_entropy"),
            collapse("spread of the expert's features", "health/spread"),
        ],
        ranks: [EXPOSED, SPREAD, SLOWEST]
            .map(|(tag, name)| series(name, tag))
            .into_iter()
            .filter(|series| !series.points.is_empty())
            .collect(),
    }
}

/// Compiles the model in evaluation mode for the images that are shown; gives the objective for that many, too.
///
/// # Errors
/// Those of building and compiling.
pub fn compile_pictures(
    engine: &mut Engine,
    objective: &dyn Objective,
) -> Result<(ProgramId, Inspect, Box<dyn Objective>)> {
    let objective = objective.only(0)?.with_batch(SHOWN);
    let built = objective.inspect(engine.backend().dtype())?;
    let plan = plan::compile(built.graph.clone(), false, engine.backend())?;
    Ok((engine.backend().compile(plan)?, built, objective))
}

/// Runs the model in evaluation mode on a few images and draws what it does.
fn pictures(shown: &Shown<'_>, engine: &mut Engine) -> Result<Pictures> {
    let (program, built, objective) = compile_pictures(engine, shown.objective)?;
    let loader =
        LoaderConfig { batch: SHOWN, seed: PICTURE_SEED, workers: 0, prefetch: 1, ..LoaderConfig::default() };
    let batch = Loader::new(Arc::clone(&shown.source), loader, objective.recipe()?)?.next()?;
    for slot in &built.inputs {
        write_checked(engine.backend(), slot, batch.tensor(&slot.name)?.1.host())?;
    }
    engine.backend().run(program)?;
    let mut pictures = objective.draw(&batch, &mut |name| {
        let Some(slot) = built.outputs.iter().find(|s| s.name == name) else { return Ok(None) };
        let mut values = vec![0.0; slot.shape.count()];
        engine.backend().read(slot.region, slot.offset, HostSliceMut::F32(&mut values))?;
        Ok(Some(values))
    })?;
    if let Some((probe, result)) = shown.probe {
        pictures.neighbours = neighbours(probe, result)?;
    }
    Ok(pictures)
}

/// Queries spread over the whole set, each with its nearest gallery images.
fn neighbours(probe: &Probe, result: &ProbeResult) -> Result<Vec<Neighbours>> {
    let set = probe.set();
    let stride = (result.query.len() / SHOWN).max(1);
    (0..result.query.len())
        .step_by(stride)
        .take(SHOWN)
        .map(|row| {
            let results = probe
                .neighbours(result, row, NEIGHBOURS)?
                .into_iter()
                .map(|(i, distance, correct)| {
                    let caption = format!("id {} camera {}", set.identities[i], set.cameras[i]);
                    Ok((set.source.load(i)?, correct, distance, caption))
                })
                .collect::<Result<_>>()?;
            Ok(Neighbours { query: set.source.load(result.query_source[row])?, results })
        })
        .collect()
}
