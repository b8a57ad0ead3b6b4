//! Every program that a configuration makes its device compile: training with and without accumulation, calibration, the
//! probe, features, the report's pictures.

use super::engine::{Engine, EngineOptions};
use super::features::FeatureProgram;
use super::objective::with_expert;
use super::pretrained::expert_encoder;
use super::probe;
use super::summary;
use crate::backend::Backend;
use crate::error::Result;
use crate::ir::Region;
use crate::models::EmbedOptions;
use crate::train::config::TrainConfig;
use std::sync::Arc;

/// Compiles all of them on backends that `open` makes, for the scales of the configuration and `more`.
///
/// # Errors
/// Those of the configuration, of building and of compiling.
pub fn compile_all(cfg: &TrainConfig, more: &[f64], open: impl Fn() -> Box<dyn Backend>) -> Result<()> {
    let objective = with_expert(cfg, expert_encoder(cfg)?, more)?;
    let accumulation = cfg.optim.accumulation(1)?;
    // Without accumulation is how steps are timed and the center is calibrated.
    for micro_steps in if accumulation > 1 { vec![1, accumulation] } else { vec![1] } {
        for recompute in [false, true] {
            let (drop_path, seed) = (cfg.encoder.drop_path, cfg.data.seed);
            let options = EngineOptions { micro_steps, drop_path, recompute, seed };
            let mut engine = Engine::new(open(), Arc::clone(&objective), options)?;
            if micro_steps == 1 && !recompute {
                probe::compile(&mut engine, cfg)?;
                summary::compile_pictures(&mut engine, &*objective)?;
                features(cfg, &mut engine)?;
            }
        }
    }
    Ok(())
}

/// Features with patch tokens, of the student; the expert's are of the same shape.
fn features(cfg: &TrainConfig, engine: &mut Engine) -> Result<()> {
    let opts = EmbedOptions {
        dtype: engine.backend().dtype(),
        region: Region::Params,
        batch: probe::BATCH,
        size: cfg.views.global_size,
        patch_tokens: true,
    };
    let registry = engine.student().clone();
    FeatureProgram::compile(engine.backend(), &cfg.encoder.architecture, &registry, &opts).map(drop)
}
