//! `saip-engine verify`.

use super::device::{Device, DeviceOptions};
use super::verify_args::VerifyArgs;
use crate::error::{Error, Result};
use crate::files::atomic;
use crate::report::table::table;
use crate::tensor::DType;
use crate::verify::fixture::{Deviation, Fixture, Verdict, dump};
use std::path::Path;

/// What became of one fixture.
struct Outcome {
    fixture: String,
    /// The comparison, or why there is none.
    result: Result<Verdict>,
}

/// Checks every fixture, also behind one that cannot be checked: 0 when all pass, 1 when one is beyond the tolerance, 2
/// when one could not be checked, whatever became of the others.
///
/// # Errors
/// A device that cannot be opened at all; with one fixture whatever keeps it from being checked.
pub fn run(args: &VerifyArgs) -> Result<i32> {
    if args.dump.is_some() && args.fixtures.len() != 1 {
        return Err(Error::usage("--dump writes the numbers of one fixture: name one"));
    }
    if let Some(out) = &args.dump {
        atomic::refuse_to_replace(out, args.force)?;
    }
    if args.numeric {
        return super::verify_numeric::run(args);
    }
    if let Some(out) = &args.record {
        return super::verify_record::run(args, out);
    }
    let device = Device::parse(&args.device)?;
    device.check_threads(args.threads)?;
    let mut opened = false;
    let mut outcomes = Vec::new();
    for path in &args.fixtures {
        let result = match checked(args, device, path, &mut opened) {
            // Without a device the other fixtures would say the same.
            Err(Unchecked::NoDevice(e)) if !opened => return Err(e),
            Err(Unchecked::NoDevice(e) | Unchecked::Fixture(e)) => Err(e),
            Ok(verdict) => Ok(verdict),
        };
        match &result {
            Ok(verdict) if !args.json => print(verdict, args.rows),
            // The error of a single fixture is the command's.
            Err(e) if args.fixtures.len() > 1 => {
                eprintln!("error: {}: {}\n", path.display(), without_path(e, path))
            }
            _ => {}
        }
        outcomes.push(Outcome { fixture: path.display().to_string(), result });
    }
    if args.json {
        println!("{}", as_json(&outcomes)?);
    } else if outcomes.len() > 1 {
        println!("{}", summary(&outcomes));
    }
    let code = exit_code(&outcomes);
    match outcomes.pop() {
        Some(Outcome { result: Err(e), .. }) if outcomes.is_empty() => Err(e),
        _ => Ok(code),
    }
}

/// Why a fixture was not checked.
enum Unchecked {
    NoDevice(Error),
    Fixture(Error),
}

impl From<Error> for Unchecked {
    fn from(e: Error) -> Self {
        Unchecked::Fixture(e)
    }
}

/// Checks one fixture on a device of its own; `opened` becomes true when there is that device.
fn checked(
    args: &VerifyArgs,
    device: Device,
    path: &Path,
    opened: &mut bool,
) -> std::result::Result<Verdict, Unchecked> {
    let on_cpu = device == Device::Cpu;
    let dtype = args.dtype.unwrap_or(if on_cpu { DType::F64 } else { DType::F32 });
    let options =
        DeviceOptions { threads: args.threads, cuda: args.cuda.clone(), ..DeviceOptions::default() };
    let fixture = Fixture::open(path)?;
    let tolerance = match (args.tol, dtype) {
        (Some(tolerance), _) => tolerance,
        (None, DType::Bf16) => fixture.bf16_tolerance()?,
        (None, DType::F64) => 1e-6,
        (None, _) if on_cpu => 2e-4,
        (None, _) => 5e-4,
    };
    let backend = device.open(dtype, &options).map_err(Unchecked::NoDevice)?;
    *opened = true;
    let name = backend.name();
    let results = fixture.run(backend)?;
    if let Some(out) = &args.dump {
        dump(&results, out)?;
    }
    Ok(fixture.compare(&results, &name, dtype, tolerance)?)
}

/// The message without the name of the file, which stands in front of it anyway.
fn without_path(e: &Error, path: &Path) -> String {
    let message = e.to_string();
    message.strip_prefix(&format!("{}: ", path.display())).map_or(message.clone(), str::to_owned)
}

fn exit_code(outcomes: &[Outcome]) -> i32 {
    let code = |o: &Outcome| o.result.as_ref().map_or(2, |v| i32::from(!v.passed));
    outcomes.iter().map(code).max().unwrap_or(0)
}

/// The verdicts; what could not be checked has not passed, and says why under `error`.
fn as_json(outcomes: &[Outcome]) -> Result<String> {
    let value = |o: &Outcome| match &o.result {
        Ok(verdict) => serde_json::to_value(verdict),
        Err(e) => Ok(serde_json::json!({ "fixture": o.fixture, "passed": false, "error": e.to_string() })),
    };
    let all = outcomes.iter().map(value).collect::<std::result::Result<Vec<_>, _>>();
    all.and_then(|all| serde_json::to_string_pretty(&all))
        .map_err(|e| Error::usage(format!("the result cannot be written as JSON: {e}")))
}

/// One line per fixture.
fn summary(outcomes: &[Outcome]) -> String {
    let line = |o: &Outcome| match &o.result {
        Ok(verdict) => {
            let first = verdict.deviations.iter().find(|d| is_beyond(d, verdict.tolerance));
            let why = match first {
                Some(d) => format!(
                    "{} of {} tensors, the worst {}",
                    count_beyond(verdict),
                    verdict.deviations.len(),
                    d.name
                ),
                None if verdict.passed => String::new(),
                None => "nothing could be compared".to_owned(),
            };
            let worst = format!("{:.3e}", verdict.deviations.first().map_or(f64::NAN, |d| d.error));
            vec![o.fixture.clone(), passed(verdict).into(), worst, why]
        }
        Err(e) => {
            let message = without_path(e, Path::new(&o.fixture));
            // A compiler's log follows in further lines: it was printed with the error.
            let first = message.lines().next().unwrap_or_default().to_owned();
            vec![o.fixture.clone(), "ERROR".into(), String::new(), first]
        }
    };
    let lines: Vec<Vec<String>> = outcomes.iter().map(line).collect();
    table(&["fixture", "", "worst error", "beyond the tolerance, or why not checked"], &lines)
}

fn passed(verdict: &Verdict) -> &'static str {
    if verdict.passed { "passed" } else { "FAILED" }
}

fn is_beyond(deviation: &Deviation, tolerance: f64) -> bool {
    deviation.error.is_nan() || deviation.error > tolerance
}

fn count_beyond(verdict: &Verdict) -> usize {
    verdict.deviations.iter().filter(|d| is_beyond(d, verdict.tolerance)).count()
}

fn print(verdict: &Verdict, rows: usize) {
    println!("{} on {}", verdict.fixture, verdict.device);
    let shown = if rows == 0 { verdict.deviations.len() } else { rows };
    let lines: Vec<Vec<String>> = verdict
        .deviations
        .iter()
        .take(shown)
        .map(|d| {
            let mark = if d.error <= verdict.tolerance { "ok" } else { "BEYOND" };
            vec![d.name.clone(), format!("{:.3e}", d.error), mark.into()]
        })
        .collect();
    println!("{}", table(&["tensor", "error", ""], &lines));
    for (what, why) in &verdict.left_out {
        println!("not compared: {what}: {why}");
    }
    let beyond = count_beyond(verdict);
    let worst = verdict.deviations.first().map_or(f64::NAN, |d| d.error);
    println!(
        "{}: {} tensors, worst {worst:.3e}, {beyond} beyond {:e}\n",
        passed(verdict),
        verdict.deviations.len(),
        verdict.tolerance
    );
}
