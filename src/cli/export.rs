//! `saip-engine export`.

use super::weights::WeightsArgs;
use crate::error::{Error, Result};
use crate::export::{ExportOptions, Format, export};
use crate::report::table::table;
use crate::train::trained::TrainedEncoder;
use crate::units::human_bytes;
use crate::weights::{Naming, PthLayout};
use std::path::PathBuf;

/// Arguments of `export`.
#[derive(clap::Args, Debug)]
pub struct ExportArgs {
    /// Run folder (its newest intact checkpoint), a checkpoint's folder, or a file of weights
    pub source: PathBuf,
    /// What to write
    #[arg(long, value_enum)]
    pub format: Format,
    /// File to write, a folder for timm [default: below export/ in the run folder]
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// The expert's encoder instead of the student's
    #[arg(long)]
    pub expert: bool,
    /// The checkpoint of this step
    #[arg(long)]
    pub step: Option<u64>,
    /// Size of the images that it will see, multiples of 16: a ViT's positions are resampled
    #[arg(long, num_args = 2, value_names = ["H", "W"])]
    pub img_size: Option<Vec<usize>>,
    /// pth: what stands before each name, such as backbone.
    #[arg(long)]
    pub prefix: Option<String>,
    /// pth: the entry that holds the tensors, such as state_dict [default: the file is the state dict]
    #[arg(long)]
    pub entry: Option<String>,
    /// pth: whose names
    #[arg(long, value_enum)]
    pub names: Option<Names>,
    /// Replace the file, or what an earlier export wrote into timm's folder
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub weights: WeightsArgs,
}

/// Namings of a PyTorch file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Names {
    Timm,
    /// mmpretrain's and mmpose's, of a ViT
    Mmpretrain,
    /// TinyViT's own (microsoft/Cream)
    TinyVit,
}

/// Writes and prints what was written.
///
/// # Errors
/// Those of reading and writing; options that the format does not have.
pub fn run(args: &ExportArgs) -> Result<()> {
    let own = [
        ("--prefix", args.prefix.is_some()),
        ("--entry", args.entry.is_some()),
        ("--names", args.names.is_some()),
    ];
    if let Some((option, _)) = own.iter().find(|(_, given)| *given && args.format != Format::Pth) {
        return Err(Error::usage(format!("{option} is an option of --format pth")));
    }
    let encoder = args.weights.read(&args.source, args.expert, args.step, args.img_size.as_deref())?;
    let mut stem = if args.expert { "expert" } else { "encoder" }.to_owned();
    if let Some([h, w]) = args.img_size.as_deref() {
        stem = format!("{stem}-{h}x{w}");
    }
    let out = match (&args.out, &encoder.run) {
        (Some(out), _) => out.clone(),
        (None, Some(run)) => run.folder.join("export").join(args.format.file_name(&stem)),
        (None, None) => {
            return Err(Error::usage("a file of weights has no run folder: say where with --out"));
        }
    };
    let naming = match args.names {
        None | Some(Names::Timm) => Naming::Timm,
        Some(Names::Mmpretrain) => Naming::Mmpretrain,
        Some(Names::TinyVit) => Naming::TinyVitOriginal,
    };
    let layout = PthLayout {
        entry: args.entry.as_deref(),
        prefix: args.prefix.as_deref().unwrap_or_default(),
        naming,
    };
    let options = ExportOptions { format: args.format, layout, force: args.force };
    let written = export(&encoder, &out, &options)?;
    print(&encoder, &written);
    Ok(())
}

fn print(encoder: &TrainedEncoder, written: &[PathBuf]) {
    let [h, w] = encoder.size;
    let from = match &encoder.run {
        Some(run) => format!("step {} of {}", run.state.step, run.folder.display()),
        None => encoder.state.path.display().to_string(),
    };
    println!("{}, {h}x{w} pixels, from {from}", encoder.architecture);
    let rows: Vec<Vec<String>> = written
        .iter()
        .map(|path| {
            let bytes = std::fs::metadata(path).map_or(0, |m| m.len());
            vec![path.display().to_string(), human_bytes(bytes)]
        })
        .collect();
    println!("{}", table(&["written", "size"], &rows));
}
