//! Every class of fault: a deliberately broken kernel that is caught, and a correct sibling that passes.

mod common;

use common::*;
use ptx_vm::{Error, FaultKind, Memory, Module, OnFault, Options, launch};

/// Address of the thread's word in shared memory.
const MINE: &str = "mov.u32 %r20, sm; shl.b32 %r21, %t, 2; add.s32 %r22, %r20, %r21;\n";

#[test]
fn global_out_of_bounds_names_the_place() {
    let f = broken_and_fixed(
        FaultKind::OutOfBounds,
        40,
        "ld.global.u32 %r11, [%in+384];",
        "ld.global.u32 %r11, [%in+8];",
    );
    assert_eq!((f.kernel.as_str(), f.block, f.thread), ("k", [0; 3], [8, 0, 0]), "{f}");
    assert_eq!(f.instruction, "ld.global.u32 %r11, [%in+384];");
    let text = f.to_string();
    assert!(text.contains("behind the end of the allocation of 480 bytes"), "{text}");
    assert!(text.contains(&format!("PTX line {}", f.line)), "{text}");
}

#[test]
fn guard_gaps_null_and_freed_memory_are_out_of_bounds() {
    let null = fault("mov.u64 %l1, 0; ld.global.u32 %r11, [%l1];", 1);
    assert_eq!(null.kind, FaultKind::OutOfBounds);
    let module = Module::parse(&wrap(4, 1, "mov.u32 %r10, 0;")).unwrap();
    let mut m = Memory::default();
    let a = upload_u32(&mut m, &[1, 1, 1]);
    let out = m.allocate(4).unwrap();
    let run = |m: &mut Memory| {
        launch(&module, "k", [1; 3], [1; 3], 0, &Params::default().ptr(a).ptr(out).0, m, &Options::default())
    };
    run(&mut m).unwrap();
    m.free(a).unwrap();
    assert!(m.free(a).is_err());
    let Err(Error::Fault(f)) = run(&mut m) else { panic!("use after free") };
    assert_eq!(f.kind, FaultKind::OutOfBounds);
}

#[test]
fn shared_param_const_and_local_bounds() {
    broken_and_fixed(
        FaultKind::OutOfBounds,
        1,
        "mov.u32 %r20, sm; st.shared.u32 [%r20+4096], %r1;",
        "mov.u32 %r20, sm; st.shared.u32 [%r20+4092], %r1;",
    );
    broken_and_fixed(
        FaultKind::OutOfBounds,
        1,
        "ld.param.u32 %r11, [pout+8];",
        "ld.param.u32 %r11, [pout+4];",
    );
    broken_and_fixed(
        FaultKind::OutOfBounds,
        1,
        ".local .align 4 .b8 loc[16]; mov.u64 %l1, loc; st.local.u32 [%l1+16], %r1;",
        ".local .align 4 .b8 loc[16]; mov.u64 %l1, loc; st.local.u32 [%l1+12], %r1;",
    );
    // A constant load must stay inside constants.
    assert_eq!(fault("ld.const.u32 %r11, [%in];", 1).kind, FaultKind::OutOfBounds);
}

#[test]
fn misaligned_access() {
    let f = broken_and_fixed(
        FaultKind::Misaligned,
        1,
        "ld.global.v2.u32 {%r11, %r12}, [%in+4];",
        "ld.global.v2.u32 {%r11, %r12}, [%in];",
    );
    assert!(f.detail.contains("8-byte"), "{f}");
    broken_and_fixed(
        FaultKind::Misaligned,
        2,
        "mov.u32 %r20, sm; add.u32 %r20, %r20, %t; st.shared.u32 [%r20], %r1;",
        "mov.u32 %r20, sm; mad.lo.u32 %r20, %t, 4, %r20; st.shared.u32 [%r20], %r1;",
    );
}

#[test]
fn reads_of_what_nobody_wrote() {
    let f = broken_and_fixed(
        FaultKind::UninitialisedMemory,
        1,
        "ld.global.u32 %r11, [%out];",
        "st.global.u32 [%out], %r1; ld.global.u32 %r11, [%out];",
    );
    assert!(f.detail.contains("global"), "{f}");
    broken_and_fixed(
        FaultKind::UninitialisedMemory,
        1,
        "mov.u32 %r20, sm; st.shared.u16 [%r20], %h1; ld.shared.u32 %r11, [%r20];"
            .replace("%h1", "%t")
            .as_str(),
        "mov.u32 %r20, sm; st.shared.u16 [%r20], %t; st.shared.u16 [%r20+2], %t; ld.shared.u32 %r11, [%r20];",
    );
    broken_and_fixed(
        FaultKind::UninitialisedMemory,
        1,
        ".local .align 4 .b8 loc[16]; mov.u64 %l1, loc; st.local.u32 [%l1], %r1; ld.local.v2.u32 {%r11,%r12}, [%l1];",
        ".local .align 4 .b8 loc[16]; mov.u64 %l1, loc; st.local.v2.u32 [%l1], {%r1,%r2}; ld.local.v2.u32 {%r11,%r12}, [%l1];",
    );
    broken_and_fixed(
        FaultKind::UninitialisedRegister,
        4,
        "setp.gt.u32 %p1, %t, 1; @%p1 mov.u32 %r20, 1; add.u32 %r21, %r20, 1;",
        "setp.gt.u32 %p1, %t, 1; mov.u32 %r20, 2; @%p1 mov.u32 %r20, 1; add.u32 %r21, %r20, 1;",
    );
    broken_and_fixed(
        FaultKind::UninitialisedRegister,
        4,
        "@%p3 add.u32 %r21, %r1, 1;",
        "setp.eq.u32 %p3, %t, 0; @%p3 add.u32 %r21, %r1, 1;",
    );
    // A copy of a missing value is no fault until the copy is used.
    broken_and_fixed(
        FaultKind::UninitialisedRegister,
        1,
        "mov.u32 %r20, %r30; add.u32 %r21, %r20, 1;",
        "mov.u32 %r20, %r30;",
    );
}

#[test]
fn a_race_between_warps_needs_a_barrier() {
    let write_then_read = |between: &str| {
        format!(
            "{MINE} st.shared.u32 [%r22], %t;\n{between}\nxor.b32 %r23, %r21, 128; add.s32 %r23, %r20, %r23; ld.shared.u32 %r24, [%r23];"
        )
    };
    let f =
        broken_and_fixed(FaultKind::SharedRace, 64, &write_then_read(""), &write_then_read("bar.sync 0;"));
    assert!(f.detail.contains("wrote with no barrier between") || f.detail.contains("read with"), "{f}");
    // A fence or a barrier of the warp is not enough.
    assert_eq!(
        fault(&write_then_read("bar.warp.sync 0xffffffff; membar.cta;"), 64).kind,
        FaultKind::SharedRace
    );
}

#[test]
fn a_write_after_the_reads_of_other_warps_is_a_race() {
    let body = |between: &str| {
        format!(
            "{MINE} st.shared.u32 [%r22], %t; bar.sync 0; ld.shared.u32 %r24, [%r20];\n{between}\n\
             setp.eq.u32 %p1, %t, 127; @%p1 st.shared.u32 [%r20], %r24;"
        )
    };
    let f = broken_and_fixed(FaultKind::SharedRace, 128, &body(""), &body("bar.sync 0;"));
    assert_eq!(f.thread, [127, 0, 0], "{f}");
}

#[test]
fn neighbouring_bytes_of_a_word_do_not_race() {
    let bytes = |scale: &str| {
        format!(
            "mov.u32 %r20, sm; shr.u32 %r21, %t, 5; {scale} add.s32 %r22, %r20, %r21; setp.eq.u32 %p1, %r1, 1;\n\
                 and.b32 %r23, %t, 31; setp.eq.u32 %p1, %r23, 0; @%p1 st.shared.u8 [%r22], %t;"
        )
    };
    broken_and_fixed(FaultKind::SharedRace, 64, &bytes("mul.lo.u32 %r21, %r21, 0;"), &bytes(""));
}

#[test]
fn named_barriers_order_only_the_warps_that_meet() {
    // Warps 0 and 1 meet at barrier 1; warp 2 only at the end.
    let body = |reader: u32| {
        format!(
            "{MINE} setp.lt.u32 %p1, %t, 32; @%p1 st.shared.u32 [%r22], %t;\n\
             setp.lt.u32 %p2, %t, 64; @!%p2 bra $skip; bar.sync 1, 64; $skip:\n\
             shr.u32 %r25, %t, 5; setp.eq.u32 %p3, %r25, {reader}; @%p3 ld.shared.u32 %r24, [%r20+4];"
        )
    };
    broken_and_fixed(FaultKind::SharedRace, 96, &body(2), &body(1));
    // Arrive-sync: the producer arrives, the consumer waits; the other way round it is a race.
    let pair = |first: &str, second: &str| {
        format!(
            "{MINE} setp.lt.u32 %p1, %t, 32; @%p1 bra $w; {second} ld.shared.u32 %r24, [%r20]; bra $e;\n\
                 $w: st.shared.u32 [%r22], %t; {first} $e:"
        )
    };
    broken_and_fixed(
        FaultKind::SharedRace,
        64,
        &pair("bar.sync 2, 64;", "bar.arrive 2, 64;")
            .replace("bar.arrive 2, 64; ld", "bar.arrive 2, 64; nanosleep 10; ld"),
        &pair("bar.arrive 2, 64;", "bar.sync 2, 64;"),
    );
}

#[test]
fn lanes_of_a_warp_race_only_in_strict_mode() {
    let body = |between: &str| {
        format!(
            "{MINE} st.shared.u32 [%r22], %t; {between} xor.b32 %r23, %r21, 4; add.s32 %r23, %r20, %r23; ld.shared.u32 %r24, [%r23];"
        )
    };
    let strict = Options { strict_warp: true, ..Options::default() };
    outcome(&body(""), 32, &Options::default()).unwrap();
    let Err(Error::Fault(f)) = outcome(&body(""), 32, &strict) else { panic!("strict mode finds the race") };
    assert_eq!(f.kind, FaultKind::SharedRace);
    outcome(&body("bar.warp.sync 0xffffffff;"), 32, &strict).unwrap();
}

#[test]
fn atomics_do_not_race_with_each_other_but_with_plain_accesses() {
    let body = |last: &str| {
        format!(
            "mov.u32 %r20, sm; setp.eq.u32 %p1, %t, 0; mov.u32 %r21, 0; @%p1 st.shared.u32 [%r20], %r21; bar.sync 0;\n\
                 atom.shared.add.u32 %r22, [%r20], 1; {last} ld.shared.u32 %r23, [%r20];"
        )
    };
    broken_and_fixed(FaultKind::SharedRace, 64, &body(""), &body("bar.sync 0;"));
}

#[test]
fn barriers_that_not_all_reach() {
    let guard = |id: &str| format!("setp.lt.u32 %p1, %t, 32; {id}");
    // Half a warp.
    let f = broken_and_fixed(
        FaultKind::BarrierDivergence,
        64,
        "setp.lt.u32 %p1, %t, 40; @!%p1 bra $e; bar.sync 0; $e:",
        "setp.lt.u32 %p1, %t, 40; @!%p1 bra $e; $e: bar.sync 0;",
    );
    assert!(f.detail.contains("lanes"), "{f}");
    // Exited warp.
    let f = broken_and_fixed(
        FaultKind::BarrierDivergence,
        64,
        &guard("@!%p1 exit; bar.sync 0;"),
        &guard("bar.sync 0; @!%p1 exit;"),
    );
    assert!(f.detail.contains("exited: 1"), "{f}");
    // Warps at different barriers.
    let f = broken_and_fixed(
        FaultKind::BarrierDivergence,
        64,
        &guard("@%p1 bra $a; bar.sync 1; bra $e; $a: bar.sync 2; $e:"),
        &guard("@%p1 bra $a; bar.sync 1; bra $e; $a: bar.sync 1; $e:"),
    );
    assert!(f.detail.contains("at other barriers: 1"), "{f}");
    // Exited lanes of the same warp.
    let f = fault("setp.eq.u32 %p1, %t, 3; @%p1 exit; bar.sync 0;", 32);
    assert!(f.kind == FaultKind::BarrierDivergence && f.detail.contains("exited: 0x00000008"), "{f}");
}

#[test]
fn warp_wide_operations_with_absent_lanes() {
    let split = |mask: &str| {
        format!("setp.lt.u32 %p1, %t, 16; @!%p1 bra $e; shfl.sync.bfly.b32 %r20, %r1, 1, 31, {mask}; $e:")
    };
    broken_and_fixed(FaultKind::WarpDivergence, 32, &split("0xffffffff"), &split("0xffff"));
    let vote = |mask: &str| {
        format!("setp.lt.u32 %p1, %t, 16; @!%p1 bra $e; vote.sync.ballot.b32 %r20, %p1, {mask}; $e:")
    };
    broken_and_fixed(FaultKind::WarpDivergence, 32, &vote("-1"), &vote("65535"));
    // The lane itself must be named.
    assert_eq!(fault("bar.warp.sync 0x7fffffff;", 32).kind, FaultKind::WarpDivergence);
}

#[test]
fn asynchronous_copies_are_waited_for() {
    let copy = "mov.u32 %r20, sm; shl.b32 %r21, %t, 4; add.s32 %r22, %r20, %r21; sub.s64 %x, %in, 0;\n\
                mul.wide.u32 %x, %t, 12; sub.s64 %x, %in, %x; cp.async.cg.shared.global [%r22], [%x], 16;\n";
    let body = |wait: &str| {
        format!("{copy} cp.async.commit_group; {wait} ld.shared.u32 %r24, [%r22]; cp.async.wait_all;")
    };
    broken_and_fixed(
        FaultKind::AsyncNotWaited,
        32,
        &body("cp.async.wait_group 1;"),
        &body("cp.async.wait_group 0;"),
    );
    // Another thread's copy also needs the barrier.
    let other = |sync: &str| {
        format!(
            "{copy} cp.async.wait_all; {sync} xor.b32 %r23, %r21, 512; add.s32 %r23, %r20, %r23; ld.shared.u32 %r24, [%r23];"
        )
    };
    broken_and_fixed(FaultKind::SharedRace, 64, &other(""), &other("bar.sync 0;"));
    let leak = |wait: &str| format!("{copy} cp.async.commit_group; {wait}");
    let f = broken_and_fixed(FaultKind::AsyncLeaked, 32, &leak(""), &leak("cp.async.wait_group 0;"));
    assert!(f.detail.contains("issued at PTX line"), "{f}");
}

#[test]
fn ldmatrix_rows_are_sixteen_byte_aligned() {
    let body = |scale: u32| {
        format!(
            "mov.u32 %r20, sm; mad.lo.u32 %r21, %t, 32, %r20; st.shared.v4.u32 [%r21], {{%t,%t,%t,%t}};\n\
             st.shared.v4.u32 [%r21+16], {{%t,%t,%t,%t}}; mad.lo.u32 %r21, %t, {scale}, %r20;\n\
             ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%r22}}, [%r21];"
        )
    };
    broken_and_fixed(FaultKind::Misaligned, 32, &body(24), &body(16));
    assert_eq!(fault(&body(16), 16).kind, FaultKind::WarpDivergence);
}

#[test]
fn endless_loops_traps_and_read_only_memory() {
    let options = Options { instruction_limit: 10_000, ..Options::default() };
    let Err(Error::Fault(f)) = outcome("$again: bra $again;", 1, &options) else { panic!("endless loop") };
    assert_eq!(f.kind, FaultKind::Runaway);
    broken_and_fixed(FaultKind::Trap, 1, "trap;", "setp.ne.u32 %p1, %r1, 1; @%p1 trap;");
    assert_eq!(
        fault("mov.b64 %l1, pin; cvta.param.u64 %l1, %l1; st.u32 [%l1], %r1;", 1).kind,
        FaultKind::ReadOnly
    );
    broken_and_fixed(FaultKind::BadOperand, 32, "bar.sync 16;", "bar.sync 15;");
}

#[test]
fn collecting_goes_on_after_a_fault() {
    let collect = Options { on_fault: OnFault::Collect(10), ..Options::default() };
    let body = "ld.global.u32 %r11, [%out]; ld.global.u32 %r12, [%in+2]; add.u32 %r13, %r1, %r31;";
    let report = outcome(body, 1, &collect).unwrap();
    let kinds: Vec<FaultKind> = report.faults.iter().map(|f| f.kind).collect();
    assert_eq!(
        kinds,
        [FaultKind::UninitialisedMemory, FaultKind::Misaligned, FaultKind::UninitialisedRegister]
    );
    // Switched off, the checks are silent.
    let off = Options { check_uninitialised: false, check_registers: false, ..collect };
    assert_eq!(outcome(body, 1, &off).unwrap().faults.len(), 1);
}

#[test]
fn the_fault_of_the_lowest_block_is_reported() {
    let body = "mov.u32 %r20, %ctaid.x; setp.gt.u32 %p1, %r20, 4; @%p1 trap; mov.u32 %r10, 0;";
    let module = Module::parse(&wrap(4, 1, body)).unwrap();
    let mut m = Memory::default();
    let a = upload_u32(&mut m, &[1; 3]);
    let out = m.allocate(4).unwrap();
    for _ in 0..20 {
        let p = Params::default().ptr(a).ptr(out);
        let Err(Error::Fault(f)) =
            launch(&module, "k", [64, 1, 1], [1; 3], 0, &p.0, &mut m, &Options::default())
        else {
            panic!("trap")
        };
        assert_eq!(f.block, [5, 0, 0]);
    }
}

#[test]
fn launches_that_the_driver_would_refuse() {
    let module = Module::parse(KERNELS).unwrap();
    let mut m = Memory::default();
    let mut run = |name: &str, block: u32, shared: u32, bytes: usize| {
        launch(&module, name, [1; 3], [block, 1, 1], shared, &vec![0; bytes], &mut m, &Options::default())
            .unwrap_err()
            .to_string()
    };
    assert!(run("nothing", 1, 0, 0).contains("no kernel `nothing`"));
    assert!(run("vector_add", 2048, 0, 28).contains("1 to 1024"));
    assert!(run("vector_add", 32, 0, 27).contains("27 bytes of parameters"));
    assert!(run("gemm_bf16", 256, 0, 36).contains("at most [128, 1, 1]"));
    assert!(run("block_sum", 32, 1 << 20, 20).contains("shared memory"));
}

#[test]
fn calls_without_end_are_caught() {
    // Counts down to zero by calling itself; without the test it never returns.
    let text = |test: &str| {
        format!(
            ".version 9.0\n.target sm_90a\n.address_size 64\n.func down(.param .b32 n)\n{{\n.reg .pred %p<2>;\n\
             .reg .b32 %r<3>;\nld.param.b32 %r1, [n];\nsetp.eq.u32 %p1, %r1, 0;\n{test}\nsub.u32 %r2, %r1, 1;\n{{\n\
             .param .b32 n1;\nst.param.b32 [n1], %r2;\ncall.uni down, (n1);\n}}\nret;\n}}\n\
             .visible .entry k()\n{{\n{{\n.param .b32 n1;\nst.param.b32 [n1], 20;\ncall.uni down, (n1);\n}}\nret;\n}}\n"
        )
    };
    let run = |test: &str| {
        let module = Module::parse(&text(test)).unwrap_or_else(|e| panic!("{e}"));
        launch(&module, "k", [1; 3], [32, 1, 1], 0, &[], &mut Memory::default(), &Options::default())
    };
    run("@%p1 ret;").unwrap_or_else(|e| panic!("{e}"));
    let Err(Error::Fault(f)) = run("") else { panic!("endless calls") };
    assert_eq!(f.kind, FaultKind::StackOverflow, "{f}");
}
