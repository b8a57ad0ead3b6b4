//! Model cards: what an exported encoder is, what it was trained with, and how to load it.

use super::Format;
use crate::ir::PATCH;
use crate::models::TimmModel;
use crate::objectives::learns_classes;
use crate::train::config::TrainConfig;
use crate::train::metrics;
use crate::train::trained::{RunFacts, TrainedEncoder};
use crate::units::grouped;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

/// The model card of `encoder` as it is written to `out`, in Markdown with the header that model hubs read.
pub fn card(encoder: &TrainedEncoder, format: Format, out: &Path) -> String {
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    let mut text = String::from("---\n");
    text.push_str("pipeline_tag: image-feature-extraction\n");
    if format == Format::Timm {
        text.push_str("library_name: timm\n");
    }
    text.push_str("license: other\ntags:\n- person\n- human-centric\n- saip\n---\n\n");
    let _ = writeln!(text, "# {name}\n");
    let whose = match &encoder.run {
        Some(run) if run.expert && run.config.expert.path.is_some() => "frozen expert of a SAIP run",
        Some(run) if run.expert => "expert (moving average) of a SAIP run",
        Some(_) => "student of a SAIP run",
        None => "encoder from a file of weights",
    };
    let _ = writeln!(
        text,
        "{}: {whose}, exported by saip-engine {}.\n",
        encoder.config.encoder().timm().name,
        env!("CARGO_PKG_VERSION")
    );
    facts(&mut text, encoder);
    text.push_str("\n## Load it\n\n");
    loading(&mut text, encoder, format, &name);
    if let Some(run) = &encoder.run {
        recipe(&mut text, run);
        data(&mut text, &run.config);
    }
    text.push_str(
        "\n## Licence\n\nThe weights come from the images named above: what their licences and the laws on personal data \
         allow of such images holds for these weights, too. Fill in the licence under which you share them. They come \
         without any warranty; check them for your purpose, in particular how well they serve people of every appearance.\n",
    );
    text
}

fn facts(text: &mut String, encoder: &TrainedEncoder) {
    let [h, w] = encoder.size;
    let values: usize = encoder
        .timm_state()
        .iter()
        .filter(|(_, t)| t.element().is_float())
        .map(|(_, t)| t.shape().count())
        .sum();
    let net = encoder.config.encoder();
    let dims = net.dims();
    let list = |v: [f32; 3]| v.map(|x| x.to_string()).join(", ");
    text.push_str("| | |\n|---|---|\n");
    let mut row = |name: &str, value: String| {
        let _ = writeln!(text, "| {name} | {value} |");
    };
    row("values", grouped(values as u64));
    row(
        "input",
        format!("RGB, {h} x {w} pixels (height x width), values in [0, 1] minus mean, over deviation"),
    );
    row("mean", list(encoder.mean));
    row("deviation", list(encoder.std));
    row("image token", format!("{} features", dims.image));
    row(
        "patch tokens",
        format!("{} features each, a {} x {} grid of stride {PATCH}", dims.tap, h / PATCH, w / PATCH),
    );
    for (name, value) in net.described() {
        row(name, value);
    }
}

fn loading(text: &mut String, encoder: &TrainedEncoder, format: Format, name: &str) {
    let TimmModel { name: architecture, args, .. } = encoder.config.encoder().timm();
    let mut given = String::new();
    for (key, value) in &args {
        let _ = write!(given, ", {key}={value}");
    }
    let create = format!("model = timm.create_model('{architecture}', num_classes=0{given})");
    let code = match format {
        Format::Timm => {
            format!("import timm\nmodel = timm.create_model('local-dir:{name}', pretrained=True).eval()")
        }
        Format::Safetensors => format!(
            "import timm\nfrom safetensors.torch import load_file\n{create}\nmodel.load_state_dict(load_file('{name}'))"
        ),
        Format::Pth => format!(
            "import timm, torch\n{create}\nstate = torch.load('{name}', weights_only=True)  # its entry and prefix as exported\nmodel.load_state_dict(state)"
        ),
        Format::Onnx => format!(
            "import onnxruntime\nsession = onnxruntime.InferenceSession('{name}')\nimage_token, patch_tokens = session.run(None, {{'images': images}})  # float32 [n, 3, {}, {}]",
            encoder.size[0], encoder.size[1]
        ),
        Format::Mmpose => format!(
            "model = dict(backbone=dict(type='mmpretrain.VisionTransformer', img_size=({}, {}), patch_size=16,\n    init_cfg=dict(type='Pretrained', checkpoint='{name}', prefix='backbone.')))",
            encoder.size[0], encoder.size[1]
        ),
    };
    let _ = writeln!(text, "```python\n{code}\n```");
}

fn recipe(text: &mut String, run: &RunFacts) {
    let c = &run.config;
    text.push_str("\n## Recipe\n\n");
    let images = run.state.step * c.optim.effective_batch as u64;
    let (saip, name) = match c.objective.as_str() {
        "saip" => (true, "SAIP (Scale-Aware Image Pretraining)"),
        other => (false, other),
    };
    let _ = writeln!(
        text,
        "{name}: {} steps of {} images, {} images seen, in epoch {}; seed {}.",
        grouped(run.state.step),
        c.optim.effective_batch,
        grouped(images),
        run.state.epoch,
        run.state.seed
    );
    if saip {
        let _ = writeln!(
            text,
            "Weights of the objectives: matching {}, reconstruction {}, search {}. Expert: {}.",
            c.csm.weight,
            c.csr.weight,
            c.css.weight,
            c.expert
                .path
                .as_ref()
                .map_or("moving average".to_owned(), |p| format!("frozen, from `{}`", p.display()))
        );
    }
    // An older log may be gone; the card does without.
    if let Ok(records) = metrics::read(&run.folder.join("metrics.jsonl")) {
        let upto = |r: &&metrics::Record| {
            r.get("step").and_then(|s| s.as_u64()).is_some_and(|s| s <= run.state.step)
        };
        let losses = records.iter().flat_map(|r| r.keys()).filter(|key| key.starts_with("loss/"));
        let parts: BTreeSet<&str> = losses.map(String::as_str).filter(|key| *key != "loss/total").collect();
        let keys = ["loss/total"].into_iter().chain(parts).chain(["probe/map", "probe/rank1"]);
        for key in keys {
            let last = records
                .iter()
                .filter(upto)
                .filter_map(|r| Some((r.get("step")?.as_u64()?, r.get(key)?.as_f64()?)))
                .next_back();
            if let Some((step, value)) = last {
                let _ = writeln!(text, "- {key} {value:.4} at step {step}");
            }
        }
    }
    if let Ok(toml) = c.to_toml() {
        let _ = writeln!(
            text,
            "\n<details><summary>Configuration</summary>\n\n```toml\n{}```\n\n</details>",
            toml
        );
    }
}

/// What the run was trained on, as far as it can be told now.
fn data(text: &mut String, config: &TrainConfig) {
    text.push_str("\n## Data\n\n");
    let Some(path) = &config.data.path else {
        let s = &config.data.synth;
        let _ = writeln!(
            text,
            "Synthetic persons drawn by saip-engine: {} identities, {} images of each, {} cameras, seed {}.",
            s.identities, s.images_per_identity, s.cameras, config.data.seed
        );
        return;
    };
    let what = if learns_classes(&config.objective) { "Labelled" } else { "Unlabelled" };
    let _ = writeln!(text, "{what} person images from `{}`.", path.display());
    for name in ["manifest.jsonl", "prepare.json"] {
        let Ok(bytes) = std::fs::read(path.join(name)) else { continue };
        let hash = Sha256::digest(&bytes).iter().fold(String::new(), |mut hex, b| {
            let _ = write!(hex, "{b:02x}");
            hex
        });
        let lines = bytes.iter().filter(|b| **b == b'\n').count();
        let _ = writeln!(text, "- `{name}`: {} lines, SHA-256 `{hash}`", grouped(lines as u64));
    }
}
