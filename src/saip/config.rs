//! The configuration of one step: exactly the JSON that the reference's fixtures carry in their metadata.

use serde::{Deserialize, Serialize};

/// Edge of a patch in pixels, the same for every encoder.
pub const PATCH: usize = 16;

/// Image-level decoder (CSM): MLP `D -> hidden -> hidden -> bottleneck`, then `prototypes` unit vectors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CsmConfig {
    pub hidden: usize,
    pub bottleneck: usize,
    pub prototypes: usize,
}

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

/// Which encoder, under timm's argument names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum EncoderConfig {
    /// timm `VisionTransformer` with 16x16 patches. `img_size` is `[height, width]` of the position table;
    /// `tap` is the 0-based block whose output gives the patch tokens.
    Vit { img_size: [usize; 2], embed_dim: usize, depth: usize, num_heads: usize, tap: usize },
    /// timm `TinyVit`.
    TinyVit { embed_dims: [usize; 4], depths: [usize; 4], num_heads: [usize; 4], window_sizes: [usize; 4] },
    /// timm `StarNet`.
    StarNet { base_dim: usize, depths: [usize; 4], mlp_ratio: usize },
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
    pub csm: CsmConfig,
    pub csr: CsrConfig,
    pub css: CssConfig,
    pub encoder: EncoderConfig,
    /// A frozen pretrained expert instead of the moving average.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expert_encoder: Option<EncoderConfig>,
}

impl StepConfig {
    /// Visible patches of the masked view per image: `floor(n * (1 - mask_ratio))`.
    pub fn visible_patches(&self) -> usize {
        let n = (self.masked_size[0] / PATCH) * (self.masked_size[1] / PATCH);
        (n as f64 * (1.0 - self.mask_ratio)) as usize
    }
}
