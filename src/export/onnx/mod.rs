//! Encoders as ONNX models: images in, image token and patch tokens out, for any number of images; plain operators that
//! mobile runtimes take, BatchNorm folded into convolutions.

mod builder;
mod parts;
mod proto;
mod star_net;
mod tiny_vit;
mod vit;

#[cfg(test)]
mod tests;

use crate::error::{Error, Result};
use crate::ir::PATCH;
use crate::models::EncoderConfig;
use crate::weights::StateDict;
use builder::Builder;
use parts::Grid;
use prost::Message;

/// Version of ONNX's operators; their semantics are fixed for ever.
const OPSET: i64 = 20;
/// Version of the file format that goes with it.
const IR_VERSION: i64 = 9;
/// The bytes of an ONNX model of an encoder for images of `[height, width]` pixels, normalised as in training. `state` holds its
/// weights under timm's names, those of a ViT's tap norm (`tap_norm`) if the patch tokens are to be as the decoders see them.
/// `metadata` is written into the model.
///
/// # Errors
/// [`Error::Usage`] when sizes are no multiples of 16, or weights are missing or do not fit.
pub fn encoder(
    config: &EncoderConfig,
    state: &StateDict,
    [height, width]: [usize; 2],
    metadata: &[(String, String)],
) -> Result<Vec<u8>> {
    if height == 0 || width == 0 || !height.is_multiple_of(PATCH) || !width.is_multiple_of(PATCH) {
        return Err(Error::usage(format!("images of {height}x{width}: sizes must be multiples of {PATCH}")));
    }
    let grid = Grid { height: height / PATCH, width: width / PATCH };
    let mut b = Builder::new("encoder", state);
    let images =
        b.input("images", &[3, height, width], "RGB, normalised by the mean and deviation in the metadata");
    let tokens = match config {
        EncoderConfig::Vit { embed_dim, depth, num_heads, tap, .. } => {
            let vit = vit::Vit { dim: *embed_dim, depth: *depth, heads: *num_heads, tap: *tap };
            vit::build(&mut b, &images, grid, &vit)?
        }
        EncoderConfig::TinyVit { embed_dims, depths, num_heads, window_sizes } => {
            let net = tiny_vit::TinyVit {
                dims: *embed_dims,
                depths: *depths,
                heads: *num_heads,
                windows: *window_sizes,
            };
            tiny_vit::build(&mut b, &images, grid, &net)?
        }
        EncoderConfig::StarNet { base_dim, depths, .. } => {
            star_net::build(&mut b, &images, grid, *base_dim, depths)?
        }
    };
    b.output(&tokens.image, "image_token", &[tokens.image_dim], "one feature an image");
    let patches = [grid.height * grid.width, tokens.patch_dim];
    b.output(&tokens.patch, "patch_tokens", &patches, "features of stride 16, row by row");
    let model = proto::Model {
        ir_version: IR_VERSION,
        producer_name: env!("CARGO_PKG_NAME").to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        doc_string: "SAIP-pretrained encoder".to_owned(),
        graph: Some(b.finish()),
        opset_import: vec![proto::OperatorSet { domain: String::new(), version: OPSET }],
        metadata_props: metadata
            .iter()
            .map(|(key, value)| proto::Entry { key: key.clone(), value: value.clone() })
            .collect(),
    };
    Ok(model.encode_to_vec())
}
