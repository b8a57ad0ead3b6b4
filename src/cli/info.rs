//! `saip-engine info`.

use crate::cuda::{Installed, NcclChoice, cache_folder, cublaslt_version, installed, nccl};
use crate::error::Result;
use crate::report::table::table;
use crate::units::human_bytes;

/// Arguments of `info`.
#[derive(clap::Args, Debug)]
pub struct InfoArgs {}

/// Prints what this program can run on here.
///
/// # Errors
/// None at present.
pub fn run(_: &InfoArgs) -> Result<()> {
    println!("saip-engine {}", env!("CARGO_PKG_VERSION"));
    let cores = std::thread::available_parallelism().map_or("unknown".into(), |n| n.to_string());
    let mut rows = vec![
        vec!["cpu".into(), "available".into(), cpu_name()],
        vec!["".into(), "cores".into(), cores],
        vec!["".into(), "vector unit".into(), vector_unit().into()],
        vec!["".into(), "memory".into(), memory().map_or("unknown".into(), human_bytes)],
    ];
    rows.extend(cuda_rows(&installed()));
    println!("{}", table(&["device", "", ""], &rows));
    Ok(())
}

fn cuda_rows(found: &Installed) -> Vec<Vec<String>> {
    let part = |name: &str, version: &std::result::Result<(i32, i32), String>| match version {
        Ok((major, minor)) => vec![name.into(), "available".into(), format!("{major}.{minor}")],
        Err(why) => vec![name.into(), "absent".into(), why.clone()],
    };
    let mut rows = vec![
        part("cuda driver", &found.driver),
        part("nvrtc", &found.nvrtc),
        part("cublaslt", &cublaslt_version()),
        nccl_row(nccl()),
    ];
    for (i, gpu) in found.gpus.iter().enumerate() {
        let (major, minor) = gpu.capability;
        let text = format!(
            "{}, capability {major}.{minor}, {} multiprocessors, {}",
            gpu.name,
            gpu.multiprocessors,
            human_bytes(gpu.memory)
        );
        rows.push(vec![format!("cuda:{i}"), "available".into(), text]);
    }
    if found.gpus.is_empty() {
        rows.push(vec![
            "cuda".into(),
            "absent".into(),
            "no GPU; train --device ptx-vm interprets its kernels".into(),
        ]);
    }
    let cache = cache_folder().map_or("none: set SAIP_ENGINE_CACHE".into(), |c| c.display().to_string());
    rows.push(vec!["cache".into(), String::new(), cache]);
    rows
}

/// What sums between GPUs, which only runs of several processes need.
fn nccl_row(choice: &NcclChoice) -> Vec<String> {
    let (state, text) = match choice {
        NcclChoice::Named(nccl) | NcclChoice::Found(nccl) => {
            ("available", format!("{}, {}", nccl.version_text(), nccl.file().display()))
        }
        NcclChoice::Without => ("unused", "SAIP_NCCL=none".to_owned()),
        NcclChoice::Missing { why, .. } => ("absent", why.clone()),
    };
    vec!["nccl".into(), state.into(), text]
}

fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|l| l.strip_prefix("model name")).and_then(|l| l.split_once(':'));
    name.map_or(std::env::consts::ARCH.to_owned(), |(_, n)| n.trim().to_owned())
}

/// What the vectorised loops use.
fn vector_unit() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if std::is_x86_feature_detected!("avx512f") {
            return "AVX-512";
        }
        if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
            return "AVX2 + FMA";
        }
        "SSE2"
    }
    #[cfg(not(target_arch = "x86_64"))]
    "the architecture's baseline"
}

fn memory() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find(|l| l.starts_with("MemTotal:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}
