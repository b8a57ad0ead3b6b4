//! The objective that a configuration names.

use super::config::TrainConfig;
use super::pretrained::expert_encoder;
use crate::error::Result;
use crate::models::EncoderConfig;
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
    let mut base = cfg.step_config(cfg.views.local_size, cfg.views.global_size);
    base.expert_encoder = expert;
    let mut scales = scale_buckets(cfg.views.scale, cfg.views.scale_buckets);
    scales.extend(more);
    let run = &cfg.run;
    let thresholds = Thresholds {
        low: run.alarm_entropy_low,
        high: run.alarm_entropy_high,
        spread: run.alarm_spread,
        steps: run.alarm_steps,
    };
    let saip = Saip::new(base, &scales, cfg.augment.clone(), thresholds)?;
    Ok(Arc::new(saip.with_betas(cfg.optim.betas)))
}
