//! Arguments of `saip-engine verify`.

use super::cuda::CudaArgs;
use super::device::parse_dtype;
use crate::tensor::DType;
use std::path::PathBuf;

/// Arguments of `verify`.
#[derive(clap::Args, Debug)]
pub struct VerifyArgs {
    /// Fixtures: safetensors files with inputs, state, and what one step must give
    #[arg(required_unless_present_any = ["numeric", "record"])]
    pub fixtures: Vec<PathBuf>,
    /// Check gradients against central differences instead: of a whole step and of its ops; no fixture is needed
    #[arg(long, conflicts_with_all = ["fixtures", "dump"])]
    pub numeric: bool,
    /// Write the first steps of a run into this folder, for another implementation to take them too: state, views, losses
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["fixtures", "dump", "numeric", "tol", "json"])]
    pub record: Option<PathBuf>,
    /// Steps to record
    #[arg(long, requires = "record", default_value_t = 200)]
    pub steps: u64,
    /// Built-in configuration whose steps are recorded, or whose step, made small, is checked [default: demo]
    #[arg(long, conflicts_with_all = ["fixtures", "dump"])]
    pub preset: Option<String>,
    /// Single keys of the configuration whose steps are recorded
    #[arg(long = "set", requires = "record", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Check the ops of this name alone, such as layer_norm
    #[arg(long, requires = "numeric", value_name = "NAME")]
    pub op: Option<String>,
    /// Device: auto, cpu, cuda, cuda:N, or ptx-vm (the CUDA kernels, interpreted)
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Precision: f64 (cpu), f32, bf16 (not on the CPU) [default: f64 on the CPU, else f32]
    #[arg(long, value_parser = parse_dtype)]
    pub dtype: Option<DType>,
    /// Largest error that passes [default: 1e-6 in f64; in f32 2e-4 on the CPU, else 5e-4; in bf16 2^-8 times the root of
    /// the longest chain of roundings in the step, and eight times that with batch normalisation; with --numeric 1e-6 in
    /// f64, in f32 by the chain and the terms of its sums]
    #[arg(long)]
    pub tol: Option<f64>,
    /// Print JSON instead of tables
    #[arg(long)]
    pub json: bool,
    /// Write the engine's own numbers under the fixture's names (one fixture only)
    #[arg(long, value_name = "OUT.safetensors")]
    pub dump: Option<PathBuf>,
    /// Replace the file that --dump names
    #[arg(long)]
    pub force: bool,
    /// Rows to print per fixture; 0 for all
    #[arg(long, default_value_t = 10)]
    pub rows: usize,
    /// CPU threads; 0 for one per core
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    #[command(flatten)]
    pub cuda: CudaArgs,
}
