//! `saip-engine verify --numeric`.

use super::device::{Device, DeviceOptions};
use super::verify_args::VerifyArgs;
use crate::error::{Error, Result};
use crate::report::table::table;
use crate::tensor::DType;
use crate::train::presets::CHECKED;
use crate::verify::numeric::{Backends, Check, check, shrunk};
use serde_json::json;

/// Compares gradients with central differences, and prints them worst first: 0 when all are within their bounds, else 1.
///
/// # Errors
/// An unknown preset or op; a precision in which gradients are not compared; those of the device.
pub fn run(args: &VerifyArgs) -> Result<i32> {
    let preset = args.preset.as_deref().unwrap_or(CHECKED);
    let cfg = shrunk(preset)?;
    let device = Device::parse(&args.device)?;
    device.check_threads(args.threads)?;
    let dtype = args.dtype.unwrap_or(if device == Device::Cpu { DType::F64 } else { DType::F32 });
    if dtype == DType::Bf16 {
        return Err(Error::usage(
            "--numeric compares gradients in f64 or f32; rounding to bf16 hides what it looks for: choose --dtype f32",
        ));
    }
    let options =
        DeviceOptions { threads: args.threads, cuda: args.cuda.clone(), ..DeviceOptions::default() };
    let own = || device.open(dtype, &options);
    // One device is enough where the differences need no other.
    let plain = DeviceOptions { threads: args.threads, ..DeviceOptions::default() };
    let reference = || Device::Cpu.open(DType::F64, &plain);
    let name = own()?.name();
    let backends = Backends { reference: &reference, device: &own };
    let checks = check(&cfg, args.op.as_deref(), args.tol, backends)?;
    let passed = !checks.is_empty() && checks.iter().all(Check::passed);
    if args.json {
        let record = json!({
            "preset": preset, "device": name, "dtype": dtype.to_string(), "passed": passed, "checks": checks,
        });
        let text = serde_json::to_string_pretty(&record);
        println!("{}", text.map_err(|e| Error::usage(format!("the result cannot be written as JSON: {e}")))?);
    } else {
        println!("gradients of {preset}, made small, on {name}; central differences in f64 on the CPU");
        print(&checks, args.rows, passed);
    }
    Ok(i32::from(!passed))
}

fn print(checks: &[Check], rows: usize, passed: bool) {
    let shown = if rows == 0 { checks.len() } else { rows };
    let number = |x: f64| format!("{x:.6e}");
    let lines: Vec<Vec<String>> = (checks.iter().take(shown))
        .map(|c| {
            let mark = if c.passed() { "ok" } else { "BEYOND" };
            let numbers = [number(c.gradient), number(c.difference), format!("{:.3e}", c.error)];
            let bound = format!("{:.1e}", c.bound);
            let words = [c.of.clone(), c.with_respect_to.clone()].into_iter();
            words.chain(numbers).chain([bound, mark.into()]).collect()
        })
        .collect();
    println!(
        "{}",
        table(&["of", "with respect to", "by gradient", "by difference", "error", "bound", ""], &lines)
    );
    let beyond = checks.iter().filter(|c| !c.passed()).count();
    let state = if passed { "passed" } else { "FAILED" };
    println!("{state}: {} derivatives, {beyond} beyond their bounds", checks.len());
}
