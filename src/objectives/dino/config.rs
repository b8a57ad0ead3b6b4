//! What DINO is told: the configuration of a step, as the reference's fixtures have it, and the section of a run's.

use crate::keys::{Kind, Range, Typed, section};
use crate::models::EncoderConfig;
use crate::objectives::prototype_head::HeadConfig;
use serde::{Deserialize, Serialize};

/// What a gradient is clipped by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClipBy {
    /// Every tensor by its own norm.
    Each,
    /// All of it by the norm of the whole.
    Global,
}

impl Typed for ClipBy {
    const KIND: Kind = Kind::Choice(&["each", "global"]);
}

/// Which parameters weight decay applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// Those of more than one axis, so class token and positions too.
    Ndim,
    /// SAIP's: of these not the tokens and positions.
    Saip,
}

impl Typed for Decay {
    const KIND: Kind = Kind::Choice(&["ndim", "saip"]);
}

/// One step. Sizes are `[height, width]` in pixels.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepConfig {
    pub batch: usize,
    pub global_size: [usize; 2],
    pub local_size: [usize; 2],
    /// Number of local views.
    pub locals: usize,
    pub student_temp: f64,
    pub teacher_temp: f64,
    pub center_momentum: f64,
    /// EMA momentum of the expert.
    pub momentum: f64,
    pub lr: f64,
    pub weight_decay: f64,
    pub betas: [f64; 2],
    pub adam_eps: f64,
    /// How gradients are clipped, and at which norm.
    pub clip: Option<(ClipBy, f64)>,
    pub decay: Decay,
    pub csm: HeadConfig,
    pub encoder: EncoderConfig,
    /// Whether the prototypes are held at their values, as in the first epochs.
    #[serde(default)]
    pub freeze_last_layer: bool,
    /// The schedules of a whole run, where the reference records them.
    #[serde(default)]
    pub schedule: Option<Curves>,
}

/// The schedules of a run, as the reference's `schedules` takes them.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Curves {
    pub epochs: u64,
    pub steps_per_epoch: u64,
    pub warmup_epochs: u64,
    pub lr: f64,
    pub min_lr: f64,
    /// First and last.
    pub weight_decay: [f64; 2],
    /// First and last; the last is 1.
    pub momentum: [f64; 2],
    /// First, last, and the epoch from which on it is the last.
    pub teacher_temp: (f64, f64, u64),
}

/// What the sharpness of the expert's targets does in the first epochs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TeacherTemp {
    pub start: f64,
    pub end: f64,
    /// Epochs of the change from the one to the other, both included.
    pub epochs: u64,
}

impl TeacherTemp {
    /// Of epoch `epoch`, from 0.
    pub fn at(&self, epoch: u64) -> f64 {
        if epoch >= self.epochs {
            return self.end;
        }
        let last = self.epochs.saturating_sub(1).max(1) as f64;
        self.start + (self.end - self.start) * epoch as f64 / last
    }
}

section! {
    /// What DINO has beside what objectives share.
    pub struct DinoSection {
        /// Whether the length of every prototype is learned (`norm_last_layer=False`).
        pub gain: bool = false;
        /// What `optim.clip_norm` is the largest norm of.
        pub clip: ClipBy = ClipBy::Each;
        /// What decays: parameters of two axes or more, or as saip.
        pub decay: Decay = Decay::Ndim;
        /// Epochs at the beginning in which the prototypes are held.
        pub freeze_epochs: u64 = 1;
        /// Temperature of the expert in the first epoch; `optim.teacher_temp` is the last.
        pub teacher_temp_start: f64 = 0.04, Range::Positive;
        /// Epochs of the change from the one to the other; 0: none.
        pub teacher_temp_epochs: u64 = 0;
    }
}

/// What DINO's recipe has otherwise than SAIP's among the keys that both use: taken when a configuration changes to DINO.
pub const RECIPE: &str = "
[optim]
betas = [0.9, 0.999]
weight_decay = 0.04
weight_decay_end = 0.4
clip_norm = 3.0
teacher_temp = 0.04
center_momentum = 0.9
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_temperature_reaches_its_end_in_the_last_epoch_of_the_change() {
        let temp = TeacherTemp { start: 0.04, end: 0.07, epochs: 4 };
        assert_eq!([0, 3, 4, 100].map(|e| temp.at(e)), [0.04, 0.07, 0.07, 0.07]);
        assert!(temp.at(1) > 0.04 && temp.at(2) < 0.07);
        assert_eq!(TeacherTemp { epochs: 0, ..temp }.at(0), 0.07);
        assert_eq!(TeacherTemp { epochs: 1, ..temp }.at(0), 0.04);
    }
}
