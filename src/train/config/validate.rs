//! The range checks of a configuration, all in one place.

use super::{TrainConfig, schema};
use crate::error::{Error, Result};
use crate::ir::PATCH;
use crate::models::{EncoderKey, KeyRule};
use crate::objectives::NAMES;
use crate::objectives::saip::scale_buckets;

/// Edges beyond this are slips of the keyboard, and would overflow sizes further on.
pub const MAX_EDGE: usize = 4096;
/// Likewise for widths, depths and counts of model parts.
const MAX_WIDTH: usize = 1 << 20;
const MAX_DEPTH: usize = 1024;
/// Images per update and similar counts.
const MAX_COUNT: usize = 1 << 24;

impl TrainConfig {
    /// Checks every range and every relation between keys.
    ///
    /// # Errors
    /// [`Error::Config`] for the first that is broken: names the key, what it must be, and what to set.
    pub fn validate(&self) -> Result<()> {
        self.validate_encoder()?;
        self.validate_expert()?;
        self.validate_decoders()?;
        self.validate_views()?;
        self.augment.validate()?;
        self.dino.validate()?;
        self.validate_optim()?;
        self.validate_data()?;
        self.validate_run()
    }

    /// What has keys of its own in sections that others share.
    fn is_saip(&self) -> bool {
        self.objective == NAMES[0]
    }

    fn validate_encoder(&self) -> Result<()> {
        share_below_one("encoder.drop_path", self.encoder.drop_path)?;
        let architecture = &self.encoder.architecture;
        let tree = serde_json::to_value(architecture)
            .map_err(|e| Error::invariant("checking the encoder", e.to_string()))?;
        let values = |key: &str| -> Vec<usize> {
            let value = &tree[key.rsplit('.').next().unwrap_or(key)];
            let one = std::slice::from_ref(value);
            let all = value.as_array().map_or(one, Vec::as_slice);
            all.iter().filter_map(|v| v.as_u64()).map(|v| v as usize).collect()
        };
        let kind = tree["kind"].as_str().and_then(schema::encoder);
        for EncoderKey { name, rule, .. } in kind.map_or(&[][..], |kind| kind.keys) {
            let given = values(name);
            match rule {
                KeyRule::Width => given.iter().try_for_each(|v| count(name, *v, MAX_WIDTH))?,
                KeyRule::Depth => given.iter().try_for_each(|v| count(name, *v, MAX_DEPTH))?,
                KeyRule::Window => given.iter().try_for_each(|v| count(name, *v, MAX_EDGE))?,
                KeyRule::UpTo(most) => given.iter().try_for_each(|v| count(name, *v, *most))?,
                KeyRule::Divides(whole) => {
                    let mut pairs = given.iter().zip(values(whole));
                    pairs.try_for_each(|(v, of)| heads(name, *v, whole, of))?;
                }
                KeyRule::Below(key) => {
                    for (v, end) in given.iter().zip(values(key)) {
                        let last = end.saturating_sub(1);
                        require(*v < end, name, || format!("{v} is no block of {end}: use 0 to {last}"))?;
                    }
                }
                KeyRule::ImageSize => {
                    // Unless it is given it follows the views: the key to mend is then theirs.
                    let follows = given == self.views.global_size;
                    image_size(if follows { "views.global_size" } else { name }, &given)?;
                }
            }
        }
        Ok(())
    }

    /// The rest shows when the files are read.
    fn validate_expert(&self) -> Result<()> {
        let given =
            |path: &Option<std::path::PathBuf>| path.as_ref().is_none_or(|p| !p.as_os_str().is_empty());
        let (expert, init) = (&self.expert, &self.encoder.init);
        require(given(&expert.path), "expert.path", || {
            "is empty: name a file of weights, or `none` for the student's moving average".into()
        })?;
        require(expert.path.is_none() || self.is_saip(), "expert.path", || {
            format!(
                "is for the objective {}: that of {} is always the student's moving average, leave it `none`",
                NAMES[0], self.objective
            )
        })?;
        require(given(init), "encoder.init", || "is empty: name a file of weights, or `none`".into())?;
        let keys = [
            ("expert.num_heads", expert.num_heads.is_some()),
            ("expert.tap", expert.tap.is_some()),
            ("expert.grid", expert.grid.is_some()),
            ("expert.entry", expert.entry.is_some()),
            ("expert.mean", expert.mean.is_some()),
            ("expert.std", expert.std.is_some()),
        ];
        for (key, set) in keys {
            require(!set || expert.path.is_some(), key, || "needs an expert: set `expert.path` too".into())?;
        }
        let encoder = &self.encoder;
        let keys = [
            ("encoder.init_grid", encoder.init_grid.is_some()),
            ("encoder.init_entry", encoder.init_entry.is_some()),
            ("encoder.init_mean", encoder.init_mean.is_some()),
            ("encoder.init_std", encoder.init_std.is_some()),
        ];
        for (key, set) in keys {
            require(!set || init.is_some(), key, || "needs weights: set `encoder.init` too".into())?;
        }
        Ok(())
    }

    fn validate_decoders(&self) -> Result<()> {
        let (csm, csr, css) = (&self.csm, &self.csr, &self.css);
        count("csm.hidden", csm.hidden, MAX_WIDTH)?;
        count("csm.bottleneck", csm.bottleneck, MAX_WIDTH)?;
        count("csm.prototypes", csm.prototypes, MAX_COUNT)?;
        require(csm.prototypes >= 2, "csm.prototypes", || {
            "a distribution over 1 prototype says nothing: use at least 2, usually thousands".into()
        })?;
        count("csr.dim", csr.dim, MAX_WIDTH)?;
        count("csr.depth", csr.depth, MAX_DEPTH)?;
        heads("csr.heads", csr.heads, "csr.dim", csr.dim)?;
        count("css.dim", css.dim, MAX_WIDTH)?;
        count("css.depth", css.depth, MAX_DEPTH)?;
        heads("css.heads", css.heads, "css.dim", css.dim)?;
        count("css.convs", css.convs, MAX_DEPTH)?;
        let weights = [("csm.weight", csm.weight), ("csr.weight", csr.weight), ("css.weight", css.weight)];
        for (key, weight) in weights {
            not_negative(key, weight)?;
        }
        require(!self.is_saip() || weights.iter().any(|(_, w)| *w > 0.0), "csm.weight", || {
            "all three objectives are switched off: give `csm.weight`, `csr.weight` or `css.weight` more than 0".into()
        })
    }

    fn validate_views(&self) -> Result<()> {
        let views = &self.views;
        image_size("views.global_size", &views.global_size)?;
        image_size("views.local_size", &views.local_size)?;
        image_size("views.scene_size", &[views.scene_size])?;
        count("views.locals", views.locals, 1024)?;
        let ratio = views.mask_ratio;
        require(ratio > 0.0 && ratio < 1.0, "views.mask_ratio", || {
            format!("{ratio} must lie between 0 and 1, both excluded; 0.75 is usual")
        })?;
        let [low, high] = views.scale;
        require(low > 0.0 && low <= high && high <= 16.0, "views.scale", || {
            format!("[{low}, {high}] must be a smallest and a largest scale, above 0 and at most 16")
        })?;
        count("views.scale_buckets", views.scale_buckets, 64)?;
        let base = self.step_config(views.local_size, views.global_size);
        // Others have neither rescaled nor masked views.
        let buckets = if self.is_saip() { views.scale_buckets } else { 0 };
        for scale in scale_buckets(views.scale, buckets) {
            let step = base.at_scale(scale);
            image_size("views.scale", &step.rescaled_size)?;
            image_size("views.scale", &step.masked_size)?;
            let [h, w] = step.masked_size;
            let (patches, visible) = ((h / PATCH) * (w / PATCH), step.visible_patches());
            require((1..patches).contains(&visible), "views.mask_ratio", || {
                format!(
                    "{ratio} leaves {visible} of {patches} patches visible at {h}x{w} (scale {scale:.3}), but at \
                     least 1 must be visible and 1 hidden: move it towards 0.5, or enlarge `views.global_size`"
                )
            })?;
        }
        Ok(())
    }

    fn validate_optim(&self) -> Result<()> {
        let o = &self.optim;
        positive("optim.base_lr", o.base_lr)?;
        not_negative("optim.min_lr", o.min_lr)?;
        count("optim.batch", o.batch, MAX_COUNT)?;
        count("optim.effective_batch", o.effective_batch, MAX_COUNT)?;
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
        not_negative("optim.weight_decay", o.weight_decay)?;
        o.weight_decay_end.map_or(Ok(()), |end| not_negative("optim.weight_decay_end", end))?;
        o.betas.iter().try_for_each(|beta| share_below_one("optim.betas", *beta))?;
        positive("optim.eps", o.eps)?;
        not_negative("optim.clip_norm", o.clip_norm)?;
        require(o.epochs > 0, "optim.epochs", || "must be at least 1".into())?;
        require(o.steps != Some(0), "optim.steps", || {
            "must be at least 1; `none` takes `optim.epochs` instead".into()
        })?;
        not_negative("optim.warmup_epochs", o.warmup_epochs)?;
        let shorter = |warmup: u64, steps: u64| warmup < steps;
        if let (Some(warmup), Some(steps)) = (o.warmup_steps, o.steps) {
            require(shorter(warmup, steps), "optim.warmup_steps", || {
                format!("{warmup} must be less than `optim.steps` = {steps}")
            })?;
        }
        require(
            o.warmup_steps.is_some() || o.steps.is_some() || o.warmup_epochs < o.epochs as f64,
            "optim.warmup_epochs",
            || format!("{} must be less than `optim.epochs` = {}", o.warmup_epochs, o.epochs),
        )?;
        positive("optim.teacher_temp", o.teacher_temp)?;
        positive("optim.student_temp", o.student_temp)?;
        share_below_one("optim.center_momentum", o.center_momentum)?;
        share("optim.ema_momentum", o.ema_momentum)
    }

    fn validate_data(&self) -> Result<()> {
        let data = &self.data;
        require(data.workers <= 1024, "data.workers", || format!("{} is more than 1024", data.workers))?;
        count("data.prefetch", data.prefetch, 1024)?;
        require(i64::try_from(data.seed).is_ok(), "data.seed", || {
            format!("{} is above {}, the largest that TOML can hold", data.seed, i64::MAX)
        })?;
        let path = data.path.as_ref();
        require(path.is_none_or(|p| !p.as_os_str().is_empty()), "data.path", || {
            "is empty: name a folder, or `none` for synthetic persons".into()
        })?;
        count("data.synth.identities", data.synth.identities, MAX_COUNT)?;
        count("data.synth.images_per_identity", data.synth.images_per_identity, MAX_COUNT)?;
        count("data.synth.cameras", data.synth.cameras, MAX_COUNT)
    }

    fn validate_run(&self) -> Result<()> {
        let run = &self.run;
        let at_least_one = [
            ("run.log_every", run.log_every),
            ("run.checkpoint_every", run.checkpoint_every),
            ("run.keep_checkpoints", run.keep_checkpoints as u64),
            ("run.max_bad_steps", run.max_bad_steps),
        ];
        for (key, value) in at_least_one {
            require(value > 0, key, || "must be at least 1".into())?;
        }
        require(run.threads <= 1024, "run.threads", || format!("{} is more than 1024", run.threads))?;
        share("run.alarm_entropy_low", run.alarm_entropy_low)?;
        share("run.alarm_entropy_high", run.alarm_entropy_high)?;
        not_negative("run.alarm_spread", run.alarm_spread)
    }
}

fn require(ok: bool, key: &str, message: impl FnOnce() -> String) -> Result<()> {
    if ok { Ok(()) } else { Err(Error::config(key, message())) }
}

fn count(key: &str, value: usize, max: usize) -> Result<()> {
    require((1..=max).contains(&value), key, || format!("{value} must be between 1 and {max}"))
}

fn positive(key: &str, value: f64) -> Result<()> {
    require(value.is_finite() && value > 0.0, key, || format!("{value} must be more than 0"))
}

fn not_negative(key: &str, value: f64) -> Result<()> {
    require(value.is_finite() && value >= 0.0, key, || format!("{value} must be 0 or more"))
}

fn share(key: &str, value: f64) -> Result<()> {
    require((0.0..=1.0).contains(&value), key, || format!("{value} must be between 0 and 1"))
}

fn share_below_one(key: &str, value: f64) -> Result<()> {
    require((0.0..1.0).contains(&value), key, || format!("{value} must be 0 or more and less than 1"))
}

fn heads(key: &str, heads: usize, dim_key: &str, dim: usize) -> Result<()> {
    require(heads > 0 && dim.is_multiple_of(heads), key, || {
        let fitting: Vec<_> =
            (1..=dim.min(64)).filter(|h| dim.is_multiple_of(*h)).map(|h| h.to_string()).collect();
        format!("{heads} does not divide `{dim_key}` = {dim}: use one of {}", fitting.join(", "))
    })
}

/// Every edge must be a multiple of the patch.
fn image_size(key: &str, edges: &[usize]) -> Result<()> {
    for edge in edges {
        require((1..=MAX_EDGE).contains(edge), key, || {
            format!("{edge} pixels must be between {PATCH} and {MAX_EDGE}")
        })?;
        require(edge.is_multiple_of(PATCH), key, || {
            let above = edge.next_multiple_of(PATCH);
            let below = above - PATCH;
            let nearest = if below == 0 { format!("{above}") } else { format!("{below} or {above}") };
            format!("{edge} is no multiple of the {PATCH}-pixel patch: use {nearest}")
        })?;
    }
    Ok(())
}
