//! Finds the fastest way to every product by measuring, once per shape and device, and keeps what it found.

use super::choices::{Choice, Choices};
use super::compiler::Compiler;
use super::driver::{DeviceInfo, Driver, Work};
use super::kernel::{Call, Family};
use super::launch::{fill, prepare};
use super::product::{Gather, Product};
use super::sources::Sources;
use crate::error::{Error, Result};
use crate::files::atomic::Temporary;
use crate::files::disk;
use crate::tensor::DType;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Runs before the ones that count, and those.
const WARM_UP: usize = 2;
const REPEATS: usize = 7;
/// Share of its time that another tile must save to replace the estimate: less is noise.
const WORTH: f64 = 0.03;
/// Largest file of results that is read, bytes.
const MOST_BYTES: u64 = 16 << 20;

/// What there is to tell while products are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tuning<'a> {
    /// So many of so many products are done.
    Measured(usize, usize),
    /// A way to compute a product that the device refuses is left out.
    Refused { product: &'a str, way: &'a str, why: &'a str },
}

/// Told of products that are measured.
pub type TuneProgress = Arc<dyn Fn(Tuning<'_>) + Send + Sync>;

/// Measures products on a device.
pub struct Tuner {
    /// Whether a library may be faster than our kernels.
    library: bool,
    file: Option<PathBuf>,
    /// Whether the user named the file, and wants to know when it cannot be written.
    named: bool,
    results: Results,
    progress: Option<TuneProgress>,
}

/// What is kept.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Results {
    device: String,
    /// Of the kernels that were measured: others may be faster or slower.
    kernels: String,
    /// Name of the fastest choice by product.
    products: BTreeMap<String, String>,
}

impl Tuner {
    /// A tuner for `device` that keeps its results in `folder`, if any, and begins with those that are there. A file that
    /// cannot be read, or is of other kernels than `sources`, costs time, nothing else. With `library`, a library of the
    /// driver's may be chosen instead of our kernels.
    pub fn new(folder: Option<&Path>, device: &DeviceInfo, sources: &Sources, library: bool) -> Self {
        let name = device_name(device);
        let file_name: String =
            name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let file = folder.map(|f| f.join(file_name).with_extension("json"));
        let mut results = Results { device: name, kernels: kernels(sources), products: BTreeMap::new() };
        if let Some(kept) = file.as_deref().and_then(|file| read(file).ok())
            && (&kept.device, &kept.kernels) == (&results.device, &results.kernels)
        {
            results.products = kept.products;
        }
        Tuner { library, file, named: false, results, progress: None }
    }

    /// The same with the results in a file of the user's, which need not exist.
    ///
    /// # Errors
    /// [`Error::File`] for a file that holds something else, or the results of another device. Those of other kernels are
    /// measured again.
    pub fn kept_in(file: &Path, device: &DeviceInfo, sources: &Sources, library: bool) -> Result<Self> {
        let mut tuner = Tuner::new(None, device, sources, library);
        (tuner.file, tuner.named) = (Some(file.to_owned()), true);
        if !file.exists() {
            return Ok(tuner);
        }
        let kept = read(file)
            .map_err(|why| Error::file(file, format!("holds no measured tiles ({why}): name another")))?;
        if kept.device != tuner.results.device {
            let message =
                format!("was measured on {}, not on {}: name another", kept.device, tuner.results.device);
            return Err(Error::file(file, message));
        }
        if kept.kernels == tuner.results.kernels {
            tuner.results = kept;
        }
        Ok(tuner)
    }

    /// Tells of what is measured.
    pub fn with_progress(mut self, progress: TuneProgress) -> Self {
        self.progress = Some(progress);
        self
    }

    /// The fastest way that is known of a product.
    fn known(&self, key: &str) -> Option<Choice> {
        let choice = self.results.products.get(key).and_then(|name| Choice::named(name));
        choice.filter(|c| self.library || *c != Choice::Library)
    }

    /// The calls that [`Tuner::tune`] would measure: one for each way to compute a product.
    pub fn candidates(&self, choices: &Choices) -> Vec<Call> {
        let unmeasured = choices.unmeasured();
        let missing = unmeasured.iter().filter(|(key, _)| self.known(key).is_none());
        missing.flat_map(|(_, (product, element))| product.calls(*element, choices)).collect()
    }

    /// Measures what `choices` was asked for without a measurement, and tells it the results.
    ///
    /// # Errors
    /// Those of compiling and launching kernels, when no way to compute a product is left.
    pub fn tune<D: Driver>(
        &mut self,
        driver: &mut D,
        compiler: &Compiler,
        choices: &mut Choices,
    ) -> Result<()> {
        let mut missing = Vec::new();
        for (key, wanted) in choices.take_unmeasured() {
            match self.known(&key) {
                Some(choice) => choices.note(key, choice),
                None => missing.push((key, wanted)),
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let room =
            missing.iter().map(|(_, (p, element))| Extents::of(p, *element).bytes()).max().unwrap_or(0);
        // Without room to measure, the estimates have to do.
        let Ok(memory) = driver.allocate(room) else { return Ok(()) };
        let measured = fill(driver, memory, room, DType::Bf16)
            .and_then(|()| self.measure(driver, compiler, choices, &missing, memory));
        driver.free(memory)?;
        match (&self.file, measured) {
            (Some(file), Ok(())) => match write(file, &self.results) {
                Err(e) if self.named => Err(Error::io(file, "write", e)),
                _ => Ok(()),
            },
            (_, measured) => measured,
        }
    }

    /// Measures products by key, with operands in `memory`.
    fn measure<D: Driver>(
        &mut self,
        driver: &mut D,
        compiler: &Compiler,
        choices: &mut Choices,
        missing: &[(String, (Product, DType))],
        memory: u64,
    ) -> Result<()> {
        let progress = self.progress.clone();
        let tell = |what: Tuning<'_>| {
            if let Some(progress) = &progress {
                progress(what);
            }
        };
        for (i, (key, (product, element))) in missing.iter().enumerate() {
            tell(Tuning::Measured(i, missing.len()));
            let placed = Extents::of(product, *element).place(product, memory);
            let mut ways = choices.candidates(product, *element);
            if self.library {
                ways.push(Choice::Library);
            }
            let refused = |way: &str, why: &str| tell(Tuning::Refused { product: key, way, why });
            let Some(choice) = fastest(driver, compiler, choices, (&placed, *element), &ways, refused)?
            else {
                break;
            };
            self.results.products.insert(key.clone(), choice.name());
            choices.note(key.clone(), choice);
        }
        tell(Tuning::Measured(missing.len(), missing.len()));
        Ok(())
    }
}

/// Names a device in files of results.
fn device_name(device: &DeviceInfo) -> String {
    let (x, y) = device.capability;
    format!("{} sm_{x}{y} x{}", device.name, device.multiprocessors)
}

/// The fastest of `ways` for `product`; None if the driver cannot tell times. A way that the device refuses is left out.
fn fastest<D: Driver>(
    driver: &mut D,
    compiler: &Compiler,
    choices: &Choices,
    (product, element): (&Product, DType),
    ways: &[Choice],
    refused: impl Fn(&str, &str),
) -> Result<Option<Choice>> {
    let mut best: Option<(Choice, f64)> = None;
    let mut error = None;
    for way in ways {
        let seconds = match seconds_of(driver, compiler, choices, (product, element), *way) {
            Ok(Timed::Seconds(seconds)) => seconds,
            Ok(Timed::Absent) => continue,
            Ok(Timed::Untimed) => return Ok(None),
            Err(e) => {
                // After a kernel that went wrong, rather than one that was refused, the device does nothing more.
                if driver.finish().is_err() {
                    return Err(e);
                }
                refused(&way.name(), &e.to_string());
                error.get_or_insert(e);
                continue;
            }
        };
        // The first is the estimate.
        if best.is_none_or(|(_, least)| seconds < least * (1.0 - WORTH)) {
            best = Some((*way, seconds));
        }
    }
    match (best, error) {
        (Some((way, _)), _) => Ok(Some(way)),
        (None, Some(e)) => Err(e),
        (None, None) => Ok(None),
    }
}

/// What measuring a way to compute a product gave.
enum Timed {
    Seconds(f64),
    /// The library does not offer it, or its grid is too large.
    Absent,
    /// The driver cannot tell times.
    Untimed,
}

fn seconds_of<D: Driver>(
    driver: &mut D,
    compiler: &Compiler,
    choices: &Choices,
    (product, element): (&Product, DType),
    way: Choice,
) -> Result<Timed> {
    // A grid that is too large for one tile may do for the next.
    let Ok(mut call) = product.call_by(way, element, choices.multiprocessors()) else {
        return Ok(Timed::Absent);
    };
    call.bf16 = element == DType::Bf16;
    let mut tables = Vec::new();
    let prepared = prepare(driver, compiler, call, &mut tables);
    let timed = prepared.and_then(|work| {
        if way == Choice::Library && !matches!(work, Work::Product(_)) {
            return Ok(Timed::Absent);
        }
        driver.measure(std::slice::from_ref(&work), WARM_UP)?;
        let seconds = driver.measure(&[work], REPEATS)?.seconds;
        Ok(seconds.map_or(Timed::Untimed, Timed::Seconds))
    });
    tables.into_iter().try_for_each(|table| driver.free(table))?;
    timed
}

/// Bytes of a product's operands, each a multiple of 256: a, b, other, bias, y, pre, partial.
struct Extents([u64; 7]);

impl Extents {
    fn of(product: &Product, element: DType) -> Self {
        let p = &product.params;
        let [m, n, k] = [p.m, p.n, p.k].map(u64::from);
        let size = element.bytes() as u64;
        let part = u64::from(product.splits) * (m * n + m) * 4;
        let (mut a, mut b, mut y) = (m * k * size, n * k * size, m * n * size);
        if let Some(pixels) = product.gather.pixels() {
            let read = if matches!(product.gather, Gather::A(_)) { &mut a } else { &mut b };
            *read = pixels.rows_read * u64::from(pixels.channels) * size;
            y = y.max(pixels.rows_written * n * size);
        }
        Extents([a, b, y, n * 4, y, y, part].map(|bytes| bytes.next_multiple_of(256)))
    }

    fn bytes(&self) -> usize {
        self.0.iter().sum::<u64>() as usize
    }

    /// `product` with the operands that it has, one behind the other from `at`.
    fn place(&self, product: &Product, mut at: u64) -> Product {
        let mut placed = product.clone();
        let p = &mut placed.params;
        let operands = [&mut p.a, &mut p.b, &mut p.other, &mut p.bias, &mut p.y, &mut p.pre, &mut p.partial];
        for (operand, bytes) in operands.into_iter().zip(self.0) {
            if *operand != 0 {
                *operand = at;
            }
            at += bytes;
        }
        placed
    }
}

/// Names the texts of the products' kernels.
fn kernels(sources: &Sources) -> String {
    let mut hash = Sha256::new();
    for family in [Family::Gemm, Family::GemmSm90] {
        hash.update(family.source(sources, &[], true));
    }
    hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect()
}

/// The results in a file, or why there are none.
fn read(file: &Path) -> std::result::Result<Results, String> {
    let mut text = String::new();
    let opened = std::fs::File::open(file).map_err(|e| e.to_string())?;
    opened.take(MOST_BYTES).read_to_string(&mut text).map_err(|e| e.to_string())?;
    serde_json::from_str(&text).map_err(|e| e.to_string())
}

/// Replaces the file as a whole: several processes may measure at once.
fn write(file: &Path, results: &Results) -> std::io::Result<()> {
    let folder = file.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    disk::create_dir_all(folder)?;
    let mut new = Temporary::new_in(folder)?;
    new.write_all(serde_json::to_string_pretty(results)?.as_bytes())?;
    new.complete()?;
    new.put(file)
}

#[cfg(test)]
mod tests;
