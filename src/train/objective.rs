//! The objective that a configuration names.

use super::config::TrainConfig;
use super::pretrained::expert_encoder;
use crate::error::Result;
use crate::models::EncoderConfig;
use crate::objectives::dino::{self, Dino};
use crate::objectives::prototype_head::HeadConfig;
use crate::objectives::saip::{Saip, scale_buckets};
use crate::objectives::{Objective, Thresholds};
use std::sync::Arc;

/// What `cfg` learns, with the expert of its file.
///
/// # Errors
/// Those of reading that file; sizes that are out of range.
pub fn objective(cfg: &TrainConfig) -> Result<Arc<dyn Objective>> {
    with_expert(cfg, expert_encoder(cfg)?, &[])
}

/// The same with an expert that is known already, and buckets for `more` scales than the configuration has.
///
/// # Errors
/// For sizes that are out of range.
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
        "dino" => dino(cfg, thresholds),
        _ => saip(cfg, expert, more, thresholds),
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
