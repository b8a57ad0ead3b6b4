//! The student, the expert, and what the objectives compute from their tokens.

use super::config::StepConfig;
use super::csr::{CsrDecoder, CsrInputs};
use super::css::{CssDecoder, CssInstances};
use super::views::{self, MaskedView, Parts, ViewValues, grid, present};
use crate::error::{Error, Result};
use crate::ir::{ParamSegment, ValueId};
use crate::models::{Encoder, Tokens};
use crate::nn::{Mode, Net, ParamRegistry};
use crate::objectives::prototype_head::PrototypeHead;
use crate::step::Registries;
use std::sync::Arc;

/// The modules of one configuration. An objective of weight 0 has no decoder.
#[derive(Clone, Debug)]
pub struct Model {
    pub student: Arc<dyn Encoder>,
    pub expert: Arc<dyn Encoder>,
    /// Whether the expert's encoder is a frozen pretrained model instead of the student's moving average. Then a linear
    /// adapter lifts the student's image token to the expert's width.
    pub frozen: bool,
    pub csm: Option<PrototypeHead>,
    pub csr: Option<CsrDecoder>,
    pub css: Option<CssDecoder>,
}

impl Model {
    /// The losses that it has decoders for.
    pub(super) fn parts(&self) -> Parts {
        Parts { csm: self.csm.is_some(), csr: self.csr.is_some(), css: self.css.is_some() }
    }

    /// # Errors
    /// [`Error::Config`] naming the key that is out of range.
    pub fn new(cfg: &StepConfig) -> Result<Self> {
        views::check(cfg)?;
        if cfg.loss_weights.iter().any(|w| !w.is_finite() || *w < 0.0) || cfg.loss_weights == [0.0; 3] {
            return Err(Error::config(
                "loss_weights",
                format!("must be finite, not negative, and not all 0, got {:?}", cfg.loss_weights),
            ));
        }
        let student = cfg.encoder.open("encoder")?;
        let (expert, frozen) = match &cfg.expert_encoder {
            Some(config) => (config.open("expert_encoder")?, true),
            None => (student.clone(), false),
        };
        let [csm, csr, css] = cfg.loss_weights.map(|w| w > 0.0);
        let (own, other) = (student.dims(), expert.dims());
        Ok(Model {
            csm: csm.then(|| PrototypeHead::new(other.image, &cfg.csm)).transpose()?,
            csr: csr
                .then(|| CsrDecoder::new(own.tap, other.tap, grid(cfg.global_size), &cfg.csr))
                .transpose()?,
            css: css.then(|| CssDecoder::new(own.tap, other.tap, &cfg.css)).transpose()?,
            student,
            expert,
            frozen,
        })
    }

    /// Parameters and running statistics of student and expert.
    ///
    /// # Errors
    /// When two parameters have one name.
    pub fn registries(&self) -> Result<Registries> {
        Ok(Registries {
            student: self.student_registry()?,
            expert: self.expert_registry()?,
            student_buffers: self.student_buffers()?,
            expert_buffers: self.expert_buffers()?,
        })
    }

    /// The student's parameters. Those that the expert averages come first, in the expert's order: the moving average
    /// reads one range.
    fn student_registry(&self) -> Result<ParamRegistry> {
        let mut reg = ParamRegistry::new();
        if let Some(csm) = &self.csm {
            csm.register(&mut reg)?;
        }
        self.student.register(&mut reg)?;
        if self.csm.is_some() && self.frozen {
            reg.linear("adapter", self.expert.dims().image, self.student.dims().image)?;
        }
        if let Some(csr) = &self.csr {
            csr.register(&mut reg)?;
        }
        if let Some(css) = &self.css {
            css.register(&mut reg)?;
        }
        Ok(reg)
    }

    /// The expert's parameters.
    fn expert_registry(&self) -> Result<ParamRegistry> {
        let mut reg = ParamRegistry::new();
        if let Some(csm) = &self.csm {
            csm.register(&mut reg)?;
        }
        self.expert.register(&mut reg)?;
        Ok(reg)
    }

    /// Running statistics of the student's encoder.
    fn student_buffers(&self) -> Result<ParamRegistry> {
        let mut reg = ParamRegistry::new();
        self.student.register_buffers(&mut reg)?;
        Ok(reg)
    }

    /// Running statistics of the expert's encoder: its own, not an average of the student's.
    fn expert_buffers(&self) -> Result<ParamRegistry> {
        let mut reg = ParamRegistry::new();
        self.expert.register_buffers(&mut reg)?;
        Ok(reg)
    }

    /// What the expert's batch normalisation normalises by: a frozen one is in evaluation mode.
    pub(super) fn expert_mode(&self) -> Mode {
        if self.frozen { Mode::Evaluation } else { Mode::Training }
    }

    /// Whether the expert's parameter `name` is the moving average of the student's.
    fn averages(&self, name: &str) -> bool {
        !(self.frozen && name.starts_with("encoder."))
    }

    /// The student's parameters as the optimizer sees them.
    pub fn segments(&self, registries: &Registries) -> Vec<ParamSegment> {
        let Registries { student, expert, .. } = registries;
        student
            .iter()
            .map(|p| ParamSegment {
                start: p.offset,
                len: p.len,
                decay: p.decay,
                late: false,
                expert: expert.get(&p.name).filter(|e| self.averages(&e.name)).map(|e| e.offset),
            })
            .collect()
    }

    /// CSM's inputs from the student: unit vectors `[views * B, bottleneck]` and prototypes `[K, bottleneck]`.
    pub(super) fn student_projection(
        &self,
        net: &mut Net<'_, '_>,
        csm: &PrototypeHead,
        image: ValueId,
    ) -> Result<(ValueId, ValueId)> {
        let x = if self.frozen { net.linear("adapter", image)? } else { image };
        Ok((csm.embed(net, x)?, csm.prototypes(net)?))
    }
}

/// Patch tokens that the pixel-level decoders read.
#[derive(Clone, Debug)]
pub(super) struct PatchTokens {
    /// Of the anchors, then of the pasted instances if CSS is on, `[B * N (+ B * n), T]`; from the student.
    pub student: Option<ValueId>,
    /// Of the scene, from the expert.
    pub scene: Option<ValueId>,
    /// Of the masked image's visible patches, from the expert.
    pub visible: Option<ValueId>,
}

impl PatchTokens {
    pub fn new(views: &ViewValues, student: &Tokens, expert: &Tokens) -> Self {
        let mut taps = expert.taps.iter().copied();
        PatchTokens {
            student: student.taps.first().copied(),
            scene: views.boxes.and_then(|_| taps.next()),
            visible: views.masked.and_then(|_| taps.next()),
        }
    }
}

/// The pixels that CSR predicts for the hidden patches, `[B * hidden, 768]`.
pub(super) fn reconstruct(
    net: &mut Net<'_, '_>,
    cfg: &StepConfig,
    model: &Model,
    masked: &MaskedView,
    patches: &PatchTokens,
) -> Result<ValueId> {
    let csr = present(model.csr.as_ref(), "csr")?;
    let anchor_grid = grid(cfg.global_size);
    let mut anchor = present(patches.student, "csr: anchor tokens")?;
    if model.css.is_some() {
        let len = cfg.batch * anchor_grid[0] * anchor_grid[1];
        let run = crate::ir::RowRun { start: 0, len, stride: len, count: 1 };
        anchor = net.select("csr.anchor", anchor, vec![run])?;
    }
    csr.build(
        net,
        &CsrInputs {
            batch: cfg.batch,
            anchor,
            anchor_grid,
            visible: present(patches.visible, "csr: visible tokens")?,
            keep: masked.keep,
            hidden: masked.hidden,
            hidden_tokens: views::patch_counts(cfg).1,
            masked_grid: grid(cfg.masked_size),
        },
    )
}

/// CSS's logits `[2 * B, m]`.
pub(super) fn search(
    net: &mut Net<'_, '_>,
    cfg: &StepConfig,
    model: &Model,
    patches: &PatchTokens,
) -> Result<ValueId> {
    let css = present(model.css.as_ref(), "css")?;
    let tokens = [cfg.global_size, cfg.rescaled_size].map(|s| grid(s).iter().product());
    css.build(
        net,
        &CssInstances {
            batch: cfg.batch,
            patches: present(patches.student, "css: instance tokens")?,
            tokens,
            scene: present(patches.scene, "css: scene tokens")?,
            grid: grid([cfg.scene_size; 2]),
        },
    )
}
