//! Samples of a grid, and the cycles of blocks, worked out by hand.

mod common;

use common::*;
use ptx_vm::{Latencies, Memory, Module, Options, Report, launch};

const LATENCIES: Latencies = Latencies {
    arithmetic: 4,
    special: 20,
    exchange: 30,
    shared: 50,
    global: 1000,
    product: 60,
    barrier: 10,
};

/// A kernel `k(in, out)` around a body, with `%in` and `%out` in registers and the thread in `%t`.
fn kernel(body: &str) -> String {
    format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 pin, .param .u64 pout)\n{{\n\
         .reg .pred %p<4>;\n.reg .b32 %r<40>;\n.reg .f32 %f<40>;\n.reg .b64 %l<20>;\n.reg .b32 %t;\n.reg .b64 %in, %out;\n\
         .shared .align 16 .b8 sm[1024];\nmov.u32 %t, %tid.x;\nld.param.u64 %in, [pin];\nld.param.u64 %out, [pout];\n\
         {body}\nret;\n}}\n"
    )
}

fn run(body: &str, grid: u32, threads: u32, options: &Options) -> (Report, Vec<u32>) {
    let module = Module::parse(&kernel(body)).unwrap_or_else(|e| panic!("{e}"));
    let mut m = Memory::default();
    let input = upload_u32(&mut m, &[0; 256]);
    let out = m.allocate(1024).unwrap();
    m.write(out, &[0; 1024]).unwrap();
    let params = Params::default().ptr(input).ptr(out).0;
    let report = launch(&module, "k", [grid, 1, 1], [threads, 1, 1], 0, &params, &mut m, options).unwrap();
    (report, read_u32(&m, out, 256))
}

fn cycles(body: &str, threads: u32) -> u64 {
    let options = Options { latencies: Some(LATENCIES), ..Options::default() };
    run(body, 1, threads, &options).0.counts.cycles
}

/// Loads a word at byte `at` into `%r{i}`, and stores what `%r{i}` holds.
fn load(i: u32, at: u32) -> String {
    format!("ld.global.u32 %r{i}, [%in+{at}];\n")
}

fn store(i: u32) -> String {
    format!("st.global.u32 [%out+{}], %r{i};\n", 4 * i)
}

#[test]
fn loads_wait_for_what_they_depend_on_and_for_nothing_else() {
    let one = cycles(&(load(0, 0) + &store(0)), 32);
    // Parameters are there after 4 cycles, the word 1,000 later.
    assert_eq!(one, 4 + 1000);
    // A second one beside the first costs nothing: both wait for the last store.
    let two = load(0, 0) + &load(1, 512) + &store(0) + &store(1);
    assert_eq!(cycles(&two, 32), one);
    // One whose address is the first one's value waits for it, and 4 cycles each for a conversion and an addition.
    let chain = load(0, 0)
        + "cvt.u64.u32 %l0, %r0;\nadd.u64 %l0, %in, %l0;\nld.global.u32 %r1, [%l0+512];\n"
        + &store(1);
    assert_eq!(cycles(&chain, 32), one + 4 + 4 + 1000);
    // What the block has read before is near.
    let again = chain.replace("+512", "+0");
    assert_eq!(cycles(&again, 32), one + 4 + 4 + 50);
}

#[test]
fn a_branch_ahead_orders_and_four_turns_of_a_loop_are_one() {
    let branch = "setp.eq.u32 %p0, %r0, 7;\n@%p0 bra AHEAD;\nAHEAD:\n";
    let body = load(0, 0) + branch + &load(1, 512) + &store(1);
    // The comparison waits for the first load, the second load for the branch; each orders one slot later at most.
    let took = cycles(&body, 32);
    assert!((2008..2020).contains(&took), "{took}");
    let turns = |n: u32| {
        format!(
            "mov.u32 %r2, 0;\nmov.u32 %r3, 0;\nmov.b64 %l1, %in;\nTURN:\nld.global.u32 %r1, [%l1];\nadd.u32 %r3, %r3, %r1;\n\
             add.u64 %l1, %l1, 32;\nadd.u32 %r2, %r2, 1;\nsetp.lt.u32 %p0, %r2, {n};\n@%p0 bra TURN;\n{}",
            store(3)
        )
    };
    let (four, eight) = (cycles(&turns(4), 32), cycles(&turns(8), 32));
    assert!((1000..1100).contains(&four), "{four}");
    assert!((2000..2200).contains(&eight), "{eight}");
}

#[test]
fn a_barrier_waits_for_the_slowest_warp() {
    // Warp 1 loads before the barrier, warp 0 does not; both run an instruction after it.
    let body = |loads: &str| {
        format!(
            "setp.lt.u32 %p0, %t, 32;\n@%p0 bra MEET;\n{loads}MEET:\nbar.sync 0;\nadd.u32 %r5, %t, 1;\n{}",
            store(5)
        )
    };
    let without = cycles(&body(""), 64);
    let wait = load(0, 0) + "add.u32 %r1, %r0, 1;\n" + &store(1);
    let with = cycles(&body(&wait), 64);
    assert!(without < 50 && (1000..1080).contains(&with), "{without} {with}");
}

#[test]
fn a_sample_runs_the_middle_of_each_part_of_the_grid() {
    let body = "mov.u32 %r0, %ctaid.x;\nmul.wide.u32 %l0, %r0, 4;\nadd.u64 %l0, %out, %l0;\nadd.u32 %r1, %r0, 1;\n\
                st.global.u32 [%l0], %r1;\n";
    let all = run(body, 10, 1, &Options::default());
    assert_eq!((all.0.blocks, all.0.ran, &all.1[..3], all.1[9]), (10, 10, &[1, 2, 3][..], 10));
    let (report, out) = run(body, 10, 1, &Options { sample: 2, ..Options::default() });
    assert_eq!((report.blocks, report.ran), (10, 2));
    let written: Vec<u32> = out.into_iter().filter(|x| *x > 0).collect();
    assert_eq!(written, [3, 8]);
    assert_eq!(report.counts.total() * 5, all.0.counts.total());
    // More than there are: all of them.
    assert_eq!(run(body, 10, 1, &Options { sample: 99, ..Options::default() }).0.ran, 10);
}

#[test]
fn products_that_are_not_computed_are_counted() {
    let body = "mov.f32 %f0, 0f00000000;\nmov.f32 %f1, %f0;\nmov.f32 %f2, %f0;\nmov.f32 %f3, %f0;\nmov.u32 %r0, 1065369472;\n\
                mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f0, %f1, %f2, %f3}, {%r0, %r0, %r0, %r0}, \
                {%r0, %r0}, {%f0, %f1, %f2, %f3};\nmov.b32 %r1, %f0;\nst.global.u32 [%out], %r1;\n";
    let (with, out) = run(body, 1, 32, &Options::default());
    let (without, left) = run(body, 1, 32, &Options { products: false, ..Options::default() });
    assert_eq!(out[0], 16f32.to_bits());
    assert_eq!(left[0], 0);
    assert_eq!((with.counts.mma_flops, with.counts), (2 * 16 * 8 * 16, without.counts));
}
