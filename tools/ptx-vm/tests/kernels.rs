//! Kernels as NVRTC compiled them, against plain Rust.

mod common;

use common::*;
use ptx_vm::{Class, Error, FaultKind, Memory, Module, Options, launch};

fn module() -> Module {
    Module::parse(KERNELS).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn vector_add_with_a_ragged_end() {
    let (module, mut m) = (module(), Memory::default());
    let (a, b) = (noise(1000, 1), noise(1000, 2));
    let (pa, pb) = (upload_f32(&mut m, &a), upload_f32(&mut m, &b));
    let c = m.allocate(4000).unwrap();
    let p = Params::default().ptr(pa).ptr(pb).ptr(c).i32(1000);
    let report =
        launch(&module, "vector_add", [11, 1, 1], [96, 1, 1], 0, &p.0, &mut m, &Options::default()).unwrap();
    let want: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
    assert_eq!(read_f32(&m, c, 1000), want);
    assert_eq!(report.counts.global.loaded, 8000);
    assert_eq!(report.counts.global.stored, 4000);
    assert_eq!(report.counts.global_sectors, report.counts.global_sectors_ideal);
    assert!(report.counts.class(Class::Float) >= 32);
}

#[test]
fn block_sum_of_every_block() {
    let (module, mut m) = (module(), Memory::default());
    let x: Vec<f32> = (0..500).map(|i| (i % 17) as f32).collect();
    let px = upload_f32(&mut m, &x);
    let out = m.allocate(16).unwrap();
    let p = Params::default().ptr(px).ptr(out).i32(500);
    launch(&module, "block_sum", [4, 1, 1], [128, 1, 1], 512, &p.0, &mut m, &Options::default()).unwrap();
    let want: Vec<f32> = x.chunks(128).map(|c| c.iter().sum()).collect();
    assert_eq!(read_f32(&m, out, 4), want);
}

#[test]
fn layer_norm_with_a_struct_parameter() {
    let (module, mut m) = (module(), Memory::default());
    let (rows, d) = (6, 75);
    let (x, g, b) = (noise(rows * d, 3), noise(d, 4), noise(d, 5));
    let (px, pg, pb) = (upload_f32(&mut m, &x), upload_f32(&mut m, &g), upload_f32(&mut m, &b));
    let y = m.allocate((rows * d * 4) as u64).unwrap();
    let p = Params::default().ptr(px).ptr(pg).ptr(pb).ptr(y).i32(d as i32).f32(1e-5).padded();
    launch(&module, "layer_norm", [3, 1, 1], [32, 2, 1], 0, &p.0, &mut m, &Options::default()).unwrap();
    for (r, got) in read_f32(&m, y, rows * d).chunks(d).enumerate() {
        let row: Vec<f64> = x[r * d..][..d].iter().map(|v| f64::from(*v)).collect();
        let mean = row.iter().sum::<f64>() / d as f64;
        let var = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / d as f64;
        for i in 0..d {
            let want = (row[i] - mean) / (var + 1e-5).sqrt() * f64::from(g[i]) + f64::from(b[i]);
            assert!((f64::from(got[i]) - want).abs() < 1e-5, "row {r} column {i}: {} against {want}", got[i]);
        }
    }
}

#[test]
fn softmax_in_blocks_that_are_no_multiple_of_a_warp() {
    let (module, mut m) = (module(), Memory::default());
    let (rows, n) = (3, 301);
    let x: Vec<f32> = noise(rows * n, 6).iter().map(|v| v * 8.0).collect();
    let px = upload_f32(&mut m, &x);
    let y = m.allocate((rows * n * 4) as u64).unwrap();
    let p = Params::default().ptr(px).ptr(y).i32(n as i32);
    launch(&module, "softmax", [3, 1, 1], [128, 1, 1], 0, &p.0, &mut m, &Options::default()).unwrap();
    for (row, got) in x.chunks(n).zip(read_f32(&m, y, rows * n).chunks(n)) {
        let max = row.iter().fold(f64::MIN, |m, v| m.max(f64::from(*v)));
        let sum: f64 = row.iter().map(|v| (f64::from(*v) - max).exp()).sum();
        for (x, got) in row.iter().zip(got) {
            let want = (f64::from(*x) - max).exp() / sum;
            assert!((f64::from(*got) - want).abs() < 1e-6 * (1.0 + want), "{got} against {want}");
        }
    }
    // The full-mask shuffle in a warp of 4 lanes reads lanes that do not exist.
    let e =
        launch(&module, "softmax", [3, 1, 1], [100, 1, 1], 0, &p.0, &mut m, &Options::default()).unwrap_err();
    assert!(e.to_string().contains("does not take part"), "{e}");
}

fn bf16_bits(v: f32) -> u16 {
    // The inputs are multiples of 1/64 below 2: exact in bf16.
    (v.to_bits() >> 16) as u16
}

#[test]
fn gemm_with_async_copies_and_tensor_cores() {
    let (module, mut m) = (module(), Memory::default());
    let (rows, cols, k) = (128, 64, 96);
    let exact = |n, seed| -> Vec<f32> { noise(n, seed).iter().map(|v| (v * 64.0).round() / 64.0).collect() };
    let (a, b) = (exact(rows * k, 7), exact(cols * k, 8));
    let pa = upload(&mut m, &a, |v| bf16_bits(v).to_le_bytes());
    let pb = upload(&mut m, &b, |v| bf16_bits(v).to_le_bytes());
    let c = m.allocate((rows * cols * 4) as u64).unwrap();
    let p = Params::default().ptr(pa).ptr(pb).ptr(c).i32(rows as i32).i32(cols as i32).i32(k as i32);
    let report =
        launch(&module, "gemm_bf16", [1, 2, 1], [128, 1, 1], 0, &p.0, &mut m, &Options::default()).unwrap();
    let got = read_f32(&m, c, rows * cols);
    for i in 0..rows {
        for j in 0..cols {
            // Multiples of 2^-12 below 96: every partial sum is exact in f32, whatever the order.
            let want: f32 = (0..k).map(|l| a[i * k + l] * b[j * k + l]).sum();
            assert_eq!(got[i * cols + j], want, "element {i}, {j}");
        }
    }
    assert_eq!(report.counts.mma_flops, 2 * (rows * cols * k) as u64);
    assert_eq!(report.counts.bank_conflicts(), 0, "the swizzle avoids conflicts\n{report}");
}

#[test]
fn divergent_loops_switches_calls_and_local_arrays() {
    let (module, mut m) = (module(), Memory::default());
    let (blocks, w, h) = (3, 7, 11);
    let n = blocks * w * h;
    let out = m.allocate((n * 4) as u64).unwrap();
    let p = Params::default().ptr(out);
    launch(&module, "control_flow", [3, 1, 1], [w as u32, h as u32, 1], 0, &p.0, &mut m, &Options::default())
        .unwrap();
    let got = read_u32(&m, out, n);
    for (id, got) in got.into_iter().enumerate() {
        assert_eq!(got as i32, reference(id as i32), "thread {id}");
    }
    let (counter, size) = m.symbol(&module, "counter").unwrap();
    assert_eq!((read_u32(&m, counter, 1)[0], size), (7 + n as u32, 4));
}

fn reference(id: i32) -> i32 {
    let mut v = 0i32;
    if id % 3 != 0 {
        let mut n = id + 1;
        while n != 1 {
            n = if n % 2 != 0 { 3 * n + 1 } else { n / 2 };
            v += 1;
        }
    }
    match id % 7 {
        0 => v += 10,
        1 => v *= 3,
        2 => v -= 4,
        3 => v ^= 21,
        4 => v = if v > 10 { v / 2 } else { -v },
        _ => (0..id % 5).for_each(|i| v += i * [2, 3, 5][i as usize % 3]),
    }
    let mut history: Vec<i32> = (0..8).map(|i| v + i).collect();
    for i in 0..id % 9 {
        let add = history[i as usize & 7];
        let at = (i * v) as usize & 7;
        history[at] = history[at].wrapping_add(add);
    }
    history.iter().fold(0i32, |s, v| s.wrapping_add(*v))
}

#[test]
fn the_math_library_gives_its_documented_accuracy() {
    let module = Module::parse(include_str!("data/math.ptx")).unwrap_or_else(|e| panic!("{e}"));
    let mut m = Memory::default();
    let x: Vec<f32> = noise(150, 21).iter().map(|v| (v + 1.001) * 3.0).collect();
    let px = upload_f32(&mut m, &x);
    let out = m.allocate((x.len() * 64) as u64).unwrap();
    let p = Params::default().ptr(px).ptr(out).i32(x.len() as i32);
    launch(&module, "math", [2, 1, 1], [96, 1, 1], 0, &p.0, &mut m, &Options::default())
        .unwrap_or_else(|e| panic!("{e}"));
    for (i, (v, got)) in x.iter().zip(read_f32(&m, out, x.len() * 16).chunks(16)).enumerate() {
        let d = f64::from(*v);
        let k = (i as u64 + 1).wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let want = [
            d.ln_1p(),
            d.powf(f64::from(1.7f32)),
            f64::from(v * 1e6).sin(),
            f64::from(v * 7.0).cos(),
            d.tanh(),
            d.exp_m1(),
            d.cbrt(),
            d.atan2(2.0),
            d % f64::from(0.3f32),
            d.exp(),
            d.ln(),
            d.powf(1.5),
            (d / 3.0).sqrt(),
            f64::from(v / 3.0),
            d.round() + d.floor() * 16.0 + d.ceil() * 256.0 + d.round_ties_even() * 4096.0,
            f64::from((k % 1000003) as f32 + (k as i64 / 77777777777 % 13) as f32),
        ];
        for (j, (got, want)) in got.iter().zip(want).enumerate() {
            // CUDA documents at most 4 units in the last place for the approximate ones.
            let ulps = if j < 8 { 4.0 } else { 0.51 };
            let unit = f64::from((want as f32).abs().next_up() - (want as f32).abs());
            let error = (f64::from(*got) - want).abs() / unit;
            assert!(error <= ulps, "column {j} of {v}: {got}, want {want} ({error} ulp)");
        }
    }
}

/// The GEMM's text with one of its synchronising instructions taken out must fail.
#[test]
fn a_gemm_without_any_one_of_its_synchronisations_is_caught() {
    let start = KERNELS.find(".visible .entry gemm_bf16").unwrap();
    let end = start + KERNELS[start..].find("\n}").unwrap();
    let found = |what: &str| -> Vec<usize> {
        KERNELS[start..end].match_indices(what).map(|(i, _)| start + i).collect()
    };
    let sites: Vec<usize> =
        ["bar.sync", "cp.async.wait_group", "cp.async.commit_group"].iter().flat_map(|w| found(w)).collect();
    assert_eq!(sites.len(), 6, "two barriers, two waits, two commits");
    for at in sites {
        let mut text = KERNELS.to_string();
        let end = at + text[at..].find(';').unwrap();
        let what = text[at..end].to_string();
        text.replace_range(at..end, "");
        let module = Module::parse(&text).unwrap_or_else(|e| panic!("{e}"));
        let mut m = Memory::default();
        let [a, b] = [64 * 128 * 2, 64 * 128 * 2].map(|n| {
            let p = m.allocate(n).unwrap();
            m.memset(p, 0, n).unwrap();
            p
        });
        let c = m.allocate(64 * 64 * 4).unwrap();
        let p = Params::default().ptr(a).ptr(b).ptr(c).i32(64).i32(64).i32(128);
        let result = launch(&module, "gemm_bf16", [1; 3], [128, 1, 1], 0, &p.0, &mut m, &Options::default());
        let Err(Error::Fault(fault)) = result else { panic!("the kernel without `{what}` passes") };
        let kinds = [FaultKind::SharedRace, FaultKind::AsyncNotWaited, FaultKind::AsyncLeaked];
        assert!(kinds.contains(&fault.kind), "without `{what}`: {fault}");
    }
}

#[test]
fn gemm_of_register_tiles_in_f32() {
    let module = Module::parse(include_str!("data/simt.ptx")).unwrap_or_else(|e| panic!("{e}"));
    let mut m = Memory::default();
    let (rows, cols, k) = (128, 64, 48);
    let (a, b) = (noise(rows * k, 9), noise(k * cols, 10));
    let (pa, pb) = (upload_f32(&mut m, &a), upload_f32(&mut m, &b));
    let c = m.allocate((rows * cols * 4) as u64).unwrap();
    let p = Params::default().ptr(pa).ptr(pb).ptr(c).i32(rows as i32).i32(cols as i32).i32(k as i32);
    launch(&module, "sgemm", [1, 2, 1], [256, 1, 1], 0, &p.0, &mut m, &Options::default()).unwrap();
    let got = read_f32(&m, c, rows * cols);
    for i in 0..rows {
        for j in 0..cols {
            let want = (0..k).fold(0f32, |s, l| a[i * k + l].mul_add(b[l * cols + j], s));
            assert_eq!(got[i * cols + j].to_bits(), want.to_bits(), "element {i}, {j}");
        }
    }
}
