//! timm's description of an encoder.

use crate::models::TimmModel;
use crate::train::trained::TrainedEncoder;
use serde_json::{Value, json};

/// The `config.json` of a folder that timm opens.
pub fn timm_config(encoder: &TrainedEncoder) -> Value {
    let net = encoder.config.encoder();
    let TimmModel { name: architecture, args: model_args, first_conv, classifier, fixed_size } = net.timm();
    let [h, w] = encoder.size;
    let shorter = |v: [f32; 3]| v.map(|x| (f64::from(x) * 1e6).round() / 1e6);
    let mut config = json!({
        "architecture": architecture,
        "num_classes": 0,
        "num_features": net.dims().image,
        "pretrained_cfg": {
            "input_size": [3, h, w],
            "fixed_input_size": fixed_size,
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
