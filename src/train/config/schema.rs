//! The table of all keys: type and meaning. Messages, the printed configuration and the checks of user input come from
//! it; a test holds it against the structs.

use toml::{Table, Value};

use crate::models::{self, KINDS};
use crate::objectives::NAMES;
use crate::objectives::dino::{ClipBy, Decay, DinoSection};

/// What a key's value must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A whole number, 0 or more.
    Count,
    Float,
    Bool,
    Text,
    /// One of these names.
    Choice(&'static [&'static str]),
    /// `n` whole numbers.
    Counts(usize),
    /// `n` numbers.
    Floats(usize),
}

impl Kind {
    pub(super) fn expected(self) -> String {
        match self {
            Kind::Count => "a whole number, 0 or more".into(),
            Kind::Float => "a number".into(),
            Kind::Bool => "true or false".into(),
            Kind::Text => "a string".into(),
            Kind::Choice(names) => format!("one of {}", names.join(", ")),
            Kind::Counts(2) => "two whole numbers such as [256, 128]".into(),
            Kind::Counts(n) => format!("an array of {n} whole numbers, 0 or more"),
            Kind::Floats(2) => "two numbers such as [0.75, 1.5]".into(),
            Kind::Floats(n) => format!("an array of {n} numbers"),
        }
    }

    /// The value in this kind's own TOML type (`1` becomes `1.0` for a number, `1e3` becomes `1000` for a whole one),
    /// or nothing when it is of another type.
    pub(super) fn accept(self, value: &Value) -> Option<Value> {
        // Above 2^53 a float no longer says which whole number it means.
        const EXACT: f64 = 9_007_199_254_740_992.0;
        match (self, value) {
            (Kind::Count, Value::Integer(i)) => (*i >= 0).then_some(Value::Integer(*i)),
            (Kind::Count, Value::Float(f)) => {
                (f.fract() == 0.0 && (0.0..=EXACT).contains(f)).then_some(Value::Integer(*f as i64))
            }
            (Kind::Float, Value::Integer(i)) => Some(Value::Float(*i as f64)),
            (Kind::Float, Value::Float(f)) => f.is_finite().then_some(Value::Float(*f)),
            (Kind::Bool, Value::Boolean(_)) | (Kind::Text, Value::String(_)) => Some(value.clone()),
            (Kind::Choice(names), Value::String(s)) => names.contains(&s.as_str()).then(|| value.clone()),
            (Kind::Counts(n), Value::Array(a)) if a.len() == n => each(Kind::Count, a),
            (Kind::Floats(n), Value::Array(a)) if a.len() == n => each(Kind::Float, a),
            _ => None,
        }
    }
}

fn each(kind: Kind, values: &[Value]) -> Option<Value> {
    values.iter().map(|v| kind.accept(v)).collect::<Option<Vec<_>>>().map(Value::Array)
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    /// Dotted, such as `optim.base_lr`.
    pub name: &'static str,
    pub kind: Kind,
    /// May be `"none"`.
    pub optional: bool,
    pub doc: &'static str,
}

const fn key(name: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { name, kind, optional: false, doc }
}

const fn optional(name: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { name, kind, optional: true, doc }
}

/// Stands for an absent optional value, because TOML has none of its own.
pub(super) const NONE: &str = "none";

/// Sections in the order of printing.
pub(super) const SECTIONS: &[&str] = &[
    "encoder",
    "expert",
    "csm",
    "csr",
    "css",
    "dino",
    "views",
    "augment",
    "optim",
    "data",
    "data.synth",
    "run",
];

/// The value of a key that a configuration may leave away.
pub(super) fn default_of(name: &str) -> Option<Value> {
    match name.split_once('.') {
        None => (name == OBJECTIVE).then(|| NAMES[0].into()),
        Some(("dino", key)) => Table::try_from(DinoSection::default()).ok()?.get(key).cloned(),
        Some(_) => None,
    }
}

/// The key that names what is learned.
pub(super) const OBJECTIVE: &str = "objective";

/// In no section.
const TOP: &[Key] = &[key(OBJECTIVE, Kind::Choice(NAMES), "what is learned: saip or dino")];

/// The kind of encoder of that name.
pub(super) fn encoder(kind: &str) -> Option<&'static models::Kind> {
    KINDS.iter().find(|k| k.name == kind)
}

/// Names that `encoder.kind` takes.
pub(super) fn encoder_kinds() -> String {
    KINDS.iter().map(|kind| kind.name).collect::<Vec<_>>().join(", ")
}

const ENCODER: &[Key] = &[
    key("encoder.kind", Kind::Text, models::KIND_NAMES),
    key("encoder.drop_path", Kind::Float, "stochastic depth rate of the last block; 0: off"),
    optional(
        "encoder.init",
        Kind::Text,
        "weights that it starts from, safetensors, .pth or a run; none: drawn",
    ),
    optional(
        "encoder.init_grid",
        Kind::Counts(2),
        "[height, width] of their position table in patches; none: square, or as img_size",
    ),
    optional(
        "encoder.init_entry",
        Kind::Text,
        "which of their entries; of a run student or expert; none: the usual one",
    ),
    optional(
        "encoder.init_mean",
        Kind::Floats(3),
        "mean of the images that they are for; none: as they say, or ImageNet's",
    ),
    optional("encoder.init_std", Kind::Floats(3), "deviation of these; none: as they say, or ImageNet's"),
];

const REST: &[Key] = &[
    optional(
        "expert.path",
        Kind::Text,
        "weights of a frozen pretrained expert, safetensors, .pth or a run; none: the student's moving average",
    ),
    optional("expert.num_heads", Kind::Count, "its attention heads, if a ViT; none: one per 64 channels"),
    optional(
        "expert.tap",
        Kind::Count,
        "its block, from 0, whose output gives the patch tokens, if a ViT; none: the middle",
    ),
    optional(
        "expert.grid",
        Kind::Counts(2),
        "[height, width] of its position table in patches; none: square, or that of views.global_size",
    ),
    optional(
        "expert.entry",
        Kind::Text,
        "which entry of the file; of a run student or expert; none: the usual one",
    ),
    optional(
        "expert.mean",
        Kind::Floats(3),
        "mean of the images that it is for; none: as it says, or ImageNet's",
    ),
    optional("expert.std", Kind::Floats(3), "deviation of these; none: as it says, or ImageNet's"),
    key("csm.hidden", Kind::Count, "width of the hidden layers"),
    key("csm.bottleneck", Kind::Count, "width before the prototypes"),
    key("csm.prototypes", Kind::Count, "number of prototypes"),
    key("csm.weight", Kind::Float, "saip: weight of the matching loss; 0: off"),
    key("csr.dim", Kind::Count, "token width"),
    key("csr.depth", Kind::Count, "interactive blocks"),
    key("csr.heads", Kind::Count, "attention heads; divide dim"),
    key("csr.weight", Kind::Float, "weight of the reconstruction loss; 0: off"),
    key("css.dim", Kind::Count, "token width"),
    key("css.depth", Kind::Count, "self-attention blocks"),
    key("css.heads", Kind::Count, "attention heads; divide dim"),
    key("css.convs", Kind::Count, "convolutions over the scene"),
    key("css.weight", Kind::Float, "weight of the search loss; 0: off"),
    key("dino.gain", Kind::Bool, "learn the length of every prototype; false: all are 1"),
    key("dino.clip", Kind::Choice(ClipBy::NAMES), "optim.clip_norm is for each tensor, or for all (global)"),
    key("dino.decay", Kind::Choice(Decay::NAMES), "what decays: ndim (2 axes or more), or as saip"),
    key("dino.freeze_epochs", Kind::Count, "epochs at the beginning in which prototypes are held"),
    key("dino.teacher_temp_start", Kind::Float, "temperature of the expert in the first epoch"),
    key("dino.teacher_temp_epochs", Kind::Count, "epochs up to optim.teacher_temp; 0: from the beginning"),
    key("views.global_size", Kind::Counts(2), "[height, width] of the two global views, multiples of 16"),
    key("views.local_size", Kind::Counts(2), "[height, width] of the local views, multiples of 16"),
    key("views.locals", Kind::Count, "plain local views per image"),
    key("views.scene_size", Kind::Count, "edge of the multi-person image, a multiple of 16"),
    key("views.mask_ratio", Kind::Float, "hidden share of the masked view, between 0 and 1"),
    key("views.scale", Kind::Floats(2), "smallest and largest scale of the rescaled views"),
    key("views.scale_buckets", Kind::Count, "scales between these two; each is one compiled step"),
    key("augment.global_scale", Kind::Floats(2), "area of a global crop, as a share of the image's"),
    key("augment.local_scale", Kind::Floats(2), "area of a plain local crop"),
    key(
        "augment.rescaled_scale",
        Kind::Floats(2),
        "area of the rescaled local crop, also pasted into the scene",
    ),
    key("augment.ratio", Kind::Floats(2), "aspect of a crop relative to its view's"),
    key("augment.flip", Kind::Float, "probability of a horizontal flip"),
    key("augment.color_jitter", Kind::Float, "probability of the colour jitter"),
    key("augment.brightness", Kind::Float, "jitter: factor in [1 - x, 1 + x]"),
    key("augment.contrast", Kind::Float, "jitter: factor in [1 - x, 1 + x]"),
    key("augment.saturation", Kind::Float, "jitter: factor in [1 - x, 1 + x]"),
    key("augment.hue", Kind::Float, "jitter: shift in [-x, x] turns of the hue circle, at most 0.5"),
    key("augment.grayscale", Kind::Float, "probability of grayscale"),
    key("augment.blur", Kind::Floats(3), "probability of a blur: anchor, second global view, local views"),
    key("augment.blur_radius", Kind::Floats(2), "standard deviation of the blur, pixels"),
    key("augment.solarize", Kind::Float, "probability of solarisation, second global view only"),
    key(
        "augment.background_scale",
        Kind::Floats(2),
        "edge of the scene's background, as a share of its image's",
    ),
    key("augment.instance_height", Kind::Floats(2), "height of a pasted person, as a share of the scene's"),
    key("augment.feather", Kind::Float, "blended edge of a pasted person, as a share of its shorter side"),
    key("optim.base_lr", Kind::Float, "peak learning rate per 256 images of the effective batch"),
    key("optim.min_lr", Kind::Float, "learning rate at the end"),
    key("optim.weight_decay", Kind::Float, "AdamW weight decay"),
    optional("optim.weight_decay_end", Kind::Float, "weight decay at the end, by cosine; none: constant"),
    key("optim.betas", Kind::Floats(2), "AdamW moments"),
    key("optim.eps", Kind::Float, "AdamW epsilon"),
    key(
        "optim.clip_norm",
        Kind::Float,
        "largest norm of the whole gradient (dino: see dino.clip); 0: no clipping",
    ),
    key("optim.batch", Kind::Count, "images per micro step and device"),
    key("optim.effective_batch", Kind::Count, "images per update, a multiple of batch"),
    key("optim.epochs", Kind::Count, "passes over the images"),
    optional("optim.steps", Kind::Count, "updates; none: as many as the epochs have"),
    key("optim.warmup_epochs", Kind::Float, "linear warm-up"),
    optional("optim.warmup_steps", Kind::Count, "warm-up in updates; none: warmup_epochs"),
    key("optim.teacher_temp", Kind::Float, "temperature of the expert's distributions"),
    key("optim.student_temp", Kind::Float, "temperature of the student's distributions"),
    key("optim.center_momentum", Kind::Float, "momentum of the center of the expert's logits"),
    key("optim.ema_momentum", Kind::Float, "momentum of the expert at the start; to 1 by cosine"),
    optional("data.path", Kind::Text, "folder of person images; none: synthetic persons"),
    key("data.workers", Kind::Count, "threads that prepare images; 0: chosen from the cores"),
    key("data.prefetch", Kind::Count, "batches prepared ahead"),
    key("data.seed", Kind::Count, "seed of everything random"),
    key("data.synth.identities", Kind::Count, "synthetic persons"),
    key("data.synth.images_per_identity", Kind::Count, "images of each"),
    key("data.synth.cameras", Kind::Count, "cameras they are seen by"),
    key("run.log_every", Kind::Count, "steps between two lines of metrics.jsonl"),
    key("run.checkpoint_every", Kind::Count, "steps between two checkpoints"),
    key("run.keep_checkpoints", Kind::Count, "newest checkpoints kept"),
    key("run.probe_every", Kind::Count, "steps between two probes of the frozen features; 0: never"),
    optional("run.probe", Kind::Text, "folder of labelled images; none: held-out synthetic persons"),
    key("run.max_bad_steps", Kind::Count, "non-finite steps in a row that end the run"),
    key("run.threads", Kind::Count, "compute threads of the CPU backend; 0: one per core"),
    key("run.recompute", Kind::Bool, "recompute activations in the backward pass to save memory"),
    key(
        "run.alarm_entropy_low",
        Kind::Float,
        "alarm: entropy of the mean target below this share of its maximum",
    ),
    key(
        "run.alarm_entropy_high",
        Kind::Float,
        "alarm: mean entropy of the targets above this share of its maximum",
    ),
    key(
        "run.alarm_spread",
        Kind::Float,
        "alarm: spread of the features (1 isotropic, 0 constant) below this",
    ),
    key("run.alarm_steps", Kind::Count, "steps in a row before an alarm; 0: no alarms"),
];

/// All keys of a configuration with that kind of encoder, in the order of printing.
pub(super) fn keys(encoder_kind: &str) -> impl Iterator<Item = Key> {
    let own = encoder(encoder_kind).map_or(&[][..], |kind| kind.keys).iter().map(|k| {
        let kind = if k.values == 1 { Kind::Count } else { Kind::Counts(k.values) };
        key(k.name, kind, k.doc)
    });
    let (first, others) = ENCODER.split_at(1);
    TOP.iter()
        .copied()
        .chain(first.iter().copied())
        .chain(own)
        .chain(others.iter().copied())
        .chain(REST.iter().copied())
}

/// The key of that dotted name.
pub(super) fn find(encoder_kind: &str, name: &str) -> Option<Key> {
    keys(encoder_kind).find(|k| k.name == name)
}
