//! `saip-engine verify`.

use super::cuda::CudaArgs;
use super::device::{Device, DeviceOptions, parse_dtype};
use crate::error::{Error, Result};
use crate::report::table::table;
use crate::tensor::DType;
use crate::train::fixture::{Fixture, Verdict, dump};
use std::path::PathBuf;

/// Arguments of `verify`.
#[derive(clap::Args, Debug)]
pub struct VerifyArgs {
    /// Fixtures: safetensors files with inputs, state, and what one step must give
    #[arg(required = true)]
    pub fixtures: Vec<PathBuf>,
    /// Device: auto, cpu, cuda, cuda:N, or ptx-vm (the CUDA kernels, interpreted)
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Precision: f64 (cpu), f32, bf16 (not on the CPU) [default: f64 on the CPU, else f32]
    #[arg(long, value_parser = parse_dtype)]
    pub dtype: Option<DType>,
    /// Largest error that passes [default: 1e-6 in f64; in f32 2e-4 on the CPU, else 5e-4; in bf16 2^-8 times the root of
    /// the longest chain of roundings in the step, and eight times that with batch normalisation]
    #[arg(long)]
    pub tol: Option<f64>,
    /// Print JSON instead of tables
    #[arg(long)]
    pub json: bool,
    /// Write the engine's own numbers under the fixture's names (one fixture only)
    #[arg(long, value_name = "OUT.safetensors")]
    pub dump: Option<PathBuf>,
    /// Rows to print per fixture; 0 for all
    #[arg(long, default_value_t = 10)]
    pub rows: usize,
    /// CPU threads; 0 for one per core
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    #[command(flatten)]
    pub cuda: CudaArgs,
}

/// Checks every fixture; 0 when all pass, 1 when one is beyond the tolerance.
///
/// # Errors
/// A fixture that cannot be read, a device that is not there.
pub fn run(args: &VerifyArgs) -> Result<i32> {
    if args.dump.is_some() && args.fixtures.len() != 1 {
        return Err(Error::usage("--dump writes the numbers of one fixture: name one"));
    }
    let device = Device::parse(&args.device)?;
    let on_cpu = device == Device::Cpu;
    let dtype = args.dtype.unwrap_or(if on_cpu { DType::F64 } else { DType::F32 });
    let mut verdicts = Vec::new();
    for path in &args.fixtures {
        let fixture = Fixture::open(path)?;
        let tolerance = match (args.tol, dtype) {
            (Some(tolerance), _) => tolerance,
            (None, DType::Bf16) => fixture.bf16_tolerance()?,
            (None, DType::F64) => 1e-6,
            (None, _) => {
                if on_cpu {
                    2e-4
                } else {
                    5e-4
                }
            }
        };
        let options =
            DeviceOptions { threads: args.threads, cuda: args.cuda.clone(), ..DeviceOptions::default() };
        let backend = device.open(dtype, &options)?;
        let name = backend.name();
        let results = fixture.run(backend)?;
        if let Some(out) = &args.dump {
            dump(&results, out)?;
        }
        let verdict = fixture.compare(&results, &name, dtype, tolerance)?;
        if !args.json {
            print(&verdict, args.rows);
        }
        verdicts.push(verdict);
    }
    if args.json {
        let text = serde_json::to_string_pretty(&verdicts)
            .map_err(|e| Error::usage(format!("the result cannot be written as JSON: {e}")))?;
        println!("{text}");
    }
    Ok(i32::from(!verdicts.iter().all(|v| v.passed)))
}

fn print(verdict: &Verdict, rows: usize) {
    println!("{} on {}", verdict.fixture, verdict.device);
    let shown = if rows == 0 { verdict.deviations.len() } else { rows };
    let lines: Vec<Vec<String>> = verdict
        .deviations
        .iter()
        .take(shown)
        .map(|d| {
            let mark = if d.error <= verdict.tolerance { "ok" } else { "BEYOND" };
            vec![d.name.clone(), format!("{:.3e}", d.error), mark.into()]
        })
        .collect();
    println!("{}", table(&["tensor", "error", ""], &lines));
    for (what, why) in &verdict.left_out {
        println!("not compared: {what}: {why}");
    }
    let beyond =
        verdict.deviations.iter().filter(|d| d.error.is_nan() || d.error > verdict.tolerance).count();
    let worst = verdict.deviations.first().map_or(f64::NAN, |d| d.error);
    println!(
        "{}: {} tensors, worst {worst:.3e}, {beyond} beyond {:e}\n",
        if verdict.passed { "passed" } else { "FAILED" },
        verdict.deviations.len(),
        verdict.tolerance
    );
}
