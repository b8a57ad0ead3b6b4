//! timm's description of an encoder.

use crate::models::Encoder;
use crate::models::EncoderConfig;
use crate::train::trained::TrainedEncoder;
use serde_json::{Map, Value, json};

/// timm's name of an encoder, and the arguments that its `create_model` needs beside it.
pub fn timm_model(config: &EncoderConfig) -> (&'static str, Map<String, Value>) {
    let (name, known, args) = match config {
        EncoderConfig::Vit { embed_dim, depth, num_heads, .. } => {
            let (name, known) = match (embed_dim, depth, num_heads) {
                (192, 12, 3) => ("vit_tiny_patch16_224", true),
                (384, 12, 6) => ("vit_small_patch16_224", true),
                (768, 12, 12) => ("vit_base_patch16_224", true),
                (1024, 24, 16) => ("vit_large_patch16_224", true),
                _ => ("vit_tiny_patch16_224", false),
            };
            (name, known, json!({ "embed_dim": embed_dim, "depth": depth, "num_heads": num_heads }))
        }
        EncoderConfig::TinyVit { embed_dims, depths, num_heads, window_sizes } => {
            // The first stage has no attention.
            let usual = *depths == [2, 2, 6, 2] && window_sizes[1..] == [7, 14, 7];
            let (name, known) = match (embed_dims, &num_heads[1..]) {
                ([64, 128, 160, 320], [4, 5, 10]) => ("tiny_vit_5m_224", usual),
                ([64, 128, 256, 448], [4, 8, 14]) => ("tiny_vit_11m_224", usual),
                ([96, 192, 384, 576], [6, 12, 18]) => ("tiny_vit_21m_224", usual),
                _ => ("tiny_vit_5m_224", false),
            };
            let args = json!({
                "embed_dims": embed_dims, "depths": depths, "num_heads": num_heads, "window_sizes": window_sizes,
            });
            (name, known, args)
        }
        EncoderConfig::StarNet { base_dim, depths, mlp_ratio } => {
            let (name, known) = match (base_dim, depths) {
                (24, [2, 2, 8, 3]) => ("starnet_s1", true),
                (32, [1, 2, 6, 2]) => ("starnet_s2", true),
                (32, [2, 2, 8, 4]) => ("starnet_s3", true),
                (32, [3, 3, 12, 5]) => ("starnet_s4", true),
                _ => ("starnet_s3", false),
            };
            let args = json!({ "base_dim": base_dim, "depths": depths, "mlp_ratio": mlp_ratio });
            (name, known && *mlp_ratio == 4, args)
        }
    };
    let mut all = Map::new();
    if let (false, Value::Object(args)) = (known, args) {
        all = args;
    }
    if let EncoderConfig::Vit { img_size, .. } = config {
        all.insert("img_size".into(), json!(img_size));
    }
    (name, all)
}

/// The `config.json` of a folder that timm opens.
pub fn timm_config(encoder: &TrainedEncoder) -> Value {
    let (architecture, model_args) = timm_model(&encoder.config);
    let (first_conv, classifier, fixed) = match encoder.config {
        EncoderConfig::Vit { .. } => ("patch_embed.proj", "head", true),
        EncoderConfig::TinyVit { .. } => ("patch_embed.conv1.conv", "head.fc", false),
        EncoderConfig::StarNet { .. } => ("stem.0.conv", "head", false),
    };
    let [h, w] = encoder.size;
    let shorter = |v: [f32; 3]| v.map(|x| (f64::from(x) * 1e6).round() / 1e6);
    let mut config = json!({
        "architecture": architecture,
        "num_classes": 0,
        "num_features": Encoder::new(&encoder.config, "encoder").map_or(0, |e| e.dims().image),
        "pretrained_cfg": {
            "input_size": [3, h, w],
            "fixed_input_size": fixed,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            // Pictures are stretched to the size: timm's default would cut off the margins of another aspect.
            "crop_mode": "squash",
            "mean": shorter(encoder.mean),
            "std": shorter(encoder.std),
            "num_classes": 0,
            "first_conv": first_conv,
            "classifier": classifier,
        },
        "saip_engine": super::metadata(encoder),
    });
    if !model_args.is_empty() {
        config["model_args"] = Value::Object(model_args);
    }
    config
}
