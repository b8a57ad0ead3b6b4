//! What a run keeps: checkpoints, and lists of what was left out.

use super::{Run, rank};
use crate::data::left_out::LeftOut;
use crate::error::Result;
use crate::train::checkpoint::{RunState, TensorView};
use serde_json::Value;
use std::collections::BTreeMap;

impl Run<'_> {
    pub(super) fn save(&mut self) -> Result<()> {
        let _aside = rank::aside(self.ranks.as_ref());
        self.list_skipped_images()?;
        self.recorder.sync()?;
        self.save_state()
    }

    pub(super) fn save_state(&mut self) -> Result<()> {
        let per_epoch = self.stepper.loader.batches_per_epoch().max(1);
        let state = RunState {
            step: self.stepper.step,
            epoch: self.stepper.micro_steps_done() / per_epoch,
            seed: self.cfg.data.seed,
            config_hash: self.cfg.fingerprint()?,
            engine_version: env!("CARGO_PKG_VERSION").into(),
            images: Some(self.trained_on.clone()),
            dtype: Some(self.stepper.engine.backend().dtype().to_string()),
            counters: BTreeMap::from([("skipped_steps".into(), self.guard.total())]),
            history: Value::Null,
        };
        let tensors = self.stepper.engine.state()?;
        let views: Vec<TensorView<'_>> =
            tensors.iter().map(|(name, shape, data)| TensorView { name, shape, data }).collect();
        let saved = self.checkpoints.save(&state, &views)?;
        self.saved = Some(self.stepper.step);
        for w in saved.warnings {
            self.progress.println(&format!("warning: {w}"));
            self.warnings.push(w);
        }
        Ok(())
    }

    /// Says which training images are left out, as far as is known.
    pub(super) fn list_skipped_images(&mut self) -> Result<()> {
        let skipped = self.stepper.loader.skipped();
        let used = self.source.len() - skipped.len();
        let all: Vec<LeftOut> = self.source.left_out().iter().cloned().chain(skipped).collect();
        let news = self.skipped[0].news(used, &all)?;
        self.tell(news);
        Ok(())
    }

    pub(super) fn tell(&mut self, news: Option<String>) {
        if let Some(message) = news {
            self.progress.println(&message);
            self.warnings.push(message);
        }
    }
}
