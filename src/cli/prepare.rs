//! `saip-engine prepare`: person crops out of annotated pictures.

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};

use crate::data::left_out;
use crate::data::prepare::{BoxFormat, Orientation, PrepareOptions, PrepareReport, prepare};
use crate::error::{Error, Result};
use crate::units::shown;

/// Cut person crops out of annotated pictures
#[derive(Args, Clone, Debug)]
pub struct PrepareArgs {
    #[command(subcommand)]
    source: PrepareSource,
}

#[derive(Clone, Debug, Subcommand)]
enum PrepareSource {
    Coco(CocoArgs),
}

/// COCO-style annotations: COCO, LVIS, CrowdPose, AI Challenger, OCHuman, Fashionpedia, ...
///
/// Writes OUT/images/<image>_<annotation>.jpg, OUT/manifest.jsonl (where each crop comes from), OUT/skipped.csv (every
/// annotation without a crop, and why) and OUT/prepare.json (these options).
#[derive(Args, Clone, Debug)]
struct CocoArgs {
    /// The JSON file with `images` and `annotations`
    #[arg(long, value_name = "FILE")]
    annotations: PathBuf,
    /// The folder with the pictures, searched by `file_name`, then by its last part in all sub-folders
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// The folder to write: absent, empty, or written by an earlier `prepare`
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Name of the category to cut out; a file without categories is taken to hold persons only
    #[arg(long, value_name = "NAME", default_value = "person")]
    category: String,
    /// What the four numbers of a `bbox` are: xywh (left, top, width, height: COCO's own) or xyxy (left, top, right, bottom)
    #[arg(long, value_enum, default_value_t = BoxFormat::Xywh)]
    boxes: BoxFormat,
    /// Margin on each side, as a fraction of the box
    #[arg(long, value_name = "FRACTION", default_value_t = 0.1)]
    margin: f64,
    /// Smallest height of a box inside the picture, in pixels
    #[arg(long, value_name = "PX", default_value_t = 32)]
    min_height: u32,
    /// Smallest width of a box inside the picture, in pixels
    #[arg(long, value_name = "PX", default_value_t = 16)]
    min_width: u32,
    /// Fewest labelled keypoints; above 0 this also drops annotations without keypoints
    #[arg(long, value_name = "N", default_value_t = 0)]
    min_keypoints: u32,
    /// JPEG quality
    #[arg(long, value_name = "1-100", default_value_t = 95, value_parser = clap::value_parser!(u8).range(1..=100))]
    quality: u8,
    /// Shrink crops whose longer side exceeds this many pixels
    #[arg(long, value_name = "PX", value_parser = clap::value_parser!(u32).range(1..))]
    limit_side: Option<u32>,
    /// Where a picture has an EXIF orientation: whether its boxes refer to the pixels as stored or as shown upright;
    /// auto tells by the stated width and height, and takes stored where both fit
    #[arg(long, value_enum, default_value_t = Orientation::Auto)]
    orientation: Orientation,
}

/// Runs the command and prints how many crops were made and why the others were not.
///
/// # Errors
/// Bad options, an unusable annotation file or folder, a folder that cannot be written, or not a single crop.
pub fn run(args: &PrepareArgs) -> Result<()> {
    let PrepareSource::Coco(args) = &args.source;
    let options = PrepareOptions {
        annotations: args.annotations.clone(),
        images: args.images.clone(),
        out: args.out.clone(),
        category: args.category.clone(),
        boxes: args.boxes,
        margin: args.margin,
        min_height: args.min_height,
        min_width: args.min_width,
        min_keypoints: args.min_keypoints,
        limit_side: args.limit_side,
        quality: args.quality,
        orientation: args.orientation,
    };
    let bar = if std::io::stderr().is_terminal() {
        ProgressBar::no_length().with_style(
            ProgressStyle::with_template("{wide_bar} {pos}/{len} pictures, {eta} left")
                .map_err(|e| Error::invariant("progress template", e.to_string()))?,
        )
    } else {
        ProgressBar::hidden()
    };
    let outcome = prepare(&options, &mut |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    let report = outcome?;
    println!("{}", summary(&report));
    let list = report.written.then(|| options.out.join("skipped.csv"));
    if let Some(lost) = left_out::summary("pictures", report.pictures, &report.left_out, list.as_deref()) {
        println!("{lost}");
    }
    if report.outlined > 0 {
        println!("{} boxes were taken from polygons: their own is missing or without area", report.outlined);
    }
    if let Some(hint) = report.hint() {
        println!("warning: {hint}");
    }
    if report.crops == 0 {
        let most = report.skipped.iter().max_by_key(|(_, count)| **count);
        let why = most.map_or("it lists no annotations".to_owned(), |(skip, count)| {
            format!("{count} of {} annotations: {}", report.annotations, skip.reason())
        });
        let kept = if report.written {
            format!("{} says why for each", shown(&options.out.join("skipped.csv")))
        } else {
            format!("{} keeps the crops of an earlier run", shown(&options.out))
        };
        return Err(Error::file(&options.annotations, format!("gave no crop ({why}); {kept}")));
    }
    println!("{} crops in {}", report.crops, options.out.display());
    Ok(())
}

/// The table of counts.
fn summary(report: &PrepareReport) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header(["annotations", "count"]);
    table.add_row(["cut out".to_owned(), report.crops.to_string()]);
    for (skip, count) in &report.skipped {
        table.add_row([format!("skipped: {}", skip.reason()), count.to_string()]);
    }
    table.add_row(["all".to_owned(), report.annotations.to_string()]);
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
