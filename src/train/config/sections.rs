//! The sections that no objective owns.

use crate::data::synth::MAX_CAMERAS;
use crate::ir::PATCH;
use crate::keys::{Kind, MAX_COUNT, Range, Typed, section};
use crate::models::{EncoderConfig, VitConfig};
use crate::objectives::saip::MOST_SCALE;
use crate::tensor::DType;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

section! {
    /// The encoder to train.
    pub struct EncoderSection {
        flatten pub architecture: EncoderConfig = EncoderConfig::Vit(VitConfig::default());
        /// Stochastic depth of the last block; earlier blocks have linearly less. 0: off.
        pub drop_path: f64 = 0.0, Range::BelowOne;
        /// Weights that it starts from, safetensors, .pth or a run; none: drawn.
        pub init: Option<PathBuf> = None, Range::Given("name a file of weights, or `none`");
        /// [height, width] of their position table in patches; none: square, or as img_size.
        pub init_grid: Option<[usize; 2]> = None;
        /// Which of their entries; of a run student or expert; none: the usual one.
        pub init_entry: Option<String> = None;
        /// Mean of the images that they are for; none: as they say, or ImageNet's.
        pub init_mean: Option<[f32; 3]> = None;
        /// Deviation of these; none: as they say, or ImageNet's.
        pub init_std: Option<[f32; 3]> = None;
    }
}

section! {
    /// A frozen pretrained expert. Its encoder is that of the file; these are what a file does not tell.
    pub struct ExpertSection {
        /// Its weights, safetensors, .pth or a run; none: the expert is the student's moving average.
        pub path: Option<PathBuf> = None,
            Range::Given("name a file of weights, or `none` for the student's moving average");
        /// Its attention heads, if a ViT; none: one per 64 channels.
        pub num_heads: Option<usize> = None;
        /// Its block, from 0, whose output gives the patch tokens, if a ViT; none: the middle.
        pub tap: Option<usize> = None;
        /// [height, width] of its position table in patches; none: square, or that of views.global_size.
        pub grid: Option<[usize; 2]> = None;
        /// Which entry of the file; of a run student or expert; none: the usual one.
        pub entry: Option<String> = None;
        /// Mean of the images that it is for; none: as it says, or ImageNet's.
        pub mean: Option<[f32; 3]> = None;
        /// Deviation of these; none: as it says, or ImageNet's.
        pub std: Option<[f32; 3]> = None;
    }
}

section! {
    /// Views of an image. Sizes are [height, width] in pixels, multiples of 16.
    pub struct ViewsSection {
        /// Size of the two global views.
        pub global_size: [usize; 2] = [256, 128], Range::Pixels(PATCH);
        /// Size of the local views.
        pub local_size: [usize; 2] = [128, 64], Range::Pixels(PATCH);
        /// Plain local views per image.
        pub locals: usize = 6, Range::Whole(1, 1024);
        /// Edge of the square multi-person image.
        pub scene_size: usize = 224, Range::Pixels(PATCH);
        /// Hidden share of the masked view's patches.
        pub mask_ratio: f64 = 0.75, Range::Inside(0.75);
        /// Smallest and largest scale of the rescaled views.
        pub scale: [f64; 2] = [0.75, 1.5], Range::Spread(MOST_SCALE);
        /// Scales from the one to the other, both included; each is one compiled step.
        pub scale_buckets: usize = 4, Range::Whole(1, 64);
    }
}

section! {
    /// Optimizer and schedules.
    pub struct OptimSection {
        /// Peak learning rate per 256 images of the effective batch.
        pub base_lr: f64 = 2.5e-4, Range::Positive => may_change;
        /// Learning rate at the end.
        pub min_lr: f64 = 1e-6, Range::NotNegative => may_change;
        /// AdamW weight decay.
        pub weight_decay: f64 = 0.05, Range::NotNegative;
        /// Weight decay at the end, by cosine; none: constant.
        pub weight_decay_end: Option<f64> = None, Range::NotNegative;
        /// AdamW moments.
        pub betas: [f64; 2] = [0.9, 0.95], Range::BelowOne;
        /// AdamW epsilon.
        pub eps: f64 = 1e-8, Range::Positive;
        /// Largest norm of the whole gradient (dino: see dino.clip); 0: no clipping.
        pub clip_norm: f64 = 0.0, Range::NotNegative => may_change;
        /// Images per micro step and device.
        pub batch: usize = 256, Range::Whole(1, MAX_COUNT);
        /// Images per update over all micro steps and devices, a multiple of batch.
        pub effective_batch: usize = 2048, Range::Whole(1, MAX_COUNT);
        /// Passes over the images.
        pub epochs: u64 = 300, Range::AtLeast(1) => may_change;
        /// Updates of the whole run; none: as many as the epochs have.
        pub steps: Option<u64> = None, Range::AtLeast(1) => may_change;
        /// Linear warm-up.
        pub warmup_epochs: f64 = 10.0, Range::NotNegative;
        /// Warm-up in updates; none: warmup_epochs.
        pub warmup_steps: Option<u64> = None;
        /// Temperature of the expert's distributions.
        pub teacher_temp: f64 = 0.04, Range::Positive;
        /// Temperature of the student's distributions.
        pub student_temp: f64 = 0.1, Range::Positive;
        /// Momentum of the center of the expert's logits.
        pub center_momentum: f64 = 0.9, Range::BelowOne;
        /// EMA momentum of the expert at the start; to 1 by cosine.
        pub ema_momentum: f64 = 0.996, Range::UpTo(1.0);
    }
}

section! {
    /// Where the images come from.
    pub struct DataSection {
        /// Images: folder, list, table or SCHEME:PLACE; none: synthetic persons.
        pub path: Option<PathBuf> = None,
            Range::Given("name a folder, or `none` for synthetic persons") => may_change;
        /// Table of the images' classes, where these are learned; none: the subfolders of `path`.
        pub labels: Option<PathBuf> = None, Range::Given("name a table of labels, or `none`") => may_change;
        /// Threads that prepare images; 0: chosen from the cores.
        pub workers: usize = 0, Range::Whole(0, 1024) => may_change;
        /// Batches prepared ahead.
        pub prefetch: usize = 4, Range::Whole(1, 1024) => may_change;
        /// Seed of everything random.
        pub seed: u64 = 0;
        /// The synthetic persons.
        pub synth: SynthSection = SynthSection::default();
    }
}

section! {
    /// The synthetic persons.
    pub struct SynthSection {
        /// How many.
        pub identities: usize = 2048, Range::Whole(1, MAX_COUNT);
        /// Images of each.
        pub images_per_identity: usize = 16, Range::Whole(1, MAX_COUNT);
        /// Cameras they are seen by.
        pub cameras: usize = 4, Range::Whole(1, MAX_CAMERAS);
    }
}

/// The drawn persons by whom encoders are compared.
pub const PROBE_PERSONS: usize = 96;

/// The feature of an image by which the probe finds persons again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProbeFeatures {
    /// The image token.
    Image,
    /// Means of the patch tokens of horizontal stripes through the middle.
    Stripes,
    /// These of tokens relative to their picture: in deviations from its mean.
    Relative,
}

impl Typed for ProbeFeatures {
    const KIND: Kind = Kind::Choice(&["image", "stripes", "relative"]);
}

/// The type in which gradients travel between ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReduceType {
    /// As they are.
    F32,
    /// Half the bytes, rounded after each addition.
    Bf16,
}

impl Typed for ReduceType {
    const KIND: Kind = Kind::Choice(&["f32", "bf16"]);
}

section! {
    /// Several ranks (processes, one a device) that share every update.
    pub struct DistSection {
        /// Gradients that are summed in one go, MiB in f32: part of the numbers.
        pub bucket_cap_mb: usize = 25, Range::Whole(1, 65_536);
        /// Type in which gradients travel.
        pub reduce_dtype: ReduceType = ReduceType::F32;
        /// Steps between two checks that all ranks have equal parameters; 0: never.
        pub check_every: u64 = 1000 => may_change;
        /// Seconds that ranks wait for each other at the beginning.
        pub join_timeout: f64 = 600.0, Range::Positive => may_change;
        /// Seconds that ranks wait for each other within a step.
        pub step_timeout: f64 = 600.0, Range::Positive => may_change;
        /// Seconds without a sign of life after which a rank is taken for dead.
        pub silence_timeout: f64 = 30.0, Range::Positive => may_change;
    }
}

impl DistSection {
    /// Elements that are summed in one go.
    pub fn stretch(&self) -> usize {
        self.bucket_cap_mb << 18
    }

    /// The type in which gradients travel.
    pub fn wire(&self) -> DType {
        match self.reduce_dtype {
            ReduceType::F32 => DType::F32,
            ReduceType::Bf16 => DType::Bf16,
        }
    }
}

section! {
    /// Logs, checkpoints, probes and guards.
    pub struct RunSection {
        /// Steps between two lines of metrics.jsonl.
        pub log_every: u64 = 10, Range::AtLeast(1) => may_change;
        /// Steps between two checkpoints.
        pub checkpoint_every: u64 = 1000, Range::AtLeast(1) => may_change;
        /// Newest checkpoints kept.
        pub keep_checkpoints: usize = 3, Range::AtLeast(1) => may_change;
        /// Steps between two probes of the frozen features; 0: never.
        pub probe_every: u64 = 5000 => may_change;
        /// Folder of labelled images; none: drawn persons, where those to train on are drawn.
        pub probe: Option<PathBuf> = None => may_change;
        /// How many drawn persons, of those by whom encoders are compared.
        pub probe_persons: usize = PROBE_PERSONS, Range::Whole(2, PROBE_PERSONS) => may_change;
        /// What of an image is tried: its image token, or its patch tokens by stripes through the middle, also relative to the picture.
        pub probe_features: ProbeFeatures = ProbeFeatures::Image => may_change;
        /// [height, width] that the probe's images are brought to; none: views.global_size.
        pub probe_size: Option<[usize; 2]> = None, Range::Pixels(PATCH) => may_change;
        /// Non-finite steps in a row that end the run.
        pub max_bad_steps: u64 = 20, Range::AtLeast(1) => may_change;
        /// Compute threads of the CPU backend; 0: one per core.
        pub threads: usize = 0, Range::Whole(0, 1024) => may_change;
        /// Recompute activations in the backward pass: less memory, more time.
        pub recompute: bool = false => may_change;
        /// Alarm: entropy of the mean target below this share of its maximum.
        pub alarm_entropy_low: f64 = 0.1, Range::UpTo(1.0) => may_change;
        /// Alarm: mean entropy of the targets above this share of its maximum.
        pub alarm_entropy_high: f64 = 0.999, Range::UpTo(1.0) => may_change;
        /// Alarm: spread of the features (1 isotropic, 0 constant) below this.
        pub alarm_spread: f64 = 0.1, Range::NotNegative => may_change;
        /// Steps in a row before an alarm; 0: no alarms.
        pub alarm_steps: u64 = 500 => may_change;
    }
}

impl RunSection {
    /// The size of the probe's images in a run whose global views have that of `views`.
    pub fn probe_size(&self, views: &ViewsSection) -> [usize; 2] {
        self.probe_size.unwrap_or(views.global_size)
    }
}
