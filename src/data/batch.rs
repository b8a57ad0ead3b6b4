//! One batch of views, as the step takes them.

use crate::ir::PATCH;

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
    /// The same at `scale`: the rescaled views take it from the local ones, the masked one from the global ones; of its
    /// patches a share of `mask_ratio` is hidden.
    pub fn at_scale(&self, scale: f64, mask_ratio: f64) -> ViewGeometry {
        let geometry = ViewGeometry {
            rescaled_size: scaled_size(self.local_size, scale),
            masked_size: scaled_size(self.global_size, scale),
            ..self.clone()
        };
        ViewGeometry { visible: visible_patches(geometry.masked_tokens(), mask_ratio), ..geometry }
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

/// `size * scale`, each side rounded to the nearest multiple of the patch edge, at least one patch.
pub fn scaled_size(size: [usize; 2], scale: f64) -> [usize; 2] {
    let patch = PATCH as f64;
    size.map(|s| ((s as f64 * scale / patch).round() as usize).max(1) * PATCH)
}

/// Patches of `tokens` that stay visible: `floor(tokens * (1 - mask_ratio))`.
pub fn visible_patches(tokens: usize, mask_ratio: f64) -> usize {
    (tokens as f64 * (1.0 - mask_ratio)) as usize
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
