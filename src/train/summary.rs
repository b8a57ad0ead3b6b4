//! The end of a run: what the report shows, gathered from the log, the model and the plan.

use super::config::TrainConfig;
use super::engine::{Engine, compile_plan, hidden_positions, view, write_checked};
use super::folder::RunFolder;
use super::metrics;
use super::probe::{Probe, ProbeResult};
use super::run::Outcome;
use crate::backend::{HostSlice, HostSliceMut, ProgramId};
use crate::data::augment::normalize::denormalise;
use crate::data::batch::Batch;
use crate::data::loader::{Loader, LoaderConfig};
use crate::data::source::ImageSource;
use crate::data::views::ViewPlanner;
use crate::error::Result;
use crate::plan::Plan;
use crate::report::{
    AttentionMap, Baseline, BufferSpan, Curve, Curves, InstanceResult, MemoryPicture, Neighbours, Pictures,
    Reconstruction, RunSummary, SceneResult, Series, reconstruct, write_report,
};
use crate::saip::config::{EncoderConfig, PATCH, StepConfig};
use crate::saip::{InspectGraph, IoSlot, build_inspect};
use std::sync::Arc;

/// Images that the report shows of each kind.
const SHOWN: usize = 6;
/// Neighbours of each query.
const NEIGHBOURS: usize = 8;
/// The seed of the pictures' views differs from the run's, so that they are not views that were trained on.
const PICTURE_SEED: u64 = 0x7069_6374;

/// What the report is made of.
pub struct Inputs<'a> {
    pub cfg: &'a TrainConfig,
    pub folder: &'a RunFolder,
    pub outcome: &'a Outcome,
    pub probe: Option<(&'a Probe, &'a ProbeResult)>,
    pub source: Arc<dyn ImageSource>,
    pub step_config: &'a StepConfig,
}

/// Writes `report.html`.
///
/// # Errors
/// When the log cannot be read, no picture can be made, or the file cannot be written.
pub fn write(inputs: &Inputs<'_>, engine: &mut Engine) -> Result<()> {
    let records = metrics::read(&inputs.folder.metrics())?;
    let curves = curves(&records);
    let images = inputs.cfg.optim.effective_batch as u64 * inputs.outcome.steps;
    let summary = RunSummary {
        title: inputs.folder.path().display().to_string(),
        device: engine.backend().name(),
        steps: inputs.outcome.steps,
        images_seen: images,
        seconds: inputs.outcome.seconds,
        images_per_second: inputs.outcome.images_per_second,
        skipped_steps: inputs.outcome.skipped_steps,
        config_toml: inputs.cfg.to_toml()?,
        warnings: inputs.outcome.warnings.clone(),
    };
    let memory = engine.largest_plan().map(memory_picture);
    // Who stops a run does not wait for pictures.
    let pictures = if inputs.outcome.interrupted { None } else { Some(pictures(inputs, engine)?) };
    write_report(&inputs.folder.report(), &summary, &curves, pictures.as_ref(), memory.as_ref())
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
    let probe = |name: &str, tag: &str| {
        let series = series(name, tag);
        // The first probe is at step 0: the untrained encoder.
        let first = series.points.first().filter(|p| p.0 == 0.0).map(|p| p.1);
        let baseline = first.map(|value| Baseline { label: "untrained encoder".into(), value });
        Curve { series, baseline }
    };
    let collapse = |name: &str, tag: &str| Curve { series: series(name, tag), baseline: None };
    Curves {
        losses: vec![
            series("total", "loss/total"),
            series("csm", "loss/csm"),
            series("csr", "loss/csr"),
            series("css", "loss/css"),
        ],
        learning_rate: series("learning rate", "schedule/lr"),
        ema_momentum: series("EMA momentum", "schedule/ema_momentum"),
        gradient_norm: series("gradient norm", "health/grad_norm"),
        probe: vec![probe("mAP", "probe/map"), probe("rank-1", "probe/rank1")],
        collapse: vec![
            collapse("entropy of a target, share of ln K", "health/sample_entropy"),
            collapse("entropy of the mean target, share of its maximum", "health/mean_entropy"),
            collapse("spread of the expert's features", "health/spread"),
        ],
    }
}

/// Compiles the model in evaluation mode for the images that are shown; gives the configuration of that, too.
///
/// # Errors
/// Those of building and compiling.
pub fn compile_pictures(
    engine: &mut Engine,
    step: &StepConfig,
) -> Result<(ProgramId, InspectGraph, StepConfig)> {
    let cfg = StepConfig { batch: SHOWN, ..step.clone() };
    let built = build_inspect(&cfg, engine.backend().dtype())?;
    let plan = compile_plan(built.graph.clone(), false, engine.backend())?;
    Ok((engine.backend().compile(plan)?, built, cfg))
}

/// Runs the model in evaluation mode on a few images and draws what it does.
fn pictures(inputs: &Inputs<'_>, engine: &mut Engine) -> Result<Pictures> {
    let (program, built, cfg) = compile_pictures(engine, inputs.step_config)?;
    let planner = ViewPlanner::new(&cfg, &[], inputs.cfg.augment.clone())?;
    let loader =
        LoaderConfig { batch: SHOWN, seed: PICTURE_SEED, workers: 0, prefetch: 1, ..LoaderConfig::default() };
    let batch = Loader::new(Arc::clone(&inputs.source), loader, planner)?.next()?;
    for slot in &built.inputs {
        match slot.name.as_str() {
            "hidden" => write_checked(engine.backend(), slot, HostSlice::I32(&hidden_positions(&batch)))?,
            name => write_checked(engine.backend(), slot, view(&batch, name)?)?,
        }
    }
    engine.backend().run(program)?;
    let read = |engine: &mut Engine, name: &str| -> Result<Option<(IoSlot, Vec<f32>)>> {
        let Some(slot) = built.outputs.iter().find(|s| s.name == name) else { return Ok(None) };
        let mut values = vec![0.0; slot.shape.count()];
        engine.backend().read(slot.region, slot.offset, HostSliceMut::F32(&mut values))?;
        Ok(Some((slot.clone(), values)))
    };
    let mut pictures = Pictures::default();
    if let Some((_, values)) = read(engine, "reconstruction")? {
        pictures.reconstructions = reconstructions(&cfg, &batch, &values)?;
    }
    if let Some((_, logits)) = read(engine, "search")? {
        pictures.scenes = scenes(&cfg, &batch, &logits)?;
    }
    if let Some((_, qkv)) = read(engine, "qkv")? {
        pictures.attention = attention(&cfg, &batch, &qkv)?;
    }
    if let Some((probe, result)) = inputs.probe {
        pictures.neighbours = neighbours(probe, result)?;
    }
    Ok(pictures)
}

/// The `i`-th of the images of `size` in `pixels`.
fn image(pixels: &[f32], i: usize, [h, w]: [usize; 2]) -> &[f32] {
    &pixels[i * 3 * h * w..(i + 1) * 3 * h * w]
}

fn reconstructions(cfg: &StepConfig, batch: &Batch, values: &[f32]) -> Result<Vec<Reconstruction>> {
    let [h, w] = cfg.masked_size;
    let hidden: Vec<usize> = hidden_positions(batch).into_iter().map(|i| i as usize).collect();
    let per_image = hidden.len() / cfg.batch;
    let width = values.len() / hidden.len().max(1);
    (0..cfg.batch)
        .map(|i| {
            let input = image(&batch.masked, i, cfg.masked_size);
            let positions = &hidden[i * per_image..(i + 1) * per_image];
            let predictions = &values[i * per_image * width..(i + 1) * per_image * width];
            let (masked, predicted) = reconstruct(input, h, w, positions, predictions)?;
            Ok(Reconstruction { input: denormalise(input, h, w)?, masked, predicted })
        })
        .collect()
}

fn scenes(cfg: &StepConfig, batch: &Batch, logits: &[f32]) -> Result<Vec<SceneResult>> {
    let (s, b) = (cfg.scene_size, cfg.batch);
    let (side, m) = (s / PATCH, (s / PATCH).pow(2));
    let probability = |x: &f32| 1.0 / (1.0 + (-x).exp());
    (0..b)
        .map(|i| {
            let at = |instance: usize| (instance * b + i) * m..(instance * b + i + 1) * m;
            let queries = [
                (image(&batch.global, i, cfg.global_size), cfg.global_size),
                (image(&batch.rescaled, i, cfg.rescaled_size), cfg.rescaled_size),
            ];
            let instances = queries
                .iter()
                .enumerate()
                .map(|(instance, (pixels, [h, w]))| {
                    Ok(InstanceResult {
                        query: denormalise(pixels, *h, *w)?,
                        truth: batch.boxes[at(instance)].to_vec(),
                        predicted: logits[at(instance)].iter().map(probability).collect(),
                    })
                })
                .collect::<Result<_>>()?;
            let scene = denormalise(image(&batch.scene, i, [s, s]), s, s)?;
            Ok(SceneResult { scene, instances, grid: [side, side] })
        })
        .collect()
}

/// Softmax of the image token's query against the patch tokens' keys, per head, from the last block's packed qkv
/// `[B, 1 + N, 3D]`.
fn attention(cfg: &StepConfig, batch: &Batch, qkv: &[f32]) -> Result<Vec<AttentionMap>> {
    let EncoderConfig::Vit { num_heads, embed_dim, .. } = cfg.encoder else { return Ok(Vec::new()) };
    let grid = cfg.global_size.map(|s| s / PATCH);
    let (rows, width) = (1 + grid[0] * grid[1], embed_dim / num_heads);
    let scale = 1.0 / (width as f32).sqrt();
    (0..cfg.batch)
        .map(|i| {
            let tokens = &qkv[i * rows * 3 * embed_dim..(i + 1) * rows * 3 * embed_dim];
            let heads = (0..num_heads)
                .map(|head| {
                    let q = &tokens[head * width..(head + 1) * width];
                    let scores: Vec<f32> = tokens
                        .chunks_exact(3 * embed_dim)
                        .map(|row| &row[embed_dim + head * width..embed_dim + (head + 1) * width])
                        .map(|k| scale * q.iter().zip(k).map(|(a, b)| a * b).sum::<f32>())
                        .collect();
                    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    let exp: Vec<f32> = scores.iter().map(|s| (s - max).exp()).collect();
                    let sum: f32 = exp.iter().sum();
                    exp[1..].iter().map(|e| e / sum).collect()
                })
                .collect();
            let [h, w] = cfg.global_size;
            Ok(AttentionMap {
                image: denormalise(image(&batch.global, i, cfg.global_size), h, w)?,
                heads,
                grid,
            })
        })
        .collect()
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
