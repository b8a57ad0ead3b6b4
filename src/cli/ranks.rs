//! Several processes that share one run: how they are started, and how they find each other.

use super::device::Device;
use crate::cuda::installed;
use crate::dist::{Deadlines, Hello, Launch, Local, meet};
use crate::error::{Error, Result};
use crate::tensor::DType;
use crate::train::config::{DistSection, TrainConfig};
use crate::train::engine::Ranks;
use std::ffi::OsString;
use std::time::Duration;

/// What a command that several ranks can share takes.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct RankArgs {
    /// Share every update between N processes on this machine, one a GPU, or on the CPU with --device cpu
    #[arg(long, value_name = "N")]
    pub ranks: Option<usize>,
    /// Where processes that torchrun, srun, mpirun or you have started meet: HOST:PORT of rank 0, or file:DIR in a folder that
    /// all see; absent: as their launcher says
    #[arg(long, value_name = "WHERE")]
    pub rendezvous: Option<String>,
}

impl RankArgs {
    /// Starts the ranks that are asked for and waits for them: the exit status; None if this process is to do the work itself,
    /// alone or as one of the ranks.
    ///
    /// # Errors
    /// No rank, ranks of ranks; those of starting processes.
    pub fn start(&self) -> Result<Option<i32>> {
        let Some(ranks) = self.ranks else { return Ok(None) };
        if self.rendezvous.is_some() {
            let message = "--ranks starts processes that meet by themselves: leave --rendezvous out";
            return Err(Error::usage(message));
        }
        if let Some(launch) = Launch::of(&variable, None)? {
            return Err(Error::usage(format!(
                "--ranks {ranks}: this process is rank {} of {} already ({}): leave --ranks out, or unset what the launcher set",
                launch.rank, launch.world, launch.launcher
            )));
        }
        let arguments = without_ranks(std::env::args_os().skip(1));
        // The others hear of it, and their programs end.
        let Deadlines { silence, grace, .. } = Deadlines::default();
        Local { ranks, arguments, patience: silence + grace }.run().map(Some)
    }

    /// The launch that this process is part of.
    ///
    /// # Errors
    /// What is missing or wrong in the environment.
    pub fn launch(&self) -> Result<Option<Launch>> {
        Launch::of(&variable, self.rendezvous.as_deref())
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The arguments of a rank that `--ranks N` starts.
fn without_ranks(all: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let (mut kept, mut skip) = (Vec::new(), false);
    for arg in all {
        if std::mem::take(&mut skip) {
            continue;
        }
        skip = arg == "--ranks";
        if !skip && !arg.to_string_lossy().starts_with("--ranks=") {
            kept.push(arg);
        }
    }
    kept
}

/// The device of a rank of `launch` where the user named `name`: of several GPUs its own.
///
/// # Errors
/// Those of [`Device::parse`] and [`Launch::device`].
pub fn device(name: &str, launch: Option<&Launch>) -> Result<Device> {
    let device = Device::parse(name)?;
    match (device, launch) {
        (Device::Cuda(_), Some(launch)) if !name.contains(':') => {
            Ok(Device::Cuda(launch.device(installed().gpus.len())?))
        }
        _ => Ok(device),
    }
}

/// Threads of the CPU for one of several ranks of a host, which share its cores; `told` by the user, 0 if not.
pub fn threads(told: usize, launch: Option<&Launch>) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    match launch {
        Some(launch) if told == 0 && launch.local_world > 1 => (cores / launch.local_world).max(1),
        _ => told,
    }
}

/// What tells a device from all others of its host.
pub fn identity(device: Device) -> String {
    match device {
        Device::Cuda(n) => {
            installed().gpus.get(n).map_or_else(|| format!("cuda:{n}"), |gpu| gpu.uuid.clone())
        }
        Device::Cpu | Device::PtxVm => "cpu".to_owned(),
    }
}

/// Meets the other ranks of `launch`.
///
/// # Errors
/// Those of [`meet`].
pub fn join(launch: &Launch, cfg: &TrainConfig, device: Device, dtype: DType) -> Result<Ranks> {
    let kind = match device {
        Device::Cuda(_) => "on GPUs",
        Device::Cpu => "on CPUs",
        Device::PtxVm => "interpreted",
    };
    let hello = Hello {
        version: env!("CARGO_PKG_VERSION").into(),
        config: format!("{}, {dtype} {kind}", cfg.fingerprint()?),
        device: identity(device),
    };
    Ok(Ranks::new(meet(launch, &hello, &deadlines(&cfg.dist))?))
}

/// The deadlines of the configuration.
fn deadlines(dist: &DistSection) -> Deadlines {
    let seconds = |x: f64| Duration::try_from_secs_f64(x).unwrap_or(Duration::MAX);
    let [join, step, silence] = [dist.join_timeout, dist.step_timeout, dist.silence_timeout].map(seconds);
    Deadlines { join, step, silence, ..Deadlines::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_gets_the_arguments_but_the_number_of_ranks() {
        let line = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        for given in ["train --ranks 4 --out x", "train --ranks=4 --out x", "train --out x --ranks 4"] {
            assert_eq!(without_ranks(line(given).into_iter()), line("train --out x"), "{given}");
        }
    }

    #[test]
    fn ranks_of_a_host_share_its_cores() {
        let launch = |local_world| Launch {
            rank: 0,
            world: 64,
            local_rank: 0,
            local_world,
            launcher: "test",
            id: String::new(),
            meeting: crate::dist::Meeting::File("x".into()),
        };
        assert_eq!([threads(0, None), threads(3, Some(&launch(2)))], [0, 3]);
        assert_eq!(threads(0, Some(&launch(100_000))), 1);
        assert_eq!(threads(0, Some(&launch(1))), 0);
    }
}
