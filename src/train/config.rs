//! The configuration of a run: preset, then a TOML file, then single keys; checked as a whole before anything starts.

mod resolve;
mod schema;
mod validate;

pub use validate::MAX_EDGE;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::data::augment::AugmentConfig;
use crate::error::{Error, Result};
use crate::models::EncoderConfig;
use crate::objectives::dino::DinoSection;
use crate::objectives::prototype_head::HeadConfig;
use crate::objectives::saip::config::{CsrConfig, CssConfig, StepConfig};
use crate::step::schedule::{Schedule, scaled_lr};

/// Everything that decides what a run does. Built by [`TrainConfig::resolve`], which also checks it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// What is learned, by its name among [`NAMES`](crate::objectives::NAMES).
    pub objective: String,
    pub encoder: EncoderSection,
    #[serde(default)]
    pub expert: ExpertSection,
    pub csm: CsmSection,
    pub csr: CsrSection,
    pub css: CssSection,
    pub dino: DinoSection,
    pub views: ViewsSection,
    pub augment: AugmentConfig,
    pub optim: OptimSection,
    pub data: DataSection,
    pub run: RunSection,
}

/// The encoder to train.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EncoderSection {
    #[serde(flatten)]
    pub architecture: EncoderConfig,
    /// Stochastic depth of the last block; earlier blocks have linearly less. 0 switches it off.
    pub drop_path: f64,
    /// File of weights, or a run, that the encoder starts from; absent: drawn ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// Grid of its position table; absent: a square, or the encoder's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_grid: Option<[usize; 2]>,
    /// Entry of a checkpoint; of a run student or expert.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_entry: Option<String>,
    /// Mean of its images; absent: as the file says, else ImageNet's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_mean: Option<[f32; 3]>,
    /// Deviation of its images; absent: as the file says, else ImageNet's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_std: Option<[f32; 3]>,
}

/// A frozen pretrained expert. Its encoder is that of the file; these are what a file does not tell.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertSection {
    /// File of weights, or a run; absent: the expert is the student's moving average.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Attention heads of a ViT; absent: one per 64 channels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_heads: Option<usize>,
    /// Block of a ViT whose output gives the patch tokens; absent: the middle one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<usize>,
    /// `[height, width]` of a ViT's position table in patches; absent: a square, or that of the global views.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grid: Option<[usize; 2]>,
    /// Entry of a checkpoint; of a run student or expert.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<String>,
    /// Mean of its images; absent: as the file says, else ImageNet's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean: Option<[f32; 3]>,
    /// Deviation of its images; absent: as the file says, else ImageNet's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub std: Option<[f32; 3]>,
}

/// Image-level decoder and the weight of its loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CsmSection {
    pub hidden: usize,
    pub bottleneck: usize,
    pub prototypes: usize,
    /// Weight in the total loss; 0 switches the objective off.
    pub weight: f64,
}

/// Reconstruction decoder and the weight of its loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CsrSection {
    pub dim: usize,
    pub depth: usize,
    pub heads: usize,
    pub weight: f64,
}

/// Search decoder and the weight of its loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CssSection {
    pub dim: usize,
    pub depth: usize,
    pub heads: usize,
    pub convs: usize,
    pub weight: f64,
}

/// Sizes of the views, `[height, width]` in pixels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ViewsSection {
    pub global_size: [usize; 2],
    pub local_size: [usize; 2],
    /// Number of plain local views.
    pub locals: usize,
    /// Edge of the square multi-person image.
    pub scene_size: usize,
    /// Share of the masked view's patches that is hidden.
    pub mask_ratio: f64,
    /// Smallest and largest scale of the rescaled views.
    pub scale: [f64; 2],
    /// Number of scales between these two, both included; each is one compiled step.
    pub scale_buckets: usize,
}

/// Optimizer and schedules.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimSection {
    /// Peak learning rate per 256 images of the effective batch.
    pub base_lr: f64,
    pub min_lr: f64,
    pub weight_decay: f64,
    /// Weight decay at the end, by cosine; absent: constant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay_end: Option<f64>,
    pub betas: [f64; 2],
    pub eps: f64,
    /// Largest norm of the gradient; 0 switches clipping off.
    pub clip_norm: f64,
    /// Images per micro step.
    pub batch: usize,
    /// Images per update, over all micro steps and devices.
    pub effective_batch: usize,
    pub epochs: u64,
    /// Updates of the whole run; overrides `epochs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    pub warmup_epochs: f64,
    /// Updates of the warm-up; overrides `warmup_epochs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup_steps: Option<u64>,
    pub teacher_temp: f64,
    pub student_temp: f64,
    pub center_momentum: f64,
    /// EMA momentum of the expert at the start; rises to 1 by cosine.
    pub ema_momentum: f64,
}

/// Where the images come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSection {
    /// Folder of person images; absent: synthetic persons.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Threads that decode and augment; 0: chosen from the number of cores.
    pub workers: usize,
    /// Batches that are prepared ahead.
    pub prefetch: usize,
    pub seed: u64,
    pub synth: SynthSection,
}

/// The synthetic persons.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SynthSection {
    pub identities: usize,
    pub images_per_identity: usize,
    pub cameras: usize,
}

/// Logs, checkpoints, probes and guards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSection {
    /// Steps between two lines of `metrics.jsonl`.
    pub log_every: u64,
    /// Steps between two checkpoints.
    pub checkpoint_every: u64,
    pub keep_checkpoints: usize,
    /// Steps between two probes of the frozen features; 0: never.
    pub probe_every: u64,
    /// Folder of labelled images; absent with synthetic data: held-out synthetic persons.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<PathBuf>,
    /// Non-finite steps in a row that end the run.
    pub max_bad_steps: u64,
    /// Compute threads of the CPU backend; 0: one per core.
    pub threads: usize,
    /// Recompute activations in the backward pass: less memory, more time.
    pub recompute: bool,
    /// Alarm when the entropy of the mean target distribution falls below this share of its maximum.
    pub alarm_entropy_low: f64,
    /// Alarm when the mean entropy of the target distributions rises above this share of ln(prototypes).
    pub alarm_entropy_high: f64,
    /// Alarm when the spread of the image features (1 when isotropic, 0 when constant) falls below this.
    pub alarm_spread: f64,
    /// Steps in a row before an alarm; 0 switches the alarms off.
    pub alarm_steps: u64,
}

impl OptimSection {
    /// Learning rate at the end of the warm-up: `base_lr` scaled to the effective batch.
    pub fn peak_lr(&self) -> f64 {
        scaled_lr(self.base_lr, self.effective_batch)
    }

    /// Micro steps per update when `world` devices share the work.
    ///
    /// # Errors
    /// [`Error::Config`] when the effective batch is no multiple of what all devices take in one micro step.
    pub fn accumulation(&self, world: usize) -> Result<usize> {
        let micro = self.batch.checked_mul(world).filter(|m| *m > 0);
        match micro {
            Some(micro) if self.effective_batch > 0 && self.effective_batch.is_multiple_of(micro) => {
                Ok(self.effective_batch / micro)
            }
            _ => Err(Error::config(
                "optim.effective_batch",
                format!(
                    "{} is no multiple of {world} x {} images (devices times `optim.batch`): change one of the two",
                    self.effective_batch, self.batch
                ),
            )),
        }
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
