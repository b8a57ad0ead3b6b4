//! `saip-engine plan`.

use super::device::{Device, DeviceOptions, parse_dtype};
use super::plan_ranks::{self, Asked, PlanRanksArgs};
use super::step::StepArgs;
use crate::backend::{Backend, OpMeasure};
use crate::cuda::{PlanningBackend, planned_ops};
use crate::error::{Error, Result};
use crate::files::atomic;
use crate::ir::dump;
use crate::plan;
use crate::plan::Plan;
use crate::report::memory_svg;
use crate::report::table::table;
use crate::step::StepOptions;
use crate::tensor::DType;
use crate::train::objective::objective;
use crate::train::summary::memory_picture;
use crate::units::human_bytes;
use std::path::PathBuf;

/// Arguments of `plan`.
#[derive(clap::Args, Debug)]
pub struct PlanArgs {
    #[command(flatten)]
    pub step: StepArgs,
    /// Images per micro step
    #[arg(long)]
    pub batch: Option<usize>,
    /// Scale of the rescaled views [default: the largest of the configuration]
    #[arg(long)]
    pub scale: Option<f64>,
    /// Device to plan for: auto, cpu, cuda (which need not be there)
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Precision to plan for: bf16 (cuda), f32 or f64 (cpu) [default: f32, with --ranks bf16]
    #[arg(long, value_parser = parse_dtype)]
    pub dtype: Option<DType>,
    /// Compute activations again in the backward pass
    #[arg(long)]
    pub recompute: bool,
    /// Draw the arena as an SVG picture
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Write the graph as text
    #[arg(long, value_name = "FILE")]
    pub graph: Option<PathBuf>,
    /// Replace the files that --svg and --graph name
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub ranks: PlanRanksArgs,
}

/// Plans one step and prints its memory; nothing is allocated or computed.
///
/// # Errors
/// Those of the configuration, and files that cannot be written.
pub fn run(args: &PlanArgs) -> Result<()> {
    if let Some(ranks) = args.ranks.ranks {
        let PlanArgs { step, batch, scale, dtype, recompute, .. } = args;
        let asked = Asked { step, batch: *batch, scale: *scale, dtype: *dtype, recompute: *recompute };
        return plan_ranks::run(&args.ranks, &asked, ranks);
    }
    let dtype = args.dtype.unwrap_or(DType::F32);
    args.svg.iter().chain(&args.graph).try_for_each(|path| atomic::refuse_to_replace(path, args.force))?;
    let cfg = args.step.resolve(args.batch)?;
    let scale = args.scale.unwrap_or(cfg.views.scale[1]);
    let objective = objective(&cfg)?.at_scale(scale)?;
    let mut backend = planner(args, dtype, cfg.run.threads)?;
    let micro_steps = cfg.optim.accumulation(1)?;
    let opts = StepOptions { dtype, micro_steps, drop_path: cfg.encoder.drop_path, stretch: None };
    let built = objective.step(0, &opts)?;
    if let Some(path) = &args.graph {
        atomic::write(path, dump(&built.graph).as_bytes())?;
    }
    let plan = plan::compile(built.graph, args.recompute || cfg.run.recompute, &*backend)?;
    if args.device == "cuda" {
        // Whether there are kernels for all of it.
        backend.compile(plan.clone())?;
    }
    let work = if args.device == "cuda" { Some(work(&planned_ops(&plan)?)) } else { None };
    println!("{} at batch {}, scale {scale}, on {}", args.step.preset, objective.batch(), backend.name());
    print(&plan);
    work.iter().for_each(|work| println!("{work}"));
    if let Some(path) = &args.svg {
        atomic::write(path, memory_svg(&memory_picture(&plan)).as_bytes())?;
        println!("picture: {}", path.display());
    }
    Ok(())
}

/// How much of everything a step is.
fn work(ops: &[OpMeasure]) -> String {
    let launches: usize = ops.iter().map(|o| o.launches).sum();
    let bytes: u64 = ops.iter().map(|o| o.least_bytes).sum();
    let flops: u64 = ops.iter().map(|o| o.flops).sum();
    format!(
        "{launches} kernel launches of a recent GPU, {} read and written at least, {:.2} TFLOP of matrix products",
        human_bytes(bytes),
        flops as f64 / 1e12
    )
}

/// What the plan is made for; a CUDA device need not be there.
fn planner(args: &PlanArgs, dtype: DType, threads: usize) -> Result<Box<dyn Backend>> {
    match args.device.as_str() {
        "cuda" if matches!(dtype, DType::Bf16 | DType::F32) => Ok(Box::new(PlanningBackend::new(dtype))),
        "cuda" => Err(Error::device(
            "cuda",
            format!("computes in bf16 or f32, not in {dtype}: choose --dtype bf16"),
        )),
        device => Device::parse(device)?.open(dtype, &DeviceOptions { threads, ..DeviceOptions::default() }),
    }
}

fn print(plan: &Plan) {
    let mut rows: Vec<Vec<String>> =
        plan.regions.iter().map(|r| vec![r.region.name().into(), human_bytes(r.bytes() as u64)]).collect();
    rows.push(vec!["arena".into(), human_bytes(plan.arena_bytes as u64)]);
    let total = plan.regions.iter().map(|r| r.bytes()).sum::<usize>() + plan.arena_bytes;
    rows.push(vec!["total".into(), human_bytes(total as u64)]);
    println!("{}", table(&["memory", "size"], &rows));
    println!(
        "{} steps; arena {} against the lower bound {} (the largest sum of live tensors): {:.3} times",
        plan.steps.len(),
        human_bytes(plan.arena_bytes as u64),
        human_bytes(plan.lower_bound_bytes as u64),
        plan.arena_bytes as f64 / plan.lower_bound_bytes.max(1) as f64
    );
    let peak = peak_step(plan);
    let mut live: Vec<_> = plan.buffers.iter().filter(|b| b.start <= peak && peak <= b.end).collect();
    live.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.label.cmp(&b.label)));
    let rows: Vec<Vec<String>> =
        live.iter().take(12).map(|b| vec![b.label.clone(), human_bytes(b.bytes as u64)]).collect();
    println!("largest of {} buffers live at the peak, step {peak} ({}):", live.len(), plan.steps[peak].path);
    println!("{}", table(&["buffer", "size"], &rows));
}

/// The step at which most bytes are live.
fn peak_step(plan: &Plan) -> usize {
    let mut delta = vec![0i64; plan.steps.len() + 1];
    for b in &plan.buffers {
        delta[b.start] += b.bytes as i64;
        delta[b.end + 1] -= b.bytes as i64;
    }
    let (mut live, mut peak, mut at) = (0, i64::MIN, 0);
    for (step, d) in delta[..plan.steps.len()].iter().enumerate() {
        live += d;
        if live > peak {
            (peak, at) = (live, step);
        }
    }
    at
}
