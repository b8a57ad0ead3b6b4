//! `saip-engine report`.

use super::cuda::CudaArgs;
use super::device::{Device, DeviceOptions, parse_dtype};
use crate::error::{Error, Result};
use crate::report::is_report;
use crate::tensor::DType;
use crate::train::rewrite::{compare, rewrite};
use std::path::{Path, PathBuf};

/// The page of several runs, where `--out` names no other.
const COMPARISON: &str = "comparison.html";

/// Arguments of `report`.
#[derive(clap::Args, Debug)]
pub struct ReportArgs {
    /// Run folders: the report of one is written again, several are laid beside each other
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// File to write [default: report.html in the run folder; comparison.html here for several runs]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Replace a file that is no report
    #[arg(long)]
    pub force: bool,
    /// One run: device for its pictures: auto, cpu, cuda, cuda:N, or ptx-vm (the CUDA kernels, interpreted)
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// One run: precision: f32, or bf16 with f32 sums and parameters
    #[arg(long, default_value = "f32", value_parser = parse_dtype)]
    pub dtype: DType,
    #[command(flatten)]
    pub cuda: CudaArgs,
}

/// Writes the page and says where.
///
/// # Errors
/// Folders without a run, damaged logs, a file that is not to be replaced or cannot be written.
pub fn run(args: &ReportArgs) -> Result<()> {
    let out = match (&args.out, args.runs.as_slice()) {
        (Some(out), _) => out.clone(),
        (None, [run]) => run.join("report.html"),
        (None, _) => PathBuf::from(COMPARISON),
    };
    replaceable(&out, args.force)?;
    let device = Device::parse(&args.device)?;
    match args.runs.as_slice() {
        [run] => {
            let missing = rewrite(run, &out, |cfg| {
                let threads = cfg.run.threads;
                let options = DeviceOptions { threads, cuda: args.cuda.clone(), ..DeviceOptions::default() };
                device.open(args.dtype, &options)
            })?;
            if let Some(missing) = missing {
                eprintln!("warning: {missing}");
            }
        }
        runs => compare(runs, &out)?,
    }
    println!("report: {}", out.display());
    Ok(())
}

/// A page of ours may be written again; anything else only by force, and a folder never.
fn replaceable(out: &Path, force: bool) -> Result<()> {
    if out.is_dir() {
        return Err(Error::usage(format!("{}: is a folder: --out takes a file", out.display())));
    }
    if crate::files::atomic::exists(out)? && !force && !is_report(out) {
        return Err(Error::usage(format!(
            "{}: is there and is no report: pass --force to replace it, or choose another --out",
            out.display()
        )));
    }
    Ok(())
}
