//! `saip-engine eval`.

use super::cuda::CudaArgs;
use super::device::{Device, DeviceOptions, parse_dtype};
use super::weights::WeightsArgs;
use crate::data::labelled::LabelledSet;
use crate::data::left_out;
use crate::embed::Embedder;
use crate::embed::evaluate::{Evaluation, Line, Origin, Which, evaluate};
use crate::error::{Error, Result};
use crate::export::metadata;
use crate::metrics::reference::{Reference, SIZE};
use crate::report::table::table;
use crate::tensor::DType;
use crate::train::trained::TrainedEncoder;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Arguments of `eval`.
#[derive(clap::Args, Debug)]
pub struct EvalArgs {
    /// Encoder: a run folder (its newest intact checkpoint), a checkpoint's folder, or a file of weights
    pub source: PathBuf,
    /// Labelled images: Market-1501's folders or names (retrieval across cameras), or a folder for each class (kNN),
    /// perhaps below train and val
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Which features
    #[arg(long, value_enum, default_value_t = Which::Image)]
    pub features: Which,
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
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
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

/// Computes the metrics and prints them.
///
/// # Errors
/// Those of the weights, the images, the labels and the device.
pub fn run(args: &EvalArgs) -> Result<()> {
    if args.batch == 0 {
        return Err(Error::usage("--batch must be at least 1"));
    }
    let encoder = args.weights.read(&args.source, args.expert, args.step, args.img_size.as_deref())?;
    let (set, notes) = LabelledSet::open(&args.data)?;
    let options =
        DeviceOptions { threads: args.threads, cuda: args.cuda.clone(), ..DeviceOptions::default() };
    let backend = Device::parse(&args.device)?.open(args.dtype, &options)?;
    let images = match &set {
        LabelledSet::Persons(set) => set.source.len(),
        LabelledSet::Classes(set) => set.source.len(),
    };
    let patches = args.features != Which::Image;
    let mut embedder = Embedder::new(backend, &encoder, args.batch.min(images.max(1)), patches)?;
    // As the run began; a file does not tell with which values its training did.
    let seed = encoder.run.as_ref().map_or(0, |run| run.config.data.seed);
    let bar = super::embed::bar(2 * images as u64);
    let outcome = evaluate(&mut embedder, &set, args.features, seed, &mut |done| bar.inc(done as u64));
    bar.finish_and_clear();
    let outcome = outcome?;
    for note in &notes {
        eprintln!("note: {note}");
    }
    if args.json {
        let all = as_json(args, &encoder, &set, &outcome, &embedder.device(), &notes);
        let text = serde_json::to_string_pretty(&all);
        println!("{}", text.map_err(|e| Error::invariant("writing JSON", e.to_string()))?);
    } else {
        print(&encoder, &set, &outcome, &embedder.device());
    }
    Ok(())
}

fn as_json(
    args: &EvalArgs,
    encoder: &TrainedEncoder,
    set: &LabelledSet,
    outcome: &Evaluation,
    device: &str,
    notes: &[String],
) -> Value {
    let about = match set {
        LabelledSet::Persons(set) => json!({
            "protocol": "retrieval across cameras", "query": set.query.len(), "gallery": set.gallery.len(),
        }),
        LabelledSet::Classes(set) => json!({
            "protocol": match set.split { Some(_) => "kNN", None => "kNN, each image by all others" },
            "classes": set.names,
            "train": set.split.as_ref().map_or(set.labels.len(), |s| s.0.len()),
            "test": set.split.as_ref().map_or(set.labels.len(), |s| s.1.len()),
        }),
    };
    let skipped: Vec<Value> =
        outcome.skipped.iter().map(|l| json!({ "file": l.name, "reason": l.reason })).collect();
    json!({
        "encoder": metadata(encoder),
        "data": args.data.display().to_string(),
        "labels": about,
        "device": device,
        "images": outcome.images,
        "skipped": skipped,
        "notes": notes,
        "reference_size": SIZE,
        "lines": outcome.lines,
    })
}

/// What a line is called in the table.
fn title(line: &Line) -> String {
    let features = match line.features.as_str() {
        "image_token" => "image token",
        "patch_mean" => "patch mean",
        "both" => "both",
        "stripes" => "stripes",
        "stripes_relative" => "relative stripes",
        tag => Reference::ALL.iter().find(|r| r.tag() == tag).map_or(tag, |r| r.name()),
    };
    match line.origin {
        Origin::Encoder => format!("encoder, {features}"),
        Origin::Untrained => format!("untrained, {features}"),
        Origin::Reference => features.to_owned(),
    }
}

fn print(encoder: &TrainedEncoder, set: &LabelledSet, outcome: &Evaluation, device: &str) {
    let [h, w] = encoder.size;
    println!("{}, {h}x{w} pixels, {} images, on {device}", encoder.architecture, outcome.images);
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let rows: Vec<Vec<String>> = outcome
        .lines
        .iter()
        .map(|line| {
            let found = line.retrieval.iter().flat_map(|m| [m.map, m.rank1, m.rank5, m.rank10, m.own_camera]);
            let voted = line.knn.iter().flat_map(|k| [k.top1, k.top5]);
            std::iter::once(title(line)).chain(found.chain(voted).map(percent)).collect()
        })
        .collect();
    match set {
        LabelledSet::Persons(set) => {
            let m = outcome.lines.iter().find_map(|l| l.retrieval);
            println!(
                "retrieval across cameras: {} of {} queries have their person in the gallery of {}",
                m.map_or(0, |m| m.valid_queries),
                set.query.len(),
                set.gallery.len()
            );
            println!("{}", table(&["features", "mAP", "rank-1", "rank-5", "rank-10", "own camera"], &rows));
            println!(
                "own camera: queries whose nearest image is by their own camera; by chance {}",
                percent(m.map_or(0.0, |m| m.own_camera_chance))
            );
        }
        LabelledSet::Classes(set) => {
            let how = if set.split.is_some() {
                "test images by those of train"
            } else {
                "each image by all others"
            };
            println!("kNN, {how}: {} classes", set.names.len());
            let ks = outcome.lines.first().into_iter().flat_map(|l| &l.knn);
            let heads = ks.flat_map(|k| [format!("k={} top-1", k.k), format!("k={} top-5", k.k)]);
            let heads: Vec<String> = std::iter::once("features".to_owned()).chain(heads).collect();
            println!("{}", table(&heads, &rows));
        }
    }
    println!("the last {} lines are computed without an encoder, on the same images", Reference::ALL.len());
    if let Some(lost) = left_out::summary("images", outcome.images, &outcome.skipped, None) {
        println!("{lost}");
    }
}
