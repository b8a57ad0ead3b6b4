//! The views of a step as inputs of the graph, and as token streams of the two encoders.

use super::config::StepConfig;
use crate::error::{Error, Result};
use crate::ir::{Binding, Graph, PATCH, Region, ValueId};
use crate::models::{TapGroup, View};
use crate::step::{Slots, Types};
use crate::tensor::DType;

/// Which of the three losses a step has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts {
    pub csm: bool,
    pub csr: bool,
    pub css: bool,
}

/// Checks what the views' sizes must fulfil.
pub(super) fn check(cfg: &StepConfig) -> Result<()> {
    if cfg.batch == 0 {
        return Err(Error::config("batch", "must be at least 1"));
    }
    let square = [cfg.scene_size; 2];
    for (key, size) in [
        ("global_size", cfg.global_size),
        ("local_size", cfg.local_size),
        ("rescaled_size", cfg.rescaled_size),
        ("masked_size", cfg.masked_size),
        ("scene_size", square),
    ] {
        if size.iter().any(|s| *s == 0 || !s.is_multiple_of(PATCH)) {
            let message = format!("height and width must be positive multiples of {PATCH}, got {size:?}");
            return Err(Error::config(key, message));
        }
    }
    let (visible, tokens) = (cfg.visible_patches(), grid(cfg.masked_size).iter().product::<usize>());
    if visible == 0 || visible >= tokens {
        return Err(Error::config(
            "mask_ratio",
            format!(
                "{} leaves {visible} of {tokens} patches visible; at least one must be visible and one hidden",
                cfg.mask_ratio
            ),
        ));
    }
    Ok(())
}

/// Patches along height and width.
pub(super) fn grid(size: [usize; 2]) -> [usize; 2] {
    size.map(|s| s / PATCH)
}

/// Places of the views that the switched-on objectives read, under the reference's names.
#[derive(Clone, Copy, Debug)]
pub(super) struct ViewSlots {
    global: Option<Binding>,
    local: Option<Binding>,
    rescaled: Option<Binding>,
    masked: Option<(Binding, Binding, Binding)>,
    scene: Option<(Binding, Binding)>,
}

impl ViewSlots {
    pub fn declare(cfg: &StepConfig, parts: Parts, slots: &mut Slots) -> Self {
        let specs = cfg.geometry().tensors(cfg.batch);
        let mut input = |name: &str| {
            let spec = specs.iter().find(|spec| spec.name == name);
            let region = |dtype| if dtype == DType::I32 { Region::Indices } else { Region::Inputs };
            spec.map(|spec| slots.add(name, region(spec.dtype), spec.shape.clone()))
        };
        let Parts { csm, csr, css } = parts;
        let global = input("global");
        let local = if csm && cfg.locals > 0 { input("local") } else { None };
        let rescaled = if csm || css { input("rescaled") } else { None };
        let scene = if css { input("scene").zip(input("boxes")) } else { None };
        let masked = match csr {
            true => input("masked").zip(input("keep")).zip(input("hidden")),
            false => None,
        };
        let masked = masked.map(|((image, keep), hidden)| (image, keep, hidden));
        ViewSlots { global, local, rescaled, masked, scene }
    }
}

/// Visible and hidden patches of a masked image.
pub(super) fn patch_counts(cfg: &StepConfig) -> (usize, usize) {
    let visible = cfg.visible_patches();
    (visible, grid(cfg.masked_size).iter().product::<usize>() - visible)
}

/// The masked image as the graph reads it.
#[derive(Clone, Copy, Debug)]
pub(super) struct MaskedView {
    /// `[B, 3, H', W']`
    pub image: ValueId,
    /// `[B, k]`
    pub keep: ValueId,
    /// `[B, n - k]`
    pub hidden: ValueId,
}

/// Which views make up which stream.
#[derive(Clone, Debug)]
pub(super) struct ViewValues {
    /// The student's stream and the patch tokens wanted from it: anchors, then the pasted instances if CSS reads them.
    pub student: Vec<View>,
    pub student_taps: Vec<TapGroup>,
    /// The expert's stream: global views if CSM reads them, then the scene, then the masked image.
    pub expert: Vec<View>,
    pub expert_taps: Vec<TapGroup>,
    pub masked: Option<MaskedView>,
    /// The boxes `[2, B, S/P, S/P]` of the multi-person image.
    pub boxes: Option<ValueId>,
}

impl ViewValues {
    /// `image_tokens` says whether the student's image tokens are wanted of all its views. Where they are not, only the
    /// views whose patch tokens are read enter the stream: the first of the two global and rescaled views.
    /// # Errors
    /// [`Error::Invariant`] when there are no global views.
    pub fn read(
        graph: &mut Graph,
        cfg: &StepConfig,
        parts: Parts,
        slots: &ViewSlots,
        types: Types,
        image_tokens: bool,
    ) -> Result<Self> {
        let b = cfg.batch;
        let mut image = |name: &str, at: Binding, count: usize, size: [usize; 2]| {
            graph.source(name, [count, 3, size[0], size[1]], types.master, at)
        };
        let view = |image, count, size, image_token| View { image, count, size, image_token, keep: None };
        let views = if image_tokens { 2 } else { 1 };
        let at = present(slots.global, "the global views")?;
        let global = image("global", at, views * b, cfg.global_size);
        let mut student = vec![view(global, views * b, cfg.global_size, image_tokens)];
        if let Some(at) = slots.local.filter(|_| image_tokens) {
            let n = cfg.locals * b;
            student.push(view(image("local", at, n, cfg.local_size), n, cfg.local_size, true));
        }
        if let Some(at) = slots.rescaled.filter(|_| image_tokens || parts.css) {
            let value = image("rescaled", at, views * b, cfg.rescaled_size);
            student.push(view(value, views * b, cfg.rescaled_size, image_tokens));
        }
        let mut taps = vec![(0, b)];
        if parts.css {
            taps.push((student.len() - 1, b));
        }
        let reads_patches = parts.csr || parts.css;
        let student_taps = if reads_patches { vec![TapGroup::new(taps)] } else { Vec::new() };

        let (mut expert, mut expert_taps) = (Vec::new(), Vec::new());
        if image_tokens {
            expert.push(view(global, 2 * b, cfg.global_size, true));
        }
        let size = [cfg.scene_size; 2];
        if let Some((at, _)) = slots.scene {
            let value = image("scene", at, b, size);
            expert_taps.push(TapGroup::new([(expert.len(), b)]));
            expert.push(view(value, b, size, false));
        }
        let masked_image = slots.masked.map(|(at, ..)| image("masked", at, b, cfg.masked_size));
        let (visible, hidden) = patch_counts(cfg);
        let masked = slots.masked.zip(masked_image).map(|((_, keep, rest), image)| MaskedView {
            image,
            keep: graph.source("keep", [b, visible], DType::I32, keep),
            hidden: graph.source("hidden", [b, hidden], DType::I32, rest),
        });
        if let Some(m) = masked {
            expert_taps.push(TapGroup::new([(expert.len(), b)]));
            let view = view(m.image, b, cfg.masked_size, false);
            expert.push(View { keep: Some((m.keep, visible)), ..view });
        }
        let [gh, gw] = grid(size);
        let boxes = slots.scene.map(|(_, at)| graph.source("boxes", [2, b, gh, gw], types.master, at));
        Ok(ViewValues { student, student_taps, expert, expert_taps, masked, boxes })
    }
}

/// What the model's own structure promises to be there.
pub(super) fn present<T>(value: Option<T>, what: &str) -> Result<T> {
    value.ok_or_else(|| Error::invariant("model building", format!("{what}: not built")))
}
