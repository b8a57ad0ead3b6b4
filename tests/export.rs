//! Encoders on their way out: files that other programs open, features of images, and what is refused.
//!
//! Exported ONNX models are run by ONNX Runtime, which `tools/test.sh` provides.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use saip_engine::cpu::CpuBackend;
use saip_engine::embed::{Embedder, Tokens};
use saip_engine::export::{ExportOptions, Format, export};
use saip_engine::models::{EncoderConfig, VitConfig};
use saip_engine::tensor::Shape;
use saip_engine::train::presets::PRESETS;
use saip_engine::train::trained::TrainedEncoder;
use saip_engine::weights::{
    self, Architecture, Naming, PthLayout, ResNet, StarNet, StateDict, Tensor, TinyVit, Vit, timm_element,
    timm_parameters, write_safetensors,
};
use support::{checkpoint, engine, lab, run, tensors, train, train_encoder};

fn full_size() -> [(&'static str, Architecture); 4] {
    let vit = Vit {
        dim: 192,
        depth: 12,
        hidden: 768,
        patch: [16, 16],
        channels: 3,
        positions: 129,
        class_token: true,
        distillation_token: false,
        registers: 0,
        layer_scale: false,
    };
    let tiny = TinyVit {
        stem: 32,
        widths: vec![64, 128, 160, 320],
        depths: vec![2, 2, 6, 2],
        expanded: 256,
        heads: vec![4, 5, 10],
        windows: vec![7, 14, 7],
        hidden: vec![512, 640, 1280],
        local: 3,
    };
    let star = StarNet {
        stem: 32,
        widths: vec![32, 64, 128, 256],
        depths: vec![2, 2, 8, 4],
        expansion: 4,
        kernel: 7,
    };
    let res = ResNet { stem: 64, widths: vec![64, 128, 256, 512], depths: vec![2; 4] };
    [
        ("vit_tiny_patch16_224", Architecture::Vit(vit)),
        ("tiny_vit_5m_224", Architecture::TinyVit(tiny)),
        ("starnet_s3", Architecture::StarNet(star)),
        ("resnet18", Architecture::ResNet(res)),
    ]
}

fn normal(rng: &mut ChaCha8Rng) -> f32 {
    StandardNormal.sample(rng)
}

/// Weights that keep activations in bounds; norms and their statistics are not the identity.
fn drawn(rng: &mut ChaCha8Rng, name: &str, shape: &Shape) -> Vec<f32> {
    let fan_in: usize = shape.dims().iter().skip(1).product();
    let is_norm = shape.dims().len() == 1 && name.ends_with("weight");
    let mut one = || match name {
        n if n.ends_with("running_var") => 0.5 + normal(rng).abs(),
        _ if is_norm => 1.0 + 0.2 * normal(rng),
        _ if shape.dims().len() == 1 => 0.1 * normal(rng),
        "pos_embed" | "cls_token" => 0.3 * normal(rng),
        // StarNet multiplies its branches: larger weights would enlarge every rounding.
        _ => 0.5 * normal(rng) / (fan_in.max(1) as f32).sqrt(),
    };
    (0..shape.count()).map(|_| one()).collect()
}

/// A timm file with drawn weights.
fn weights_file(path: &Path, architecture: &Architecture, size: [usize; 2]) {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut state = StateDict::new();
    for (name, shape) in timm_parameters(architecture) {
        let tensor = match timm_element(&name).is_float() {
            true => Tensor::from_f32(shape.clone(), &drawn(&mut rng, &name, &shape)).unwrap(),
            false => Tensor::from_i64(5),
        };
        state.insert(name, tensor).unwrap();
    }
    state.metadata.insert("input_size".into(), format!("{}x{}", size[0], size[1]));
    write_safetensors(path, &state).unwrap();
}

fn write(encoder: &TrainedEncoder, out: &Path, format: Format) -> Vec<PathBuf> {
    let options = ExportOptions { format, layout: PthLayout::default(), force: false };
    export(encoder, out, &options).unwrap()
}

/// `[n, 3, h, w]`, as images are after normalisation.
fn pixels(n: usize, [h, w]: [usize; 2]) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(n as u64);
    (0..n * 3 * h * w).map(|_| 1.2 * normal(&mut rng)).collect()
}

fn embedded(encoder: &TrainedEncoder, n: usize, batch: usize) -> Tokens {
    let backend = Box::new(CpuBackend::<f32>::new(2).unwrap());
    Embedder::new(backend, encoder, batch, true).unwrap().run(&pixels(n, encoder.size)).unwrap()
}

/// Image token and patch tokens by ONNX Runtime.
fn onnx_runtime(model: &Path, n: usize, [h, w]: [usize; 2]) -> Tokens {
    static LOADED: OnceLock<ort::environment::Environment> = OnceLock::new();
    let environment = LOADED.get_or_init(|| {
        let library = std::env::var_os("ORT_DYLIB_PATH")
            .expect("run the tests with `bash tools/test.sh`, which fetches ONNX Runtime");
        ort::init_from(library).unwrap().build().unwrap()
    });
    let mut session = ort::session::Session::builder(environment).unwrap().commit_from_file(model).unwrap();
    let images = ort::value::Tensor::from_array(([n, 3, h, w], pixels(n, [h, w]))).unwrap();
    let outputs = session.run(ort::inputs!["images" => images]).unwrap();
    let values = |name: &str| outputs[name].try_extract_tensor::<f32>().unwrap().1.to_vec();
    Tokens { image: values("image_token"), patch: values("patch_tokens") }
}

/// The largest difference over the largest value.
fn error(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    a.iter().zip(b).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / largest
}

#[test]
fn onnx_runtime_gives_the_same_tokens() {
    let dir = lab();
    for (name, architecture) in full_size() {
        let file = dir.path().join(format!("{name}.safetensors"));
        weights_file(&file, &architecture, [256, 128]);
        let encoder = TrainedEncoder::read(&file, false, None).unwrap();
        assert_eq!(encoder.size, [256, 128]);
        let model = dir.path().join(format!("{name}.onnx"));
        write(&encoder, &model, Format::Onnx);
        for n in [1, 3] {
            let (ours, theirs) = (embedded(&encoder, n, 3), onnx_runtime(&model, n, encoder.size));
            let errors = [error(&theirs.image, &ours.image), error(&theirs.patch, &ours.patch)];
            println!("{name}, {n} images: {errors:?}");
            assert!(errors.iter().all(|e| *e < 1e-4), "{name}, {n} images: {errors:?}");
        }
    }
}

/// Another geometry: positions are resampled, and the model is for that size.
#[test]
fn onnx_models_take_the_size_asked_for() {
    let dir = lab();
    for (name, architecture) in full_size() {
        let file = dir.path().join(name);
        weights_file(&file, &architecture, [256, 128]);
        let encoder = TrainedEncoder::read(&file, false, None).unwrap().resized([128, 96]).unwrap();
        let model = dir.path().join(format!("{name}.onnx"));
        write(&encoder, &model, Format::Onnx);
        let (ours, theirs) = (embedded(&encoder, 2, 2), onnx_runtime(&model, 2, [128, 96]));
        let errors = [error(&theirs.image, &ours.image), error(&theirs.patch, &ours.patch)];
        assert!(errors.iter().all(|e| *e < 1e-4), "{name}: {errors:?}");
    }
}

#[test]
fn features_of_an_image_do_not_depend_on_the_others() {
    let dir = lab();
    for (name, architecture) in full_size() {
        let file = dir.path().join(name);
        weights_file(&file, &architecture, [64, 32]);
        // The ViT's file has a table for 256x128 pixels.
        let encoder = TrainedEncoder::read(&file, false, None).unwrap().resized([64, 32]).unwrap();
        let all = embedded(&encoder, 3, 3);
        let backend = Box::new(CpuBackend::<f32>::new(1).unwrap());
        let mut alone = Embedder::new(backend, &encoder, 1, true).unwrap();
        let each = 3 * 64 * 32;
        for (i, pixels) in pixels(3, [64, 32]).chunks_exact(each).enumerate() {
            let one = alone.run(pixels).unwrap();
            let (d, t) = (one.image.len(), one.patch.len());
            assert!(error(&one.image, &all.image[i * d..(i + 1) * d]) < 1e-5, "{name}");
            assert!(error(&one.patch, &all.patch[i * t..(i + 1) * t]) < 1e-5, "{name}");
        }
    }
}

/// A checkpoint of the preset at full size with `sets`, as a run of no steps would leave it, and its run folder `name`.
fn full_run(dir: &Path, name: &str, preset: &str, sets: &[&str]) -> PathBuf {
    let mut command = engine(dir);
    command.args(["train", "--preset", preset, "--print-config"]);
    for set in sets {
        command.args(["--set", set]);
    }
    let ended = run(&mut command).ok();
    let out = dir.join(name);
    fs::create_dir_all(out.join("checkpoints")).unwrap();
    fs::write(out.join("config.toml"), ended.stdout).unwrap();
    let cfg = saip_engine::train::config::TrainConfig::load(&out.join("config.toml")).unwrap();
    let encoder = cfg.encoder.architecture.open("encoder").unwrap();
    let (mut params, mut buffers) =
        (saip_engine::nn::ParamRegistry::new(), saip_engine::nn::ParamRegistry::new());
    encoder.register(&mut params).unwrap();
    encoder.register_buffers(&mut buffers).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let drawn: Vec<(String, Vec<usize>, Vec<f32>)> = params
        .iter()
        .chain(&buffers)
        .map(|p| {
            let shape = Shape::new(p.shape.clone());
            (format!("student.{}", p.name), p.shape.clone(), drawn(&mut rng, &p.name, &shape))
        })
        .collect();
    let views: Vec<_> = drawn
        .iter()
        .map(|(name, shape, data)| saip_engine::train::checkpoint::TensorView { name, shape, data })
        .collect();
    let state = saip_engine::train::checkpoint::RunState {
        step: 11,
        epoch: 0,
        seed: 0,
        config_hash: String::new(),
        engine_version: String::new(),
        images: None,
        dtype: None,
        counters: BTreeMap::new(),
        history: serde_json::Value::Null,
    };
    let store = saip_engine::train::checkpoint::Checkpoints::open(out.join("checkpoints"), 1).unwrap();
    store.save(&state, &views).unwrap();
    out
}

#[test]
fn timms_folder_has_timms_keys_shapes_and_types() {
    let dir = lab();
    let resnet: &[&str] = &["encoder.kind=resnet"];
    let presets = [
        ("saip-vit-tiny", &[][..]),
        ("saip-tinyvit-5m", &[]),
        ("saip-starnet-s3", &[]),
        ("saip-starnet-s3", resnet),
    ];
    for ((preset, sets), (name, _)) in presets.into_iter().zip(full_size()) {
        assert!(PRESETS.iter().any(|p| p.name == preset));
        full_run(dir.path(), name, preset, sets);
        run(engine(dir.path()).args(["export", name, "--format", "timm"])).ok();
        let folder = dir.path().join(name).join("export/encoder-timm");
        let state = weights::read(folder.join("model.safetensors")).unwrap();
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.csv"));
        let mut golden_rows = BTreeMap::new();
        for row in csv::Reader::from_path(golden).unwrap().records() {
            let row = row.unwrap();
            // The list is of 224x224 pixels.
            let shape = if &row[0] == "pos_embed" { "1x129x192".to_owned() } else { row[1].to_owned() };
            golden_rows.insert(row[0].to_owned(), (shape, row[2].to_owned()));
        }
        let dims = |t: &Tensor| t.shape().dims().iter().map(usize::to_string).collect::<Vec<_>>().join("x");
        let ours: BTreeMap<_, _> =
            state.iter().map(|(n, t)| (n.to_owned(), (dims(t), t.element().to_string()))).collect();
        assert_eq!(ours, golden_rows, "{name}");
        let config: serde_json::Value =
            serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["architecture"], name);
        assert_eq!(config["pretrained_cfg"]["input_size"], serde_json::json!([3, 256, 128]));
        let args = if preset == "saip-vit-tiny" {
            serde_json::json!({ "img_size": [256, 128] })
        } else {
            serde_json::Value::Null
        };
        assert_eq!(config["model_args"], args, "timm's own sizes need no arguments");
        if preset != "saip-vit-tiny" {
            // Three groups of views, one micro step of 8 a step (2048 / 256), 11 steps.
            let counted = state.iter().find(|(n, _)| n.ends_with("num_batches_tracked")).unwrap().1;
            assert_eq!(counted.bytes(), (3i64 * 8 * 11).to_le_bytes());
        }
        let card = fs::read_to_string(folder.join("README.md")).unwrap();
        for part in
            ["local-dir:", "0.485", "256 x 128", "11 steps", "[optim]", "Licence", "Synthetic persons"]
        {
            assert!(card.contains(part), "{part} is missing in\n{card}");
        }
    }
}

/// A run of four steps.
const SHORT: &[&str] = &["optim.steps=4", "optim.warmup_steps=1", "run.checkpoint_every=2"];

#[test]
fn files_of_a_run_hold_its_weights() {
    let dir = lab();
    run(&mut train(dir.path(), "run", SHORT)).ok();
    let out = dir.path().join("run");
    let at = |step| tensors(&out, step);
    let export = |args: &[&str]| run(engine(dir.path()).args(["export", "run"]).args(args));
    let holds = |file: &str, naming: Naming, source: &BTreeMap<String, Vec<f32>>, prefix: &str| {
        let state = weights::encoder(&weights::read(dir.path().join(file)).unwrap()).unwrap();
        assert_eq!(state.naming, naming, "{file}");
        let wanted: Vec<_> = source.iter().filter(|(n, _)| n.starts_with(prefix)).collect();
        assert_eq!(state.state.len(), wanted.len(), "{file}");
        for (name, values) in wanted {
            let found = state.state.get(&name[prefix.len()..]).unwrap().f32s().unwrap();
            assert!(found == values.as_slice(), "{file}: {name}");
        }
    };
    export(&["--format", "pth"]).ok();
    holds("run/export/encoder.pth", Naming::Timm, &at(4), "student.encoder.vit.");
    export(&["--format", "safetensors", "--step", "2", "--out", "two.safetensors"]).ok();
    holds("two.safetensors", Naming::Timm, &at(2), "student.encoder.vit.");
    export(&["--format", "mmpose", "--expert"]).ok();
    holds("run/export/expert-mmpose.pth", Naming::Mmpretrain, &at(4), "expert.encoder.vit.");
    assert_eq!(weights::read(out.join("export/expert-mmpose.pth")).unwrap().entry, "state_dict");
    export(&["--format", "pth", "--prefix", "backbone.", "--entry", "model", "--out", "b.pth"]).ok();
    let b = weights::read(dir.path().join("b.pth")).unwrap();
    assert_eq!(b.entry, "model");
    assert!(b.names().all(|n| n.starts_with("backbone.")));
    // A checkpoint by its own folder.
    run(engine(dir.path()).args([
        "export",
        "run/checkpoints/step-00000002",
        "--format",
        "pth",
        "--out",
        "c.pth",
    ]))
    .ok();
    holds("c.pth", Naming::Timm, &at(2), "student.encoder.vit.");
    // Other sizes have other positions.
    export(&["--format", "safetensors", "--img-size", "64", "48"]).ok();
    let resized = weights::read(out.join("export/encoder-64x48.safetensors")).unwrap();
    assert_eq!(resized.get("pos_embed").unwrap().shape().dims(), [1, 1 + 4 * 3, 24]);
    assert_eq!(resized.metadata["input_size"], "64x48");
    // timm's folder is a source, too, and gives the same features as the run.
    export(&["--format", "timm"]).ok();
    export(&["--format", "timm"]).refused(&["encoder-timm", "--force"]);
    export(&["--format", "timm", "--force"]).ok();
    let whole = TrainedEncoder::read(&out, false, None).unwrap();
    let folder = TrainedEncoder::read(&out.join("export/encoder-timm"), false, None).unwrap();
    let EncoderConfig::Vit(VitConfig { num_heads, tap, .. }) = whole.config else { panic!("a ViT") };
    let EncoderConfig::Vit(VitConfig { num_heads: usual, tap: middle, .. }) = folder.config else {
        panic!("a ViT")
    };
    assert_eq!((num_heads, tap, usual, middle), (2, 1, 2, 1), "the file says what shapes do not");
    assert!(embedded(&whole, 1, 1) == embedded(&folder, 1, 1));
    let config = fs::read_to_string(out.join("export/encoder-timm/config.json")).unwrap();
    assert!(config.contains("\"crop_mode\": \"squash\""), "pictures are stretched, not cut: {config}");
    // So is each file, whatever of it no shape tells: 4x2 patches, 2 heads of 12 channels.
    let files = ["run/export/encoder.pth", "b.pth", "c.pth", "two.safetensors"];
    for file in files {
        let read = TrainedEncoder::read(&dir.path().join(file), false, None).unwrap();
        assert_eq!((&read.config, read.size), (&whole.config, whole.size), "{file}");
        assert_eq!(read.notes.len(), 1, "only the norm of the patch tokens is not there: {:?}", read.notes);
    }
    let own = TrainedEncoder::read(&dir.path().join(files[0]), false, None).unwrap();
    assert!(embedded(&whole, 1, 1).image == embedded(&own, 1, 1).image);
    // Where nothing tells them, they are guessed aloud, or given.
    let mut bare = weights::read(dir.path().join(files[0])).unwrap();
    bare.metadata.clear();
    weights::write_pth(dir.path().join("bare.pth"), &bare, &PthLayout::default()).unwrap();
    let again = |args: &[&str]| {
        run(engine(dir.path())
            .args(["export", "bare.pth", "--format", "safetensors", "--force", "--out", "x"])
            .args(args))
    };
    let ended = again(&[]).ok();
    assert!(ended.stderr.contains("--heads") && ended.stderr.contains("4x2 patches"), "{ended:?}");
    let ended =
        again(&["--heads", "3", "--tap", "0", "--grid", "2", "4", "--mean", "0.5", "0.5", "0.5"]).ok();
    assert!(!ended.stderr.contains("--heads"), "{ended:?}");
    let read = TrainedEncoder::read(&dir.path().join("x"), false, None).unwrap();
    let EncoderConfig::Vit(VitConfig { num_heads: 3, tap: 0, img_size: [32, 64], .. }) = read.config else {
        panic!("{:?}", read.config)
    };
    assert_eq!(read.mean, [0.5; 3]);
    again(&["--grid", "3", "3"]).refused(&["bare.pth", "--grid", "8 patches"]);
    again(&["--heads", "5"]).refused(&["bare.pth", "--heads", "24"]);
    again(&["--from-entry", "student"]).refused(&["bare.pth", "`student`"]);
}

#[test]
fn mean_and_deviation_of_a_file_are_those_of_its_pictures() {
    let picture = image::RgbImage::from_pixel(2, 2, image::Rgb([255, 0, 51]));
    let normal = [[0.5, 0.5, 0.0], [0.5, 0.25, 1.0]];
    let pixels = saip_engine::data::augment::normalize::eval_image_with(&picture, [1, 1], normal).unwrap();
    for (value, expected) in pixels.iter().zip([1.0, -2.0, 0.2]) {
        assert!((value - expected).abs() < 1e-6, "{pixels:?}");
    }
}

#[test]
fn the_expert_of_a_file_can_be_exported() {
    let dir = lab();
    let star = StarNet { stem: 32, widths: vec![4, 8, 16, 32], depths: vec![1; 4], expansion: 2, kernel: 7 };
    weights_file(&dir.path().join("star.safetensors"), &Architecture::StarNet(star), [64, 32]);
    run(train(dir.path(), "run", SHORT).args(["--expert", "star.safetensors"])).ok();
    run(engine(dir.path()).args(["export", "run", "--format", "pth", "--expert"])).ok();
    let (a, b) = (
        weights::read(dir.path().join("star.safetensors")).unwrap(),
        weights::read(dir.path().join("run/export/expert.pth")).unwrap(),
    );
    for (name, tensor) in a.iter().filter(|(_, t)| t.element().is_float()) {
        assert!(b.get(name) == Some(tensor), "{name}");
    }
    run(engine(dir.path()).args(["export", "run", "--format", "mmpose", "--expert"]))
        .refused(&["ViT", "--format pth"]);
}

#[test]
fn what_cannot_be_exported_is_refused_with_its_reason() {
    let dir = lab();
    run(&mut train(dir.path(), "run", SHORT)).ok();
    let export = |args: &[&str]| run(engine(dir.path()).arg("export").args(args));
    fs::create_dir(dir.path().join("empty")).unwrap();
    export(&["empty", "--format", "pth"]).refused(&["empty", "config.toml"]);
    export(&["none", "--format", "pth"]).refused(&["none"]);
    export(&["run", "--format", "pth", "--step", "3"]).refused(&["step 3", "2, 4"]);
    export(&["run", "--format", "onnx", "--prefix", "x."]).refused(&["--prefix", "pth"]);
    export(&["run", "--format", "onnx", "--img-size", "60", "32"]).refused(&["60", "16"]);
    // Positions of so many patches would not fit any memory.
    export(&["run", "--format", "onnx", "--img-size", "1600000", "1600000"]).refused(&["--img-size", "4096"]);
    // Links that lead nowhere are somebody's, as are those to files.
    std::os::unix::fs::symlink("nowhere", dir.path().join("link.onnx")).unwrap();
    let link = ["run", "--format", "onnx", "--out", "link.onnx"];
    export(&link).refused(&["link.onnx: is there already", "--force"]);
    std::os::unix::fs::symlink("nowhere", dir.path().join("card.onnx.md")).unwrap();
    export(&["run", "--format", "onnx", "--out", "card.onnx"]).refused(&["card.onnx.md", "another --out"]);
    export(&[&link[..], &["--force"]].concat()).ok();
    // What an option asks for and cannot be.
    export(&["run", "--format", "pth", "--names", "tiny-vit"]).refused(&[
        "--names tiny-vit",
        "TinyViT",
        "ViT",
    ]);
    export(&["run", "--format", "pth", "--prefix", "backbone"]).refused(&["--prefix backbone."]);
    export(&["run", "--format", "pth", "--entry", ""]).refused(&["--entry"]);
    export(&["run", "--format", "pth", "--heads", "2"]).refused(&["run", "--heads", "files of weights"]);
    let star = StarNet { stem: 32, widths: vec![4, 8, 16, 32], depths: vec![1; 4], expansion: 2, kernel: 7 };
    weights_file(&dir.path().join("star.safetensors"), &Architecture::StarNet(star), [64, 32]);
    let of_file =
        |args: &[&str]| export(&[&["star.safetensors", "--format", "pth", "--out", "s.pth"], args].concat());
    of_file(&["--names", "mmpretrain"]).refused(&["--names mmpretrain", "StarNet"]);
    of_file(&["--grid", "4", "2"]).refused(&["--grid", "StarNet"]);
    of_file(&["--expert"]).refused(&["star.safetensors", "--expert", "--from-entry"]);
    of_file(&["--step", "1"]).refused(&["star.safetensors", "--step"]);
    // NaN in the newest checkpoint, with checksums that fit.
    let cfg = saip_engine::train::config::TrainConfig::load(&dir.path().join("run/config.toml")).unwrap();
    let mut all = tensors(&dir.path().join("run"), 4);
    all.get_mut("student.encoder.vit.norm.weight").unwrap()[0] = f32::NAN;
    let shapes = saip_engine::train::checkpoint::Checkpoints::for_reading(dir.path().join("run/checkpoints"))
        .at(4)
        .unwrap();
    let shapes: BTreeMap<String, Vec<usize>> =
        shapes.tensors().map(|(n, s)| (n.to_owned(), s.to_vec())).collect();
    let views: Vec<_> = all
        .iter()
        .map(|(name, data)| saip_engine::train::checkpoint::TensorView { name, shape: &shapes[name], data })
        .collect();
    let store =
        saip_engine::train::checkpoint::Checkpoints::open(dir.path().join("run/checkpoints"), 3).unwrap();
    let state = store.at(4).unwrap().state;
    assert_eq!(cfg.optim.steps, Some(4));
    store.save(&saip_engine::train::checkpoint::RunState { step: 5, ..state }, &views).unwrap();
    export(&["run", "--format", "pth"]).refused(&["norm.weight", "NaN", "--step"]);
    assert!(!dir.path().join("run/export").exists());
    export(&["run", "--format", "pth", "--step", "4"]).ok();
    // A damaged newest one gives way to the one before.
    let model = checkpoint(&dir.path().join("run"), 5).join("model.safetensors");
    fs::write(&model, b"torn").unwrap();
    fs::remove_dir_all(checkpoint(&dir.path().join("run"), 4)).unwrap();
    let ended = export(&["run", "--format", "pth", "--force"]).ok();
    assert!(
        ended.stderr.contains("step-00000005") && ended.stderr.contains("damaged"),
        "an older one is told: {ended:?}"
    );
}

#[test]
fn embedding_a_folder() {
    let dir = lab();
    let keys: Vec<&str> = ["encoder.base_dim=4", "encoder.depths=[1,1,1,1]", "encoder.mlp_ratio=2"]
        .iter()
        .chain(SHORT)
        .copied()
        .collect();
    run(&mut train_encoder(dir.path(), "run", "demo-starnet", &keys)).ok();
    let images = dir.path().join("images");
    fs::create_dir(&images).unwrap();
    for i in 0..7u8 {
        let picture =
            image::RgbImage::from_fn(32, 64, |x, y| image::Rgb([(x * 7) as u8, (y * 3) as u8, i * 30]));
        picture.save(images.join(format!("{i}.png"))).unwrap();
    }
    fs::write(images.join("3.png"), b"\x89PNG\r\n\x1a\nnot really").unwrap();
    let embed = |out: &str, args: &[&str]| {
        run(engine(dir.path()).args(["embed", "run", "--images", "images", "--out", out]).args(args))
    };
    let ended = embed("a", &["--tokens", "both", "--batch", "7"]).ok();
    assert!(
        ended.stdout.contains("6 images") && ended.stdout.contains("1 of 7 images is left out"),
        "{}",
        ended.stdout
    );
    embed("b", &["--tokens", "both", "--batch", "7", "--threads", "1"]).ok();
    embed("e", &["--tokens", "both", "--batch", "2"]).ok();
    for name in ["image_token.npy", "patch_tokens.npy"] {
        let [a, b] = ["a", "b"].map(|d| fs::read(dir.path().join(d).join(name)).unwrap());
        assert!(a == b, "{name} depends on the number of threads");
        let e = fs::read(dir.path().join("e").join(name)).unwrap();
        let values = |bytes: &[u8]| -> Vec<f32> {
            bytes[256..].as_chunks::<4>().0.iter().map(|v| f32::from_le_bytes(*v)).collect()
        };
        assert!(error(&values(&e), &values(&a)) < 1e-5, "{name} depends on the batch");
        let width = if name.starts_with("image") { 32 } else { 8 * 16 };
        assert_eq!(a.len(), 256 + 6 * width * 4);
    }
    let list = fs::read_to_string(dir.path().join("a/files.csv")).unwrap();
    assert_eq!(
        list.lines().collect::<Vec<_>>(),
        ["row,file", "0,0.png", "1,1.png", "2,2.png", "3,4.png", "4,5.png", "5,6.png"]
    );
    assert!(fs::read_to_string(dir.path().join("a/skipped.csv")).unwrap().contains("3.png"));
    let about: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.path().join("a/embed.json")).unwrap()).unwrap();
    assert_eq!((about["images"].as_u64(), about["encoder"]["step"].as_str()), (Some(6), Some("4")));
    embed("c", &["--format", "safetensors", "--expert"]).ok();
    let bytes = fs::read(dir.path().join("c/image_token.safetensors")).unwrap();
    let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(all.tensor("image_token").unwrap().shape(), [6, 32]);
    let a = fs::read(dir.path().join("a/image_token.npy")).unwrap();
    assert_ne!(all.tensor("image_token").unwrap().data(), &a[256..], "the expert is another encoder");
    fs::create_dir(dir.path().join("nothing")).unwrap();
    run(engine(dir.path()).args(["embed", "run", "--images", "nothing", "--out", "d"])).refused(&["nothing"]);
    embed("d", &["--batch", "0"]).refused(&["--batch"]);
    assert!(!dir.path().join("d").exists());
}
