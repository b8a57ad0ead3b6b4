//! One batch of views, as the step takes them.

use crate::saip::config::{PATCH, StepConfig};

/// The sizes of all views of one step; `[height, width]` in pixels.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ViewGeometry {
    pub global_size: [usize; 2],
    pub local_size: [usize; 2],
    pub locals: usize,
    pub rescaled_size: [usize; 2],
    pub masked_size: [usize; 2],
    pub scene_size: usize,
    /// Visible patches of the masked view, per image.
    pub visible: usize,
}

impl ViewGeometry {
    pub fn of(cfg: &StepConfig) -> Self {
        ViewGeometry {
            global_size: cfg.global_size,
            local_size: cfg.local_size,
            locals: cfg.locals,
            rescaled_size: cfg.rescaled_size,
            masked_size: cfg.masked_size,
            scene_size: cfg.scene_size,
            visible: cfg.visible_patches(),
        }
    }

    /// Tokens of the masked view, `(H'/P)(W'/P)`.
    pub fn masked_tokens(&self) -> usize {
        (self.masked_size[0] / PATCH) * (self.masked_size[1] / PATCH)
    }

    /// Tokens of the scene, `(S/P)^2`.
    pub fn scene_tokens(&self) -> usize {
        (self.scene_size / PATCH).pow(2)
    }
}

/// One batch, view-major as in the reference, pixels normalised with the ImageNet mean and deviation, NCHW.
/// B is the number of images, P the patch edge.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    pub geometry: ViewGeometry,
    /// `[2, B, 3, H, W]`; view 0 is the anchor.
    pub global: Vec<f32>,
    /// `[L, B, 3, h, w]`
    pub local: Vec<f32>,
    /// `[2, B, 3, h', w']`; view 0 is the picture pasted as instance 1, view 1 the whole anchor view.
    pub rescaled: Vec<f32>,
    /// `[B, 3, H', W']`: global view 1 at this step's scale.
    pub masked: Vec<f32>,
    /// `[B, n_keep]`: row-major positions of the visible patches of `masked`, ascending.
    pub keep: Vec<i32>,
    /// `[B, 3, S, S]`
    pub scene: Vec<f32>,
    /// `[2, B, S/P, S/P]`: 1 on the tokens inside instance i, else 0.
    pub boxes: Vec<f32>,
    /// Where each image came from (a path, or the generator's name for it), for messages; length B.
    pub names: Vec<String>,
}
