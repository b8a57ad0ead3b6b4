//! A run's first steps as files: all that another implementation needs to take the same steps, and what they gave here.
//!
//! `initial.safetensors` has the state before the first step under a fixture's names (`student.*`, `expert.*`, `state.*`),
//! `step-00000.safetensors` and so on each the views of a step under `view.*`, its losses under `loss.*` and in its metadata its
//! `config` as the reference takes it, with the rate, decay and momentum of that step; `final.safetensors` has the state after
//! the last one.

use super::fixture::{Entry, laid_out};
use crate::backend::Backend;
use crate::data::batch::{Batch, Values};
use crate::error::{Error, Result};
use crate::files::output_folder::OutputFolder;
use crate::interrupt::Interrupt;
use crate::objectives::NAMES;
use crate::objectives::saip::scale_buckets;
use crate::step::StepPoint;
use crate::train::config::TrainConfig;
use crate::train::engine::{Engine, EngineOptions, Losses};
use crate::train::objective::with_expert;
use crate::train::pretrained::Pretrained;
use crate::train::sources;
use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// Takes the first `steps` steps of the run that `cfg` describes, as `train` does, and writes them into the folder `out`; `told` hears
/// each step's number, from 1, losses and learning rate.
///
/// # Errors
/// [`Error::Config`] for an objective without a reference's configuration, several micro steps an update, and stochastic depth;
/// those of training; [`Error::Io`]. Nothing is written then.
pub fn record(
    cfg: &TrainConfig,
    steps: u64,
    backend: Box<dyn Backend>,
    out: &Path,
    interrupt: &Interrupt,
    told: &mut dyn FnMut(u64, &Losses, f64),
) -> Result<()> {
    check(cfg)?;
    let source = sources::training_source(cfg)?;
    let schedule = cfg.schedule(source.len())?;
    let pretrained = Pretrained::open(cfg)?;
    let objective = with_expert(cfg, pretrained.expert.clone(), &[])?;
    let options =
        EngineOptions { micro_steps: 1, drop_path: 0.0, recompute: cfg.run.recompute, seed: cfg.data.seed };
    let mut engine = Engine::new(backend, Arc::clone(&objective), options)?;
    engine.initialise_from(&pretrained.initial)?;
    let mut folder = OutputFolder::open(out, "verify --record")?;
    folder.refuse_foreign()?;
    let mut loader = sources::loader(cfg, &source, objective.recipe()?, 0, None)?.stopped_by(interrupt);
    for step in 0..steps {
        interrupt.check()?;
        let batch = loader.next()?;
        let point = objective.scheduled(&schedule, step);
        if step == 0 {
            engine.set_up(batch.bucket, &batch, &point)?;
            folder.write("initial.safetensors", &state(&engine)?)?;
        }
        let losses = engine.micro_step(batch.bucket, &batch, &point)?;
        engine.update(batch.bucket)?;
        let config = reference(cfg, &pretrained, batch.bucket, &point)?;
        folder.write(&format!("step-{step:05}.safetensors"), &one_step(&batch, &losses, config)?)?;
        told(step + 1, &losses, point.learning_rate);
        loader.recycle(batch);
    }
    folder.write("final.safetensors", &state(&engine)?)?;
    folder.commit().map(drop)
}

fn check(cfg: &TrainConfig) -> Result<()> {
    if cfg.objective != NAMES[0] {
        let message = format!("only steps of {} are recorded, {} is asked for", NAMES[0], cfg.objective);
        return Err(Error::config("objective", message));
    }
    if cfg.optim.accumulation(1)? != 1 {
        let message = "a recorded update is one step: set it to `optim.batch`";
        return Err(Error::config("optim.effective_batch", message));
    }
    match cfg.encoder.drop_path {
        0.0 => Ok(()),
        _ => Err(Error::config("encoder.drop_path", "the reference drops no path: set it to 0")),
    }
}

/// The configuration of a step as the reference takes it.
fn reference(cfg: &TrainConfig, pretrained: &Pretrained, bucket: usize, point: &StepPoint) -> Result<String> {
    let scales = scale_buckets(cfg.views.scale, cfg.views.scale_buckets);
    let scale = scales
        .get(bucket)
        .ok_or_else(|| Error::invariant("recording", format!("there is no bucket {bucket}")))?;
    let mut step = cfg.step_config(cfg.views.local_size, cfg.views.global_size).at_scale(*scale);
    step.expert_encoder = pretrained.expert.clone();
    (step.lr, step.weight_decay, step.momentum) = (point.learning_rate, point.weight_decay, point.momentum);
    let mut value = serde_json::to_value(step).map_err(|e| Error::invariant("recording", e.to_string()))?;
    if let Value::Object(keys) = &mut value {
        keys.insert("betas".into(), json!(point.betas));
    }
    Ok(value.to_string())
}

fn state(engine: &Engine) -> Result<Vec<u8>> {
    let state = engine.state()?;
    let kept = state.iter().filter(|(name, ..)| !name.starts_with("moment"));
    laid_out(kept.map(|(name, shape, values)| Entry::f32(name, shape, values)).collect(), None)
}

fn one_step(batch: &Batch, losses: &Losses, config: String) -> Result<Vec<u8>> {
    let view = |(spec, values): &(crate::tensor::TensorSpec, Values)| {
        let (name, shape) = (format!("view.{}", spec.name), spec.shape.dims());
        match values {
            Values::F32(v) => Entry::f32(&name, shape, v),
            // The reference counts in 64 bits.
            Values::I32(v) => {
                let data = v.iter().flat_map(|v| i64::from(*v).to_le_bytes()).collect();
                Entry { name, dtype: Dtype::I64, shape: shape.to_vec(), data }
            }
        }
    };
    let mut entries: Vec<Entry> = batch.tensors.iter().map(view).collect();
    let all = losses.parts.iter().map(|(name, value)| (name.as_str(), *value));
    for (name, value) in all.chain([("total", losses.total)]) {
        let data = value.to_le_bytes().to_vec();
        entries.push(Entry { name: format!("loss.{name}"), dtype: Dtype::F64, shape: vec![], data });
    }
    laid_out(entries, Some(HashMap::from([("config".to_owned(), config)])))
}
