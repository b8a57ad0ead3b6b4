//! The configuration of one step: exactly the JSON that the reference's fixtures carry in their metadata.

use super::geometry::{ViewGeometry, patches, visible_patches};
use crate::keys::{MAX_DEPTH, MAX_WIDTH, Range, section};
use crate::models::EncoderConfig;
use crate::objectives::prototype_head::HeadConfig;
use serde::{Deserialize, Serialize};

/// Pixel-level decoder for reconstruction (CSR): `depth` interactive blocks of width `dim`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CsrConfig {
    pub dim: usize,
    pub depth: usize,
    pub heads: usize,
}

/// Pixel-level decoder for search (CSS): `depth` self-attention blocks, one cross-attention block, `convs`
/// convolutions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CssConfig {
    pub dim: usize,
    pub depth: usize,
    pub heads: usize,
    pub convs: usize,
}

section! {
    /// The reconstruction decoder and the weight of its loss.
    pub struct CsrSection {
        /// Token width.
        pub dim: usize = 512, Range::Whole(1, MAX_WIDTH);
        /// Interactive blocks.
        pub depth: usize = 6, Range::Whole(1, MAX_DEPTH);
        /// Attention heads.
        pub heads: usize = 16, Range::Divides("dim");
        /// Weight of the reconstruction loss; 0: off.
        pub weight: f64 = 1.0, Range::NotNegative;
    }
}

section! {
    /// The search decoder and the weight of its loss.
    pub struct CssSection {
        /// Token width.
        pub dim: usize = 512, Range::Whole(1, MAX_WIDTH);
        /// Self-attention blocks.
        pub depth: usize = 2, Range::Whole(1, MAX_DEPTH);
        /// Attention heads.
        pub heads: usize = 4, Range::Divides("dim");
        /// Convolutions over the scene.
        pub convs: usize = 4, Range::Whole(1, MAX_DEPTH);
        /// Weight of the search loss; 0: off.
        pub weight: f64 = 1.0, Range::NotNegative;
    }
}

/// One training step: views, temperatures, optimizer, decoders and encoders. Sizes are `[height, width]` in pixels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepConfig {
    pub batch: usize,
    pub global_size: [usize; 2],
    pub local_size: [usize; 2],
    /// Number of plain local views.
    pub locals: usize,
    /// Size of the two rescaled local views at this step's scale.
    pub rescaled_size: [usize; 2],
    /// Size of the masked view at this step's scale.
    pub masked_size: [usize; 2],
    /// Edge of the square multi-person image.
    pub scene_size: usize,
    pub mask_ratio: f64,
    pub student_temp: f64,
    pub teacher_temp: f64,
    pub center_momentum: f64,
    /// EMA momentum of the expert.
    pub momentum: f64,
    pub lr: f64,
    pub weight_decay: f64,
    pub adam_eps: f64,
    pub clip_norm: Option<f64>,
    /// Weights of CSM, CSR and CSS in the total loss.
    pub loss_weights: [f64; 3],
    /// Image-level decoder.
    pub csm: HeadConfig,
    pub csr: CsrConfig,
    pub css: CssConfig,
    pub encoder: EncoderConfig,
    /// A frozen pretrained expert instead of the moving average.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expert_encoder: Option<EncoderConfig>,
}

impl StepConfig {
    /// Visible patches of the masked view per image.
    pub fn visible_patches(&self) -> usize {
        self.geometry().visible
    }

    /// The sizes of the views.
    pub fn geometry(&self) -> ViewGeometry {
        ViewGeometry {
            global_size: self.global_size,
            local_size: self.local_size,
            locals: self.locals,
            rescaled_size: self.rescaled_size,
            masked_size: self.masked_size,
            scene_size: self.scene_size,
            visible: visible_patches(patches(self.masked_size), self.mask_ratio),
        }
    }

    /// The same step with the rescaled and the masked view at `scale`.
    pub fn at_scale(&self, scale: f64) -> StepConfig {
        let ViewGeometry { rescaled_size, masked_size, .. } =
            self.geometry().at_scale(scale, self.mask_ratio);
        StepConfig { rescaled_size, masked_size, ..self.clone() }
    }
}

/// What the paper's recipe has otherwise than other objectives' among the keys that all use: taken when a configuration
/// changes to SAIP.
pub const RECIPE: &str = "
[optim]
betas = [0.9, 0.95]
weight_decay = 0.05
weight_decay_end = \"none\"
";
