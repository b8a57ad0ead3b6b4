//! `saip-engine dist check`: what one runs before a long job on several devices.

use super::cuda::CudaArgs;
use super::device::{Device, DeviceOptions};
use super::ranks::{self, RankArgs};
use crate::backend::{Backend, Collective, HostSlice, HostSliceMut, ProgramId};
use crate::dist::{Deadlines, Hello, meet};
use crate::error::{Error, Result};
use crate::ir::{Binding, Graph, Region, Scalar, ops};
use crate::plan;
use crate::report::table::table;
use crate::tensor::DType;
use crate::units::{human_bytes, median};
use std::time::{Duration, Instant};

/// Arguments of `dist`.
#[derive(clap::Args, Debug)]
pub struct DistArgs {
    #[command(subcommand)]
    pub what: What,
}

/// What is to be done with several processes.
#[derive(clap::Subcommand, Debug)]
pub enum What {
    /// Try device and link of every rank: they meet, sum, and compare what they got
    Check(CheckArgs),
}

/// Arguments of `dist check`.
#[derive(clap::Args, Debug)]
pub struct CheckArgs {
    #[command(flatten)]
    pub ranks: RankArgs,
    /// Device: auto, cpu, cuda, or ptx-vm
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Largest sum, MiB
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub largest: u32,
    /// Times that each sum is taken
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeats: u32,
    /// Seconds that ranks wait for each other
    #[arg(long, value_name = "S", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub timeout: u32,
    #[command(flatten)]
    pub cuda: CudaArgs,
}

/// Smallest sum, bytes; each further one has so many times as many.
const SMALLEST: usize = 64 << 10;
const STEP: usize = 8;
/// Sums of these stay exact in f32, whatever their order, up to thousands of ranks.
const PATTERN: usize = 251;

/// What helps where sums between GPUs are wrong or never end.
const REMEDY: &str = "between GPUs try NCCL_P2P_DISABLE=1 (over some PCIe bridges one writes the other's memory wrongly, or \
                      never), then another device or link";

/// Carries out `dist`; gives the process's exit code.
///
/// # Errors
/// Ranks that do not meet, die or stand still; sums that are wrong or differ.
pub fn run(args: &DistArgs) -> Result<i32> {
    let What::Check(args) = &args.what;
    if let Some(code) = args.ranks.start()? {
        return Ok(code);
    }
    let launch = args.ranks.launch()?.ok_or_else(|| {
        Error::usage(
            "dist check tries several processes: start them with --ranks N, or by torchrun, srun or mpirun",
        )
    })?;
    let device = ranks::device(&args.device, Some(&launch))?;
    let wait = Duration::from_secs(u64::from(args.timeout));
    let deadlines = Deadlines { join: wait, step: wait, ..Deadlines::default() };
    let hello = Hello {
        version: env!("CARGO_PKG_VERSION").into(),
        config: format!("dist check of {} MiB, {} times", args.largest, args.repeats),
        device: ranks::identity(device),
    };
    let began = Instant::now();
    let mut link = meet(&launch, &hello, &deadlines)?;
    let met = began.elapsed().as_secs_f64();
    let checked = check(args, device, ranks::threads(0, Some(&launch)), &mut *link, met);
    link.leave(checked.as_ref().err().map(ToString::to_string).as_deref());
    checked.map(|()| 0)
}

/// One sum of the table.
struct Measured {
    bytes: usize,
    seconds: f64,
    by_device: bool,
    /// Whether the same numbers give the same bits again.
    repeats: bool,
}

fn check(
    args: &CheckArgs,
    device: Device,
    threads: usize,
    link: &mut dyn Collective,
    met: f64,
) -> Result<()> {
    let (rank, world) = (link.rank(), link.world());
    let word = words(link, args.repeats)?;
    let largest = (args.largest as usize) << 20;
    let mut sizes: Vec<usize> =
        std::iter::successors(Some(SMALLEST), |n| n.checked_mul(STEP)).take_while(|n| *n < largest).collect();
    sizes.push(largest);
    let options = DeviceOptions { threads, cuda: args.cuda.clone(), ..DeviceOptions::default() };
    let mut rows = Vec::new();
    let (mut name, mut repeat, mut by_device) = (String::new(), true, false);
    for bytes in sizes {
        let mut backend = device.open(DType::F32, &options)?;
        name = backend.name();
        let measured =
            sums(&mut *backend, link, bytes, args.repeats).map_err(|e| hinted(e, device, world))?;
        // Each link of a ring carries 2 (n - 1) / n of the bytes.
        let share = 2.0 * (world as f64 - 1.0) / world as f64;
        let rate = measured.bytes as f64 / measured.seconds;
        let giga = |x: f64| format!("{:.2} GB/s", x / 1e9);
        rows.push(vec![
            human_bytes(measured.bytes as u64),
            format!("{:.3} ms", 1e3 * measured.seconds),
            giga(rate),
            giga(share * rate),
            if measured.by_device { "devices (NCCL)" } else { "processes (TCP)" }.to_owned(),
            if measured.repeats { "yes" } else { "no" }.to_owned(),
        ]);
        (repeat, by_device) = (repeat && measured.repeats, by_device || measured.by_device);
    }
    if rank == 0 {
        println!("{world} ranks met in {met:.2} s; a word to all and back {:.3} ms; {name}", 1e3 * word);
        println!("{}", table(&["sum of", "time", "rate", "of a link", "summed by", "repeat"], &rows));
        println!("all ranks have the same bits, and they are right");
        if by_device {
            let set = |name: &str| {
                std::env::var(name).map_or_else(|_| format!("{name} unset"), |v| format!("{name}={v}"))
            };
            println!(
                "{}, {}: set them before the command to compare",
                set("NCCL_ALGO"),
                set("NCCL_NVLS_ENABLE")
            );
        }
        if !repeat {
            println!(
                "warning: the same numbers give other bits again, so runs will not repeat: NCCL_NVLS_ENABLE=0 NCCL_ALGO=Ring mends it"
            );
        }
    }
    Ok(())
}

/// `error`, with what is most often the cause where GPUs wait for each other forever.
fn hinted(error: Error, device: Device, world: usize) -> Error {
    match (error, device) {
        (Error::Distributed { ranks, message }, Device::Cuda(_))
            if world > 1 && !message.contains(REMEDY) =>
        {
            Error::distributed(ranks, format!("{message}; {REMEDY}"))
        }
        (error, _) => error,
    }
}

/// Median seconds until a word of each rank is with all.
fn words(link: &mut dyn Collective, repeats: u32) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..repeats {
        link.barrier()?;
        let began = Instant::now();
        link.all_gather(&[0; 64])?;
        times.push(began.elapsed().as_secs_f64());
    }
    Ok(median(&mut times))
}

/// The values of `rank`: whole numbers, so that no order of sums rounds.
fn own(rank: usize, len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i % PATTERN) * (rank + 1)) as f32).collect()
}

/// Sums `bytes` over all ranks as a step does, and looks at what came out.
fn sums(
    backend: &mut dyn Backend,
    link: &mut dyn Collective,
    bytes: usize,
    repeats: u32,
) -> Result<Measured> {
    let (rank, world) = (link.rank(), link.world());
    let len = bytes / size_of::<f32>();
    let by_device = backend.join(link, &[(Region::Grads, 0, len)], DType::F32)?;
    let program = {
        let plan = plan::compile(written(len)?, false, &*backend)?;
        backend.compile(plan)?
    };
    let mut scalars = [0.0; Scalar::COUNT];
    scalars[Scalar::MicroWeight as usize] = 1.0;
    backend.write(Region::Scalars, 0, HostSlice::F64(&scalars))?;
    backend.write(Region::MicroGrads, 0, HostSlice::F32(&own(rank, len)))?;
    let (mut times, mut values) = (Vec::new(), vec![0.0f32; len]);
    for _ in 0..=repeats {
        link.barrier()?;
        let began = Instant::now();
        sum(backend, link, (program, by_device), &mut values)?;
        times.push(began.elapsed().as_secs_f64());
    }
    // The first one is where memory and connections are touched for the first time.
    let seconds = median(&mut times[1..]);
    backend.read(Region::Grads, 0, HostSliceMut::F32(&mut values))?;
    let factor = world * (world + 1) / 2;
    let wrong = values.iter().enumerate().filter(|(i, x)| **x != ((i % PATTERN) * factor) as f32).count();
    let told = [wrong as u64, checksum(&values)].map(u64::to_le_bytes).concat();
    judge(&link.all_gather(&told)?, len)?;
    // Sums that round tell whether they are taken in one order.
    let parts: Vec<f32> = own(rank, len).iter().map(|x| (1.0 + x).recip()).collect();
    backend.write(Region::MicroGrads, 0, HostSlice::F32(&parts))?;
    let mut sums = [0; 2];
    for checksum_of in &mut sums {
        sum(backend, link, (program, by_device), &mut values)?;
        backend.read(Region::Grads, 0, HostSliceMut::F32(&mut values))?;
        *checksum_of = checksum(&values);
    }
    let told = link.all_gather(&sums.map(u64::to_le_bytes).concat())?;
    judge(&told.iter().map(|t| [&[0; 8], &t[..8]].concat()).collect::<Vec<_>>(), len)?;
    let repeats = told.iter().all(|t| t[..8] == t[8..]);
    Ok(Measured { bytes, seconds, by_device, repeats })
}

/// One sum, up to where the device is done with it.
fn sum(
    backend: &mut dyn Backend,
    link: &mut dyn Collective,
    (program, by_device): (ProgramId, bool),
    values: &mut [f32],
) -> Result<()> {
    if by_device {
        backend.run_reduced(program)?;
        return backend.read(Region::Grads, 0, HostSliceMut::F32(&mut values[..1]));
    }
    backend.run(program)?;
    backend.read(Region::Grads, 0, HostSliceMut::F32(&mut *values))?;
    link.all_reduce(HostSliceMut::F32(&mut *values), DType::F32)?;
    backend.write(Region::Grads, 0, HostSlice::F32(values))
}

fn checksum(values: &[f32]) -> u64 {
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    u64::from(crc32c::crc32c(&bytes))
}

/// A program that writes the gradients which are then summed.
fn written(len: usize) -> Result<Graph> {
    let mut graph = Graph::new();
    let at = |region| Binding { region, offset: 0 };
    let mut source = |name: &str, region, len: usize| graph.source(name, [len], DType::F32, at(region));
    let sum = source("grads", Region::Grads, len);
    let fresh = source("micro_grads", Region::MicroGrads, len);
    let scalars = source("scalars", Region::Scalars, Scalar::COUNT);
    let sum = graph.push1("accumulate", ops::AccumulateGrads, &[sum, fresh, scalars])?;
    graph.bind(sum, at(Region::Grads));
    Ok(graph)
}

/// What every rank found: how many of `len` sums are wrong, and a checksum of all.
fn judge(told: &[Vec<u8>], len: usize) -> Result<()> {
    let number = |bytes: &[u8], at: usize| bytes.as_chunks::<8>().0.get(at).map(|x| u64::from_le_bytes(*x));
    for (rank, bytes) in told.iter().enumerate() {
        let wrong = number(bytes, 0).unwrap_or(u64::MAX);
        if wrong > 0 {
            let message = format!("{wrong} of {len} sums are wrong: {REMEDY}");
            return Err(Error::distributed(format!("rank {rank}"), message));
        }
        if bytes != &told[0] {
            let message = format!("its sums have other bits than those of rank 0: {REMEDY}");
            return Err(Error::distributed(format!("rank {rank}"), message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::CpuBackend;

    #[test]
    fn wrong_and_unequal_sums_are_told_with_the_rank() {
        let told = |wrong: u64, crc: u64| [wrong, crc].map(u64::to_le_bytes).concat();
        judge(&[told(0, 5), told(0, 5)], 9).unwrap();
        let wrong = judge(&[told(0, 5), told(3, 5)], 9).unwrap_err().to_string();
        assert!(wrong.contains("rank 1") && wrong.contains("3 of 9") && wrong.contains("NCCL_P2P_DISABLE"));
        let other = judge(&[told(0, 5), told(0, 5), told(0, 6)], 9).unwrap_err().to_string();
        assert!(other.contains("rank 2") && other.contains("other bits"), "{other}");
        assert!(judge(&[vec![]], 9).is_err());
    }

    #[test]
    fn the_program_writes_what_a_rank_brings() {
        let mut backend = CpuBackend::<f32>::new(1).unwrap();
        let plan = plan::compile(written(600).unwrap(), false, &backend).unwrap();
        let program = backend.compile(plan).unwrap();
        let mut scalars = [0.0; Scalar::COUNT];
        scalars[Scalar::MicroWeight as usize] = 1.0;
        backend.write(Region::Scalars, 0, HostSlice::F64(&scalars)).unwrap();
        backend.write(Region::MicroGrads, 0, HostSlice::F32(&own(2, 600))).unwrap();
        let mut values = vec![0.0f32; 600];
        for _ in 0..2 {
            backend.run(program).unwrap();
            backend.read(Region::Grads, 0, HostSliceMut::F32(&mut values)).unwrap();
            assert_eq!(values, own(2, 600));
        }
        assert_eq!(values[252], 3.0);
    }
}
