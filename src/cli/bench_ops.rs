//! `saip-engine bench ops`.

use super::bench::{BenchOpsArgs, random_batch};
use super::device::Device;
use crate::backend::{OpCounts, OpMeasure};
use crate::data::views::step_config_at;
use crate::error::{Error, Result};
use crate::report::table::{human_bytes, table};
use crate::saip::StepPoint;
use crate::train::engine::{Engine, EngineOptions};
use serde_json::json;
use std::collections::BTreeMap;

/// All ops of one kind on operands of one shape.
#[derive(Default)]
struct Group {
    ops: usize,
    launches: usize,
    flops: u64,
    least_bytes: u64,
    seconds: f64,
    counts: OpCounts,
}

impl Group {
    fn add(&mut self, m: &OpMeasure) {
        self.ops += 1;
        self.launches += m.launches;
        self.flops += m.flops;
        self.least_bytes += m.least_bytes;
        self.seconds += m.seconds.unwrap_or(0.0);
        if let Some(c) = m.counts {
            self.counts.global_bytes += c.global_bytes;
            self.counts.sectors[0] += c.sectors[0];
            self.counts.sectors[1] += c.sectors[1];
            self.counts.bank_conflicts += c.bank_conflicts;
            self.counts.lane_instructions += c.lane_instructions;
        }
    }

    /// What the largest come first by.
    fn weight(&self) -> f64 {
        if self.seconds > 0.0 { self.seconds } else { self.counts.lane_instructions as f64 }
    }
}

/// Measures and prints.
///
/// # Errors
/// Those of the configuration and of the device.
pub fn run(args: &BenchOpsArgs) -> Result<()> {
    if args.batch == 0 || args.repeats == 0 {
        return Err(Error::usage("--batch and --repeats must be at least 1"));
    }
    let cfg = args.step.resolve(Some(args.batch))?;
    let base = cfg.step_config(cfg.views.local_size, cfg.views.global_size);
    let step = step_config_at(&base, args.scale);
    let backend = Device::parse(&args.device)?.open(args.dtype, 0)?;
    let device = backend.name();
    let options = EngineOptions {
        micro_steps: 1,
        drop_path: cfg.encoder.drop_path,
        recompute: false,
        seed: cfg.data.seed,
    };
    let mut engine = Engine::new(backend, std::slice::from_ref(&step), options)?;
    engine.initialise()?;
    let batch = random_batch(&step, cfg.data.seed);
    let measures = engine.measure(0, &batch, &StepPoint::constant(&step, 1), args.repeats)?;
    let timed = measures.iter().any(|m| m.seconds.is_some());
    let mut groups: BTreeMap<(String, String), Group> = BTreeMap::new();
    for m in &measures {
        groups.entry((m.op.to_owned(), m.shape.to_string())).or_default().add(m);
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by(|a, b| b.1.weight().total_cmp(&a.1.weight()));
    if args.json {
        let rows: Vec<_> = groups.iter().map(|((op, shape), g)| record(op, shape, g, timed)).collect();
        println!(
            "{}",
            json!({ "device": device, "preset": args.step.preset, "batch": args.batch, "ops": rows })
        );
        return Ok(());
    }
    println!("{device}: {} ops of {} at batch {}", measures.len(), args.step.preset, args.batch);
    print(&groups, args.rows, timed);
    Ok(())
}

fn record(op: &str, shape: &str, g: &Group, timed: bool) -> serde_json::Value {
    let mut row = json!({
        "op": op, "shape": shape, "ops": g.ops, "launches": g.launches, "flops": g.flops, "least_bytes": g.least_bytes,
    });
    if timed {
        row["seconds"] = json!(g.seconds);
    } else {
        row["global_bytes"] = json!(g.counts.global_bytes);
        row["sectors"] = json!(g.counts.sectors[0]);
        row["least_sectors"] = json!(g.counts.sectors[1]);
        row["bank_conflicts"] = json!(g.counts.bank_conflicts);
        row["lane_instructions"] = json!(g.counts.lane_instructions);
    }
    row
}

fn print(groups: &[((String, String), Group)], rows: usize, timed: bool) {
    let shown = if rows == 0 { groups.len() } else { rows };
    let all: f64 = groups.iter().map(|g| g.1.weight()).sum();
    let line = |((op, shape), g): &((String, String), Group)| {
        let mut row = vec![op.clone(), shape.clone(), g.ops.to_string(), g.launches.to_string()];
        row.push(format!("{:.1} %", 100.0 * g.weight() / all.max(f64::MIN_POSITIVE)));
        row.push(format!("{:.3}", g.flops as f64 * 1e-9));
        row.push(human_bytes(g.least_bytes));
        if timed {
            row.push(format!("{:.1}", g.seconds * 1e6));
            row.push(format!("{:.1}", g.flops as f64 / g.seconds * 1e-12));
            row.push(format!("{:.0}", g.least_bytes as f64 / g.seconds * 1e-9));
        } else {
            let c = &g.counts;
            row.push(human_bytes(c.global_bytes));
            row.push(format!("{:.2}", c.sectors[0] as f64 / c.sectors[1].max(1) as f64));
            row.push(c.bank_conflicts.to_string());
            row.push(format!("{:.2}", c.lane_instructions as f64 * 1e-6));
        }
        row
    };
    let lines: Vec<Vec<String>> = groups.iter().take(shown).map(line).collect();
    let mut headers = vec!["op", "first operand", "ops", "launches", "share", "GFLOP", "least bytes"];
    headers.extend::<&[&str]>(if timed {
        &["us", "TFLOP/s", "GB/s of the least"]
    } else {
        &["bytes moved", "sectors of the least", "bank conflicts", "M lane instructions"]
    });
    println!("{}", table(&headers, &lines));
    if timed {
        let seconds: f64 = groups.iter().map(|g| g.1.seconds).sum();
        let flops: u64 = groups.iter().map(|g| g.1.flops).sum();
        println!("all ops: {:.2} ms, {:.1} TFLOP/s", seconds * 1e3, flops as f64 / seconds * 1e-12);
    }
}
