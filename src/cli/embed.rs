//! `saip-engine embed`.

use super::cuda::CudaArgs;
use super::device::{Device, DeviceOptions, parse_dtype};
use super::weights::WeightsArgs;
use crate::data::left_out;
use crate::data::source::{KINDS_TOLD, open_source};
use crate::embed::{ArrayFormat, EmbedFiles, Embedded, Embedder, embed};
use crate::error::{Error, Result};
use crate::export::metadata;
use crate::report::table::table;
use crate::tensor::DType;
use crate::units::human_bytes;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Instant;

/// Arguments of `embed`.
#[derive(clap::Args, Debug)]
pub struct EmbedArgs {
    /// Encoder: a run folder (its newest intact checkpoint), a checkpoint's folder, or a file of weights
    pub source: PathBuf,
    #[arg(long, value_name = "SOURCE", help = format!("Images: {KINDS_TOLD}"))]
    pub images: PathBuf,
    /// Folder to write
    #[arg(long)]
    pub out: PathBuf,
    /// Which features
    #[arg(long, value_enum, default_value_t = Which::Image)]
    pub tokens: Which,
    #[arg(long, value_enum, default_value_t = ArrayFormat::Npy)]
    pub format: ArrayFormat,
    /// Size that images are brought to [default: that of training]
    #[arg(long, num_args = 2, value_names = ["H", "W"])]
    pub img_size: Option<Vec<usize>>,
    /// The expert's encoder instead of the student's
    #[arg(long)]
    pub expert: bool,
    /// The checkpoint of this step
    #[arg(long)]
    pub step: Option<u64>,
    /// Images computed at a time; another number may round the last bits otherwise
    #[arg(long, default_value_t = 32)]
    pub batch: usize,
    /// Device: auto, cpu, cuda, cuda:N, or ptx-vm (the CUDA kernels, interpreted)
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Precision: f32, bf16 (not on the CPU), f64 (cpu)
    #[arg(long, default_value = "f32", value_parser = parse_dtype)]
    pub dtype: DType,
    /// CPU threads; 0 for one per core
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    #[command(flatten)]
    pub weights: WeightsArgs,
    #[command(flatten)]
    pub cuda: CudaArgs,
}

/// Features of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Which {
    /// One vector an image
    Image,
    /// One vector a patch of 16x16 pixels
    Patch,
    Both,
}

/// Computes, writes and prints what was written.
///
/// # Errors
/// Those of the weights, the images, the device and the files.
pub fn run(args: &EmbedArgs) -> Result<()> {
    if args.batch == 0 {
        return Err(Error::usage("--batch must be at least 1"));
    }
    let encoder = args.weights.read(&args.source, args.expert, args.step, args.img_size.as_deref())?;
    let source = open_source(&args.images)?;
    let options =
        DeviceOptions { threads: args.threads, cuda: args.cuda.clone(), ..DeviceOptions::default() };
    let backend = Device::parse(&args.device)?.open(args.dtype, &options)?;
    let files = EmbedFiles {
        out: args.out.clone(),
        format: args.format,
        image: args.tokens != Which::Patch,
        patch: args.tokens != Which::Image,
    };
    let mut embedder = Embedder::new(backend, &encoder, args.batch.min(source.len().max(1)), files.patch)?;
    let bar = bar(source.len() as u64);
    let began = Instant::now();
    let outcome =
        embed(&mut embedder, &*source, &files, serde_json::json!(metadata(&encoder)), &mut |done| {
            bar.inc(done as u64);
        });
    bar.finish_and_clear();
    print(&outcome?, &embedder, began.elapsed().as_secs_f64());
    Ok(())
}

/// A bar for images that are computed; hidden where there is no terminal.
pub(super) fn bar(images: u64) -> ProgressBar {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(Some(images), target);
    match ProgressStyle::with_template("{wide_bar} {pos}/{len} images  {per_sec}  {eta} left") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn print(outcome: &Embedded, embedder: &Embedder, seconds: f64) {
    println!(
        "{} images in {seconds:.1} s ({:.1} images/s) on {}",
        outcome.images,
        outcome.images as f64 / seconds.max(1e-9),
        embedder.device()
    );
    let list = outcome.written.iter().find(|path| path.ends_with("skipped.csv"));
    if let Some(lost) =
        left_out::summary("images", outcome.images, &outcome.skipped, list.map(PathBuf::as_path))
    {
        println!("{lost}");
    }
    let (image, patch) = embedder.shapes();
    let shape = |path: &std::path::Path| match path.file_stem().and_then(|s| s.to_str()) {
        Some("image_token") => format!("{} x {:?}", outcome.images, image),
        Some("patch_tokens") => format!("{} x {:?}", outcome.images, patch.clone().unwrap_or_default()),
        _ => String::new(),
    };
    let rows: Vec<Vec<String>> = outcome
        .written
        .iter()
        .map(|path| {
            let bytes = std::fs::metadata(path).map_or(0, |m| m.len());
            vec![path.display().to_string(), shape(path), human_bytes(bytes)]
        })
        .collect();
    println!("{}", table(&["written", "shape", "size"], &rows));
}
