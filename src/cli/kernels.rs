//! `saip-engine kernels`.

use super::cuda::{CudaArgs, compile_progress};
use super::device::{VM_CAPABILITY, parse_target};
use super::step::StepArgs;
use crate::cuda::{Collected, Compiler, ImageKind, PlanningBackend, kernels_folder};
use crate::error::{Error, Result};
use crate::files::disk;
use crate::report::table::table;
use crate::tensor::DType;
use crate::train::programs::compile_all;
use crate::units::human_bytes;
use std::path::PathBuf;

/// Arguments of `kernels`.
#[derive(clap::Args, Debug)]
pub struct KernelsArgs {
    #[command(subcommand)]
    pub what: Kernels,
}

#[derive(clap::Subcommand, Debug)]
pub enum Kernels {
    /// Compile every kernel of a configuration ahead, without a GPU, for machines without NVRTC
    Build(BuildArgs),
}

/// Arguments of `kernels build`.
#[derive(clap::Args, Debug)]
pub struct BuildArgs {
    #[command(flatten)]
    pub step: StepArgs,
    /// What to compile for: sm_80 to sm_120, or ptx-vm (the interpreter)
    #[arg(long, value_name = "TARGET", value_parser = parse_kind)]
    pub target: Target,
    /// Folder to keep the kernels in; a command finds them with SAIP_ENGINE_CACHE=DIR
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Folder with the sources of the kernels (all of `kernels/`) to use instead of those in the program
    #[arg(long, value_name = "DIR")]
    pub kernels: Option<PathBuf>,
}

/// What kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    capability: (u32, u32),
    kind: ImageKind,
}

fn parse_kind(text: &str) -> std::result::Result<Target, String> {
    if text == "ptx-vm" {
        return Ok(Target { capability: VM_CAPABILITY, kind: ImageKind::Ptx });
    }
    let capability = parse_target(text).map_err(|why| format!("{why}, ptx-vm"))?;
    Ok(Target { capability, kind: ImageKind::Cubin })
}

/// Scale of `bench`, which need not be one of the configuration's.
const TIMED_SCALE: f64 = super::bench_ops_groups::SCALE;

/// Compiles and says what there is.
///
/// # Errors
/// Those of the configuration, of NVRTC, and a folder that cannot be written.
pub fn run(args: &KernelsArgs) -> Result<()> {
    let Kernels::Build(args) = &args.what;
    let cfg = args.step.resolve(None)?;
    let cuda = CudaArgs { kernels: args.kernels.clone(), ..CudaArgs::default() };
    let sources = cuda.sources()?;
    let Target { capability, kind } = args.target;
    let folder = kernels_folder(&args.out);
    disk::create_dir_all(&folder).map_err(|e| Error::io(&folder, "create the folder", e))?;
    // The interpreter has no clock, so it takes the estimated tiles.
    let collected = Collected::new(sources.clone(), kind == ImageKind::Cubin);
    for dtype in [DType::Bf16, DType::F32] {
        let open = || Box::new(PlanningBackend::collecting(dtype, capability, collected.clone())) as _;
        compile_all(&cfg, &[TIMED_SCALE], open)?;
    }
    let wanted = collected.take();
    let mut compiler = Compiler::new(capability, Some(folder.clone()))?
        .with_sources(sources)
        .with_progress(compile_progress());
    compiler.prepare(&wanted, kind)?;
    let bytes = wanted.iter().try_fold(0, |sum, (source, name)| {
        compiler.image(name, source, kind).map(|image| sum + image.len() as u64)
    })?;
    compiler.list(&args.step.preset, kind)?;
    let row = [
        args.step.preset.clone(),
        wanted.len().to_string(),
        human_bytes(bytes),
        folder.display().to_string(),
    ];
    println!("{}", table(&["preset", "kernel files", "size", "folder"], &[row.to_vec()]));
    Ok(())
}
