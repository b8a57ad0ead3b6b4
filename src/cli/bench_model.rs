//! `saip-engine bench ops --model`: what a step's launches would take on a device that need not be there.

use super::baseline::Figures;
use super::bench_ops_groups::{BenchOpsArgs, MODELLED_BATCH};
use super::plan_ranks::machine;
use super::step::StepArgs;
use crate::backend::OpKernel;
use crate::cuda::{
    Compiler, Image, Modelled, ModelledLaunch, ModelledOp, PlanningBackend, cache_folder, kernels_folder,
    modelled,
};
use crate::error::{Error, Result};
use crate::files::{atomic, disk};
use crate::plan::{self, Bound, FITTED, LaunchWork, Machine};
use crate::report::table::table;
use crate::step::StepOptions;
use crate::tensor::DType;
use crate::train::objective::objective;
use crate::units::human_bytes;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// A step to model.
pub struct Asked<'a> {
    pub step: &'a StepArgs,
    pub batch: usize,
    pub scale: f64,
    pub dtype: DType,
    pub recompute: bool,
}

/// A step whose launches are modelled.
pub struct ModelledStep {
    pub machine: &'static Machine,
    pub ops: Vec<ModelledOp>,
    images: Vec<Image>,
}

/// Sums over a step or a part of it.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    pub ops: usize,
    pub launches: usize,
    /// Of all operands of all ops.
    pub bytes: u64,
    pub flops: u64,
    pub floor_seconds: f64,
    pub seconds: f64,
    /// Predicted seconds by what bounds them.
    pub bounds: BTreeMap<Bound, f64>,
}

impl Totals {
    fn add(&mut self, op: &ModelledOp, machine: &Machine) {
        self.ops += 1;
        self.launches += op.launches.len();
        self.bytes += op.op.least_bytes;
        self.flops += op.op.flops;
        self.floor_seconds += machine.floor_seconds(op.op.flops, op.op.least_bytes);
        for launch in &op.launches {
            let p = machine.predict(&launch.work);
            self.seconds += p.seconds;
            *self.bounds.entry(p.bound).or_default() += p.seconds;
        }
    }

    /// What bounds most of it.
    fn bound(&self) -> &'static str {
        self.bounds.iter().max_by(|a, b| a.1.total_cmp(b.1)).map_or("", |(bound, _)| bound.name())
    }
}

impl ModelledStep {
    /// Plans the step for `machine`, compiles its kernels and runs samples of them.
    ///
    /// # Errors
    /// Those of the configuration and of the compiler.
    pub fn new(machine: &'static Machine, asked: &Asked<'_>) -> Result<Self> {
        if asked.dtype != DType::Bf16 {
            return Err(Error::usage(format!("--dtype {}: the model knows bf16 alone", asked.dtype)));
        }
        let cfg = asked.step.resolve(Some(asked.batch))?;
        let objective = objective(&cfg)?.at_scale(asked.scale)?;
        let (dtype, drop_path) = (asked.dtype, cfg.encoder.drop_path);
        let built = objective.step(0, &StepOptions { dtype, micro_steps: 1, drop_path, stretch: None })?;
        let planner = PlanningBackend::new(dtype);
        let plan = plan::compile(built.graph, asked.recompute || cfg.run.recompute, &planner)?;
        let compiler = Compiler::new(machine.capability, cache_folder().map(|root| kernels_folder(&root)))?;
        let Modelled { ops, images } = modelled(&plan, machine, &compiler)?;
        Ok(ModelledStep { machine, ops, images })
    }

    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        self.ops.iter().for_each(|op| totals.add(op, self.machine));
        totals
    }

    /// Ops of one kind together, the slowest first.
    fn families(&self) -> Vec<(&'static str, Totals)> {
        let mut families: BTreeMap<&str, Totals> = BTreeMap::new();
        for op in &self.ops {
            families.entry(op.op.op).or_default().add(op, self.machine);
        }
        let mut families: Vec<_> = families.into_iter().collect();
        families.sort_by(|a, b| b.1.seconds.total_cmp(&a.1.seconds));
        families
    }
}

/// Predicts and prints.
///
/// # Errors
/// Those of the configuration and of the compiler; a device that is not known; a file of measurements that cannot be read.
pub fn run(args: &BenchOpsArgs, name: &str) -> Result<()> {
    let measured = args.measured.as_deref().map(measured).transpose()?;
    let batch = args.batch.unwrap_or(MODELLED_BATCH);
    let (dtype, recompute) = (args.dtype, args.recompute);
    let asked = Asked { step: &args.step, batch, scale: args.scale, dtype, recompute };
    let mut step = ModelledStep::new(machine(name)?, &asked)?;
    if let Some(text) = &args.filter {
        step.ops.retain(|op| format!("{} {}", op.op.op, op.op.shape).contains(text.as_str()));
    }
    if step.ops.is_empty() {
        return Err(args.nothing_left());
    }
    let mut figures = Figures::default();
    for (name, totals) in step.families() {
        figures.add(name, "seconds", totals.seconds);
        figures.add(name, "bytes", totals.bytes as f64);
        figures.add(name, "launches", totals.launches as f64);
    }
    if let Some(folder) = &args.images {
        write_images(folder, &step.images)?;
    }
    if args.json {
        let ops: Vec<Value> = step.ops.iter().map(|op| record(op, step.machine)).collect();
        let (preset, totals) = (&args.step.preset, step.totals());
        let record = json!({
            "model": name, "preset": preset, "batch": batch, "scale": args.scale, "launches": totals.launches,
            "least_bytes": totals.bytes, "floor_seconds": totals.floor_seconds, "seconds": totals.seconds, "ops": ops,
        });
        println!("{record}");
        return figures.settle(&args.kept);
    }
    println!(
        "{} at batch {batch}, scale {}, bf16, predicted for one {name}; constants fitted to a measurement of {FITTED}",
        args.step.preset, args.scale
    );
    let rows = if args.rows == 0 { usize::MAX } else { args.rows };
    println!("\n{}", families(&step, rows, measured.as_ref()));
    println!("\nKernels; resident: blocks that a multiprocessor holds at a time.\n{}", kernels(&step, rows));
    figures.settle(&args.kept)
}

/// Writes machine code as files for a disassembler, and `index.json`, which tells what they are, into a new folder.
fn write_images(folder: &Path, images: &[Image]) -> Result<()> {
    disk::create_dir(folder).map_err(|e| Error::io(folder, "create the folder", e))?;
    let mut index = Vec::new();
    for (i, image) in images.iter().enumerate() {
        let name = format!("{i:03}-{}.cubin", image.file.trim_end_matches(".cu"));
        atomic::write_new(&folder.join(&name), &image.cubin)?;
        let given: serde_json::Map<String, Value> =
            image.given.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
        index.push(json!({ "image": name, "file": image.file, "bf16": image.bf16, "given": given }));
    }
    atomic::write_new(&folder.join("index.json"), Value::from(index).to_string().as_bytes())
}

/// Seconds of each op's kind in the output of `bench ops --json`, alone or in a result file.
fn measured(path: &Path) -> Result<BTreeMap<String, f64>> {
    let text = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
    let value: Value =
        serde_json::from_slice(&text).map_err(|e| Error::file(path, format!("is no JSON: {e}")))?;
    let record = value.get("result").and_then(|r| r.get(0)).unwrap_or(&value);
    let mut seconds = BTreeMap::new();
    for row in record["ops"].as_array().into_iter().flatten() {
        if let (Some(op), Some(s)) = (row["op"].as_str(), row["seconds"].as_f64()) {
            *seconds.entry(op.to_owned()).or_default() += s;
        }
    }
    if seconds.is_empty() {
        let message = "holds no measured ops: make it with `bench ops --device cuda --json`";
        return Err(Error::file(path, message));
    }
    Ok(seconds)
}

fn families(step: &ModelledStep, shown: usize, measured: Option<&BTreeMap<String, f64>>) -> String {
    let all = step.totals();
    let row = |name: &str, t: &Totals, measured: Option<Option<f64>>| {
        let mut row = vec![
            name.to_owned(),
            t.ops.to_string(),
            t.launches.to_string(),
            format!("{:.2}", t.bytes as f64 * 1e-9),
            format!("{:.2}", t.flops as f64 * 1e-12),
            format!("{:.2}", t.floor_seconds * 1e3),
            format!("{:.2}", t.seconds * 1e3),
            format!("{:.1} %", 100.0 * t.seconds / all.seconds),
            t.bound().to_owned(),
        ];
        if let Some(measured) = measured {
            row.push(measured.map_or(String::new(), |s| format!("{:.2}", s * 1e3)));
            row.push(measured.map_or(String::new(), |s| format!("{:.2}", t.seconds / s)));
        }
        row
    };
    let families = step.families();
    let of = |name: &str| measured.map(|m| m.get(name).copied());
    let mut rows: Vec<_> = families.iter().take(shown).map(|(n, t)| row(n, t, of(n))).collect();
    rows.push(row("all", &all, measured.map(|m| Some(m.values().sum()))));
    let mut headers =
        vec!["op", "ops", "launches", "GB", "TFLOP", "floor ms", "predicted ms", "share", "bound by"];
    if measured.is_some() {
        headers.extend(["measured ms", "ratio"]);
    }
    table(&headers, &rows)
}

/// Launches of one compiled form of a kernel.
struct Form<'a> {
    kernel: &'a OpKernel,
    launches: usize,
    seconds: f64,
    bounds: BTreeMap<Bound, f64>,
}

fn kernels(step: &ModelledStep, shown: usize) -> String {
    let mut forms: Vec<Form<'_>> = Vec::new();
    for ModelledLaunch { kernel, work } in step.ops.iter().flat_map(|op| &op.launches) {
        let p = step.machine.predict(work);
        let same = |f: &&mut Form<'_>| f.kernel.same_form(kernel);
        let form = match forms.iter_mut().find(same) {
            Some(form) => form,
            None => {
                forms.push(Form { kernel, launches: 0, seconds: 0.0, bounds: BTreeMap::new() });
                let last = forms.len() - 1;
                &mut forms[last]
            }
        };
        form.launches += 1;
        form.seconds += p.seconds;
        *form.bounds.entry(p.bound).or_default() += p.seconds;
    }
    forms.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    let row = |f: &Form<'_>| {
        let bound = f.bounds.iter().max_by(|a, b| a.1.total_cmp(b.1)).map_or("", |(bound, _)| bound.name());
        let k = f.kernel;
        vec![
            k.name.to_owned(),
            f.launches.to_string(),
            format!("{:.3}", f.seconds * 1e3),
            bound.to_owned(),
            k.threads.to_string(),
            k.registers.to_string(),
            human_bytes(k.spills.into()),
            human_bytes(k.shared.into()),
            k.resident_blocks.to_string(),
            k.occupancy.map_or(String::new(), |o| format!("{:.0} %", 100.0 * o)),
        ]
    };
    let headers = [
        "kernel",
        "launches",
        "ms",
        "bound by",
        "threads",
        "registers",
        "spilt",
        "shared",
        "resident",
        "occupancy",
    ];
    table(&headers, &forms.iter().take(shown).map(row).collect::<Vec<_>>())
}

fn record(op: &ModelledOp, machine: &Machine) -> Value {
    let launch = |l: &ModelledLaunch| {
        let (w, p): (LaunchWork, _) = (l.work, machine.predict(&l.work));
        json!({
            "kernel": l.kernel.name, "registers": l.kernel.registers, "threads": l.kernel.threads,
            "spill_bytes": l.kernel.spills, "shared_bytes": l.kernel.shared, "blocks": w.blocks,
            "resident_blocks": w.resident, "issued": w.issued, "integer": w.integer, "special": w.special,
            "shared_passes": w.shared, "sync_flops": w.sync_flops, "warpgroup_flops": w.warpgroup_flops,
            "l2_bytes": w.bytes, "cycles": w.cycles, "memory_bytes": w.memory, "seconds": p.seconds,
            "bound": p.bound.name(),
        })
    };
    json!({
        "path": op.op.path, "op": op.op.op, "shape": op.op.shape.to_string(), "flops": op.op.flops,
        "least_bytes": op.op.least_bytes,
        "floor_seconds": machine.floor_seconds(op.op.flops, op.op.least_bytes),
        "launches": op.launches.iter().map(launch).collect::<Vec<_>>(),
    })
}
