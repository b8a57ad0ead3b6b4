//! The tables of `saip-engine bench ops`: times beside ceilings and cuBLASLt, or the interpreter's counts; kernels.

use super::bench_ops_groups::{BenchOpsArgs, Group, TARGET, count_kernel};
use crate::backend::{Ceilings, OpKernel};
use crate::report::table::table;
use crate::units::human_bytes;

/// `value` with `decimals`, or nothing.
fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or(String::new(), |v| format!("{v:.decimals$}"))
}

/// A part of a whole, or nothing.
fn percent(part: Option<f64>) -> String {
    part.map_or(String::new(), |p| format!("{:.0} %", 100.0 * p))
}

/// Prints all of it; `groups` are the heaviest first.
pub(super) fn print(groups: &[Group], args: &BenchOpsArgs, ceilings: Option<&Ceilings>) {
    let shown = if args.rows == 0 { groups.len() } else { args.rows };
    if let Some(ceilings) = ceilings {
        print_ceilings(ceilings);
        println!("\n{}", times(groups, shown));
        print_total(groups);
        println!(
            "\nProducts; cuBLASLt's are bare, without bias and what follows.\n{}",
            products(groups, shown)
        );
    } else {
        println!("\n{}", memory(groups, shown));
        println!("\nMatrix instructions against what the op needs.\n{}", arithmetic(groups, shown));
        let (major, minor) = args.target.unwrap_or(TARGET);
        println!("\nWhat follows is the compiler's, for sm_{major}{minor}.");
    }
    println!(
        "\nKernels; resident: blocks that a multiprocessor holds at a time.\n{}",
        kernels(groups, shown)
    );
}

fn print_ceilings(c: &Ceilings) {
    println!("copy within the memory: {:.0} GB/s read and written", c.bandwidth * 1e-9);
    for p in &c.products {
        let library = p.library.map_or(String::new(), |rate| {
            format!(", {:.1} by cuBLASLt (ratio {:.2})", rate * 1e-12, rate / p.own)
        });
        println!(
            "{} x {0} x {0} in {}: {:.1} TFLOP/s by our kernel{library}",
            p.size,
            p.dtype,
            p.own * 1e-12
        );
    }
    match &c.library {
        Ok((major, minor)) => println!("cuBLASLt {major}.{minor}"),
        Err(why) => println!("no cuBLASLt: {why}"),
    }
}

/// The first columns of every table of groups.
fn head(g: &Group) -> Vec<String> {
    vec![g.op.clone(), g.shape.clone(), g.ops.to_string()]
}

fn share(g: &Group, all: f64) -> String {
    format!("{:.1} %", 100.0 * g.weight() / all.max(f64::MIN_POSITIVE))
}

fn times(groups: &[Group], shown: usize) -> String {
    let all: f64 = groups.iter().map(Group::weight).sum();
    let row = |g: &Group| {
        let mut row = head(g);
        row.push(format!("{:.1}", g.seconds * 1e6));
        row.push(share(g, all));
        row.push(format!("{:.0}", g.least_bytes as f64 / g.seconds * 1e-9));
        row.push(format!("{:.1}", g.flops as f64 / g.seconds * 1e-12));
        row.push(percent(g.of_ceiling()));
        row
    };
    let headers = ["op", "shape", "ops", "us", "share", "GB/s", "TFLOP/s", "of ceiling"];
    table(&headers, &groups.iter().take(shown).map(row).collect::<Vec<_>>())
}

fn print_total(groups: &[Group]) {
    let seconds: f64 = groups.iter().map(|g| g.seconds).sum();
    let floor: f64 = groups.iter().map(|g| g.floor_seconds).sum();
    let flops: u64 = groups.iter().map(|g| g.flops).sum();
    println!(
        "all ops: {:.2} ms, {:.1} TFLOP/s, {:.0} % of the ceilings",
        seconds * 1e3,
        flops as f64 / seconds * 1e-12,
        100.0 * floor / seconds
    );
}

fn products(groups: &[Group], shown: usize) -> String {
    let row = |g: &Group| {
        let mut row = head(g);
        let rate = |seconds: f64| g.flops as f64 / seconds * 1e-12;
        row.push(format!("{:.1}", g.seconds * 1e6));
        row.push(number(g.library_seconds.map(|s| s * 1e6), 1));
        row.push(number(g.library_ratio(), 2));
        row.push(format!("{:.1}", rate(g.seconds)));
        row.push(number(g.library_seconds.map(rate), 1));
        row
    };
    let headers = ["op", "m x n x k", "ops", "us", "cuBLASLt", "ratio", "TFLOP/s", "cuBLASLt"];
    let products = groups.iter().filter(|g| g.library_seconds.is_some()).take(shown);
    table(&headers, &products.map(row).collect::<Vec<_>>())
}

fn memory(groups: &[Group], shown: usize) -> String {
    let all: f64 = groups.iter().map(Group::weight).sum();
    let row = |g: &Group| {
        let (mut row, c) = (head(g), &g.counts);
        row.push(share(g, all));
        row.push(human_bytes(c.global_bytes));
        row.push(format!("{:.2}", c.global_bytes as f64 / g.least_bytes.max(1) as f64));
        row.push(format!("{:.2}", c.sectors[0] as f64 / c.sectors[1].max(1) as f64));
        row.push(c.bank_conflicts.to_string());
        row
    };
    let headers = ["op", "shape", "ops", "share", "bytes", "x least", "sectors", "conflicts"];
    table(&headers, &groups.iter().take(shown).map(row).collect::<Vec<_>>())
}

fn arithmetic(groups: &[Group], shown: usize) -> String {
    let row = |g: &Group| {
        let mut row = head(g);
        row.push(format!("{:.2}", g.counts.lane_instructions as f64 * 1e-6));
        row.push(format!("{:.3}", g.flops as f64 * 1e-9));
        // Without matrix instructions the operations cannot be told from addresses and the like.
        let done = (g.counts.matrix_flops > 0).then_some(g.counts.matrix_flops as f64);
        row.push(number(done.map(|d| d * 1e-9), 3));
        row.push(number(done.map(|d| d / g.flops.max(1) as f64), 2));
        row
    };
    let headers = ["op", "shape", "ops", "M lane instr.", "GFLOP needed", "done", "x needed"];
    let products = groups.iter().filter(|g| g.flops > 0).take(shown);
    table(&headers, &products.map(row).collect::<Vec<_>>())
}

fn kernels(groups: &[Group], shown: usize) -> String {
    let mut list: Vec<(OpKernel, usize)> = Vec::new();
    for (kernel, launches) in groups.iter().flat_map(|g| &g.kernels) {
        count_kernel(&mut list, kernel, *launches);
    }
    let row = |(k, launches): &(OpKernel, usize)| {
        vec![
            k.name.to_owned(),
            launches.to_string(),
            k.threads.to_string(),
            k.registers.to_string(),
            human_bytes(k.spills.into()),
            human_bytes(k.shared.into()),
            k.resident_blocks.to_string(),
            percent(k.occupancy),
        ]
    };
    let headers = ["kernel", "launches", "threads", "registers", "spilt", "shared", "resident", "occupancy"];
    table(&headers, &list.iter().take(shown).map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::OpCounts;
    use crate::ir::OpKind;

    /// Every op with figures as long as they get.
    fn groups() -> Vec<Group> {
        let kernel = OpKernel {
            name: "prototype_cross_entropy_backward",
            registers: 255,
            spills: 1200,
            shared: 232_448,
            threads: 1024,
            blocks: 1 << 20,
            resident_blocks: 32,
            occupancy: Some(1.0),
        };
        let counts = OpCounts {
            global_bytes: 1023 << 30,
            sectors: [3 << 40, 1 << 40],
            bank_conflicts: 123_456_789,
            lane_instructions: 1_234_567_890_123,
            matrix_flops: 1_234_567_890_123,
        };
        let group = |kind: &OpKind| Group {
            op: kind.name().to_owned(),
            shape: "262144x1536x65536".to_owned(),
            ops: 128,
            launches: 256,
            flops: 1_234_567_890_123,
            least_bytes: 1023 << 30,
            seconds: 0.123_456_789,
            floor_seconds: 0.1,
            library_seconds: Some(0.123_456_788),
            counts,
            kernels: vec![(kernel.clone(), 1024)],
        };
        OpKind::ALL.iter().map(group).collect()
    }

    #[test]
    fn tables_fit_120_columns() {
        let groups = groups();
        let tables = [
            times(&groups, usize::MAX),
            products(&groups, usize::MAX),
            memory(&groups, usize::MAX),
            arithmetic(&groups, usize::MAX),
            kernels(&groups, usize::MAX),
        ];
        for table in tables {
            assert!(table.lines().count() > 2, "{table}");
            let longest = table.lines().map(|l| l.chars().count()).max();
            assert!(longest <= Some(120), "{longest:?}\n{table}");
        }
    }

    #[test]
    fn products_without_a_peer_are_left_out_and_rows_are_limited() {
        let mut groups = groups();
        groups.truncate(3);
        groups[1].library_seconds = None;
        assert_eq!(products(&groups, usize::MAX).lines().count(), 4);
        assert_eq!(times(&groups, 2).lines().count(), 4);
        // One compiled form of a kernel stands once, with all its launches.
        let text = kernels(&groups, usize::MAX);
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.contains("| 3072 |") || text.contains(" 3072 "), "{text}");
    }
}
