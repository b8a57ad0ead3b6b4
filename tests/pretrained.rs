//! Runs that begin with the weights of files: a frozen pretrained expert, a student that does not start at random.

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use saip_engine::tensor::Shape;
use saip_engine::weights::{
    Architecture, ResNet, StarNet, StateDict, Tensor, TinyVit, Vit, resample_positions, timm_element,
    timm_parameters, write_safetensors,
};
use support::{assert_same_end, lab, resume, run, tensors, train, train_encoder};

/// Patches of the position table of [`vit`].
const SIDE: usize = 3;

/// A ViT that is no student of these tests: wider, and with a square position table.
fn vit() -> Vit {
    Vit {
        dim: 40,
        depth: 3,
        hidden: 160,
        patch: [16, 16],
        channels: 3,
        positions: 1 + SIDE * SIDE,
        class_token: true,
        distillation_token: false,
        registers: 0,
        layer_scale: false,
    }
}

fn tiny_vit() -> Architecture {
    Architecture::TinyVit(TinyVit {
        stem: 4,
        widths: vec![8, 16, 24, 32],
        depths: vec![1; 4],
        expanded: 32,
        heads: vec![2, 3, 4],
        windows: vec![7, 14, 7],
        hidden: vec![64, 96, 128],
        local: 3,
    })
}

fn star_net() -> Architecture {
    Architecture::StarNet(StarNet {
        stem: 32,
        widths: vec![4, 8, 16, 32],
        depths: vec![1; 4],
        expansion: 2,
        kernel: 7,
    })
}

fn resnet() -> Architecture {
    Architecture::ResNet(ResNet { stem: 64, widths: vec![8, 12, 16, 32], depths: vec![1, 2, 1, 1] })
}

/// Values that differ from tensor to tensor; variances are positive.
fn values(name: &str, shape: &Shape) -> Vec<f32> {
    let hash = name.bytes().fold(0x811c_9dc5u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    let at = |i: usize| (((hash as usize + 37 * i) % 256) as f32 + 0.25) / 256.0;
    let one = if name.ends_with("running_var") { |x: f32| x + 0.5 } else { |x: f32| 0.4 * (x - 0.5) };
    (0..shape.count()).map(|i| one(at(i))).collect()
}

/// The weights file of an encoder with [`values`].
fn write(path: &Path, architecture: &Architecture) -> BTreeMap<String, Vec<f32>> {
    let (mut state, mut all) = (StateDict::new(), BTreeMap::new());
    for (name, shape) in timm_parameters(architecture) {
        let tensor = match timm_element(&name).is_float() {
            true => {
                let v = values(&name, &shape);
                let tensor = Tensor::from_f32(shape, &v).unwrap();
                all.insert(name.clone(), v);
                tensor
            }
            false => Tensor::from_i64(7),
        };
        state.insert(name, tensor).unwrap();
    }
    write_safetensors(path, &state).unwrap();
    all
}

/// Asserts that the checkpoint has the file's values under `prefix` + timm's name.
#[track_caller]
fn assert_holds(run: &Path, step: u64, prefix: &str, file: &BTreeMap<String, Vec<f32>>) {
    let found = tensors(run, step);
    for (name, values) in file {
        let key = format!("{prefix}{name}");
        assert!(found.get(&key) == Some(values), "{key} is not as in the file");
    }
}

/// A run of two steps with a checkpoint after each.
const TWO: &[&str] = &["optim.steps=2", "optim.warmup_steps=1", "run.checkpoint_every=1"];

fn expert(command: &mut Command, file: &str) -> support::Ended {
    run(command.args(["--expert", file]))
}

#[test]
fn a_frozen_expert_stays_as_its_file_has_it() {
    let dir = lab();
    let cases = [
        ("vit", Architecture::Vit(vit()), "expert.encoder.vit."),
        ("tinyvit", tiny_vit(), "expert.encoder.net."),
        ("starnet", star_net(), "expert.encoder.net."),
        ("resnet", resnet(), "expert.encoder.net."),
    ];
    for (name, architecture, prefix) in cases {
        let file = format!("{name}.safetensors");
        let written = write(&dir.path().join(&file), &architecture);
        let ended = expert(&mut train(dir.path(), name, TWO), &file).ok();
        assert!(
            ended.stderr.contains("frozen expert") || ended.stdout.contains("frozen expert"),
            "{ended:?}"
        );
        let out = dir.path().join(name);
        assert_holds(&out, 2, prefix, &written);
        let (first, last) = (tensors(&out, 1), tensors(&out, 2));
        // The rest of the expert is the student's moving average, and the student learns.
        let moved = |n: &str| first[n] != last[n];
        assert!(moved("expert.csm.prototypes") && moved("student.adapter.weight"), "{name}");
        assert!(moved("student.encoder.vit.blocks.0.attn.qkv.weight"), "{name}");
        let lifted = match &architecture {
            Architecture::Vit(v) => v.dim,
            _ => 32,
        };
        assert_eq!(first["student.adapter.bias"].len(), lifted);
    }
}

/// As student and as frozen expert at once; then the student goes out as a file and starts another run.
#[test]
fn a_resnet_learns_from_a_resnet_and_leaves_its_weights() {
    let dir = lab();
    let written = write(&dir.path().join("res.safetensors"), &resnet());
    let encoder = ["encoder.layers=[1,1,2,1]", "encoder.channels=[8,8,12,16]"];
    let keys: Vec<&str> = encoder.iter().chain(TWO).copied().collect();
    let drop_path = [&keys[..], &["encoder.drop_path=0.1"]].concat();
    expert(&mut train_encoder(dir.path(), "run", "demo-resnet", &drop_path), "res.safetensors").ok();
    let out = dir.path().join("run");
    assert_holds(&out, 2, "expert.encoder.net.", &written);
    let (first, last) = (tensors(&out, 1), tensors(&out, 2));
    for name in ["conv1.weight", "bn1.running_mean", "layer1.0.downsample.0.weight", "layer3.1.bn2.weight"] {
        let name = format!("student.encoder.net.{name}");
        assert!(first[&name] != last[&name], "{name}");
    }
    run(support::engine(dir.path()).args(["export", "run", "--format", "pth", "--out", "res.pth"])).ok();
    let still: Vec<&str> = encoder.iter().chain(STILL).copied().collect();
    run(train_encoder(dir.path(), "again", "demo-resnet", &still).args(["--init", "res.pth"])).ok();
    let again = tensors(&dir.path().join("again"), 1);
    for name in ["layer3.0.downsample.0.weight", "layer4.0.conv2.weight", "bn1.bias"] {
        let name = format!("student.encoder.net.{name}");
        assert!(again[&name] == last[&name], "{name}");
    }
    // A name of its own for no other program.
    run(support::engine(dir.path()).args(["export", "run", "--format", "mmpose"]))
        .refused(&["mmpose", "ViT"]);
}

/// A student with running statistics beside an expert with its own, which are not touched.
#[test]
fn a_hierarchical_student_may_have_a_hierarchical_expert() {
    let dir = lab();
    let written = write(&dir.path().join("tiny.safetensors"), &tiny_vit());
    let encoder = ["encoder.base_dim=4", "encoder.depths=[1,1,1,1]", "encoder.mlp_ratio=2"];
    let keys: Vec<&str> = encoder.iter().chain(TWO).copied().collect();
    expert(&mut train_encoder(dir.path(), "run", "demo-starnet", &keys), "tiny.safetensors").ok();
    let out = dir.path().join("run");
    assert_holds(&out, 2, "expert.encoder.net.", &written);
    let statistics = "student.encoder.net.stem.0.bn.running_mean";
    assert!(tensors(&out, 1)[statistics] != tensors(&out, 2)[statistics]);
}

#[test]
fn a_run_goes_on_without_the_experts_file() {
    let dir = lab();
    let file = dir.path().join("vit.safetensors");
    write(&file, &Architecture::Vit(vit()));
    let keys = ["optim.steps=4", "optim.warmup_steps=1", "run.checkpoint_every=2"];
    for name in ["unbroken", "resumed"] {
        expert(&mut train(dir.path(), name, &keys), "vit.safetensors").ok();
    }
    let (unbroken, resumed) = (dir.path().join("unbroken"), dir.path().join("resumed"));
    std::fs::remove_dir_all(support::checkpoint(&resumed, 4)).unwrap();
    std::fs::remove_file(&file).unwrap();
    run(&mut resume(dir.path(), "resumed")).ok();
    assert_same_end(&unbroken, &resumed, 4);
    // The same expert in another place is the same run; none is another.
    let elsewhere = dir.path().join("moved.safetensors");
    write(&elsewhere, &Architecture::Vit(vit()));
    run(resume(dir.path(), "resumed").args(["--expert", "moved.safetensors"])).ok();
    run(resume(dir.path(), "resumed").args(["--set", "expert.path=none"])).refused(&["expert.path"]);
}

/// Learns nothing, so that the first checkpoint has what the run began with.
const STILL: &[&str] = &[
    "optim.steps=2",
    "optim.warmup_steps=1",
    "run.checkpoint_every=1",
    "optim.base_lr=1e-30",
    "optim.min_lr=0",
    "optim.weight_decay=0",
];

#[test]
fn a_student_starts_from_a_file_and_its_expert_with_it() {
    let dir = lab();
    let mut own = vit();
    (own.dim, own.depth, own.hidden) = (24, 2, 96);
    let mut written = write(&dir.path().join("init.safetensors"), &Architecture::Vit(own));
    run(train(dir.path(), "run", STILL).args(["--init", "init.safetensors"])).ok();
    // 64x32 pixels are a 4x2 grid.
    let table = &written["pos_embed"];
    let resampled = resample_positions(table, 1, [SIDE; 2], [4, 2], 24).unwrap();
    written.insert("pos_embed".into(), resampled);
    let out = dir.path().join("run");
    for prefix in ["student.encoder.vit.", "expert.encoder.vit."] {
        assert_holds(&out, 1, prefix, &written);
    }
    // What a file does not have is drawn as ever.
    run(&mut train(dir.path(), "drawn", STILL)).ok();
    let (with, without) = (tensors(&out, 1), tensors(&dir.path().join("drawn"), 1));
    for name in ["student.csm.prototypes", "student.encoder.tap_norm.weight"] {
        assert!(with[name] == without[name], "{name}");
    }
}

#[test]
fn running_statistics_start_from_the_file_too() {
    let dir = lab();
    let written = write(&dir.path().join("star.safetensors"), &star_net());
    let encoder = ["encoder.base_dim=4", "encoder.depths=[1,1,1,1]", "encoder.mlp_ratio=2"];
    let keys: Vec<&str> = encoder.iter().chain(STILL).copied().collect();
    run(train_encoder(dir.path(), "run", "demo-starnet", &keys).args(["--init", "star.safetensors"])).ok();
    let found = tensors(&dir.path().join("run"), 1);
    // Statistics have moved by a tenth or so since; weights have not.
    let name = "stem.0.bn.running_var";
    for prefix in ["student.encoder.net.", "expert.encoder.net."] {
        assert!(found[&format!("{prefix}stem.0.conv.weight")] == written["stem.0.conv.weight"], "{prefix}");
        assert!(found[&format!("{prefix}{name}")] != written[name], "{prefix}");
    }
    let from_file = "student.encoder.net.stem.0.bn.running_var";
    run(&mut train_encoder(dir.path(), "drawn", "demo-starnet", &keys)).ok();
    assert!(found[from_file] != tensors(&dir.path().join("drawn"), 1)[from_file]);
}

#[test]
fn what_does_not_fit_is_refused_before_the_run_folder_is_made() {
    let dir = lab();
    let file = |name: &str, architecture: &Architecture| {
        write(&dir.path().join(name), architecture);
    };
    file("vit", &Architecture::Vit(vit()));
    file("tiny", &tiny_vit());
    file("patch14", &Architecture::Vit(Vit { patch: [14, 14], ..vit() }));
    file("registers", &Architecture::Vit(Vit { registers: 4, positions: 1 + 4 + 9, ..vit() }));
    let distilled = Vit { distillation_token: true, positions: 2 + 9, ..vit() };
    file("distilled", &Architecture::Vit(distilled));
    file("oblong", &Architecture::Vit(Vit { positions: 1 + 15, ..vit() }));
    let expert_cases: [(&[&str], &[&str]); 8] = [
        (&["--expert", "none-such"], &["none-such", "No such file"]),
        (
            &["--expert", "patch14"],
            &["patch14", "patch_embed.proj.weight", "[40, 3, 14, 14]", "[40, 3, 16, 16]"],
        ),
        // Whatever the number of positions, which have no rows for them.
        (&["--expert", "registers"], &["registers", "reg_token", "4 registers is not built here"]),
        (&["--expert", "distilled"], &["a distillation token is not built here", "dist_token"]),
        (&["--expert", "tiny", "--set", "expert.num_heads=2"], &["expert.num_heads", "TinyViT"]),
        (&["--expert", "oblong"], &["expert.grid", "15 patches"]),
        (&["--expert", "oblong", "--set", "expert.grid=[4, 4]"], &["expert.grid", "4x4", "15 patches"]),
        (&["--expert", "vit", "--set", "expert.num_heads=7"], &["expert.num_heads", "40"]),
    ];
    let others: [(&[&str], &[&str]); 6] = [
        (&["--expert", "vit", "--set", "expert.tap=3"], &["expert.tap", "depth 3"]),
        (&["--set", "expert.tap=1"], &["expert.tap", "expert.path"]),
        (&["--init", "vit"], &["vit", "width 40", "`cls_token`", "[1, 1, 40]", "[1, 1, 24]"]),
        (&["--init", "tiny"], &["tiny", "TinyViT", "`cls_token`", "missing"]),
        (&["--init", "registers"], &["registers is not built here"]),
        (&["--set", "encoder.init_grid=[1, 2]"], &["encoder.init_grid", "encoder.init"]),
    ];
    for (args, parts) in expert_cases.into_iter().chain(others) {
        run(train(dir.path(), "run", TWO).args(args)).refused(parts);
        assert!(!dir.path().join("run").exists(), "{args:?}");
    }
    let whole = std::fs::read(dir.path().join("vit")).unwrap();
    let mut broken = whole.clone();
    let end = broken.len();
    broken[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(dir.path().join("nan"), broken).unwrap();
    run(train(dir.path(), "run", TWO).args(["--expert", "nan"])).refused(&["nan", "NaN"]);
    // An oblong table whose grid is given is taken.
    run(train(dir.path(), "run", TWO).args(["--expert", "oblong", "--set", "expert.grid=[5, 3]"])).ok();
}

#[test]
fn runs_are_weights_too_and_an_expert_keeps_its_heads_and_normalisation() {
    let dir = lab();
    run(&mut train(dir.path(), "first", STILL)).ok();
    let first = tensors(&dir.path().join("first"), 2);
    let values = |prefix: &str| -> BTreeMap<String, Vec<f32>> {
        let own = |(n, v): (&String, &Vec<f32>)| Some((n.strip_prefix(prefix)?.to_owned(), v.clone()));
        first.iter().filter_map(own).collect()
    };
    // The student of a run, and its expert where it is asked for.
    run(train(dir.path(), "init", STILL).args(["--init", "first"])).ok();
    let begun = tensors(&dir.path().join("init"), 1);
    for (name, values) in values("student.encoder.") {
        // What began at 0 has moved by the smallest steps.
        let near =
            begun[&format!("student.encoder.{name}")].iter().zip(&values).all(|(a, b)| (a - b).abs() < 1e-20);
        assert!(near, "{name}");
    }
    let second = ["--expert", "first", "--set", "expert.entry=expert"];
    run(train(dir.path(), "second", STILL).args(second)).ok();
    assert_holds(&dir.path().join("second"), 1, "expert.encoder.vit.", &values("expert.encoder.vit."));
    let config = std::fs::read_to_string(dir.path().join("second/config.toml")).unwrap();
    assert!(config.contains("num_heads = 2") && config.contains("[4, 2]"), "the run tells both: {config}");
    run(train(dir.path(), "x", STILL).args(["--init", "first", "--set", "encoder.init_entry=teacher"]))
        .refused(&["encoder.init_entry", "student or expert"]);
    // Other means are taken up by the first layer: the same answer to the same picture.
    let keys = ["--set", "expert.mean=[0.5, 0.4, 0.3]", "--set", "expert.std=[0.5, 0.25, 1.0]"];
    run(train(dir.path(), "other", STILL).args(["--expert", "first"]).args(keys)).ok();
    let other = tensors(&dir.path().join("other"), 1);
    let answer = |all: &BTreeMap<String, Vec<f32>>, place: &str, mean: [f32; 3], std: [f32; 3]| -> f32 {
        let of = |name: &str| &all[&format!("{place}.encoder.vit.patch_embed.proj.{name}")];
        let pixel = |i: usize| (i * 37 % 256) as f32 / 255.0;
        let normal = |i: usize| (pixel(i) - mean[i / 256]) / std[i / 256];
        of("weight")[..768].iter().enumerate().map(|(i, w)| w * normal(i)).sum::<f32>() + of("bias")[0]
    };
    let wanted = answer(&first, "student", [0.5, 0.4, 0.3], [0.5, 0.25, 1.0]);
    let got = answer(&other, "expert", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
    assert!((wanted - got).abs() < 1e-4 * wanted.abs().max(1.0), "{wanted} {got}");
    let untouched = answer(&first, "student", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
    assert!((wanted - untouched).abs() > 1e-3, "another normalisation is another answer");
}
