//! The configuration of a run: preset, then a TOML file, then single keys; checked as a whole before anything starts.

mod resolve;
mod sections;
mod validate;

pub use sections::{
    DataSection, DistSection, EncoderSection, ExpertSection, OptimSection, PROBE_PERSONS, ProbeFeatures,
    RunSection, SynthSection, ViewsSection,
};

use crate::data::augment::AugmentConfig;
use crate::error::{Error, Result};
use crate::keys::{Range, section};
use crate::objectives::NAMES;
use crate::objectives::dino::DinoSection;
use crate::objectives::prototype_head::{CsmSection, HeadConfig};
use crate::objectives::saip::config::{CsrConfig, CsrSection, CssConfig, CssSection, StepConfig};
use crate::objectives::supervised::SupervisedSection;
use crate::step::schedule::{Schedule, scaled_lr};

section! {
    /// Everything that decides what a run does. Built by [`TrainConfig::resolve`], which also checks it. The defaults are the
    /// paper's recipe.
    pub struct TrainConfig {
        /// What is learned; supervised is from classes.
        pub objective: String = NAMES[0].into(), Range::OneOf(NAMES);
        /// The encoder to train.
        pub encoder: EncoderSection = EncoderSection::default();
        /// A frozen pretrained expert.
        pub expert: ExpertSection = ExpertSection::default();
        /// The image-level head.
        pub csm: CsmSection = CsmSection::default();
        /// SAIP's reconstruction decoder.
        pub csr: CsrSection = CsrSection::default();
        /// SAIP's search decoder.
        pub css: CssSection = CssSection::default();
        /// What DINO has beside these.
        pub dino: DinoSection = DinoSection::default();
        /// What supervised training has beside these.
        pub supervised: SupervisedSection = SupervisedSection::default();
        /// Views of an image: [height, width] in pixels, multiples of 16.
        pub views: ViewsSection = ViewsSection::default();
        /// How views are augmented.
        pub augment: AugmentConfig = AugmentConfig::default();
        /// Optimizer and schedules.
        pub optim: OptimSection = OptimSection::default();
        /// Where the images come from.
        pub data: DataSection = DataSection::default();
        /// Several ranks (processes, one a device) that share every update.
        pub dist: DistSection = DistSection::default();
        /// Logs, checkpoints, probes and guards.
        pub run: RunSection = RunSection::default();
    }
}

impl OptimSection {
    /// Learning rate at the end of the warm-up: `base_lr` scaled to the effective batch.
    pub fn peak_lr(&self) -> f64 {
        scaled_lr(self.base_lr, self.effective_batch)
    }

    /// Micro steps of an update that each of `world` ranks makes.
    ///
    /// # Errors
    /// [`Error::Config`] when the effective batch is no multiple of what all ranks take in one micro step; says what would fit.
    pub fn accumulation(&self, world: usize) -> Result<usize> {
        let whole = self.effective_batch;
        let micro = self.batch.checked_mul(world).filter(|m| *m > 0);
        match micro {
            Some(micro) if whole > 0 && whole.is_multiple_of(micro) => Ok(whole / micro),
            _ => Err(Error::config(
                "optim.effective_batch",
                format!(
                    "{whole} images cannot be shared by {world} ranks with `optim.batch` = {} each: {}",
                    self.batch,
                    self.what_fits(world)
                ),
            )),
        }
    }

    /// What to choose where `world` ranks cannot share an update.
    fn what_fits(&self, world: usize) -> String {
        const FEW: usize = 8;
        let divisors = |n: usize| (1..=n.min(1 << 16)).filter(move |d| n.is_multiple_of(*d));
        let mut ways = Vec::new();
        if self.batch > 0 && self.effective_batch.is_multiple_of(self.batch) {
            let ranks = divisors(self.effective_batch / self.batch).take(FEW);
            ways.push(format!("start {} ranks", either(ranks)));
        }
        if world > 0 && self.effective_batch.is_multiple_of(world) {
            let mut near: Vec<usize> = divisors(self.effective_batch / world).collect();
            near.sort_by_key(|d| d.abs_diff(self.batch));
            near.truncate(FEW / 2);
            near.sort_unstable();
            ways.push(format!("set `optim.batch` to {}", either(near.into_iter())));
        }
        let step = self.batch.saturating_mul(world).max(1);
        ways.push(format!("set `optim.effective_batch` to {}", (self.effective_batch / step).max(1) * step));
        ways.join(", or ")
    }
}

/// `1, 2 or 4`.
fn either(numbers: impl Iterator<Item = usize>) -> String {
    let all: Vec<String> = numbers.map(|n| n.to_string()).collect();
    match all.split_last() {
        Some((last, first)) if !first.is_empty() => format!("{} or {last}", first.join(", ")),
        _ => all.concat(),
    }
}

impl TrainConfig {
    /// The SAIP step of one shape bucket. Learning rate, weight decay and momentum are those of the end of the warm-up and
    /// of the start; the loop writes the current ones of [`TrainConfig::schedule`] at every step. The encoder of a frozen expert
    /// is left out: [`expert_encoder`](super::pretrained::expert_encoder) reads it from its file.
    pub fn step_config(&self, rescaled_size: [usize; 2], masked_size: [usize; 2]) -> StepConfig {
        let (views, optim) = (&self.views, &self.optim);
        StepConfig {
            batch: optim.batch,
            global_size: views.global_size,
            local_size: views.local_size,
            locals: views.locals,
            rescaled_size,
            masked_size,
            scene_size: views.scene_size,
            mask_ratio: views.mask_ratio,
            student_temp: optim.student_temp,
            teacher_temp: optim.teacher_temp,
            center_momentum: optim.center_momentum,
            momentum: optim.ema_momentum,
            lr: optim.peak_lr(),
            weight_decay: optim.weight_decay,
            adam_eps: optim.eps,
            clip_norm: (optim.clip_norm > 0.0).then_some(optim.clip_norm),
            loss_weights: [self.csm.weight, self.csr.weight, self.css.weight],
            csm: HeadConfig {
                hidden: self.csm.hidden,
                bottleneck: self.csm.bottleneck,
                prototypes: self.csm.prototypes,
                gain: false,
            },
            csr: CsrConfig { dim: self.csr.dim, depth: self.csr.depth, heads: self.csr.heads },
            css: CssConfig {
                dim: self.css.dim,
                depth: self.css.depth,
                heads: self.css.heads,
                convs: self.css.convs,
            },
            encoder: self.encoder.architecture.clone(),
            expert_encoder: None,
        }
    }

    /// Updates per pass over `images` training images; an incomplete last batch is left out. Where there are fewer images
    /// than one update takes they repeat within it, and an update is a pass.
    pub fn steps_per_epoch(&self, images: usize) -> u64 {
        (images / self.optim.effective_batch.max(1)).max(1) as u64
    }

    /// The schedules of a run over `images` training images.
    ///
    /// # Errors
    /// [`Error::Config`] when the warm-up fills the whole run.
    pub fn schedule(&self, images: usize) -> Result<Schedule> {
        let optim = &self.optim;
        let per_epoch = self.steps_per_epoch(images);
        let steps = match optim.steps {
            Some(steps) => steps,
            None => optim.epochs.checked_mul(per_epoch).ok_or_else(|| {
                Error::config(
                    "optim.epochs",
                    format!("{} epochs are more steps than can be counted", optim.epochs),
                )
            })?,
        };
        let (key, warmup_steps) = match optim.warmup_steps {
            Some(steps) => ("optim.warmup_steps", steps),
            None => ("optim.warmup_epochs", (optim.warmup_epochs * per_epoch as f64).round() as u64),
        };
        if warmup_steps >= steps {
            return Err(Error::config(
                key,
                format!(
                    "a warm-up of {warmup_steps} steps leaves nothing of the run's {steps} steps: set \
                     `optim.warmup_steps` below {steps}, or train longer"
                ),
            ));
        }
        Ok(Schedule {
            steps,
            steps_per_epoch: per_epoch,
            warmup_steps,
            peak_lr: optim.peak_lr(),
            min_lr: optim.min_lr,
            weight_decay: optim.weight_decay,
            weight_decay_end: optim.weight_decay_end.unwrap_or(optim.weight_decay),
            ema_momentum: optim.ema_momentum,
        })
    }
}

#[cfg(test)]
mod tests;
