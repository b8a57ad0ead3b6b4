//! The sizes of the views, and the tensors that they are.

use crate::ir::PATCH;
use crate::tensor::{DType, TensorSpec};

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
        patches(self.masked_size)
    }

    /// What a batch of `b` images holds, under the reference's names:
    /// - `global: [2, B, 3, H, W]`; view 0 is the anchor
    /// - `local: [L, B, 3, h, w]`
    /// - `rescaled: [2, B, 3, h', w']`; view 0 is the picture pasted as instance 1, view 1 the whole anchor view
    /// - `scene: [B, 3, S, S]` with `boxes: [2, B, S/P, S/P]`: 1 on the tokens inside instance i, else 0
    /// - `masked: [B, 3, H', W']`: global view 1 at this step's scale; `keep: [B, visible]`: row-major positions of its
    ///   visible patches, ascending; `hidden`: those that `keep` lacks
    pub fn tensors(&self, b: usize) -> Vec<TensorSpec> {
        let images =
            |name, n: usize, [h, w]: [usize; 2]| TensorSpec::new(name, DType::F32, 1, [n, b, 3, h, w]);
        let image = |name, [h, w]: [usize; 2]| TensorSpec::new(name, DType::F32, 0, [b, 3, h, w]);
        let positions = |name, n: usize| TensorSpec::new(name, DType::I32, 0, [b, n]);
        let side = self.scene_size / PATCH;
        vec![
            images("global", 2, self.global_size),
            images("local", self.locals, self.local_size),
            images("rescaled", 2, self.rescaled_size),
            image("scene", [self.scene_size; 2]),
            TensorSpec::new("boxes", DType::F32, 1, [2, b, side, side]),
            image("masked", self.masked_size),
            positions("keep", self.visible),
            positions("hidden", self.masked_tokens().saturating_sub(self.visible)),
        ]
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

/// Patches of an image of `size`.
pub fn patches(size: [usize; 2]) -> usize {
    size.iter().map(|s| s / PATCH).product()
}
