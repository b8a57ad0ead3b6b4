//! Recorded steps of the reference implementation: the engine gives the same numbers, and nothing else passes.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use saip_engine::backend::Backend;
use saip_engine::cpu::CpuBackend;
use saip_engine::tensor::DType;
use saip_engine::verify::fixture::{Deviation, Fixture, Results, Verdict, dump};

/// The encoders, clipping, and frozen experts of both families; then DINO with a learned gain, clipped tensor by tensor, and
/// with a last layer that is held; then classes.
const ALL: [&str; 10] = [
    "vit-micro",
    "vit-micro-clip",
    "vit-micro-star",
    "vit-micro-star-tinyvit",
    "starnet-micro",
    "tinyvit-micro",
    "saip-resnet-micro",
    "dino-micro",
    "dino-micro-starnet",
    "supervised-micro",
];

/// What the objective of a fixture has no counterpart of: the schedule of MAE.
fn left_out(name: &str) -> Vec<String> {
    if name == "dino-micro" { vec!["target.schedule.mae_lr".to_owned()] } else { Vec::new() }
}

fn names_left_out(v: &Verdict) -> Vec<String> {
    v.left_out.iter().map(|(name, _)| name.clone()).collect()
}

const GRADIENT: &str = "grad.csr.pred.weight";

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name).with_extension("safetensors")
}

fn cpu(dtype: DType) -> Box<dyn Backend> {
    match dtype {
        DType::F32 => Box::new(CpuBackend::<f32>::new(2).unwrap()),
        _ => Box::new(CpuBackend::<f64>::new(2).unwrap()),
    }
}

fn verdict(name: &str, dtype: DType, tolerance: f64) -> Verdict {
    let fixture = Fixture::open(path(name)).unwrap();
    let results = fixture.run(cpu(dtype)).unwrap();
    fixture.compare(&results, "cpu", dtype, tolerance).unwrap()
}

/// What the engine gives for `vit-micro` in f64.
static RESULTS: LazyLock<Results> =
    LazyLock::new(|| Fixture::open(path("vit-micro")).unwrap().run(cpu(DType::F64)).unwrap());

#[test]
fn every_fixture_passes_in_f64() {
    for name in ALL {
        let v = verdict(name, DType::F64, 1e-6);
        assert!(v.passed, "{name}: {:?}", &v.deviations[..3]);
        assert_eq!(names_left_out(&v), left_out(name), "{name}");
        // All but the inputs and the state before the step.
        let float = |t: &(Dtype, Vec<usize>, Vec<u8>)| t.0 == Dtype::F32;
        let wanted = recorded(name).into_iter().filter(|(n, t)| is_result(n) && float(t)).count();
        assert_eq!(v.deviations.len(), wanted - left_out(name).len(), "{name}");
        let targets: Vec<_> = v.deviations.iter().filter(|d| d.name.starts_with("target.")).collect();
        let expected = if name == "dino-micro" { 4 } else { usize::from(name == "supervised-micro") };
        assert_eq!(targets.len(), expected, "{name}");
        assert!(targets.iter().all(|d| d.error == 0.0), "{name}: {targets:?}");
    }
}

#[test]
fn every_fixture_passes_in_f32() {
    for name in ALL.into_iter().filter(|name| *name != "vit-micro-clip") {
        let v = verdict(name, DType::F32, 2e-4);
        assert!(v.passed, "{name}: {:?}", &v.deviations[..3]);
        assert_eq!(names_left_out(&v), left_out(name), "{name}");
    }
    // AdamW's epsilon is 1e-8 there: parameters after the step say nothing about f32.
    let v = verdict("vit-micro-clip", DType::F32, 2e-4);
    assert!(v.passed, "{:?}", &v.deviations[..3]);
    assert_eq!(v.left_out.len(), 2);
    let left_out = |d: &Deviation| d.name.starts_with("after.student") || d.name.starts_with("after.expert");
    assert!(!v.deviations.iter().any(left_out));
    assert!(v.deviations.iter().any(|d| d.name == GRADIENT));
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn is_result(name: &str) -> bool {
    ["loss.", "grad.", "after.", "target."].iter().any(|p| name.starts_with(p))
}

fn recorded(name: &str) -> Tensors {
    let bytes = std::fs::read(path(name)).unwrap();
    let all = SafeTensors::deserialize(&bytes).unwrap();
    all.iter().map(|(n, t)| (n.to_owned(), (t.dtype(), t.shape().to_vec(), t.data().to_vec()))).collect()
}

/// A copy of `vit-micro` with changed tensors and metadata.
fn changed(change: impl FnOnce(&mut Tensors, &mut HashMap<String, String>)) -> (tempfile::TempDir, PathBuf) {
    changed_of("vit-micro", change)
}

/// The same of another fixture.
fn changed_of(
    name: &str,
    change: impl FnOnce(&mut Tensors, &mut HashMap<String, String>),
) -> (tempfile::TempDir, PathBuf) {
    let bytes = std::fs::read(path(name)).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let (mut tensors, mut metadata) = (recorded(name), header.metadata().clone().unwrap());
    change(&mut tensors, &mut metadata);
    let views =
        tensors.iter().map(|(n, (t, shape, data))| (n, TensorView::new(*t, shape.clone(), data).unwrap()));
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("copy.safetensors");
    std::fs::write(&out, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
    (dir, out)
}

fn set(tensors: &mut Tensors, name: &str, at: usize, change: impl FnOnce(f32) -> f32) {
    let bytes = &mut tensors.get_mut(name).unwrap().2[4 * at..4 * at + 4];
    let new = change(f32::from_le_bytes(bytes.try_into().unwrap()));
    bytes.copy_from_slice(&new.to_le_bytes());
}

/// The verdict on the engine's own results.
fn judged(change: impl FnOnce(&mut Tensors)) -> saip_engine::Result<Verdict> {
    let (_dir, copy) = changed(|t, _| change(t));
    Fixture::open(copy)?.compare(&RESULTS, "cpu", DType::F64, 1e-6)
}

#[test]
fn one_wrong_value_fails_under_its_name() {
    assert!(judged(|_| {}).unwrap().passed);
    let v = judged(|t| set(t, GRADIENT, 7, |x| x + 1e-3)).unwrap();
    assert!(!v.passed);
    assert!(v.deviations[0].name == GRADIENT && v.deviations[0].error > 1e-6, "{:?}", v.deviations[0]);
    assert!(v.deviations[1].error <= 1e-6, "{:?}", v.deviations[1]);
}

#[test]
fn nan_never_passes() {
    for name in ["loss.csm", GRADIENT, "after.student.csr.pred.weight", "after.state.center"] {
        let v = judged(|t| set(t, name, 0, |_| f32::NAN)).unwrap();
        assert!(!v.passed && v.deviations[0].name == name, "{:?}", v.deviations[0]);
        assert_eq!(v.deviations[0].error, f64::INFINITY);
    }
    let mut results = RESULTS.clone();
    results.get_mut(GRADIENT).unwrap().1[0] = f64::NAN;
    let fixture = Fixture::open(path("vit-micro")).unwrap();
    let v = fixture.compare(&results, "cpu", DType::F64, f64::MAX).unwrap();
    assert!(!v.passed && v.deviations[0].name == GRADIENT);
}

#[test]
fn an_expected_tensor_must_be_there_and_have_its_shape() {
    let says = |change: &dyn Fn(&mut Tensors), parts: &[&str]| {
        let e = judged(change).unwrap_err().to_string();
        assert!(e.contains("copy.safetensors") && parts.iter().all(|p| e.contains(p)), "{e}");
    };
    says(&|t| drop(t.remove(GRADIENT)), &[GRADIENT, "missing"]);
    says(&|t| drop(t.remove("loss.css")), &["loss.css", "missing"]);
    says(&|t| t.get_mut(GRADIENT).unwrap().1.reverse(), &[GRADIENT, "[768, 16]", "[16, 768]"]);
    let stray = (Dtype::F32, vec![1], vec![0; 4]);
    says(&|t| drop(t.insert("grad.no.such".into(), stray.clone())), &["grad.no.such", "none that a step"]);
}

#[test]
fn an_unusable_input_is_named() {
    let says = |change: &dyn Fn(&mut Tensors, &mut HashMap<String, String>), parts: &[&str]| {
        let (_dir, copy) = changed(change);
        let e = Fixture::open(copy).unwrap().run(cpu(DType::F64)).expect_err(parts[0]).to_string();
        assert!(e.contains("copy.safetensors") && parts.iter().all(|p| e.contains(p)), "{e}");
    };
    says(&|t, _| drop(t.remove("view.scene")), &["view.scene", "missing", "[2, 3, 64, 64]"]);
    says(&|t, _| drop(t.remove("student.csr.pred.bias")), &["student.csr.pred.bias", "missing"]);
    says(&|t, _| t.get_mut("view.local").unwrap().1.swap(0, 1), &["view.local", "[2, 3,", "[3, 2,"]);
    // Three of fifteen patches, as i64: outside of the view, and not ascending.
    let keep = |positions: [i64; 3]| {
        move |t: &mut Tensors, _: &mut HashMap<String, String>| {
            let bytes = positions.iter().flat_map(|p| p.to_le_bytes()).collect::<Vec<_>>();
            t.get_mut("view.keep").unwrap().2[..24].copy_from_slice(&bytes);
        }
    };
    says(&keep([0, 1, 15]), &["view.keep", "15 patches"]);
    says(&keep([-1, 1, 2]), &["view.keep", "15 patches"]);
    says(&keep([1, 1, 2]), &["view.keep", "ascend"]);
    let wider = |_: &mut Tensors, m: &mut HashMap<String, String>| {
        let config = m["config"].replace("\"csr\": {\"dim\": 16", "\"csr\": {\"dim\": 32");
        m.insert("config".into(), config);
    };
    says(&wider, &["csr.", "its configuration needs"]);
}

#[test]
fn a_file_that_is_no_fixture_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.safetensors");
    let refused = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        let e = Fixture::open(&file).err().expect("refused").to_string();
        assert!(e.contains("x.safetensors"), "{e}");
        e
    };
    let whole = std::fs::read(path("vit-micro")).unwrap();
    for bytes in [&whole[..whole.len() - 1], &whole[..100], &whole[..4], b"not a fixture"] {
        assert!(refused(bytes).contains("safetensors file"));
    }
    let e = Fixture::open(dir.path().join("none")).err().expect("refused").to_string();
    assert!(e.contains("none") && e.contains("read"), "{e}");
    for (config, part) in
        [(None, "no `config`"), (Some("{}"), "cannot be used"), (Some("?"), "cannot be used")]
    {
        let (_dir, copy) = changed(|_, m| {
            m.remove("config");
            m.extend(config.map(|c| ("config".to_owned(), c.to_owned())));
        });
        let e = refused(&std::fs::read(copy).unwrap());
        assert!(e.contains(part), "{e}");
    }
}

/// A fixture with `from` in its configuration replaced by `to`, run in f64.
fn reconfigured(name: &str, from: &str, to: &str) -> saip_engine::Result<Verdict> {
    let (_dir, copy) = changed_of(name, |_, m| {
        assert!(m["config"].contains(from), "{}", m["config"]);
        let config = m["config"].replace(from, to);
        m.insert("config".into(), config);
    });
    let fixture = Fixture::open(copy)?;
    fixture.compare(&fixture.run(cpu(DType::F64))?, "cpu", DType::F64, 1e-6)
}

/// Every option of DINO leaves its mark on what is recorded.
#[test]
fn dino_with_another_option_is_another_step() {
    for (name, from, to, beyond) in [
        ("dino-micro", "[\"each\", 0.2]", "[\"each\", 0.3]", "grad."),
        ("dino-micro", "[\"each\", 0.2]", "[\"global\", 0.2]", "grad."),
        ("dino-micro", "[\"each\", 0.2]", "null", "grad."),
        ("dino-micro", "\"ndim\"", "\"saip\"", "after.student.encoder.vit.pos_embed"),
        ("dino-micro", "[0.04, 0.07, 2]", "[0.04, 0.07, 3]", "target.schedule.teacher_temp"),
        ("dino-micro", "\"warmup_epochs\": 1", "\"warmup_epochs\": 2", "target.schedule.dino_lr"),
        ("dino-micro-starnet", "\"clip\": null", "\"clip\": [\"each\", 0.01]", "grad."),
    ] {
        let v = reconfigured(name, from, to).unwrap();
        let wrong = v.deviations.iter().find(|d| d.name.starts_with(beyond)).unwrap();
        assert!(!v.passed && wrong.error > 1e-6, "{to}: {wrong:?}");
    }
    let message = |name, from, to| reconfigured(name, from, to).unwrap_err().to_string();
    // What is not held has a gradient, which the fixture lacks; a gain is a parameter.
    let e = message("dino-micro-starnet", "\"freeze_last_layer\": true", "\"freeze_last_layer\": false");
    assert!(e.contains("grad.csm.prototypes") && e.contains("missing"), "{e}");
    let e = message("dino-micro-starnet", "\"prototypes\": 72", "\"prototypes\": 72, \"gain\": true");
    assert!(e.contains("csm.gain") && e.contains("missing"), "{e}");
    let e = message("dino-micro", "[\"each\", 0.2]", "[\"all\", 0.2]");
    assert!(e.contains("copy.safetensors") && e.contains("each") && e.contains("global"), "{e}");
    let e = message("dino-micro", "\"objective\": \"dino\"", "\"objective\": \"mea\"");
    assert!(e.contains("mea") && e.contains("saip, dino"), "{e}");
    let e = message("dino-micro", "[0.996, 1.0]", "[0.996, 0.999]");
    assert!(e.contains("schedule.momentum"), "{e}");
}

#[test]
fn a_dump_holds_the_results_under_the_fixture_names() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.safetensors");
    dump(&RESULTS, &out).unwrap();
    let bytes = std::fs::read(out).unwrap();
    let written = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(written.len(), recorded("vit-micro").keys().filter(|n| is_result(n)).count());
    let (shape, values) = &RESULTS[GRADIENT];
    let tensor = written.tensor(GRADIENT).unwrap();
    assert_eq!(tensor.shape(), shape);
    assert_eq!(f32::from_le_bytes(tensor.data()[..4].try_into().unwrap()), values[0] as f32);
}
