//! Weights files of other programs: what torch wrote is read, what we write they open, and timm's names are timm's.
//!
//! The files come from `tools/peers/make_weights.py`, whose `check` command opens those that are written here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use saip_engine::tensor::Shape;
use saip_engine::weights::{
    self, Architecture, Element, Grid, LoadOptions, LoadReport, Naming, PthLayout, ResNet, StarNet,
    StateDict, Tensor, TinyVit, Vit,
};

const GOLDEN: [&str; 4] = ["vit_tiny_patch16_224", "tiny_vit_5m_224", "starnet_s3", "resnet18"];

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/weights").join(name)
}

/// Name, shape and type of every tensor of timm's state dict.
fn golden(name: &str) -> Vec<(String, Shape, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name).with_extension("csv");
    let mut rows = Vec::new();
    for row in csv::Reader::from_path(path).unwrap().records() {
        let row = row.unwrap();
        let dims: Vec<usize> =
            row[1].split('x').filter(|d| !d.is_empty()).map(|d| d.parse().unwrap()).collect();
        rows.push((row[0].to_owned(), Shape::new(dims), row[2].to_owned()));
    }
    rows
}

/// The value function of make_weights.py.
fn values(name: &str, count: usize) -> Vec<f32> {
    let hash = name.bytes().fold(0x811c_9dc5u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    (0..count as i64).map(|i| ((i64::from(hash) + 37 * i) % 256 - 128) as f32 / 16.0).collect()
}

fn tensor(name: &str, shape: &Shape, element: Element) -> Tensor {
    match element {
        Element::I64 => Tensor::from_i64(3),
        _ => Tensor::from_f32(shape.clone(), &values(name, shape.count())).unwrap(),
    }
}

fn state_of(list: &[(String, Shape)]) -> StateDict {
    let mut state = StateDict::new();
    for (name, shape) in list {
        state.insert(name, tensor(name, shape, weights::timm_element(name))).unwrap();
    }
    state
}

/// The encoder of the small files.
fn micro() -> Architecture {
    Architecture::Vit(Vit {
        dim: 8,
        depth: 2,
        hidden: 16,
        patch: [4, 4],
        channels: 3,
        positions: 10,
        class_token: true,
        distillation_token: false,
        registers: 0,
        layer_scale: false,
    })
}

fn tiny_vit_5m() -> Architecture {
    Architecture::TinyVit(TinyVit {
        stem: 32,
        widths: vec![64, 128, 160, 320],
        depths: vec![2, 2, 6, 2],
        expanded: 256,
        heads: vec![4, 5, 10],
        windows: vec![7, 14, 7],
        hidden: vec![512, 640, 1280],
        local: 3,
    })
}

fn resnet18() -> Architecture {
    Architecture::ResNet(ResNet { stem: 64, widths: vec![64, 128, 256, 512], depths: vec![2; 4] })
}

/// What was handed over, in order.
type Loaded = Vec<(String, Vec<f32>)>;

/// `wanted` out of `state`, in order.
fn load(
    state: &StateDict,
    wanted: &[(String, Shape)],
    options: &LoadOptions<'_>,
) -> saip_engine::Result<(Loaded, LoadReport)> {
    let mut got = Vec::new();
    let report = weights::load_into(state, wanted, options, |name, v| {
        got.push((name.to_owned(), v.to_vec()));
        Ok(())
    })?;
    Ok((got, report))
}

#[test]
fn timm_state_dicts_are_known_exactly() {
    let known = [
        Architecture::Vit(Vit {
            dim: 192,
            depth: 12,
            hidden: 768,
            patch: [16, 16],
            channels: 3,
            positions: 197,
            class_token: true,
            distillation_token: false,
            registers: 0,
            layer_scale: false,
        }),
        tiny_vit_5m(),
        Architecture::StarNet(StarNet {
            stem: 32,
            widths: vec![32, 64, 128, 256],
            depths: vec![2, 2, 8, 4],
            expansion: 4,
            kernel: 7,
        }),
        resnet18(),
    ];
    for (name, architecture) in GOLDEN.iter().zip(known) {
        let list = weights::timm_parameters(&architecture);
        let ours: Vec<_> = list
            .iter()
            .map(|(n, s)| (n.clone(), s.clone(), weights::timm_element(n).name().to_owned()))
            .collect();
        assert_eq!(ours, golden(name), "{name}");
        // And back: the shapes tell the sizes.
        assert_eq!(weights::recognise(&state_of(&list)).unwrap(), architecture);
    }
}

#[test]
fn every_element_type_and_layout_of_torch_is_read_exactly() {
    let state = weights::read(data("elements.pth")).unwrap();
    let expected: BTreeMap<String, serde_json::Value> =
        serde_json::from_str(&std::fs::read_to_string(data("elements.json")).unwrap()).unwrap();
    assert_eq!(state.len(), expected.len());
    for (name, t) in state.iter() {
        let e = &expected[name];
        let shape: Vec<usize> = serde_json::from_value(e["shape"].clone()).unwrap();
        assert_eq!(
            (t.element().name(), t.shape().dims()),
            (e["dtype"].as_str().unwrap(), &shape[..]),
            "{name}"
        );
        let wanted: Vec<f64> = e["values"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        let got: Vec<f64> = match t.f32s() {
            Some(v) => v.iter().map(|v| f64::from(*v)).collect(),
            None => t.bytes().chunks_exact(t.element().bytes()).map(|b| integer(b, t.element())).collect(),
        };
        assert_eq!(got, wanted, "{name}");
    }
}

fn integer(bytes: &[u8], element: Element) -> f64 {
    let signed = !matches!(element, Element::U8 | Element::Bool);
    let fill = if signed && bytes[bytes.len() - 1] >= 0x80 { 0xff } else { 0 };
    let mut wide = [fill; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    i64::from_le_bytes(wide) as f64
}

#[test]
fn a_dino_checkpoint_gives_its_teacher() {
    let state = weights::read(data("dino.pth")).unwrap();
    assert_eq!(state.entry, "teacher");
    assert_eq!(weights::recognise(&state).unwrap(), micro());
    let wanted = weights::timm_parameters(&micro());
    let (got, report) = load(&state, &wanted, &LoadOptions::default()).unwrap();
    assert_eq!(got.len(), wanted.len());
    for ((name, v), (wanted, shape)) in got.iter().zip(&wanted) {
        assert_eq!((name, v), (wanted, &values(name, shape.count())));
    }
    let text = report.to_string();
    for part in [
        "dino.pth",
        "width 8, 2 blocks",
        "entry `teacher`, prefix `backbone.`",
        "30 tensors",
        "head.* (2)",
        "entry args",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // The student has a longer prefix and other values.
    let student = weights::read_entry(data("dino.pth"), "student").unwrap();
    let (got, report) = load(&student, &wanted, &LoadOptions::default()).unwrap();
    assert_eq!(report.prefix, "module.backbone.");
    assert_eq!(got[0].1[0], values("cls_token", 1)[0] + 1.0);
    let e = weights::read_entry(data("dino.pth"), "model").unwrap_err().to_string();
    assert!(e.contains("no entry `model`") && e.contains("`teacher`"), "{e}");
}

#[test]
fn a_saip_checkpoint_gives_its_backbone_and_the_norm_of_the_tap() {
    let state = weights::read(data("saip.pth")).unwrap();
    let mut wanted = weights::timm_parameters(&micro());
    wanted.push(("tap_norm.weight".into(), [8].into()));
    wanted.push(("tap_norm.bias".into(), [8].into()));
    let (got, report) = load(&state, &wanted, &LoadOptions::default()).unwrap();
    assert_eq!((state.entry.as_str(), report.prefix.as_str()), ("model", "backbone."));
    assert!(got.contains(&("tap_norm.bias".into(), values("tap_norm.bias", 8))));
    assert!(report.left_out.contains(&"csr_decoder.mask_token".into()), "{report}");
    // A DINO checkpoint has no such norm: missing, unless it may be.
    let dino = weights::read(data("dino.pth")).unwrap();
    let e = load(&dino, &wanted, &LoadOptions::default()).unwrap_err().to_string();
    assert!(e.contains("`tap_norm.weight` [8] is missing"), "{e}");
    let optional = LoadOptions { optional: &|name| name.starts_with("tap_norm."), ..LoadOptions::default() };
    let (_, report) = load(&dino, &wanted, &optional).unwrap();
    assert!(report.to_string().contains("not in the file: tap_norm.* (2)"), "{report}");
}

#[test]
fn a_mismatch_names_the_tensors_and_both_shapes() {
    let state = weights::read(data("dino.pth")).unwrap();
    let mut wanted = weights::timm_parameters(&micro());
    for (name, shape) in &mut wanted {
        if name == "norm.weight" {
            *shape = [16].into();
        }
    }
    let mut calls = 0;
    let e = weights::load_into(&state, &wanted, &LoadOptions::default(), |_, _| {
        calls += 1;
        Ok(())
    });
    let e = e.unwrap_err().to_string();
    assert!(e.contains("dino.pth") && e.contains("`norm.weight` has shape [8], expected [16]"), "{e}");
    assert_eq!(calls, 0, "nothing is handed over before all is checked");
    let tiny = weights::timm_parameters(&tiny_vit_5m());
    let e = load(&state, &tiny, &LoadOptions::default()).unwrap_err().to_string();
    assert!(e.contains("ViT, width 8") && e.contains("is missing") && e.contains("more"), "{e}");
}

#[test]
fn positions_are_resampled_as_torch_does() {
    let cases: Vec<serde_json::Value> =
        serde_json::from_str(&std::fs::read_to_string(data("positions.json")).unwrap()).unwrap();
    for case in cases {
        let size = |key: &str| -> [usize; 2] { serde_json::from_value(case[key].clone()).unwrap() };
        let (from, to) = (size("from"), size("to"));
        let table = values("pos", from[0] * from[1] * 2);
        let got = weights::resample_positions(&table, 0, from, to, 2).unwrap();
        let wanted: Vec<f64> = serde_json::from_value(case["values"].clone()).unwrap();
        assert_eq!(got.len(), wanted.len());
        for (g, w) in got.iter().zip(&wanted) {
            assert!((f64::from(*g) - w).abs() < 1e-6 * 16.0, "{from:?} to {to:?}: {g} {w}");
        }
    }
}

#[test]
fn loading_resamples_positions_for_the_grid_asked_for() {
    let state = weights::read(data("dino.pth")).unwrap();
    let mut wanted = weights::timm_parameters(&micro());
    wanted[1].1 = [1, 1 + 4 * 2, 8].into();
    let e = load(&state, &wanted, &LoadOptions::default()).unwrap_err().to_string();
    assert!(e.contains("`pos_embed` has shape [1, 10, 8], expected [1, 9, 8]"), "{e}");
    let grid = |from, to| LoadOptions { grid: Some(Grid { from, to }), ..LoadOptions::default() };
    let (got, report) = load(&state, &wanted, &grid(None, [4, 2])).unwrap();
    let table = values("pos_embed", 80);
    let by_hand = weights::resample_positions(&table, 1, [3, 3], [4, 2], 8).unwrap();
    assert_eq!(got[1], ("pos_embed".to_owned(), by_hand));
    assert!(report.to_string().contains("resampled: pos_embed 3x3 to 4x2"), "{report}");
    // Another grid with as many cells is another table, too.
    wanted[1].1 = [1, 10, 8].into();
    let (got, report) = load(&state, &wanted, &grid(Some([3, 3]), [9, 1])).unwrap();
    assert_ne!(got[1].1, table);
    assert!(report.to_string().contains("resampled: pos_embed 3x3 to 9x1"), "{report}");
    assert_eq!(load(&state, &wanted, &grid(None, [3, 3])).unwrap().1.resampled, None);
    let e = load(&state, &wanted, &grid(Some([4, 4]), [3, 3])).unwrap_err().to_string();
    assert!(e.contains("`pos_embed`"), "{e}");
    let e = load(&state, &wanted, &grid(None, [4, 4])).unwrap_err().to_string();
    assert!(e.contains("[4, 4]"), "{e}");
}

#[test]
fn renamings_have_an_inverse() {
    let vit: Vec<_> = golden(GOLDEN[0]).into_iter().map(|(n, ..)| n).collect();
    let tiny: Vec<_> = golden(GOLDEN[1]).into_iter().map(|(n, ..)| n).collect();
    for (naming, names) in
        [(Naming::Timm, &vit), (Naming::Mmpretrain, &vit), (Naming::TinyVitOriginal, &tiny)]
    {
        let mut seen = std::collections::HashSet::new();
        for name in names {
            let theirs = naming.from_timm(name);
            assert_eq!(naming.to_timm(&theirs).as_ref(), Some(name), "{naming}: {theirs}");
            assert!(seen.insert(theirs), "{naming}: {name}");
        }
    }
    for (mm, timm) in [
        ("patch_embed.projection.bias", "patch_embed.proj.bias"),
        ("layers.11.ffn.layers.0.0.weight", "blocks.11.mlp.fc1.weight"),
        ("layers.3.ffn.layers.1.bias", "blocks.3.mlp.fc2.bias"),
        ("layers.0.ln1.weight", "blocks.0.norm1.weight"),
        ("layers.0.ln2.weight", "blocks.0.norm2.weight"),
        ("layers.0.attn.qkv.weight", "blocks.0.attn.qkv.weight"),
        ("ln1.bias", "norm.bias"),
        ("cls_token", "cls_token"),
    ] {
        assert_eq!(Naming::Mmpretrain.from_timm(timm), mm);
    }
    for (original, timm) in [
        ("patch_embed.seq.2.bn.weight", "patch_embed.conv2.bn.weight"),
        ("layers.0.downsample.conv1.c.weight", "stages.1.downsample.conv1.conv.weight"),
        ("layers.2.blocks.1.local_conv.c.weight", "stages.2.blocks.1.local_conv.conv.weight"),
        ("norm_head.bias", "head.norm.bias"),
    ] {
        assert_eq!(Naming::TinyVitOriginal.from_timm(timm), original);
    }
    assert_eq!(Naming::TinyVitOriginal.to_timm("layers.1.blocks.0.attn.attention_bias_idxs"), None);
}

#[test]
fn encoders_are_recognised_in_other_names_and_under_any_prefix() {
    for (naming, architecture) in [
        (Naming::Mmpretrain, micro()),
        (Naming::TinyVitOriginal, tiny_vit_5m()),
        (Naming::Timm, tiny_vit_5m()),
        (Naming::Timm, resnet18()),
    ] {
        let list = weights::timm_parameters(&architecture);
        let state = state_of(&list).renamed(|n| Some(format!("_orig_mod.net.0.{}", naming.from_timm(n))));
        assert_eq!(weights::recognise(&state).unwrap(), architecture);
        let (got, report) = load(&state, &list, &LoadOptions::default()).unwrap();
        assert_eq!((report.prefix.as_str(), report.naming), ("_orig_mod.net.0.", naming));
        let floats = list.iter().filter(|(n, _)| weights::timm_element(n).is_float());
        for ((name, v), (wanted, shape)) in got.iter().zip(floats) {
            assert_eq!((name, v), (wanted, &values(name, shape.count())));
        }
    }
    // torchvision's file has timm's names and a classifier; a bottleneck is no basic block.
    let list = weights::timm_parameters(&resnet18());
    let mut state = state_of(&list);
    state.insert("fc.weight", tensor("fc", &[1000, 512].into(), Element::F32)).unwrap();
    let (_, report) = load(&state, &list, &LoadOptions::default()).unwrap();
    assert_eq!((report.architecture, report.left_out), (resnet18(), vec!["fc.weight".to_owned()]));
    state.insert("layer1.0.conv3.weight", tensor("x", &[256, 64, 1, 1].into(), Element::F32)).unwrap();
    let message = weights::recognise(&state).unwrap_err().to_string();
    assert!(message.contains("ResNet") && message.contains("`layer1.0.conv3.weight`"), "{message}");
    // Two encoders: the averaged one is meant, and two equal ones are an error.
    let list = weights::timm_parameters(&micro());
    let both = |a: &str, b: &str| {
        let mut state = StateDict::new();
        for (name, shape) in &list {
            state.insert(format!("{a}{name}"), tensor("a", shape, Element::F32)).unwrap();
            state.insert(format!("{b}{name}"), tensor("b", shape, Element::F32)).unwrap();
        }
        state
    };
    assert_eq!(
        weights::encoder(&both("student.encoder.vit.", "expert.encoder.vit.")).unwrap().prefix,
        "expert.encoder.vit."
    );
    let e = weights::encoder(&both("left.", "right.")).unwrap_err().to_string();
    assert!(e.contains("`left`, `right`") && e.contains("--from-entry"), "{e}");
    assert_eq!(weights::encoder(&both("left.", "right.").under("left.")).unwrap().prefix, "");
}

#[test]
fn what_is_written_is_read_again_and_the_same_each_time() {
    let dir = tempfile::tempdir().unwrap();
    // Set by who wants to open the files elsewhere: tools/peers/make_weights.py check.
    let out = std::env::var_os("SAIP_WEIGHTS_OUT").map_or(dir.path().to_owned(), PathBuf::from);
    let micro_state = {
        let dino = weights::encoder(&weights::read(data("dino.pth")).unwrap()).unwrap().state;
        dino.renamed(|n| Some(n.to_owned()))
    };
    let bare = out.join("bare.pth");
    weights::write_pth(&bare, &micro_state, &PthLayout::default()).unwrap();
    assert!(weights::read(&bare).unwrap().iter().eq(micro_state.iter()));
    let first = std::fs::read(&bare).unwrap();
    weights::write_pth(&bare, &micro_state, &PthLayout::default()).unwrap();
    assert_eq!(std::fs::read(&bare).unwrap(), first);
    // Aligned as torch.save has it: the first value of the second tensor.
    let second = micro_state.iter().nth(1).unwrap().1.bytes();
    let at = first.windows(second.len()).position(|w| w == second).unwrap();
    assert_eq!(at % 64, 0);

    let layout = PthLayout { entry: Some("state_dict"), prefix: "backbone.", naming: Naming::Mmpretrain };
    weights::write_pth(out.join("mmpose.pth"), &micro_state, &layout).unwrap();
    let mm = weights::read(out.join("mmpose.pth")).unwrap();
    assert_eq!(mm.entry, "state_dict");
    assert!(mm.get("backbone.layers.0.ln1.weight").is_some());
    assert!(weights::encoder(&mm).unwrap().state.iter().eq(micro_state.iter()));

    let mut elements = weights::read(data("elements.pth")).unwrap();
    elements.metadata.insert("geometry".into(), "stride 32".into());
    weights::write_pth(out.join("elements.pth"), &elements, &PthLayout::default()).unwrap();
    assert!(weights::read(out.join("elements.pth")).unwrap().iter().eq(elements.iter()));
    let path = out.join("elements.safetensors");
    weights::write_safetensors(&path, &elements).unwrap();
    let read = weights::read(&path).unwrap();
    assert_eq!(read.len(), elements.len());
    assert!(elements.iter().all(|(n, t)| read.get(n) == Some(t)));
    assert_eq!(read.metadata["geometry"], "stride 32");
    for name in GOLDEN {
        let list: Vec<_> = golden(name).into_iter().map(|(n, s, _)| (n, s)).collect();
        let path = out.join(name).with_extension("pth");
        weights::write_pth(&path, &state_of(&list), &PthLayout::default()).unwrap();
        assert_eq!(weights::read(&path).unwrap().len(), list.len());
    }
}

#[test]
fn weights_that_are_not_finite_are_neither_read_nor_written() {
    let list = weights::timm_parameters(&micro());
    let mut state = StateDict::new();
    for (name, shape) in &list {
        let mut v = values(name, shape.count());
        if name == "blocks.1.mlp.fc2.bias" {
            v[3] = f32::NAN;
            v[5] = f32::NEG_INFINITY;
        }
        state.insert(name, Tensor::from_f32(shape.clone(), &v).unwrap()).unwrap();
    }
    let e = load(&state, &list, &LoadOptions::default()).unwrap_err().to_string();
    assert!(e.contains("`blocks.1.mlp.fc2.bias` has 2 values of 8 that are NaN"), "{e}");
    let dir = tempfile::tempdir().unwrap();
    for path in [dir.path().join("w.pth"), dir.path().join("w.safetensors")] {
        let e = match path.extension().unwrap() == "pth" {
            true => weights::write_pth(&path, &state, &PthLayout::default()),
            false => weights::write_safetensors(&path, &state),
        };
        let e = e.unwrap_err().to_string();
        assert!(e.contains("blocks.1.mlp.fc2.bias") && e.contains("2 values") && !path.exists(), "{e}");
    }
}

#[test]
fn an_unknown_encoder_is_described() {
    let mut state = StateDict::new();
    state.insert("features.0.weight", tensor("a", &[4, 3, 3, 3].into(), Element::F32)).unwrap();
    let e = weights::recognise(&state).unwrap_err().to_string();
    assert!(e.contains("`features.0.weight` [4, 3, 3, 3]"), "{e}");
    // A ViT with one more tensor per block computes something else.
    let mut state = state_of(&weights::timm_parameters(&micro()));
    state.insert("blocks.0.attn.q_norm.weight", tensor("a", &[8].into(), Element::F32)).unwrap();
    let e = weights::recognise(&state).unwrap_err().to_string();
    assert!(e.contains("`blocks.0.attn.q_norm.weight` [8] is unknown"), "{e}");
    let lacking = state_of(&weights::timm_parameters(&micro()))
        .renamed(|n| (n != "blocks.1.attn.proj.bias").then(|| n.to_owned()));
    let e = weights::recognise(&lacking).unwrap_err().to_string();
    assert!(e.contains("`blocks.1.attn.proj.bias` [8] is missing"), "{e}");
}
