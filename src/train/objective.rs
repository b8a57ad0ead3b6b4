//! The objective that a configuration names.

use super::config::TrainConfig;
use super::pretrained::expert_encoder;
use super::sources;
use crate::error::{Error, Result};
use crate::models::EncoderConfig;
use crate::objectives::dino::{self, Dino};
use crate::objectives::prototype_head::HeadConfig;
use crate::objectives::saip::{Saip, scale_buckets};
use crate::objectives::supervised::{self, Supervised};
use crate::objectives::{NAMES, Objective, Thresholds};
use std::sync::Arc;

/// What `cfg` learns, with the expert of its file.
///
/// # Errors
/// Those of reading that file; sizes that are out of range; images without classes where these are learned.
pub fn objective(cfg: &TrainConfig) -> Result<Arc<dyn Objective>> {
    with_expert(cfg, expert_encoder(cfg)?, &[])
}

/// The same with an expert that is known already, and buckets for `more` scales than the configuration has.
///
/// # Errors
/// For sizes that are out of range; images without classes where these are learned.
pub fn with_expert(
    cfg: &TrainConfig,
    expert: Option<EncoderConfig>,
    more: &[f64],
) -> Result<Arc<dyn Objective>> {
    let run = &cfg.run;
    let thresholds = Thresholds {
        low: run.alarm_entropy_low,
        high: run.alarm_entropy_high,
        spread: run.alarm_spread,
        steps: run.alarm_steps,
    };
    match cfg.objective.as_str() {
        "saip" => saip(cfg, expert, more, thresholds),
        "dino" => dino(cfg, thresholds),
        "supervised" => supervised(cfg),
        other => {
            let message = format!("{other} is none: choose one of {}", NAMES.join(", "));
            Err(Error::config("objective", message))
        }
    }
}

fn saip(
    cfg: &TrainConfig,
    expert: Option<EncoderConfig>,
    more: &[f64],
    thresholds: Thresholds,
) -> Result<Arc<dyn Objective>> {
    let mut base = cfg.step_config(cfg.views.local_size, cfg.views.global_size);
    base.expert_encoder = expert;
    let mut scales = scale_buckets(cfg.views.scale, cfg.views.scale_buckets);
    scales.extend(more);
    let saip = Saip::new(base, &scales, cfg.augment.clone(), thresholds)?;
    Ok(Arc::new(saip.with_betas(cfg.optim.betas)))
}

fn dino(cfg: &TrainConfig, thresholds: Thresholds) -> Result<Arc<dyn Objective>> {
    let (views, optim, own) = (&cfg.views, &cfg.optim, &cfg.dino);
    let step = dino::StepConfig {
        batch: optim.batch,
        global_size: views.global_size,
        local_size: views.local_size,
        locals: views.locals,
        student_temp: optim.student_temp,
        teacher_temp: optim.teacher_temp,
        center_momentum: optim.center_momentum,
        momentum: optim.ema_momentum,
        lr: optim.peak_lr(),
        weight_decay: optim.weight_decay,
        betas: optim.betas,
        adam_eps: optim.eps,
        clip: (optim.clip_norm > 0.0).then_some((own.clip, optim.clip_norm)),
        decay: own.decay,
        csm: HeadConfig {
            hidden: cfg.csm.hidden,
            bottleneck: cfg.csm.bottleneck,
            prototypes: cfg.csm.prototypes,
            gain: own.gain,
        },
        encoder: cfg.encoder.architecture.clone(),
        freeze_last_layer: false,
        schedule: None,
    };
    Ok(Arc::new(Dino::new(step, own, cfg.augment.clone(), thresholds)?))
}

fn supervised(cfg: &TrainConfig) -> Result<Arc<dyn Objective>> {
    let (optim, own) = (&cfg.optim, &cfg.supervised);
    let step = supervised::StepConfig {
        batch: optim.batch,
        global_size: cfg.views.global_size,
        classes: sources::classes(cfg)?,
        smoothing: own.smoothing,
        lr: optim.peak_lr(),
        weight_decay: optim.weight_decay,
        betas: optim.betas,
        adam_eps: optim.eps,
        clip_norm: (optim.clip_norm > 0.0).then_some(optim.clip_norm),
        encoder: cfg.encoder.architecture.clone(),
    };
    Ok(Arc::new(Supervised::new(step, cfg.augment.clone(), own.mixing())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Op, Region};
    use crate::step::StepOptions;

    #[test]
    fn every_objective_of_the_table_is_built() {
        for name in NAMES {
            let cfg = TrainConfig::resolve(Some("demo"), None, &[format!("objective={name}")]).unwrap();
            let e = with_expert(&cfg, None, &[]).err();
            assert!(e.is_none(), "{name}: {e:?}");
        }
    }

    /// What each says of its calls is what its steps do.
    #[test]
    fn encoders_are_called_as_often_as_is_told() {
        let losses = ["csm.weight=0", "csr.weight=0", "css.weight=0", "views.locals=1"];
        for name in NAMES {
            for other in losses {
                let sets = [format!("objective={name}"), other.to_owned(), "optim.batch=2".to_owned()];
                let cfg = TrainConfig::resolve(Some("demo-starnet"), None, &sets).unwrap();
                let objective = with_expert(&cfg, None, &[]).unwrap();
                let graph = objective.step(0, &StepOptions::default()).unwrap().graph;
                let groups = |region: Region| {
                    let of = |node: &crate::ir::Node| match &node.op {
                        Op::RunningStatistics(s) => {
                            let binding = graph.value(node.outputs[0]).binding;
                            binding.filter(|b| b.region == region).map(|_| s.groups.len() as u64)
                        }
                        _ => None,
                    };
                    graph.nodes.iter().find_map(of).unwrap_or(0)
                };
                let found = [groups(Region::Buffers), groups(Region::ExpertBuffers)];
                assert_eq!(objective.encoder_calls().unwrap(), found, "{name}, {other}");
            }
        }
    }
}
