//! Encoders as ONNX models: images in, image token and patch tokens out, for any number of images; plain operators that
//! mobile runtimes take, BatchNorm folded into convolutions.

#[cfg(test)]
mod tests;

use crate::error::{Error, Result};
use crate::ir::PATCH;
use crate::models::EncoderConfig;
use crate::onnx::{Builder, Grid, Weights, proto};
use crate::weights::StateDict;
use prost::Message;

impl Weights for StateDict {
    fn tensor(&self, name: &str) -> Option<(Vec<usize>, Option<Vec<f32>>)> {
        let tensor = self.get(name)?;
        Some((tensor.shape().dims().to_vec(), tensor.f32s().map(|values| values.into_owned())))
    }

    fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }
}

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
    let tokens = config.encoder().onnx(&mut b, &images, grid)?;
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
