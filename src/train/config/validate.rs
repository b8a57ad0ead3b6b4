//! Relations between keys; the range of each stands at its field.

use super::TrainConfig;
use crate::error::{Error, Result};
use crate::ir::PATCH;
use crate::keys::MAX_EDGE;
use crate::objectives::NAMES;
use crate::objectives::saip::scale_buckets;

impl TrainConfig {
    /// Checks every range and every relation between keys.
    ///
    /// # Errors
    /// [`Error::Config`] for the first that is broken: names the key, what it must be, and what to set.
    pub fn validate(&self) -> Result<()> {
        let seed = self.data.seed;
        require(i64::try_from(seed).is_ok(), "data.seed", || {
            format!("{seed} is above {}, the largest that TOML can hold", i64::MAX)
        })?;
        // A position table that is not given follows the views: theirs is then the key to mend.
        self.views.check("views")?;
        self.check("")?;
        self.validate_expert()?;
        self.validate_weights()?;
        self.validate_labels()?;
        self.validate_views()?;
        self.validate_optim()
    }

    /// What has keys of its own in sections that others share.
    fn is_saip(&self) -> bool {
        self.objective == NAMES[0]
    }

    /// The rest shows when the files are read.
    fn validate_expert(&self) -> Result<()> {
        let (expert, encoder) = (&self.expert, &self.encoder);
        require(expert.path.is_none() || self.is_saip(), "expert.path", || {
            format!(
                "is for the objective {}: {} has at most the student's moving average, leave it `none`",
                NAMES[0], self.objective
            )
        })?;
        let of_expert = [
            ("expert.num_heads", expert.num_heads.is_some()),
            ("expert.tap", expert.tap.is_some()),
            ("expert.grid", expert.grid.is_some()),
            ("expert.entry", expert.entry.is_some()),
            ("expert.mean", expert.mean.is_some()),
            ("expert.std", expert.std.is_some()),
        ];
        for (key, set) in of_expert {
            require(!set || expert.path.is_some(), key, || "needs an expert: set `expert.path` too".into())?;
        }
        let of_weights = [
            ("encoder.init_grid", encoder.init_grid.is_some()),
            ("encoder.init_entry", encoder.init_entry.is_some()),
            ("encoder.init_mean", encoder.init_mean.is_some()),
            ("encoder.init_std", encoder.init_std.is_some()),
        ];
        for (key, set) in of_weights {
            require(!set || encoder.init.is_some(), key, || "needs weights: set `encoder.init` too".into())?;
        }
        Ok(())
    }

    fn validate_weights(&self) -> Result<()> {
        let on = [self.csm.weight, self.csr.weight, self.css.weight].iter().any(|w| *w > 0.0);
        require(on || !self.is_saip(), "csm.weight", || {
            "all three objectives are switched off: give `csm.weight`, `csr.weight` or `css.weight` more than 0".into()
        })
    }

    fn validate_labels(&self) -> Result<()> {
        require(self.data.labels.is_none() || self.data.path.is_some(), "data.labels", || {
            "needs images: set `data.path` too".into()
        })
    }

    /// The views that SAIP derives from the others; no other objective has them.
    fn validate_views(&self) -> Result<()> {
        let views = &self.views;
        let base = self.step_config(views.local_size, views.global_size);
        let buckets = if self.is_saip() { views.scale_buckets } else { 0 };
        for scale in scale_buckets(views.scale, buckets) {
            let step = base.at_scale(scale);
            for [h, w] in [step.rescaled_size, step.masked_size] {
                require(h.max(w) <= MAX_EDGE, "views.scale", || {
                    format!("{scale:.3} makes a view of {h}x{w} pixels, the most are {MAX_EDGE}: lower it")
                })?;
            }
            let [h, w] = step.masked_size;
            let (patches, visible) = ((h / PATCH) * (w / PATCH), step.visible_patches());
            require((1..patches).contains(&visible), "views.mask_ratio", || {
                format!(
                    "{} leaves {visible} of {patches} patches visible at {h}x{w} (scale {scale:.3}), but at \
                     least 1 must be visible and 1 hidden: move it towards 0.5, or enlarge `views.global_size`",
                    views.mask_ratio
                )
            })?;
        }
        Ok(())
    }

    fn validate_optim(&self) -> Result<()> {
        let o = &self.optim;
        require(o.effective_batch.is_multiple_of(o.batch), "optim.effective_batch", || {
            let low = (o.effective_batch / o.batch).max(1) * o.batch;
            format!(
                "{} is no multiple of `optim.batch` = {}: use {low} or {}, or change the batch",
                o.effective_batch,
                o.batch,
                low + o.batch
            )
        })?;
        require(o.min_lr <= o.peak_lr(), "optim.min_lr", || {
            format!(
                "{:e} is above the peak of {:e} (`optim.base_lr` times `optim.effective_batch` / 256): lower it",
                o.min_lr,
                o.peak_lr()
            )
        })?;
        if let (Some(warmup), Some(steps)) = (o.warmup_steps, o.steps) {
            require(warmup < steps, "optim.warmup_steps", || {
                format!("{warmup} must be less than `optim.steps` = {steps}")
            })?;
        }
        require(
            o.warmup_steps.is_some() || o.steps.is_some() || o.warmup_epochs < o.epochs as f64,
            "optim.warmup_epochs",
            || format!("{} must be less than `optim.epochs` = {}", o.warmup_epochs, o.epochs),
        )
    }
}

fn require(ok: bool, key: &str, message: impl FnOnce() -> String) -> Result<()> {
    if ok { Ok(()) } else { Err(Error::config(key, message())) }
}
