//! Whole steps at their real size through the code that calls NVIDIA's driver: the stand-in for it computes nothing, but
//! refuses what the driver would. Nothing else runs the launches of a large batch without a GPU.

mod kernels;
mod stand_in;

use kernels::{cache, compiler};
use rayon::prelude::*;
use saip_engine::backend::ProgramId;
use saip_engine::cuda::{
    Collected, CudaBackend, Driver, GpuDriver, ImageKind, PlanningBackend, Sources, Tuner,
};
use saip_engine::error::{Error, Result};
use saip_engine::objectives::Objective;
use saip_engine::tensor::DType;
use saip_engine::train::config::TrainConfig;
use saip_engine::train::engine::{Engine, EngineOptions};
use saip_engine::train::objective::objective;
use stand_in::{Live, StandIn, folder};
use std::process::Command;
use std::sync::Arc;
use std::sync::Once;
use std::time::Instant;

/// What the stand-in is.
const CAPABILITY: (u32, u32) = (9, 0);
const PRESETS: [&str; 3] = ["saip-vit-tiny", "saip-tinyvit-5m", "saip-starnet-s3"];
/// The batch of the presets' steps.
const BATCH: &[&str] = &["optim.batch=256"];

fn backend(driver: GpuDriver, dtype: DType) -> CudaBackend<GpuDriver> {
    CudaBackend::new(driver, compiler(CAPABILITY), dtype).unwrap()
}

/// Compiles the kernels of all presets' steps at once, before any test that wants them takes the stand-in for itself: step
/// after step, most cores would wait for the slowest of a few kernels.
fn compile_ahead() {
    static DONE: Once = Once::new();
    DONE.call_once(|| {
        let of = |dtype| Collected::new(Sources::built_in(), dtype == DType::Bf16);
        let collected = [DType::F32, DType::Bf16].map(|dtype| (dtype, of(dtype)));
        let all: Vec<_> =
            PRESETS.iter().flat_map(|preset| collected.iter().map(move |c| (preset, c))).collect();
        all.par_iter().for_each(|(preset, (dtype, collected))| {
            let (cfg, steps) = buckets(preset, BATCH);
            let planner = PlanningBackend::collecting(*dtype, CAPABILITY, collected.clone());
            Engine::new(Box::new(planner), steps, options(&cfg)).unwrap();
        });
        let wanted = collected.iter().flat_map(|(_, collected)| collected.take()).collect();
        compiler(CAPABILITY).prepare(&wanted, ImageKind::Cubin).unwrap();
    });
}

fn options(cfg: &TrainConfig) -> EngineOptions {
    let micro_steps = cfg.optim.accumulation(1).unwrap();
    EngineOptions { micro_steps, drop_path: cfg.encoder.drop_path, recompute: false, seed: 0 }
}

/// The steps of a preset at every scale, as `train` compiles them.
fn buckets(preset: &str, sets: &[&str]) -> (TrainConfig, Arc<dyn Objective>) {
    let sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
    let cfg = TrainConfig::resolve(Some(preset), None, &sets).unwrap();
    let steps = objective(&cfg).unwrap();
    (cfg, steps)
}

/// Compiles and starts every bucket's step; then nothing may be left.
fn step_runs(memory: u64, preset: &str, dtype: DType, tuned: bool) {
    compile_ahead();
    let stand_in = StandIn::of(CAPABILITY, memory);
    let began = Instant::now();
    let (cfg, steps) = buckets(preset, BATCH);
    let driver = stand_in.driver();
    let tuner = Tuner::new(None, driver.info(), &Sources::built_in(), false);
    let mut backend = backend(driver, dtype);
    if tuned {
        backend = backend.with_tuner(tuner);
    }
    let options = options(&cfg);
    let refused = |what: &str, e: Error| panic!("{preset} in {dtype}, {what}: {e}\n{}", stand_in.refusal());
    let mut engine = Engine::new(Box::new(backend), Arc::clone(&steps), options)
        .unwrap_or_else(|e| panic!("{}", refused("compiling", e)));
    let compiled = began.elapsed();
    for bucket in 0..steps.buckets() {
        engine.start(bucket, true).unwrap_or_else(|e| panic!("{}", refused("starting", e)));
    }
    engine.start_update().unwrap_or_else(|e| panic!("{}", refused("the optimizer's part", e)));
    let launches = stand_in.calls("cuLaunchKernel");
    println!(
        "{preset} in {dtype}: {} buckets, {launches} launches, compiled in {compiled:.1?}, all in {:.1?}",
        steps.buckets(),
        began.elapsed()
    );
    assert!(launches > 100 * steps.buckets() as u64, "{launches} launches");
    // With accumulation, as the presets have it, the optimizer's part is a program of its own.
    assert!(options.micro_steps > 1);
    assert_eq!(stand_in.calls("cuGraphLaunch"), steps.buckets() as u64 + 1);
    drop(engine);
    assert_eq!(stand_in.live(), Live::default(), "something is not given back");
}

macro_rules! steps {
    ($($test:ident: $preset:expr,)*) => {
        $(mod $test {
            use super::*;

            #[test]
            fn in_f32() {
                // TinyViT takes 83 GiB: an H200.
                step_runs(139 << 30, $preset, DType::F32, false);
            }

            #[test]
            fn in_bf16() {
                step_runs(stand_in::MEMORY, $preset, DType::Bf16, false);
            }

            /// Every candidate is launched.
            #[test]
            fn in_bf16_tuned() {
                step_runs(stand_in::MEMORY, $preset, DType::Bf16, true);
            }
        })*
    };
}

steps! {
    saip_vit_tiny: PRESETS[0],
    saip_tinyvit_5m: PRESETS[1],
    saip_starnet_s3: PRESETS[2],
}

/// A backend that is opened, run and dropped leaves nothing, nor does the next one.
#[test]
fn a_dropped_backend_leaves_nothing() {
    let stand_in = StandIn::new();
    for _ in 0..2 {
        // The context outlives the backend, and would take what it left along.
        let other = stand_in.driver();
        let before = stand_in.live();
        small_step_runs().unwrap();
        assert_eq!(stand_in.live(), before);
        drop(other);
        assert_eq!(stand_in.live(), Live::default());
    }
}

/// Opens, compiles and starts a small step with two buckets, stages an input, and drops all of it.
fn small_step_runs() -> Result<()> {
    let (_, steps) = buckets("demo", &["optim.batch=2", "views.scale_buckets=2"]);
    let driver = GpuDriver::new(0)?;
    let backend = backend(driver, DType::Bf16);
    let options = EngineOptions { micro_steps: 1, drop_path: 0.0, recompute: false, seed: 0 };
    let mut engine = Engine::new(Box::new(backend), Arc::clone(&steps), options)?;
    engine.initialise()?;
    for bucket in 0..steps.buckets() {
        engine.start(bucket, true)?;
    }
    engine.kernels(0)?;
    engine.backend().measure(ProgramId(0), 1).map(drop)
}

/// Wherever the driver fails on the way, the error is told and nothing is left.
#[test]
fn a_failure_anywhere_leaves_nothing() {
    let stand_in = StandIn::new();
    let other = stand_in.driver();
    let before = stand_in.live();
    // The opening call by call, then in strides: a step makes thousands.
    let (mut call, mut failures) = (1u64, 0);
    loop {
        stand_in.fail(call, stand_in::code::OUT_OF_MEMORY);
        let result = small_step_runs();
        let never_reached = stand_in.fail(0, 0);
        // Some calls may fail without harm, such as the one that looks for a name of an error.
        failures += usize::from(result.is_err());
        assert_eq!(stand_in.live(), before, "call {call}: {result:?}");
        if never_reached {
            result.unwrap();
            break;
        }
        call += if call < 60 { 1 } else { call / 7 };
    }
    assert!(failures > 60, "{failures} failures");
    drop(other);
}

fn engine(args: &[&str]) -> std::process::Output {
    let mut path = folder().into_os_string();
    if let Some(more) = std::env::var_os("LD_LIBRARY_PATH") {
        path.push(":");
        path.push(more);
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_saip-engine"));
    command
        .args(args)
        .env("LD_LIBRARY_PATH", path)
        .env("SAIP_ENGINE_CACHE", cache())
        .env("STAND_IN_VERBOSE", "1");
    command.output().unwrap()
}

#[test]
fn the_program_lists_the_stand_in_and_steps_on_it() {
    let info = engine(&["info"]);
    let text = String::from_utf8_lossy(&info.stdout);
    assert!(info.status.success() && text.contains("stand-in for sm_90"), "{info:?}");
    for dtype in ["f32", "bf16"] {
        let args =
            ["bench", "step", "--preset", "demo", "--device", "cuda", "--steps", "2", "--dtype", dtype];
        let step = engine(&args);
        let told = String::from_utf8_lossy(&step.stderr);
        assert!(step.status.success(), "{told}");
        // Parameters are asked for until there is none.
        let refused: Vec<&str> = told
            .lines()
            .filter(|l| l.starts_with("stand-in:") && !l.contains("cuFuncGetParamInfo"))
            .collect();
        assert!(refused.is_empty(), "{refused:?}");
    }
}
