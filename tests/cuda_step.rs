//! The whole step by the CUDA kernels, executed by the interpreter of PTX: against the reference's numbers, and training
//! against the CPU.

mod kernels;
mod support;

use kernels::{cache, compiler};
use saip_engine::backend::Backend;
use saip_engine::cuda::{Choices, CudaBackend, Driver, VmDriver};
use saip_engine::error::Error;
use saip_engine::objectives::Objective;
use saip_engine::plan;
use saip_engine::step::StepOptions;
use saip_engine::tensor::DType;
use saip_engine::train::config::TrainConfig;
use saip_engine::train::engine::{Engine, EngineOptions};
use saip_engine::train::objective::objective;
use saip_engine::verify::fixture::{Fixture, Verdict};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use support::{TINY, column, engine, lab, metrics, run, tensors, train, train_encoder};

const CAPABILITY: (u32, u32) = (8, 0);
const MEMORY: u64 = 1 << 30;

fn backend(dtype: DType) -> Box<dyn Backend> {
    Box::new(CudaBackend::new(VmDriver::new(CAPABILITY, MEMORY), compiler(CAPABILITY), dtype).unwrap())
}

/// The interpreter as a Hopper GPU whose products use the newest tier wherever they can.
fn hopper(dtype: DType) -> Box<dyn Backend> {
    let driver = VmDriver::new((9, 0), MEMORY);
    let choices = Choices::new(driver.info()).newest_tier();
    Box::new(CudaBackend::new(driver, compiler((9, 0)), dtype).unwrap().with_choices(choices))
}

fn fixture(name: &str) -> Fixture {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    Fixture::open(path.with_extension("safetensors")).unwrap()
}

fn verdict(name: &str, dtype: DType, tolerance: f64, backend: Box<dyn Backend>) -> Verdict {
    let fixture = fixture(name);
    let results = fixture.run(backend).unwrap();
    fixture.compare(&results, "ptx-vm", dtype, tolerance).unwrap()
}

/// The encoders, clipping, and frozen experts of both families.
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

#[test]
fn every_fixture_passes_in_f32() {
    for name in ALL {
        let v = verdict(name, DType::F32, 5e-4, backend(DType::F32));
        assert!(v.passed, "{name}: {:?}", &v.deviations[..3]);
    }
}

fn passes_in_bf16(name: &str, open: fn(DType) -> Box<dyn Backend>) {
    let tolerance = fixture(name).bf16_tolerance().unwrap();
    let v = verdict(name, DType::Bf16, tolerance, open(DType::Bf16));
    assert!(v.passed, "{name}: {:?} of {tolerance}", &v.deviations[..3]);
    // Something is computed in bf16.
    assert!(v.deviations[0].error > 1e-4, "{name}: {:?}", &v.deviations[..3]);
}

#[test]
fn transformers_pass_in_bf16() {
    for name in ["vit-micro", "vit-micro-clip", "dino-micro"] {
        let tolerance = fixture(name).bf16_tolerance().unwrap();
        assert!(tolerance < 0.1, "{name}: a tolerance of {tolerance} says nothing");
        for open in [backend, hopper] {
            passes_in_bf16(name, open);
        }
    }
}

/// The losses, too, which batch normalisation disturbs far less than single gradients.
#[test]
fn encoders_with_batch_normalisation_pass_in_bf16() {
    for name in ["starnet-micro", "tinyvit-micro", "saip-resnet-micro"] {
        passes_in_bf16(name, backend);
        let v = verdict(name, DType::Bf16, 0.05, hopper(DType::Bf16));
        let losses: Vec<_> = v.deviations.iter().filter(|d| d.name.starts_with("loss.")).collect();
        assert_eq!(losses.len(), 4, "{name}");
        assert!(losses.iter().all(|d| d.error < 1e-2), "{name}: {losses:?}");
    }
}

/// Three steps of the run that `make` starts, on the CPU and by the kernels.
fn trains_like_the_cpu(losses: &[&str], make: impl Fn(&Path, &str) -> Command) {
    let dir = lab();
    for device in ["cpu", "ptx-vm"] {
        let mut command = make(dir.path(), device);
        run(command.args(["--device", device]).env("SAIP_ENGINE_CACHE", cache())).ok();
    }
    let [cpu, vm] = ["cpu", "ptx-vm"].map(|d| dir.path().join(d));
    for loss in losses.iter().chain(&["health/grad_norm"]) {
        let [a, b] = [&cpu, &vm].map(|d| column(&metrics(d), loss));
        assert_eq!(a.len(), 3, "{loss}");
        for (a, b) in a.iter().zip(&b) {
            assert!((a - b).abs() <= 2e-4 * a.abs().max(1e-3), "{loss}: {a} on the CPU, {b} interpreted");
        }
    }
    let (a, b) = (tensors(&cpu, 3), tensors(&vm, 3));
    assert_eq!(a.len(), b.len());
    for ((name, a), (other, b)) in a.iter().zip(&b) {
        assert_eq!(name, other);
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
        let scale = norm(&mut a.iter().map(|v| f64::from(*v))).max(1e-2);
        let error = norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(a - b))) / scale;
        assert!(error <= 2e-3, "{name}: {error:e}");
    }
}

const SAIP: [&str; 3] = ["loss/csm", "loss/csr", "loss/css"];
const THREE: [&str; 3] = ["optim.steps=3", "optim.warmup_steps=1", "run.checkpoint_every=3"];

#[test]
fn three_training_steps_are_those_of_the_cpu() {
    trains_like_the_cpu(&SAIP, |dir, out| train(dir, out, &THREE));
}

/// The last layer is held for two of them.
#[test]
fn three_steps_of_dino_are_those_of_the_cpu() {
    let dino = ["objective=dino", "dino.gain=true", "dino.freeze_epochs=2", "optim.eps=1e-4"];
    let keys: Vec<&str> = dino.into_iter().chain(THREE).chain(["optim.effective_batch=16"]).collect();
    trains_like_the_cpu(&["loss/dino"], |dir, out| train(dir, out, &keys));
}

/// With running statistics. A bias before a normalisation has no gradient but rounding, which AdamW would make steps of: its
/// epsilon is above that.
#[test]
fn three_training_steps_with_batch_normalisation_are_those_of_the_cpu() {
    let encoder = ["encoder.base_dim=4", "encoder.depths=[1,1,1,1]", "encoder.mlp_ratio=2"];
    let keys: Vec<&str> = encoder.into_iter().chain(THREE).chain(["optim.eps=1e-4"]).collect();
    trains_like_the_cpu(&SAIP, |dir, out| train_encoder(dir, out, "demo-starnet", &keys));
}

/// Bytes that the demo's step needs at a batch, on a device that copies inputs while a step runs.
fn needed(cfg: &TrainConfig, batch: usize, recompute: bool) -> u64 {
    let backend = backend(DType::F32);
    let step = objective(cfg).unwrap().at_scale(1.0).unwrap().with_batch(batch);
    let opts =
        StepOptions { dtype: DType::F32, micro_steps: 1, drop_path: cfg.encoder.drop_path, stretch: None };
    let plan = plan::compile(step.step(0, &opts).unwrap().graph, recompute, &*backend).unwrap();
    backend.footprint(&[plan])
}

#[test]
fn a_lack_of_memory_names_the_batch_that_fits() {
    const ASKED: usize = 1024;
    let keys = [format!("optim.batch={ASKED}"), format!("optim.effective_batch={ASKED}")];
    let cfg = TrainConfig::resolve(Some("demo"), None, &keys).unwrap();
    let step: Arc<dyn Objective> = Arc::from(objective(&cfg).unwrap().at_scale(1.0).unwrap());
    let open = |memory, recompute| {
        let driver = VmDriver::new(CAPABILITY, memory);
        let compiler = compiler(CAPABILITY);
        let backend = CudaBackend::new(driver, compiler, DType::F32).unwrap();
        let options = EngineOptions { micro_steps: 1, drop_path: cfg.encoder.drop_path, recompute, seed: 0 };
        Engine::new(Box::new(backend), Arc::clone(&step), options).err().expect("no lack of memory")
    };
    let reserve = 512 << 20;
    let room = needed(&cfg, 100, false);
    // What the reserve leaves is enough for 100 images, to the byte.
    let error = open(room + reserve, false);
    let Error::Memory { asked, free, total, .. } = &error else { panic!("{error}") };
    assert!(asked > free && *total == room + reserve, "{error}");
    let message = error.to_string();
    let again = message.split("fits is 100, with --recompute ").nth(1).expect(&message);
    let again: usize = again.parse().expect(&message);
    assert!(again > 100 && needed(&cfg, again, true) <= room, "{message}");
    assert!(needed(&cfg, again + 1, true) > room, "{message}");
    let message = open(room + reserve - 1, false).to_string();
    assert!(message.contains("fits is 99,"), "{message}");
    let message = open(room + reserve, true).to_string();
    assert!(message.contains(&format!("fits is {again} (100 without --recompute)")), "{message}");
    let message = open(reserve, false).to_string();
    assert!(message.contains("not even one image fits"), "{message}");
}

#[test]
fn bench_ops_tells_counts_and_the_compilers_figures_of_every_op() {
    let dir = lab();
    let tiny: Vec<&str> = TINY.iter().filter(|k| !k.contains("batch=")).flat_map(|k| ["--set", k]).collect();
    let mut bench = engine(dir.path());
    bench.args(["bench", "ops", "--preset", "demo", "--batch", "1", "--json"]).args(&tiny);
    let record: Value =
        serde_json::from_str(&run(bench.env("SAIP_ENGINE_CACHE", cache())).ok().stdout).unwrap();
    assert_eq!((&record["target"], &record["dtype"]), (&"sm_90".into(), &"bf16".into()));
    let ops = record["ops"].as_array().unwrap();
    assert!(ops.len() > 50, "{}", ops.len());
    for op in ops {
        let (count, kernels) = (|key: &str| op[key].as_u64().unwrap(), op["kernels"].as_array().unwrap());
        let launches: u64 = kernels.iter().map(|k| k["launches"].as_u64().unwrap()).sum();
        assert_eq!(launches, count("launches"), "{op}");
        assert!(count("lane_instructions") > 0 && count("sectors") >= count("least_sectors"), "{op}");
        for k in kernels {
            let [registers, threads, resident] =
                ["registers", "threads", "resident_blocks"].map(|key| k[key].as_u64().unwrap());
            assert!((1..=255).contains(&registers) && k["spill_bytes"] == 0, "{op}");
            let warps = resident * threads.div_ceil(32);
            assert!(resident > 0 && warps <= 64, "{op}");
            assert_eq!(k["occupancy"].as_f64().unwrap(), warps as f64 / 64.0, "{op}");
        }
    }
    let linear = ops.iter().find(|op| op["op"] == "linear").unwrap();
    assert_eq!(linear["shape"].as_str().unwrap().split('x').count(), 3, "{linear}");
    // Tiles cover a product, so no less is computed than it needs.
    assert!(linear["matrix_flops"].as_u64() >= linear["flops"].as_u64(), "{linear}");
}
