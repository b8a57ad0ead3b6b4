//! What `bench ops` is asked, and what it adds up.

use super::baseline::{BaselineArgs, Figures};
use super::cuda::CudaArgs;
use super::device::{parse_dtype, parse_target};
use super::step::StepArgs;
use crate::backend::{OpCounts, OpKernel, OpMeasure};
use crate::error::Error;
use crate::tensor::DType;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Scale that is timed by default.
pub const SCALE: f64 = 1.25;

/// Arguments of `bench ops`.
#[derive(clap::Args, Debug)]
pub struct BenchOpsArgs {
    #[command(flatten)]
    pub step: StepArgs,
    /// Images per step [default: 2, of a modelled device 256]
    #[arg(long)]
    pub batch: Option<usize>,
    /// Scale of the rescaled views
    #[arg(long, default_value_t = SCALE)]
    pub scale: f64,
    /// Device: cuda, cuda:N, or ptx-vm (the CUDA kernels, interpreted)
    #[arg(long, default_value = "ptx-vm")]
    pub device: String,
    /// Precision: bf16 or f32
    #[arg(long, default_value = "bf16", value_parser = parse_dtype)]
    pub dtype: DType,
    /// Architecture that the interpreter claims, and whose compiler figures are told; a GPU is its own [default: sm_90a]
    #[arg(long, value_parser = parse_target)]
    pub target: Option<(u32, u32)>,
    /// Times that each op runs; the median counts
    #[arg(long, default_value_t = 20)]
    pub repeats: usize,
    /// Predict what the step takes on a device that need not be there: h200, h100, a6000
    #[arg(long, value_name = "NAME", conflicts_with_all = ["device", "target", "repeats"])]
    pub model: Option<String>,
    /// With --model: set what was measured, by `bench ops --json`, beside what is predicted
    #[arg(long, value_name = "FILE", requires = "model")]
    pub measured: Option<PathBuf>,
    /// With --model: write the kernels' machine code, for a disassembler, into a new folder
    #[arg(long, value_name = "DIR", requires = "model")]
    pub images: Option<PathBuf>,
    /// Compare launches, bytes and predicted times of the presets that a TOML file lists with the figures it holds
    #[arg(long, value_name = "FILE", conflicts_with_all = ["device", "target", "repeats", "model", "preset", "config", "sets", "batch", "scale"])]
    pub budget: Option<PathBuf>,
    /// With --budget: write today's figures to the file
    #[arg(long, requires = "budget")]
    pub update: bool,
    /// Compute activations again in the backward pass
    #[arg(long)]
    pub recompute: bool,
    /// Rows to print; 0 for all
    #[arg(long, default_value_t = 30)]
    pub rows: usize,
    /// Only ops in whose name and shape, such as `linear 142848x768x192`, this text stands
    #[arg(long, value_name = "TEXT", conflicts_with = "budget")]
    pub filter: Option<String>,
    #[command(flatten)]
    pub kept: BaselineArgs,
    /// Print one line of JSON instead of tables
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub cuda: CudaArgs,
}

impl BenchOpsArgs {
    /// The error for a filter that nothing passes.
    pub(super) fn nothing_left(&self) -> Error {
        let text = self.filter.as_deref().unwrap_or_default();
        Error::usage(format!("--filter {text}: no op of {} has that in its name and shape", self.step.preset))
    }
}

/// Images of a step that is interpreted, and of one that is modelled.
pub(super) const BATCH: usize = 2;
pub(super) const MODELLED_BATCH: usize = 256;

/// Architecture that the interpreter claims by default.
pub(super) const TARGET: (u32, u32) = (9, 0);

/// All ops of one kind on operands of one shape.
#[derive(Default)]
pub(super) struct Group {
    pub op: String,
    /// Rows, columns and depth of a product, else its first operand.
    pub shape: String,
    pub ops: usize,
    pub launches: usize,
    pub flops: u64,
    pub least_bytes: u64,
    pub seconds: f64,
    /// The least time by the machine's ceilings.
    pub floor_seconds: f64,
    /// By the library, which offers all of them or none.
    pub library_seconds: Option<f64>,
    pub counts: OpCounts,
    /// Each with the number of its launches.
    pub kernels: Vec<(OpKernel, usize)>,
}

impl Group {
    pub fn add(&mut self, m: &OpMeasure, kernels: &[OpKernel], floor_seconds: f64) {
        let first = self.ops == 0;
        self.ops += 1;
        self.launches += m.launches;
        self.flops += m.flops;
        self.least_bytes += m.least_bytes;
        self.seconds += m.seconds.unwrap_or(0.0);
        self.floor_seconds += floor_seconds;
        self.library_seconds = match (self.library_seconds, m.library_seconds) {
            (Some(sum), Some(seconds)) => Some(sum + seconds),
            (None, Some(seconds)) if first => Some(seconds),
            _ => None,
        };
        if let Some(c) = m.counts {
            self.counts.global_bytes += c.global_bytes;
            self.counts.sectors[0] += c.sectors[0];
            self.counts.sectors[1] += c.sectors[1];
            self.counts.bank_conflicts += c.bank_conflicts;
            self.counts.lane_instructions += c.lane_instructions;
            self.counts.matrix_flops += c.matrix_flops;
        }
        for kernel in kernels {
            count_kernel(&mut self.kernels, kernel, 1);
        }
    }

    /// What the largest come first by.
    pub fn weight(&self) -> f64 {
        if self.seconds > 0.0 { self.seconds } else { self.counts.lane_instructions as f64 }
    }

    pub fn name(&self) -> String {
        format!("{} {}", self.op, self.shape)
    }

    /// What a later measurement is compared with.
    pub fn figures(&self, to: &mut Figures) {
        let name = self.name();
        if self.seconds > 0.0 {
            to.add(&name, "seconds", self.seconds);
            return;
        }
        to.add(&name, "bytes", self.counts.global_bytes as f64);
        to.add(&name, "instructions", self.counts.lane_instructions as f64);
        to.add(&name, "launches", self.launches as f64);
    }

    /// The part of its nearer ceiling that it reaches.
    pub fn of_ceiling(&self) -> Option<f64> {
        (self.floor_seconds > 0.0 && self.seconds > 0.0).then(|| self.floor_seconds / self.seconds)
    }

    /// Our time over the library's.
    pub fn library_ratio(&self) -> Option<f64> {
        self.library_seconds.filter(|s| *s > 0.0).map(|s| self.seconds / s)
    }

    pub fn record(&self, timed: bool) -> Value {
        let mut row = json!({
            "op": self.op, "shape": self.shape, "ops": self.ops, "launches": self.launches, "flops": self.flops,
            "least_bytes": self.least_bytes,
        });
        if timed {
            row["seconds"] = json!(self.seconds);
            row["bytes_per_s"] = json!(self.least_bytes as f64 / self.seconds);
            row["flops_per_s"] = json!(self.flops as f64 / self.seconds);
            row["floor_seconds"] = json!(self.floor_seconds);
            row["of_ceiling"] = json!(self.of_ceiling());
            row["library_seconds"] = json!(self.library_seconds);
            row["library_ratio"] = json!(self.library_ratio());
        } else {
            row["global_bytes"] = json!(self.counts.global_bytes);
            row["sectors"] = json!(self.counts.sectors[0]);
            row["least_sectors"] = json!(self.counts.sectors[1]);
            row["bank_conflicts"] = json!(self.counts.bank_conflicts);
            row["lane_instructions"] = json!(self.counts.lane_instructions);
            row["matrix_flops"] = json!(self.counts.matrix_flops);
        }
        let kernel = |(k, launches): &(OpKernel, usize)| {
            json!({
                "kernel": k.name, "launches": launches, "registers": k.registers, "spill_bytes": k.spills,
                "shared_bytes": k.shared, "threads": k.threads, "resident_blocks": k.resident_blocks,
                "occupancy": k.occupancy,
            })
        };
        row["kernels"] = self.kernels.iter().map(kernel).collect();
        row
    }
}

/// Counts `launches` of a kernel in a list where each compiled form stands once.
pub(super) fn count_kernel(list: &mut Vec<(OpKernel, usize)>, kernel: &OpKernel, launches: usize) {
    match list.iter_mut().find(|(k, _)| k.same_form(kernel)) {
        Some((_, count)) => *count += launches,
        None => list.push((kernel.clone(), launches)),
    }
}
