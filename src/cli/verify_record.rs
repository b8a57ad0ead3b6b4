//! `saip-engine verify --record`.

use super::device::{Device, DeviceOptions};
use super::verify_args::VerifyArgs;
use crate::error::Result;
use crate::interrupt::Interrupt;
use crate::tensor::DType;
use crate::train::config::TrainConfig;
use crate::train::engine::Losses;
use crate::train::presets::CHECKED;
use crate::train::progress::{Progress, StepReport};
use crate::verify::recording::record;
use std::path::Path;

/// Records the first steps of a run into the folder `out`.
///
/// # Errors
/// Those of [`record`] and of the device.
pub fn run(args: &VerifyArgs, out: &Path) -> Result<i32> {
    let cfg = TrainConfig::resolve(args.preset.as_deref().or(Some(CHECKED)), None, &args.sets)?;
    let device = Device::parse(&args.device)?;
    device.check_threads(args.threads)?;
    let options =
        DeviceOptions { threads: args.threads, cuda: args.cuda.clone(), ..DeviceOptions::default() };
    let backend = device.open(args.dtype.unwrap_or(DType::F32), &options)?;
    let mut progress = Progress::new(args.steps, 0, cfg.run.log_every);
    progress.resume_clock();
    let mut told = |step: u64, losses: &Losses, lr: f64| {
        let mut shown = vec![("loss", losses.total)];
        shown.extend(losses.parts.iter().map(|(name, value)| (name.as_str(), *value)));
        progress.step(&StepReport { step, images: cfg.optim.batch, losses: &shown, lr });
    };
    record(&cfg, args.steps, backend, out, &Interrupt::default(), &mut told)?;
    progress.finish();
    println!("{} steps are recorded in {}", args.steps, out.display());
    Ok(0)
}
