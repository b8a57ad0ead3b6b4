//! `saip-engine train`.

use super::cuda::CudaArgs;
use super::device::{Device, DeviceOptions, parse_dtype};
use super::ranks::{self, RankArgs};
use crate::data::source::KINDS_TOLD;
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::objectives::NAMES;
use crate::tensor::DType;
use crate::train::checkpoint::Checkpoints;
use crate::train::config::TrainConfig;
use crate::train::folder::Outcome;
use crate::train::folder::RunFolder;
use crate::train::presets::{DEFAULT, PRESETS};
use crate::train::pretrained::settled;
use crate::train::resume::Resume;
use crate::train::run::train;
use crate::train::sources::with_classes;
use crate::units::human_duration;
use std::path::{Path, PathBuf};

/// Arguments of `train`.
#[derive(clap::Args, Debug)]
pub struct TrainArgs {
    /// Built-in configuration to start from (demo, demo-tinyvit, demo-starnet, demo-resnet, saip-vit-tiny,
    /// saip-tinyvit-5m, saip-starnet-s3) [default: demo-starnet]
    #[arg(long)]
    pub preset: Option<String>,
    #[arg(long, value_name = "NAME", help = objectives_told())]
    pub objective: Option<String>,
    /// TOML file with keys that override the preset
    #[arg(long)]
    pub config: Option<PathBuf>,
    #[arg(long, value_name = "SOURCE", help = format!("Person images: {KINDS_TOLD}; absent: synthetic persons"))]
    pub data: Option<PathBuf>,
    /// Frozen pretrained expert: weights of a ViT, TinyViT, StarNet or ResNet (safetensors, .pth, a run); absent: the student's moving average
    #[arg(long, value_name = "FILE|RUN")]
    pub expert: Option<PathBuf>,
    /// Weights that the encoder starts from (safetensors, .pth, a run)
    #[arg(long, value_name = "FILE|RUN")]
    pub init: Option<PathBuf>,
    /// Folder of labelled images (Market-1501 names) on which the frozen features are tried while training
    #[arg(long)]
    pub probe: Option<PathBuf>,
    /// Run folder
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Device: auto, cpu, cuda, cuda:N, or ptx-vm (the CUDA kernels, interpreted)
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Precision: f32, or bf16 with f32 sums and parameters [default: bf16 on a GPU, else f32]
    #[arg(long, value_parser = parse_dtype)]
    pub dtype: Option<DType>,
    /// Single keys that override everything else, such as optim.batch=64
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Go on from the newest intact checkpoint of the run folder
    #[arg(long)]
    pub resume: bool,
    /// Go on from the checkpoint of this step instead; later ones are set aside
    #[arg(long, value_name = "N", requires = "resume")]
    pub step: Option<u64>,
    /// Go on although the images are not those that the run was trained on
    #[arg(long, requires = "resume")]
    pub other_images: bool,
    /// Compute activations again in the backward pass: less memory, more time
    #[arg(long)]
    pub recompute: bool,
    /// Print the resolved configuration and exit
    #[arg(long)]
    pub print_config: bool,
    #[command(flatten)]
    pub ranks: RankArgs,
    #[command(flatten)]
    pub cuda: CudaArgs,
}

/// What `--objective` says of itself.
fn objectives_told() -> String {
    format!("What is learned: {}; absent: as the configuration says, else {}", NAMES.join(", "), NAMES[0])
}

impl TrainArgs {
    /// The configuration that the arguments describe. A resumed run starts from its own `config.toml`.
    fn config(&self, out: &Path) -> Result<TrainConfig> {
        let toml = |key: &str, path: &Path| {
            let text =
                path.to_str().ok_or_else(|| Error::usage(format!("{}: is no UTF-8 path", path.display())))?;
            Ok::<_, Error>(format!("{key}={}", toml::Value::String(text.to_owned())))
        };
        let mut sets: Vec<String> = self.objective.iter().map(|name| format!("objective={name}")).collect();
        let paths = [
            ("data.path", &self.data),
            ("expert.path", &self.expert),
            ("encoder.init", &self.init),
            ("run.probe", &self.probe),
        ];
        for (key, path) in paths {
            sets.extend(path.as_ref().map(|path| toml(key, path)).transpose()?);
        }
        if self.recompute {
            sets.push("run.recompute=true".into());
        }
        sets.extend(self.sets.iter().cloned());
        let own = out.join("config.toml");
        let file = match &self.config {
            None if self.resume && self.preset.is_none() && own.exists() => Some(own.as_path()),
            given => given.as_deref(),
        };
        TrainConfig::resolve(self.preset.as_deref(), file, &sets)
    }

    /// The precision of a run that goes on, where the device computes in it; else the one in which the device is fastest.
    fn usual_dtype(&self, device: Device, out: &Path) -> DType {
        let before = self.resume.then(|| Checkpoints::for_reading(out.join("checkpoints")).newest_state());
        let before = before.flatten().and_then(|state| parse_dtype(&state.dtype?).ok());
        before.filter(|dtype| device.computes_in(*dtype)).unwrap_or(device.training_dtype())
    }

    /// `--out`, or a folder under `runs/` that does not exist yet.
    fn out(&self) -> Result<PathBuf> {
        if let Some(out) = &self.out {
            return Ok(out.clone());
        }
        if self.resume {
            return Err(Error::usage("--resume needs --out: the folder of the run to go on with"));
        }
        let name = self.preset.as_deref().unwrap_or(DEFAULT);
        (1..10_000)
            .map(|i| PathBuf::from(format!("runs/{name}-{i:03}")))
            .find(|p| !p.exists())
            .ok_or_else(|| Error::usage("runs/ is full: name a folder with --out"))
    }
}

/// Trains; 0 at the end of the run, 128 and the signal's number when a signal ended it early.
///
/// # Errors
/// Those of [`train`], and of the arguments.
pub fn run(args: &TrainArgs) -> Result<i32> {
    if let Some(name) = args.preset.as_deref().filter(|n| !PRESETS.iter().any(|p| p.name == *n)) {
        crate::train::presets::find(name)?;
    }
    let out = args.out()?;
    if args.resume && !args.print_config {
        RunFolder::require(&out)?;
    }
    let mut cfg = args.config(&out)?;
    if !args.resume || args.preset.is_some() || args.config.is_some() {
        cfg = with_classes(settled(cfg)?)?;
    }
    if args.probe.is_some() && cfg.run.probe_every == 0 {
        return Err(Error::usage(
            "--probe names images to try the features on, but `run.probe_every` is 0, which means never: add --set \
             run.probe_every=100",
        ));
    }
    if args.print_config {
        print!("{}", cfg.to_toml()?);
        return Ok(0);
    }
    if let Some(ranks) = args.ranks.ranks.filter(|n| *n > 0) {
        cfg.optim.accumulation(ranks)?;
    }
    if let Some(code) = args.ranks.start()? {
        return Ok(code);
    }
    let launch = args.ranks.launch()?;
    let device = ranks::device(&args.device, launch.as_ref())?;
    let dtype = args.dtype.unwrap_or_else(|| args.usual_dtype(device, &out));
    let threads = ranks::threads(cfg.run.threads, launch.as_ref());
    let options = DeviceOptions { threads, cuda: args.cuda.clone(), ..DeviceOptions::default() };
    let backend = device.open(dtype, &options)?;
    let interrupt = Interrupt::default();
    let resume = Resume { step: args.step, other_images: args.other_images };
    let group = launch.as_ref().map(|launch| ranks::join(launch, &cfg, device, dtype)).transpose()?;
    let follows = group.as_ref().is_some_and(|g| g.rank() > 0);
    let outcome = train(&cfg, &out, args.resume.then_some(&resume), backend, &interrupt, group)?;
    if !follows {
        print_outcome(&outcome, &out);
    }
    Ok(interrupt.exit_code())
}

fn print_outcome(outcome: &Outcome, out: &Path) {
    let state = if outcome.interrupted { "stopped by a signal; go on with --resume" } else { "finished" };
    println!(
        "{state}: {} steps, {} of training, {:.1} images/s",
        outcome.steps,
        human_duration(outcome.seconds),
        outcome.images_per_second
    );
    println!("report: {}", out.join("report.html").display());
}
