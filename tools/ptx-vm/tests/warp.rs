//! Exchanges inside a warp, divergence, barriers with reductions, atomics, matrix instructions.

mod common;

use common::*;
use ptx_vm::{Memory, Module, Options, launch};

/// Runs a body with one word of output per thread on any grid and block.
fn run_grid(body: &str, grid: [u32; 3], block: [u32; 3]) -> Vec<u32> {
    let text = format!(
        ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 pout)\n{{\n.reg .pred %p<10>;\n\
         .reg .b32 %r<60>;\n.reg .b64 %l<10>;\n.reg .f32 %f<20>;\n.shared .align 128 .b8 sm[8192];\n\
         ld.param.u64 %l1, [pout];\n\
         mov.u32 %r1, %tid.x; mov.u32 %r2, %tid.y; mov.u32 %r3, %tid.z; mov.u32 %r4, %ntid.x; mov.u32 %r5, %ntid.y;\n\
         mad.lo.u32 %r6, %r3, %r5, %r2; mad.lo.u32 %r6, %r6, %r4, %r1;\n\
         mov.u32 %r7, %ctaid.x; mov.u32 %r8, %ctaid.y; mov.u32 %r9, %nctaid.x; mad.lo.u32 %r8, %r8, %r9, %r7;\n\
         mov.u32 %r9, %ntid.z; mul.lo.u32 %r9, %r9, %r5; mul.lo.u32 %r9, %r9, %r4; mad.lo.u32 %r8, %r8, %r9, %r6;\n\
         mul.wide.u32 %l2, %r8, 4; add.s64 %l2, %l1, %l2;\n{body}\nst.global.u32 [%l2], %r10;\nret;\n}}\n"
    );
    let module = Module::parse(&text).unwrap_or_else(|e| panic!("{e}"));
    let mut m = Memory::default();
    let n = grid.iter().product::<u32>() * block.iter().product::<u32>();
    let out = m.allocate(u64::from(n) * 4).unwrap();
    let options = Options { strict_warp: true, ..Options::default() };
    launch(&module, "k", grid, block, 0, &Params::default().ptr(out).0, &mut m, &options)
        .unwrap_or_else(|e| panic!("{e}"));
    read_u32(&m, out, n as usize)
}

fn run_warp(body: &str) -> Vec<u32> {
    run_grid(body, [1; 3], [32, 1, 1])
}

#[test]
fn thread_and_block_indices_in_three_dimensions() {
    let got = run_grid("mov.u32 %r10, %r8;", [3, 2, 1], [5, 3, 4]);
    assert_eq!(got, (0..360).collect::<Vec<u32>>());
    let got = run_grid(
        "mov.u32 %r10, %laneid; mov.u32 %r11, %warpid; mad.lo.u32 %r10, %r11, 100, %r10;",
        [1; 3],
        [7, 5, 2],
    );
    assert_eq!(got, (0..70u32).map(|t| t / 32 * 100 + t % 32).collect::<Vec<_>>());
    let got = run_warp("mov.u32 %r10, %lanemask_lt; mov.u32 %r11, %lanemask_ge; xor.b32 %r10, %r10, %r11;");
    assert_eq!(got, [u32::MAX; 32]);
}

#[test]
fn shuffles_in_all_modes() {
    let value = "mul.lo.u32 %r20, %r1, 10; add.u32 %r20, %r20, 3;";
    let shfl = |op: &str| {
        run_warp(&format!(
            "{value} shfl.sync.{op}, 0xffffffff; selp.u32 %r12, 1000, 0, %p1; add.u32 %r10, %r11, %r12;"
        ))
    };
    let want = |from: &dyn Fn(i32) -> Option<i32>| -> Vec<u32> {
        (0..32).map(|l| from(l).map_or(l * 10 + 3, |f| f * 10 + 1003) as u32).collect()
    };
    assert_eq!(shfl("bfly.b32 %r11|%p1, %r20, 5, 0x1f"), want(&|l| Some(l ^ 5)));
    assert_eq!(shfl("up.b32 %r11|%p1, %r20, 3, 0"), want(&|l| (l >= 3).then_some(l - 3)));
    assert_eq!(shfl("down.b32 %r11|%p1, %r20, 4, 0x1f"), want(&|l| (l + 4 < 32).then_some(l + 4)));
    // Segments of 8: the mask in bits 8..13 of c.
    assert_eq!(shfl("down.b32 %r11|%p1, %r20, 2, 0x181f"), want(&|l| (l % 8 + 2 < 8).then_some(l + 2)));
    assert_eq!(shfl("up.b32 %r11|%p1, %r20, 1, 0x1800"), want(&|l| (l % 8 >= 1).then_some(l - 1)));
    assert_eq!(shfl("idx.b32 %r11|%p1, %r20, 3, 0x181f"), want(&|l| Some(l / 8 * 8 + 3)));
}

#[test]
fn votes_matches_and_reductions() {
    let odd = "and.b32 %r20, %r1, 1; setp.eq.u32 %p1, %r20, 1;";
    assert_eq!(run_warp(&format!("{odd} vote.sync.ballot.b32 %r10, %p1, -1;")), [0xaaaa_aaaa; 32]);
    assert_eq!(
        run_warp(&format!("{odd} vote.sync.any.pred %p2, %p1, -1; selp.u32 %r10, 1, 0, %p2;")),
        [1; 32]
    );
    assert_eq!(
        run_warp(&format!("{odd} vote.sync.all.pred %p2, %p1, -1; selp.u32 %r10, 1, 0, %p2;")),
        [0; 32]
    );
    assert_eq!(
        run_warp(&format!("{odd} vote.sync.uni.pred %p2, %p1, -1; selp.u32 %r10, 1, 0, %p2;")),
        [0; 32]
    );
    let thirds: Vec<u32> =
        (0..32u32).map(|l| (0..32).filter(|k| k % 3 == l % 3).fold(0, |m, k| m | 1 << k)).collect();
    assert_eq!(run_warp("rem.u32 %r20, %r1, 3; match.any.sync.b32 %r10, %r20, -1;"), thirds);
    assert_eq!(run_warp("redux.sync.add.u32 %r10, %r1, -1;"), [496; 32]);
    assert_eq!(run_warp("sub.s32 %r20, %r1, 9; redux.sync.min.s32 %r10, %r20, -1;"), [-9i32 as u32; 32]);
    // Two halves with masks of their own, converged.
    let halves = "setp.lt.u32 %p1, %r1, 16; selp.b32 %r21, 0xffff, 0xffff0000, %p1; redux.sync.add.u32 %r10, %r1, %r21;";
    let want: Vec<u32> = (0..32).map(|l| if l < 16 { 120 } else { 376 }).collect();
    assert_eq!(run_warp(halves), want);
    let elected = "elect.sync %r20|%p1, -1; mov.u32 %r10, %r20; @%p1 mov.u32 %r10, 77;";
    assert_eq!(run_warp(elected), (0..32).map(|l| if l == 0 { 77 } else { 0 }).collect::<Vec<u32>>());
    assert_eq!(
        run_warp("mov.u32 %r10, 0; setp.lt.u32 %p1, %r1, 5; @!%p1 bra $e; activemask.b32 %r10; $e:")[4],
        31
    );
}

#[test]
fn nested_branches_and_divergent_loops_meet_again() {
    // Thread t runs t % 5 rounds; odd rounds split once more. The ballot at the end shows that all lanes met.
    let body = "rem.u32 %r20, %r6, 5; mov.u32 %r21, 0; mov.u32 %r10, 0;\n\
        $loop: setp.ge.u32 %p1, %r21, %r20; @%p1 bra $done;\n\
        and.b32 %r22, %r21, 1; setp.eq.u32 %p2, %r22, 0; @%p2 bra $even;\n\
        setp.gt.u32 %p3, %r6, 16; @%p3 bra $big; add.u32 %r10, %r10, 100; bra $next;\n\
        $big: add.u32 %r10, %r10, 1000; bra $next;\n\
        $even: add.u32 %r10, %r10, 1;\n\
        $next: add.u32 %r21, %r21, 1; bra $loop;\n\
        $done: vote.sync.ballot.b32 %r23, %p1, -1; popc.b32 %r23, %r23; mad.lo.u32 %r10, %r23, 100000, %r10;";
    for block in [[32, 1, 1], [64, 1, 1]] {
        for (t, got) in run_grid(body, [1; 3], block).into_iter().enumerate() {
            let odd = if t > 16 { 1000 } else { 100 };
            let want: u32 = (0..t % 5).map(|i| if i % 2 == 0 { 1 } else { odd }).sum();
            assert_eq!(got, want + 3_200_000, "thread {t}");
        }
    }
}

#[test]
fn indexed_branches() {
    let body = "rem.u32 %r20, %r6, 3; mov.u32 %r10, 5; setp.gt.u32 %p1, %r6, 40; @%p1 bra $end;\n\
        $list: .branchtargets $a, $b, $c;\nbrx.idx %r20, $list;\n\
        $a: mov.u32 %r10, 10; bra.uni $end;\n$b: mov.u32 %r10, 20; bra.uni $end;\n$c: mov.u32 %r10, 30;\n$end:";
    for (t, got) in run_grid(body, [1; 3], [50, 1, 1]).into_iter().enumerate() {
        assert_eq!(got, if t > 40 { 5 } else { [10, 20, 30][t % 3] }, "thread {t}");
    }
}

#[test]
fn barrier_reductions_over_odd_blocks() {
    let pred = "setp.lt.u32 %p1, %r6, 37;";
    assert_eq!(run_grid(&format!("{pred} bar.red.popc.u32 %r10, 0, %p1;"), [1; 3], [75, 1, 1]), [37; 75]);
    let flag = "selp.u32 %r10, 1, 0, %p2;";
    assert_eq!(
        run_grid(&format!("{pred} bar.red.and.pred %p2, 0, %p1; {flag}"), [1; 3], [75, 1, 1]),
        [0; 75]
    );
    assert_eq!(
        run_grid(&format!("{pred} bar.red.or.pred %p2, 0, !%p1; {flag}"), [1; 3], [75, 1, 1]),
        [1; 75]
    );
}

#[test]
fn atomics_in_shared_and_global_memory() {
    // A shared histogram over three bins, then everyone reads its bin.
    let body = "mov.u32 %r20, sm; setp.lt.u32 %p1, %r6, 3; shl.b32 %r21, %r6, 2; add.u32 %r21, %r21, %r20; mov.u32 %r22, 0;\n\
        @%p1 st.shared.u32 [%r21], %r22; bar.sync 0; rem.u32 %r23, %r6, 3; shl.b32 %r23, %r23, 2; add.u32 %r23, %r23, %r20;\n\
        atom.shared.add.u32 %r24, [%r23], 2; bar.sync 0; ld.shared.u32 %r10, [%r23];";
    let got = run_grid(body, [2, 1, 1], [100, 1, 1]);
    let count = |bin: usize| (0..100).filter(|t| t % 3 == bin).count() as u32 * 2;
    assert!(got.iter().enumerate().all(|(i, v)| *v == count(i % 100 % 3)));
    // Every operation on one's own word.
    for (op, want) in [
        ("add.u32 %r11, [%l2], 5", 105),
        ("max.s32 %r11, [%l2], -3", 100),
        ("min.s32 %r11, [%l2], -3", -3),
        ("exch.b32 %r11, [%l2], 9", 9),
        ("cas.b32 %r11, [%l2], 100, 8", 8),
        ("cas.b32 %r11, [%l2], 101, 8", 100),
        ("and.b32 %r11, [%l2], 4", 4),
        ("xor.b32 %r11, [%l2], 1", 101),
        ("inc.u32 %r11, [%l2], 100", 0),
        ("dec.u32 %r11, [%l2], 100", 99),
    ] {
        let body = format!(
            "mov.u32 %r20, 100; st.global.u32 [%l2], %r20; atom.global.{op}; ld.global.u32 %r10, [%l2];"
        );
        assert_eq!(run_warp(&body), [want as u32; 32], "{op}");
    }
    let float = "mov.u32 %r20, 0; setp.eq.u32 %p1, %r1, 0; @%p1 st.global.f32 [%l1], 0f3F800000; bar.warp.sync -1;\n\
        cvt.rn.f32.u32 %f1, %r1; red.global.add.f32 [%l1], %f1; bar.warp.sync -1; ld.global.u32 %r10, [%l1]; bar.warp.sync -1;";
    assert_eq!(run_warp(float)[5], 497f32.to_bits());
}

/// Element (row, col) of an 8x8 matrix of halves stored by rows: its number.
#[test]
fn ldmatrix_stmatrix_and_movmatrix_follow_the_documented_fragments() {
    // Thread t fills row t of 32 with the numbers 8t .. 8t+7.
    let fill = "mov.u32 %r20, sm; shl.b32 %r21, %r1, 4; add.u32 %r21, %r21, %r20; shl.b32 %r22, %r1, 3; mul.lo.u32 %r23, %r22, 0x10001;\n\
        add.u32 %r24, %r23, 0x10000; add.u32 %r25, %r23, 0x30002; add.u32 %r26, %r23, 0x50004; add.u32 %r27, %r23, 0x70006;\n\
        st.shared.v4.b32 [%r21], {%r24, %r25, %r26, %r27}; bar.sync 0;";
    let number = |matrix: u32, row: u32, col: u32| matrix * 64 + row * 8 + col;
    for (i, r) in (0u32..4).zip(["%r30", "%r31", "%r32", "%r33"]) {
        let load = "{%r30, %r31, %r32, %r33}, [%r21];";
        let plain =
            run_warp(&format!("{fill} ldmatrix.sync.aligned.m8n8.x4.shared.b16 {load} mov.b32 %r10, {r};"));
        let trans = run_warp(&format!(
            "{fill} ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {load} mov.b32 %r10, {r};"
        ));
        for lane in 0..32u32 {
            let (g, t) = (lane / 4, lane % 4);
            assert_eq!(plain[lane as usize], number(i, g, 2 * t) | number(i, g, 2 * t + 1) << 16);
            assert_eq!(trans[lane as usize], number(i, 2 * t, g) | number(i, 2 * t + 1, g) << 16);
        }
    }
    let load = "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r30}, [%r21];";
    let moved = run_warp(&format!("{fill} {load} movmatrix.sync.aligned.m8n8.trans.b16 %r10, %r30;"));
    let back = run_warp(&format!(
        "{fill} {load} add.u32 %r35, %r21, 1024; stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%r35], {{%r30}}; bar.sync 0;\n\
         shl.b32 %r36, %r1, 2; add.u32 %r36, %r36, %r20; ld.shared.b32 %r10, [%r36+1024];"
    ));
    for lane in 0..32u32 {
        let (g, t) = (lane / 4, lane % 4);
        let want = number(0, 2 * t, g) | number(0, 2 * t + 1, g) << 16;
        assert_eq!((moved[lane as usize], back[lane as usize]), (want, want));
    }
}

/// Small integers are exact in every input type, so the product is exact too.
fn a_value(i: u32, k: u32) -> i32 {
    ((i * 3 + k * 5) % 7) as i32 - 3
}

fn b_value(k: u32, j: u32) -> i32 {
    ((k * 2 + j) % 5) as i32 - 2
}

fn mma(shape: &str, types: &str, k: u32, encode: &dyn Fn(i32) -> u32, half_acc: bool) {
    let tf32 = types.contains("tf32");
    let per = if tf32 { 1 } else { 2 };
    let fragment = |n: u32, f: &dyn Fn(u32, u32) -> u32| -> Vec<Vec<u32>> {
        (0..n).map(|i| (0..32).map(|l| f(i, l)).collect()).collect()
    };
    let pack = |f: &dyn Fn(u32) -> i32| (0..per).fold(0, |v, j| v | encode(f(j)) << (16 * j));
    let a = fragment(16 * k / 32 / per, &|i, l| {
        pack(&|j| a_value(l / 4 + i % 2 * 8, l % 4 * per + j + i / 2 * 4 * per))
    });
    let b = fragment(8 * k / 32 / per, &|i, l| pack(&|j| b_value(l % 4 * per + j + i * 4 * per, l / 4)));
    // The fragments come from a table in constant memory: register i of lane l at (i * 32 + l).
    let table: Vec<String> = a.iter().chain(&b).flatten().map(u32::to_string).collect();
    let n = a.len() + b.len();
    let loads: String = (0..n).map(|i| format!("ld.const.u32 %r{}, [%l4+{}];", 20 + i, i * 128)).collect();
    let list =
        |from: usize, n: usize| (from..from + n).map(|r| format!("%r{r}")).collect::<Vec<_>>().join(",");
    let nc = if half_acc { 2 } else { 4 };
    let store: String = (0..nc).map(|i| format!("st.global.u32 [%l2+{}], %r{};", i * 128, 40 + i)).collect();
    let zero: String = (0..nc).map(|i| format!("mov.b32 %r{}, 0;", 40 + i)).collect();
    let (ra, rb, rc) = (list(20, a.len()), list(20 + a.len(), b.len()), list(40, nc));
    let text = format!(
        ".version 9.0\n.target sm_80\n.address_size 64\n.const .align 4 .u32 table[{}] = {{{}}};\n\
         .visible .entry k(.param .u64 pout)\n{{\n.reg .b32 %r<60>;\n.reg .b64 %l<8>;\nld.param.u64 %l1, [pout];\n\
         mov.u32 %r1, %tid.x; mul.wide.u32 %l3, %r1, 4; add.s64 %l2, %l1, %l3; mov.u64 %l4, table; add.s64 %l4, %l4, %l3;\n\
         {loads}{zero}\nmma.sync.aligned.{shape}.row.col.{types} {{{rc}}}, {{{ra}}}, {{{rb}}}, {{{rc}}};\n\
         mma.sync.aligned.{shape}.row.col.{types} {{{rc}}}, {{{ra}}}, {{{rb}}}, {{{rc}}};\n{store}\nret;\n}}\n",
        n * 32,
        table.join(", ")
    );
    let module = Module::parse(&text).unwrap_or_else(|e| panic!("{e}"));
    let mut m = Memory::default();
    let out = m.allocate(512).unwrap();
    launch(&module, "k", [1; 3], [32, 1, 1], 0, &Params::default().ptr(out).0, &mut m, &Options::default())
        .unwrap();
    let got = read_u32(&m, out, nc * 32);
    for row in 0..16u32 {
        for col in 0..8u32 {
            let want = 2 * (0..k).map(|k| a_value(row, k) * b_value(k, col)).sum::<i32>();
            let (lane, odd) = ((row % 8 * 4 + col / 2) as usize, col % 2);
            let value = if half_acc {
                let word = got[(row / 8) as usize * 32 + lane];
                half::f16::from_bits((word >> (16 * odd)) as u16).to_f32()
            } else {
                f32::from_bits(got[(row / 8 * 2 + odd) as usize * 32 + lane])
            };
            assert_eq!(value, want as f32, "{shape} {types} element {row}, {col}");
        }
    }
}

#[test]
fn tensor_core_products_of_all_types() {
    let f16 = |v: i32| u32::from(half::f16::from_f32(v as f32).to_bits());
    let bf16 = |v: i32| (v as f32).to_bits() >> 16;
    let tf32 = |v: i32| (v as f32).to_bits();
    mma("m16n8k16", "f32.bf16.bf16.f32", 16, &bf16, false);
    mma("m16n8k8", "f32.bf16.bf16.f32", 8, &bf16, false);
    mma("m16n8k16", "f32.f16.f16.f32", 16, &f16, false);
    mma("m16n8k8", "f32.f16.f16.f32", 8, &f16, false);
    mma("m16n8k16", "f16.f16.f16.f16", 16, &f16, true);
    mma("m16n8k8", "f32.tf32.tf32.f32", 8, &tf32, false);
    mma("m16n8k4", "f32.tf32.tf32.f32", 4, &tf32, false);
}

#[test]
fn bank_conflicts_and_sectors_are_counted() {
    let count = |stride: u32| {
        let body =
            format!("mov.u32 %r20, sm; mad.lo.u32 %r20, %t, {stride}, %r20; st.shared.u32 [%r20], %t;");
        outcome(&body, 32, &Options::default()).unwrap().counts.bank_conflicts()
    };
    assert_eq!([count(4), count(8), count(128), count(132)], [0, 1, 31, 0]);
    // The three loads of 12-byte records touch twelve sectors each, where four would hold the words.
    let report = outcome("", 32, &Options::default()).unwrap();
    assert_eq!((report.counts.global_sectors, report.counts.global_sectors_ideal), (3 * 12 + 4, 3 * 4 + 4));
}

#[test]
fn cp_async_sizes_and_zero_fill() {
    let body = |bytes: &str, size: &str| {
        format!(
            "mov.u32 %r20, sm; shl.b32 %r21, %t, 4; add.u32 %r22, %r20, %r21; mov.u32 %r23, -1; st.shared.v4.u32 [%r22], {{%r23,%r23,%r23,%r23}};\n\
             cp.async.ca.shared.global [%r22], [%in], {bytes}{size}; cp.async.wait_all; ld.shared.v2.u32 {{%r10, %r11}}, [%r22];"
        )
    };
    let inputs: Vec<[u32; 3]> = vec![[0x1122_3344, 0x5566_7788, 0]];
    assert_eq!(run32(&body("4", ""), &inputs, 2), [0x1122_3344, u32::MAX]);
    assert_eq!(run32(&body("8", ""), &inputs, 2), [0x1122_3344, 0x5566_7788]);
    assert_eq!(run32(&body("8", ", 4"), &inputs, 2), [0x1122_3344, 0]);
    assert_eq!(run32(&body("8", ", 3"), &inputs, 2), [0x22_3344, 0]);
    assert_eq!(run32(&body("8", ", 0"), &inputs, 2), [0, 0]);
}
