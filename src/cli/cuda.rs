//! What commands have to choose about the CUDA kernels, and what they show while these are compiled and measured.

use crate::cuda::{
    CompileProgress, Compiler, CudaBackend, DeviceInfo, Driver, Sources, TuneProgress, Tuner, Tuning,
    cache_folder, kernels_folder,
};
use crate::error::Result;
use crate::tensor::DType;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Whose matrix products a GPU uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Gemm {
    /// For each shape what is measured to be the fastest: a tile of ours, or cuBLASLt
    #[default]
    Auto,
    /// Ours alone
    Own,
}

/// Whether tiles of matrix products are measured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Tune {
    /// Estimated.
    Off,
    /// Measured once, and kept in the cache folder.
    #[default]
    On,
    /// Measured once, and kept in this file.
    File(PathBuf),
}

fn parse_tune(text: &str) -> std::result::Result<Tune, String> {
    match text {
        "" => Err("say off, on, or name a file".into()),
        "off" => Ok(Tune::Off),
        "on" => Ok(Tune::On),
        file => Ok(Tune::File(file.into())),
    }
}

/// Choices about the CUDA kernels.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "CUDA kernels")]
pub struct CudaArgs {
    /// Matrix products on a GPU
    #[arg(long, value_enum, default_value_t)]
    pub gemm: Gemm,
    /// Which tiles matrix products use on a GPU: the fastest as measured once and kept (on, or a FILE to keep it in), or as
    /// estimated (off)
    #[arg(long, default_value = "on", value_name = "off|on|FILE", value_parser = parse_tune)]
    pub tune: Tune,
    /// Folder with the sources of the kernels (all of `kernels/`) to use instead of those in the program
    #[arg(long, value_name = "DIR")]
    pub kernels: Option<PathBuf>,
}

impl CudaArgs {
    /// The kernels' texts.
    ///
    /// # Errors
    /// Those of [`Sources::from_folder`].
    pub fn sources(&self) -> Result<Arc<Sources>> {
        self.kernels.as_deref().map_or_else(|| Ok(Sources::built_in()), Sources::from_folder)
    }

    /// A backend on `driver`, without a tuner.
    ///
    /// # Errors
    /// A compiler or sources that are not there; a type that it does not compute in.
    pub fn backend<D: Driver>(&self, driver: D, dtype: DType) -> Result<CudaBackend<D>> {
        let kernels = cache_folder().map(|root| kernels_folder(&root));
        let compiler = Compiler::new(driver.info().capability, kernels)?
            .with_sources(self.sources()?)
            .with_progress(compile_progress());
        CudaBackend::new(driver, compiler, dtype)
    }

    /// What measures products on a device, if anything is to.
    ///
    /// # Errors
    /// Those of [`Tuner::kept_in`], and of the sources.
    pub fn tuner(&self, device: &DeviceInfo) -> Result<Option<Tuner>> {
        let library = self.gemm == Gemm::Auto;
        let sources = self.sources()?;
        let tuner = match &self.tune {
            Tune::Off => return Ok(None),
            Tune::On => {
                let folder = cache_folder().map(|root| root.join("tiles"));
                Tuner::new(folder.as_deref(), device, &sources, library)
            }
            Tune::File(file) => Tuner::kept_in(file, device, &sources, library)?,
        };
        Ok(Some(tuner.with_progress(tune_progress())))
    }
}

/// A count that goes up: a bar on a terminal, elsewhere a line now and then.
struct Counter {
    what: &'static str,
    bar: Option<ProgressBar>,
    began: Instant,
    told: Instant,
}

/// How long nothing is said where there is no terminal.
const QUIET: Duration = Duration::from_secs(5);

impl Counter {
    fn new(what: &'static str, total: usize) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}");
        let bar = terminal.then(|| ProgressBar::new(total as u64).with_message(what));
        if let (Some(bar), Ok(style)) = (&bar, style) {
            bar.set_style(style);
        }
        Counter { what, bar, began: Instant::now(), told: Instant::now() }
    }

    fn at(&mut self, done: usize, total: usize) {
        match &self.bar {
            Some(bar) => bar.set_position(done as u64),
            None if done < total && self.told.elapsed() >= QUIET => {
                self.told = Instant::now();
                eprintln!("{} {done}/{total}", self.what);
            }
            None => {}
        }
    }

    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    fn end(self, total: usize) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!("{} {total}/{total} in {:.1} s", self.what, self.began.elapsed().as_secs_f64());
    }
}

/// Shows a count that several threads tell of, perhaps out of order.
fn shown(what: &'static str) -> impl Fn(usize, usize, Option<&str>) + Send + Sync {
    let shown: Mutex<Option<Counter>> = Mutex::new(None);
    move |done, total, line| {
        let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
        let counter = shown.get_or_insert_with(|| Counter::new(what, total));
        match line {
            Some(line) => counter.say(line),
            None => counter.at(done, total),
        }
        if done == total
            && line.is_none()
            && let Some(counter) = shown.take()
        {
            counter.end(total);
        }
    }
}

/// Shows how many kernels are compiled.
pub fn compile_progress() -> CompileProgress {
    let show = shown("compiling kernels");
    Arc::new(move |done, total| show(done, total, None))
}

fn tune_progress() -> TuneProgress {
    let show = shown("measuring tiles");
    Arc::new(move |what| match what {
        Tuning::Measured(done, total) => show(done, total, None),
        Tuning::Refused { product, way, why } => {
            show(0, usize::MAX, Some(&format!("{way} is left out for {product}: {why}")));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured() {
        let parsed = ["off", "on", "tiles.json"].map(|text| parse_tune(text).unwrap());
        assert_eq!(parsed, [Tune::Off, Tune::On, Tune::File("tiles.json".into())]);
        assert!(parse_tune("").is_err());
    }
}
