//! Models are whole: every value is there before it is used, weights are where timm's are, nothing needs training's operators.

use super::*;
use crate::models::{Holds, LayerTensor, ResNetConfig, StarNetConfig, TinyVitConfig, VitConfig};
use crate::onnx::proto::{Extent, Graph, Model};
use crate::weights::{StateDict, Tensor};
use std::collections::BTreeSet;

const VIT: EncoderConfig =
    EncoderConfig::Vit(VitConfig { img_size: [64, 32], embed_dim: 48, depth: 3, num_heads: 3, tap: 1 });
const TINY: EncoderConfig = EncoderConfig::TinyVit(TinyVitConfig {
    embed_dims: [16, 32, 48, 64],
    depths: [1, 1, 2, 1],
    num_heads: [1, 2, 3, 4],
    window_sizes: [7, 7, 14, 7],
});
const STAR: EncoderConfig =
    EncoderConfig::StarNet(StarNetConfig { base_dim: 16, depths: [1, 1, 2, 1], mlp_ratio: 3 });

const RES: EncoderConfig =
    EncoderConfig::ResNet(ResNetConfig { layers: [1, 2, 1, 1], channels: [8, 8, 12, 20] });

/// Weights of timm's names and shapes, small numbers that are not all alike.
fn weights(config: &EncoderConfig) -> StateDict {
    let mut state = StateDict::new();
    for LayerTensor { name, shape, holds } in config.encoder().layers().iter().cloned() {
        let count: usize = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|i| 0.1 + (i * 7 % 11) as f32 * 0.01).collect();
        let tensor = match holds {
            Holds::Counter => Tensor::from_i64(1),
            Holds::Parameter(_) | Holds::Statistic(_) => {
                Tensor::from_f32(shape.as_slice().into(), &values).unwrap()
            }
        };
        state.insert(name, tensor).unwrap();
    }
    state
}

fn graph(config: &EncoderConfig, state: &StateDict, size: [usize; 2]) -> Graph {
    let metadata = [("mean".to_owned(), "0.485 0.456 0.406".to_owned())];
    let model = Model::decode(encoder(config, state, size, &metadata).unwrap().as_slice()).unwrap();
    assert_eq!((model.ir_version, model.opset_import[0].version), (IR_VERSION, OPSET));
    assert_eq!(model.metadata_props[0].value, metadata[0].1);
    model.graph.unwrap()
}

#[test]
fn models_are_whole() {
    for (config, size, image, patch) in [
        (VIT, [64, 32], 48, 48),
        (TINY, [256, 128], 64, 48),
        (STAR, [128, 64], 128, 64),
        (RES, [64, 48], 20, 12),
    ] {
        let state = weights(&config);
        let graph = graph(&config, &state, size);
        let mut known: BTreeSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(known.len(), graph.initializer.len(), "two initializers of one name");
        known.insert("images");
        for node in &graph.node {
            for input in &node.input {
                assert!(known.contains(input.as_str()), "{}: `{input}` comes from nowhere", node.name);
            }
            for output in &node.output {
                assert!(known.insert(output), "`{output}` is computed twice");
            }
            assert_ne!(node.op_type, "BatchNormalization");
        }
        for t in &graph.initializer {
            let size = if t.data_type == proto::FLOAT { 4 } else { 8 };
            assert_eq!(t.raw_data.len() as i64, t.dims.iter().product::<i64>() * size, "{}", t.name);
        }
        let extents = |i: usize| -> Vec<Option<Extent>> {
            let shape = graph.output[i].r#type.as_ref().and_then(|t| t.tensor_type.as_ref()?.shape.as_ref());
            shape.unwrap().dim.iter().map(|d| d.extent.clone()).collect()
        };
        let batch = Some(Extent::Param("batch".to_owned()));
        let value = |v: usize| Some(Extent::Value(v as i64));
        let patches = size[0] / PATCH * size[1] / PATCH;
        assert_eq!(extents(0), [batch.clone(), value(image)]);
        assert_eq!(extents(1), [batch, value(patches), value(patch)]);
    }
}

#[test]
fn a_batch_norm_is_folded_into_its_convolution() {
    let state = weights(&STAR);
    let graph = graph(&STAR, &state, [128, 64]);
    let of = |name: &str| state.get(name).unwrap().f32s().unwrap()[5];
    let got = |name: &str, at: usize| {
        let t = graph.initializer.iter().find(|t| t.name == name).unwrap();
        f32::from_le_bytes(t.raw_data[at * 4..at * 4 + 4].try_into().unwrap())
    };
    // Channel 5 of the stem, 27 weights each.
    let scale = of("stem.0.bn.weight") / (of("stem.0.bn.running_var") + 1e-5).sqrt();
    let bias = (of("stem.0.conv.bias") - of("stem.0.bn.running_mean")) * scale + of("stem.0.bn.bias");
    let weight = state.get("stem.0.conv.weight").unwrap().f32s().unwrap()[5 * 27 + 2] * scale;
    assert!((got("stem.0.conv.weight", 5 * 27 + 2) - weight).abs() < 1e-6);
    assert!((got("stem.0.conv.bias", 5) - bias).abs() < 1e-6);
}

#[test]
fn what_does_not_fit_is_named() {
    let state = weights(&VIT);
    let refused = |config: &EncoderConfig, state: &StateDict, size, word: &str| {
        let message = encoder(config, state, size, &[]).unwrap_err().to_string();
        assert!(message.contains(word), "{message}");
    };
    refused(&VIT, &state, [128, 64], "--img-size 128 64");
    refused(&VIT, &state, [60, 32], "multiples of 16");
    refused(&STAR, &state, [128, 64], "stem.0.conv.weight");
    let partial = state.renamed(|name| (name != "blocks.1.mlp.fc2.bias").then(|| name.to_owned()));
    refused(&VIT, &partial, [64, 32], "blocks.1.mlp.fc2.bias");
}
