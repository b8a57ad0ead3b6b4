//! timm's state dicts: which tensors an encoder has, in timm's order.

use super::tensor::Element;
use crate::models::Architecture;
use crate::tensor::Shape;

/// Name and shape of every tensor of timm's state dict of an encoder without a classifier (`num_classes=0`), buffers included,
/// in timm's order. Checked against timm 1.0.31.
pub fn timm_parameters(architecture: &Architecture) -> Vec<(String, Shape)> {
    architecture.layers().iter().map(|t| (t.name.clone(), t.shape.as_slice().into())).collect()
}

/// The element type that timm keeps a tensor of this name in.
pub fn timm_element(name: &str) -> Element {
    if name.ends_with("num_batches_tracked") { Element::I64 } else { Element::F32 }
}
