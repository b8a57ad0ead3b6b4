//! `saip-engine info`.

use crate::error::Result;
use crate::report::table::{human_bytes, table};

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
    let rows = vec![
        vec!["cpu".into(), "available".into(), cpu_name()],
        vec!["".into(), "cores".into(), cores],
        vec!["".into(), "vector unit".into(), vector_unit().into()],
        vec!["".into(), "memory".into(), memory().map_or("unknown".into(), human_bytes)],
        vec!["cuda".into(), "absent".into(), "this build has no CUDA backend".into()],
    ];
    println!("{}", table(&["device", "", ""], &rows));
    Ok(())
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
