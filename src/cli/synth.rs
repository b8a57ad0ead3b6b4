//! `saip-engine synth`: writes synthetic persons as a labelled retrieval benchmark.

use crate::data::synth::SynthConfig;
use crate::data::synth::export::Export;
use crate::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::path::PathBuf;

/// Draw synthetic persons: a Market-1501-style folder with COCO keypoints, attributes and part maps.
#[derive(Clone, Debug, clap::Args)]
pub struct SynthArgs {
    /// Folder to write; must be new or empty, or left by an interrupted run with the same options
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Identities: the first half trains, the second half is query and gallery
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub identities: usize,
    /// Images of each identity, taken by the cameras in turn
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub images_per_identity: usize,
    /// Cameras, 1 to 9: each has its own place, viewpoint, light and colours
    #[arg(long, value_name = "N", default_value_t = 6)]
    pub cameras: usize,
    /// Seed: the same seed draws the same persons
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
    /// Picture size, height x width in pixels
    #[arg(long, value_name = "HxW", default_value = "256x128", value_parser = parse_size)]
    pub size: (usize, usize),
    /// Query images of each test identity, at most one a camera [default: one a camera, at most half the images]
    #[arg(long, value_name = "N")]
    pub queries_per_identity: Option<usize>,
}

fn parse_size(text: &str) -> Result<(usize, usize), String> {
    let wrong = || format!("`{text}` is not a size; write height x width, such as 256x128");
    let (height, width) = text.split_once(['x', 'X']).ok_or_else(wrong)?;
    Ok((height.parse().map_err(|_| wrong())?, width.parse().map_err(|_| wrong())?))
}

impl SynthArgs {
    fn export(&self) -> Result<Export> {
        let config = SynthConfig {
            seed: self.seed,
            identities: self.identities,
            first_identity: 0,
            images_per_identity: self.images_per_identity,
            cameras: self.cameras,
            height: self.size.0,
            width: self.size.1,
        };
        let most = self.cameras;
        let queries = match self.queries_per_identity {
            Some(asked) if asked > most => {
                return Err(Error::usage(format!(
                    "--queries-per-identity {asked}: there is one query a camera, and --cameras is {most}"
                )));
            }
            Some(asked) => asked,
            None => most.min((self.images_per_identity / 2).max(1)),
        };
        Ok(Export { config, queries_per_identity: queries })
    }
}

/// The error with the option that brought the value, in place of the configuration's key.
fn as_option(error: Error) -> Error {
    let Error::Config { key, message } = &error else { return error };
    let option = match key.as_str() {
        "synth.height" => "--size: the height",
        "synth.width" => "--size: the width",
        "synth.identities" => "--identities:",
        "synth.images_per_identity" => "--images-per-identity:",
        "synth.cameras" => "--cameras:",
        _ => return error,
    };
    Error::usage(format!("{option} {message}"))
}

/// Writes the folder and says what it holds.
///
/// # Errors
/// Options out of range, a folder that holds something else, or one that cannot be written.
pub fn run(args: &SynthArgs) -> Result<()> {
    let export = args.export()?;
    export.validate().map_err(as_option)?;
    let total = (export.config.identities * export.config.images_per_identity) as u64;
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(total) } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("drawing persons {wide_bar} {pos}/{len} {per_sec} {eta}")
    {
        bar.set_style(style);
    }
    let summary = export.write(&args.out, || bar.inc(1))?;
    bar.finish_and_clear();
    println!(
        "{}: {} training, {} query and {} gallery images of {} identities by {} cameras",
        args.out.display(),
        summary.train,
        summary.query,
        summary.gallery,
        export.config.identities,
        // They take turns: with fewer images some have none.
        export.config.cameras.min(export.config.images_per_identity)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        synth: SynthArgs,
    }

    fn args(line: &str) -> Result<SynthArgs, clap::Error> {
        Cli::try_parse_from(std::iter::once("synth").chain(line.split_whitespace())).map(|cli| cli.synth)
    }

    #[test]
    fn writes_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("persons");
        let line = format!(
            "--out {} --identities 2 --images-per-identity 4 --cameras 3 --size 64x32 --seed 9",
            out.display()
        );
        run(&args(&line).unwrap()).unwrap();
        assert_eq!(std::fs::read_dir(out.join("bounding_box_train")).unwrap().count(), 4);
        assert_eq!(std::fs::read_dir(out.join("query")).unwrap().count(), 2);
        assert!(out.join("annotations.json").exists() && out.join("attributes.csv").exists());
    }

    #[test]
    fn refuses_what_cannot_be() {
        for size in ["256", "axb", "256x", "-1x5"] {
            let error = args(&format!("--out x --size={size}")).unwrap_err().to_string();
            assert!(error.contains("height x width"), "{error}");
        }
        for line in ["--out x --size 9999x128", "--out x --cameras 12", "--out x --queries-per-identity 7"] {
            assert!(run(&args(line).unwrap()).is_err(), "{line}");
        }
        for (line, named) in [
            ("--out x --size 1x64", "--size: the height 1 is not in 64..=2048"),
            ("--out x --size 64x1", "--size: the width 1 is not"),
            ("--out x --identities 0", "--identities: 0 is not in 1..="),
            ("--out x --images-per-identity 0", "--images-per-identity: 0"),
            ("--out x --cameras 0", "--cameras: 0"),
            ("--out x --cameras 12", "--cameras: 12 is not in 1..=9"),
        ] {
            let error = run(&args(line).unwrap()).unwrap_err().to_string();
            assert!(error.starts_with(named) && !error.contains("synth."), "{error}");
        }
        assert!(!std::path::Path::new("x").exists());
    }
}
