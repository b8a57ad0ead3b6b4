//! `saip-engine bench ops`.

use super::baseline::Figures;
use super::bench_ops_groups::{BATCH, BenchOpsArgs, Group, TARGET};
use super::bench_ops_tables::print;
use super::device::{Device, DeviceOptions};
use super::{bench_budget, bench_model};
use crate::backend::{Ceilings, OpKernel, OpMeasure};
use crate::error::{Error, Result};
use crate::objectives::Objective;
use crate::tensor::DType;
use crate::train::engine::{Engine, EngineOptions};
use crate::train::objective::objective;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Measures and prints; gives the process's exit code.
///
/// # Errors
/// Those of the configuration and of the device.
pub fn run(args: &BenchOpsArgs) -> Result<i32> {
    if args.batch == Some(0) || args.repeats == 0 {
        return Err(Error::usage("--batch and --repeats must be at least 1"));
    }
    if let Some(name) = &args.model {
        return bench_model::run(args, name).map(|()| 0);
    }
    if let Some(file) = &args.budget {
        return bench_budget::run(file, args);
    }
    let batch = args.batch.unwrap_or(BATCH);
    let cfg = args.step.resolve(Some(batch))?;
    let objective: Arc<dyn Objective> = Arc::from(objective(&cfg)?.at_scale(args.scale)?);
    let device = Device::parse(&args.device)?;
    if let (Some(_), Device::Cuda(_)) = (args.target, device) {
        return Err(Error::usage(
            "--target is what the interpreter claims to be; a GPU is its own: leave it out",
        ));
    }
    let target = args.target.unwrap_or(TARGET);
    let options = DeviceOptions { cuda: args.cuda.clone(), interpreted: target, ..DeviceOptions::default() };
    let mut backend = device.open(args.dtype, &options)?;
    let device = backend.name();
    // Before the step takes its memory.
    let ceilings = backend.ceilings(args.repeats)?;
    let options = EngineOptions {
        micro_steps: 1,
        drop_path: cfg.encoder.drop_path,
        recompute: args.recompute || cfg.run.recompute,
        seed: cfg.data.seed,
    };
    let mut engine = Engine::new(backend, Arc::clone(&objective), options)?;
    engine.initialise()?;
    let inputs = objective.random_batch(0, cfg.data.seed);
    let measures = engine.measure(0, &inputs, &objective.point(1), args.repeats)?;
    let kernels = engine.kernels(0)?;
    let mut groups = grouped(&measures, &kernels, ceilings.as_ref(), args.dtype);
    if let Some(text) = &args.filter {
        groups.retain(|g| g.name().contains(text.as_str()));
    }
    if groups.is_empty() {
        return Err(args.nothing_left());
    }
    let mut figures = Figures::default();
    groups.iter().for_each(|g| g.figures(&mut figures));
    let timed = measures.iter().any(|m| m.seconds.is_some());
    if args.json {
        let rows: Vec<Value> = groups.iter().map(|g| g.record(timed)).collect();
        let target = format!("sm_{}{}", target.0, target.1);
        let mut record = json!({
            "device": device, "preset": args.step.preset, "batch": batch, "dtype": args.dtype.to_string(),
            "repeats": args.repeats,
        });
        match &ceilings {
            Some(ceilings) => record["ceilings"] = ceilings_record(ceilings),
            None => record["target"] = json!(target),
        }
        record["ops"] = json!(rows);
        println!("{record}");
        return figures.settle(&args.kept).map(|()| 0);
    }
    println!("{device}: {} ops of {} at batch {batch}", measures.len(), args.step.preset);
    print(&groups, args, ceilings.as_ref());
    figures.settle(&args.kept).map(|()| 0)
}

/// Ops of one kind and shape together, the heaviest first.
fn grouped(
    measures: &[OpMeasure],
    kernels: &[Vec<OpKernel>],
    ceilings: Option<&Ceilings>,
    dtype: DType,
) -> Vec<Group> {
    let mut groups: BTreeMap<(&str, String), Group> = BTreeMap::new();
    for (m, kernels) in measures.iter().zip(kernels) {
        let shape = match m.product {
            Some([rows, columns, depth]) => format!("{rows}x{columns}x{depth}"),
            None => m.shape.to_string(),
        };
        let floor = ceilings.map_or(0.0, |c| c.floor_seconds(m.flops, m.least_bytes, dtype));
        groups.entry((m.op, shape)).or_default().add(m, kernels, floor);
    }
    let named = |((op, shape), group): ((&str, String), Group)| Group { op: op.to_owned(), shape, ..group };
    let mut groups: Vec<Group> = groups.into_iter().map(named).collect();
    groups.sort_by(|a, b| b.weight().total_cmp(&a.weight()));
    groups
}

fn ceilings_record(c: &Ceilings) -> Value {
    let product = |p: &crate::backend::ProductCeiling| {
        json!({
            "dtype": p.dtype.to_string(), "size": p.size, "own_flops_per_s": p.own,
            "library_flops_per_s": p.library,
        })
    };
    let (version, missing) = match &c.library {
        Ok((major, minor)) => (Some(format!("{major}.{minor}")), None),
        Err(why) => (None, Some(why)),
    };
    json!({
        "bytes_per_s": c.bandwidth, "products": c.products.iter().map(product).collect::<Vec<_>>(),
        "cublaslt": version, "cublaslt_missing": missing,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::ProductCeiling;
    use crate::tensor::Shape;

    fn ceilings() -> Ceilings {
        let product = |dtype, own, library| ProductCeiling { dtype, size: 8192, own, library };
        let products = vec![product(DType::F32, 40e12, None), product(DType::Bf16, 600e12, Some(800e12))];
        Ceilings { bandwidth: 4e12, products, library: Ok((13, 0)) }
    }

    fn measure(op: &'static str, flops: u64, least_bytes: u64, library_seconds: Option<f64>) -> OpMeasure {
        OpMeasure {
            path: "encoder".into(),
            op,
            shape: Shape::from([8, 4]),
            product: library_seconds.map(|_| [8, 16, 4]),
            launches: 1,
            flops,
            least_bytes,
            seconds: Some(2e-6),
            library_seconds,
            counts: None,
        }
    }

    #[test]
    fn the_nearer_ceiling_counts() {
        let c = ceilings();
        // 800 MFLOP take a microsecond at the library's rate, 8 MB take two.
        assert_eq!(c.floor_seconds(800_000_000, 4_000, DType::Bf16), 1e-6);
        assert_eq!(c.floor_seconds(800_000_000, 8_000_000, DType::Bf16), 2e-6);
        assert_eq!(c.floor_seconds(80_000_000, 4_000, DType::F32), 2e-6);
        assert_eq!((c.compute(DType::Bf16), c.compute(DType::F64)), (Some(800e12), None));
    }

    #[test]
    fn groups_carry_rates_ratios_and_kernels_to_json() {
        let kernel = OpKernel {
            name: "gemm",
            registers: 128,
            spills: 0,
            shared: 65536,
            threads: 256,
            blocks: 4,
            resident_blocks: 2,
            occupancy: Some(0.25),
        };
        let product = || measure("linear", 800_000_000, 4_000, Some(1e-6));
        let measures = [product(), product(), measure("gelu", 0, 4_000_000, None)];
        let kernels = [vec![kernel.clone()], vec![kernel.clone()], vec![]];
        let c = ceilings();
        let groups = grouped(&measures, &kernels, Some(&c), DType::Bf16);
        assert_eq!(groups.len(), 2);
        let rows: Vec<Value> = groups.iter().map(|g| g.record(true)).collect();
        let want = json!({
            "op": "linear", "shape": "8x16x4", "ops": 2, "launches": 2, "flops": 1_600_000_000u64, "least_bytes": 8000,
            "seconds": 4e-6, "bytes_per_s": 2e9, "flops_per_s": 4e14, "floor_seconds": 2e-6, "of_ceiling": 0.5,
            "library_seconds": 2e-6, "library_ratio": 2.0,
            "kernels": [{
                "kernel": "gemm", "launches": 2, "registers": 128, "spill_bytes": 0, "shared_bytes": 65536,
                "threads": 256, "resident_blocks": 2, "occupancy": 0.25,
            }],
        });
        assert_eq!(rows[0], want);
        assert_eq!((&rows[1]["of_ceiling"], &rows[1]["library_ratio"]), (&json!(0.5), &Value::Null));
        let record = ceilings_record(&c);
        assert_eq!(record["bytes_per_s"], 4e12);
        assert_eq!((&record["cublaslt"], &record["cublaslt_missing"]), (&json!("13.0"), &Value::Null));
        assert_eq!(record["products"][1]["library_flops_per_s"], 800e12);
        let missing = Ceilings { library: Err("install it".into()), ..c };
        assert_eq!(ceilings_record(&missing)["cublaslt_missing"], "install it");
    }

    #[test]
    fn a_product_that_the_library_lacks_leaves_no_ratio() {
        for order in [[Some(1e-6), None], [None, Some(1e-6)]] {
            let mut group = Group::default();
            for library in order {
                group.add(&measure("linear", 8, 8, library), &[], 0.0);
            }
            assert_eq!(group.library_ratio(), None);
        }
    }
}
