//! Speed of the interpreter in lane-instructions a second: `cargo run --release -p ptx-vm --example speed`, or with
//! the name of one kernel behind it.
//!
//! Kernels as NVRTC compiled them, all checks on: softmax rows (loads, shuffles, exponentials), the tensor-core GEMM
//! with asynchronous copies, an f32 GEMM of register tiles; and what a launch of a tiny grid costs.

use std::time::Instant;

use ptx_vm::{Memory, Module, Options, Report, Result, launch};

const KERNELS: &str = include_str!("../tests/data/kernels.ptx");
const SIMT: &str = include_str!("../tests/data/simt.ptx");

fn timed(name: &str, runs: u32, mut run: impl FnMut() -> Result<Report>) -> Result<()> {
    if std::env::args().nth(1).is_some_and(|only| only != name) {
        return Ok(());
    }
    run()?;
    let start = Instant::now();
    let mut lanes = 0;
    let mut flops = 0;
    for _ in 0..runs {
        let report = run()?;
        lanes += report.counts.lane_instructions;
        flops += report.counts.mma_flops;
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{name}: {:.0} million lane-instructions a second, {:.2} Gflop/s of matrix products",
        lanes as f64 / seconds / 1e6,
        flops as f64 / seconds / 1e9
    );
    Ok(())
}

fn main() -> Result<()> {
    let module = Module::parse(KERNELS)?;
    let mut memory = Memory::default();
    let options = Options::default();
    println!("{} host threads", std::thread::available_parallelism().map_or(1, usize::from));

    let (rows, n) = (256u32, 2048u32);
    let bytes = u64::from(rows * n * 4);
    let (x, y) = (memory.allocate(bytes)?, memory.allocate(bytes)?);
    memory.memset(x, 0, bytes)?;
    let mut params = [x.to_le_bytes(), y.to_le_bytes()].concat();
    params.extend(n.to_le_bytes());
    timed("softmax", 5, || {
        launch(&module, "softmax", [rows, 1, 1], [256, 1, 1], 0, &params, &mut memory, &options)
    })?;

    let size = 512u32;
    let elements = u64::from(size * size);
    let (a, b, c) =
        (memory.allocate(elements * 2)?, memory.allocate(elements * 2)?, memory.allocate(elements * 4)?);
    memory.memset(a, 0x3f, elements * 2)?;
    memory.memset(b, 0x3f, elements * 2)?;
    let mut params = [a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes()].concat();
    params.extend([size.to_le_bytes(); 3].concat());
    timed("gemm_bf16", 3, || {
        launch(
            &module,
            "gemm_bf16",
            [size / 64, size / 64, 1],
            [128, 1, 1],
            0,
            &params,
            &mut memory,
            &options,
        )
    })?;

    let simt = Module::parse(SIMT)?;
    let size = 256u32;
    let elements = u64::from(size * size);
    let (a, b, c) =
        (memory.allocate(elements * 4)?, memory.allocate(elements * 4)?, memory.allocate(elements * 4)?);
    memory.memset(a, 0x3f, elements * 4)?;
    memory.memset(b, 0x3f, elements * 4)?;
    let mut params = [a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes()].concat();
    params.extend([size.to_le_bytes(); 3].concat());
    timed("sgemm", 3, || {
        launch(&simt, "sgemm", [size / 64, size / 64, 1], [256, 1, 1], 0, &params, &mut memory, &options)
    })?;

    let mut params = x.to_le_bytes().to_vec();
    params.extend(1000u32.to_le_bytes());
    let one = launch(&simt, "bump", [4, 1, 1], [256, 1, 1], 0, &params, &mut memory, &options)?;
    let (start, launches) = (Instant::now(), 20_000);
    for _ in 0..launches {
        launch(&simt, "bump", [4, 1, 1], [256, 1, 1], 0, &params, &mut memory, &options)?;
    }
    let micros = start.elapsed().as_secs_f64() * 1e6 / f64::from(launches);
    println!("bump: {micros:.1} microseconds a launch of {} lane-instructions", one.counts.lane_instructions);
    Ok(())
}
