//! `saip-engine bench`.

use super::baseline::{BaselineArgs, Figures};
use super::bench_ops_groups::{BenchOpsArgs, SCALE};
use super::cuda::CudaArgs;
use super::device::{Device, DeviceOptions, parse_dtype};
use super::step::StepArgs;
use crate::error::{Error, Result};
use crate::objectives::Objective;
use crate::report::table::table;
use crate::tensor::DType;
use crate::train::engine::{Engine, EngineOptions};
use crate::train::objective::objective;
use crate::units::{human_bytes, median};
use serde_json::json;
use std::sync::Arc;
use std::time::Instant;

/// Arguments of `bench`.
#[derive(clap::Args, Debug)]
pub struct BenchArgs {
    #[command(subcommand)]
    pub what: Bench,
}

#[derive(clap::Subcommand, Debug)]
pub enum Bench {
    /// Time whole training steps on random images, the loader left out
    Step(BenchStepArgs),
    /// Measure every op of a step by itself, against the machine's ceilings and cuBLASLt on a GPU, by counts without one, or predict what it would take
    Ops(BenchOpsArgs),
}

/// Arguments of `bench step`.
#[derive(clap::Args, Debug)]
pub struct BenchStepArgs {
    #[command(flatten)]
    pub step: StepArgs,
    /// Images per step
    #[arg(long, default_value_t = 8)]
    pub batch: usize,
    /// Scale of the rescaled views
    #[arg(long, default_value_t = SCALE)]
    pub scale: f64,
    /// Steps to time
    #[arg(long, default_value_t = 10)]
    pub steps: usize,
    /// Steps before them
    #[arg(long, default_value_t = 3)]
    pub warmup: usize,
    /// Device: auto, cpu, cuda, cuda:N, or ptx-vm (the CUDA kernels, interpreted)
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Precision: f64 (cpu), f32, or bf16 (not on the CPU)
    #[arg(long, default_value = "f32", value_parser = parse_dtype)]
    pub dtype: DType,
    /// CPU threads; 0 for one per core
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// Compute activations again in the backward pass
    #[arg(long)]
    pub recompute: bool,
    #[command(flatten)]
    pub kept: BaselineArgs,
    /// Print one line of JSON instead of a table
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub cuda: CudaArgs,
}

/// Measures and prints; gives the process's exit code.
///
/// # Errors
/// Those of the configuration and of the device.
pub fn run(args: &BenchArgs) -> Result<i32> {
    match &args.what {
        Bench::Step(step) => bench_step(step).map(|()| 0),
        Bench::Ops(ops) => super::bench_ops::run(ops),
    }
}

fn bench_step(args: &BenchStepArgs) -> Result<()> {
    if args.steps == 0 || args.batch == 0 {
        return Err(Error::usage("--steps and --batch must be at least 1"));
    }
    let cfg = args.step.resolve(Some(args.batch))?;
    let objective: Arc<dyn Objective> = Arc::from(objective(&cfg)?.at_scale(args.scale)?);
    let options =
        DeviceOptions { threads: args.threads, cuda: args.cuda.clone(), ..DeviceOptions::default() };
    let device = Device::parse(&args.device)?;
    device.check_threads(args.threads)?;
    let backend = device.open(args.dtype, &options)?;
    let device = backend.name();
    let options = EngineOptions {
        micro_steps: 1,
        drop_path: cfg.encoder.drop_path,
        recompute: args.recompute || cfg.run.recompute,
        seed: cfg.data.seed,
    };
    let mut engine = Engine::new(backend, Arc::clone(&objective), options)?;
    engine.initialise()?;
    let batch = objective.random_batch(0, cfg.data.seed);
    let mut seconds = Vec::with_capacity(args.steps);
    let mut loss = 0.0;
    // The images stay: how fast they come is not the step's matter.
    engine.feed(0, &batch, &objective.point(1))?;
    for i in 0..args.warmup + args.steps {
        let began = Instant::now();
        engine.feed_point(0, &objective.point(i as u64 + 1))?;
        engine.start(0, true)?;
        engine.update(0)?;
        loss = engine.losses(0)?.total;
        if i >= args.warmup {
            seconds.push(began.elapsed().as_secs_f64());
        }
    }
    let median = median(&mut seconds);
    let (min, max) = (seconds[0], seconds[seconds.len() - 1]);
    let images = args.batch as f64 / median;
    let mut figures = Figures::default();
    figures.add(&args.step.preset, "seconds", median);
    // Of this process; a GPU's own memory is what was planned.
    let (peak, planned) = (peak_resident_bytes(), engine.planned_bytes());
    if args.json {
        let record = json!({
            "preset": args.step.preset, "batch": args.batch, "device": device, "median_s": median, "min_s": min,
            "max_s": max, "images_per_s": images, "peak_bytes": peak, "planned_bytes": planned, "loss": loss,
        });
        println!("{record}");
        return figures.settle(&args.kept);
    }
    let row = vec![
        device,
        args.batch.to_string(),
        format!("{median:.3}"),
        format!("{min:.3} - {max:.3}"),
        format!("{images:.2}"),
        human_bytes(planned),
        peak.map_or("unknown".into(), human_bytes),
    ];
    let headers = [
        "device",
        "batch",
        "s/step (median)",
        "min - max",
        "images/s",
        "planned memory",
        "peak of the process",
    ];
    println!("{}", table(&headers, &[row]));
    figures.settle(&args.kept)
}

/// The largest resident set of this process so far; None where the system does not tell.
pub fn peak_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}
