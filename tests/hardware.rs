//! The interpreter against hardware: with SAIP_ENGINE_TEST_DEVICE=cuda every case of every kernel runs on the first GPU
//! and by the interpreter, and so do the interpreter's own kernels and the instructions that its tests recorded. Without
//! it a few cases (all of them with SAIP_ENGINE_TEST_DEVICE=ptx-vm) run on two interpreters, which shows that the
//! comparison works.

mod common;

use common::cases::{Case, cases};
use common::check::Precision;
use common::device::{HOPPER, capability, compiler, driver as other, interpreter};
use common::judge::Judge;
use common::runner::{Placement, run_op};
use common::tensor::in_bf16;
use rayon::prelude::*;
use saip_engine::cuda::{CudaBackend, Driver, Launch, Work};
use saip_engine::ir::{OpKind, Rules};
use saip_engine::tensor::DType;

fn outputs(case: &Case, dtype: DType, driver: Box<dyn Driver>) -> Result<Vec<Vec<f64>>, String> {
    let compiler = compiler(driver.info().capability);
    let backend = CudaBackend::new(driver, compiler, dtype).map_err(|e| e.to_string())?;
    let poison = |b: &mut CudaBackend<Box<dyn Driver>>| b.poison_arena().expect("the arena can be written");
    run_op(&case.op, &case.inputs, case.op.facts().updates, Placement::Regions, backend, poison)
}

/// Runs every case of an op on both; gives a line about it, and what differs by more than rounding.
fn compare_op(kind: OpKind, dtype: DType, capability: (u32, u32)) -> (String, Vec<String>) {
    let precision = if dtype == DType::Bf16 { Precision::BF16 } else { Precision::F32 };
    let cases = if dtype == DType::Bf16 { in_bf16(|| cases(kind)) } else { cases(kind) };
    let ([mut count, mut equal], mut failures) = ([0, 0], Vec::new());
    for case in &cases {
        let judged = outputs(case, dtype, interpreter(capability)).and_then(|want| {
            let got = outputs(case, dtype, other(capability))?;
            Judge::new(case, precision).between(&want, &got)
        });
        match judged {
            Ok([elements, same]) => (count, equal) = (count + elements, equal + same),
            Err(e) => failures.push(format!("{} in {dtype}, {}: {e}", kind.name(), case.name)),
        }
    }
    let share = 100.0 * equal as f64 / count.max(1) as f64;
    let cases = cases.len();
    let line = format!(
        "{} in {dtype}: {cases} cases, {count} elements, {share:.2} % equal bit for bit",
        kind.name()
    );
    (line, failures)
}

/// Compares many ops at a time and prints a line for each; gives what differs.
fn compare(kinds: &[OpKind], dtype: DType) -> Vec<String> {
    let capability = capability(HOPPER);
    let compared: Vec<_> = kinds.par_iter().map(|kind| compare_op(*kind, dtype, capability)).collect();
    let (lines, failures): (Vec<_>, Vec<_>) = compared.into_iter().unzip();
    lines.iter().for_each(|line| println!("{line}"));
    failures.concat()
}

/// All ops where a device was named; else a few, which other tests hold against the truth anyway.
fn kinds() -> Vec<OpKind> {
    match std::env::var_os("SAIP_ENGINE_TEST_DEVICE") {
        Some(_) => OpKind::ALL.to_vec(),
        None => vec![OpKind::Gelu, OpKind::Scale, OpKind::L2Normalize],
    }
}

#[test]
fn every_case_agrees_in_f32() {
    let failures = compare(&kinds(), DType::F32);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_case_agrees_in_bf16() {
    let failures = compare(&kinds(), DType::Bf16);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn results_that_differ_by_more_than_rounding_are_told() {
    for kind in [OpKind::Gelu, OpKind::GeluBackward] {
        let case = &cases(kind)[0];
        let judge = Judge::new(case, Precision::F32);
        let right = outputs(case, DType::F32, interpreter(HOPPER)).unwrap();
        assert_eq!(judge.between(&right, &right).unwrap(), [right[0].len(); 2]);
        for (factor, what) in [(1.01, "a percent"), (f64::NAN, "NaN")] {
            let mut wrong = right.clone();
            let largest =
                (0..wrong[0].len()).max_by(|i, j| right[0][*i].abs().total_cmp(&right[0][*j].abs()));
            wrong[0][largest.unwrap()] *= factor;
            assert!(judge.between(&right, &wrong).is_err(), "{} is off by {what}", kind.name());
        }
        let mut rounded = right.clone();
        rounded[0][0] *= 1.0 + 1e-9;
        let [count, equal] = judge.between(&right, &rounded).unwrap();
        assert_eq!((count, equal), (right[0].len(), count - 1));
        assert!(judge.between(&right, &right[1..]).is_err());
    }
}

/// A parameter of a kernel.
enum Arg {
    /// Memory with contents, which are compared afterwards.
    Memory(Vec<u8>),
    /// Memory for so many words, zero before.
    Result(usize),
    Int(i32),
    Float(f32),
}

struct Kernel {
    name: &'static str,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    args: Vec<Arg>,
    /// Whether the results must be equal bit for bit: nothing approximate, no order left open.
    exact: bool,
}

/// Runs a kernel of a PTX text; gives the memory of all its parameters.
fn run_ptx(driver: &mut dyn Driver, ptx: &str, kernel: &Kernel) -> saip_engine::Result<Vec<Vec<u8>>> {
    let id = driver.load(ptx.as_bytes(), kernel.name, kernel.shared)?;
    let (mut params, mut memory) = (Vec::new(), Vec::new());
    for arg in &kernel.args {
        let (bytes, contents) = match arg {
            Arg::Int(v) => (v.to_le_bytes().to_vec(), None),
            Arg::Float(v) => (v.to_le_bytes().to_vec(), None),
            Arg::Memory(contents) => (vec![0; 8], Some(contents.clone())),
            Arg::Result(words) => (vec![0; 8], Some(vec![0; 4 * words])),
        };
        params.resize(usize::next_multiple_of(params.len(), bytes.len()), 0);
        match contents {
            Some(contents) => {
                let at = driver.allocate(contents.len())?;
                driver.upload(at, &contents)?;
                params.extend(at.to_le_bytes());
                memory.push((at, contents));
            }
            None => params.extend(bytes),
        }
    }
    let Kernel { grid, block, shared, .. } = *kernel;
    driver.start(&Work::Kernel(Launch { kernel: id, grid, block, shared, params }))?;
    for (at, contents) in &mut memory {
        driver.download(*at, contents)?;
        driver.free(*at)?;
    }
    Ok(memory.into_iter().map(|(_, contents)| contents).collect())
}

/// Words that differ, as floats, by more than `tolerance` times their size (at least 1); or by anything.
fn differing(a: &[u8], b: &[u8], tolerance: Option<f32>) -> usize {
    let words = |x: &[u8]| -> Vec<f32> {
        x.chunks_exact(4).map(|w| f32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect()
    };
    let off = |(a, b): &(f32, f32)| {
        let near =
            tolerance.is_some_and(|t| (a - b).abs() <= t * a.abs().max(1.0) || a.is_nan() && b.is_nan());
        a.to_bits() != b.to_bits() && !near
    };
    usize::from(a.len() != b.len()) + words(a).into_iter().zip(words(b)).filter(off).count()
}

/// Reproducible numbers in [-1, 1), multiples of 1/64: sums of products of a hundred of them are exact in f32.
fn numbers(n: usize, seed: u32) -> Vec<f32> {
    let mut s = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let mut next = || {
        s = s.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (s >> 25) as f32 / 64.0 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn singles(values: Vec<f32>) -> Arg {
    Arg::Memory(values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

fn halves(values: Vec<f32>) -> Arg {
    Arg::Memory(values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect())
}

/// The interpreter's own kernels, by file.
fn own_kernels() -> Vec<(&'static str, Vec<Kernel>)> {
    use Arg::{Float, Int, Result};
    let kernel = |name, grid, block, shared, args, exact| Kernel { name, grid, block, shared, args, exact };
    let with = |n, seed| singles(numbers(n, seed));
    let plain = vec![
        kernel(
            "vector_add",
            [11, 1, 1],
            [96, 1, 1],
            0,
            vec![with(1000, 1), with(1000, 2), Result(1000), Int(1000)],
            true,
        ),
        kernel("block_sum", [4, 1, 1], [128, 1, 1], 512, vec![with(500, 3), Result(4), Int(500)], true),
        kernel(
            "layer_norm",
            [3, 1, 1],
            [32, 2, 1],
            0,
            vec![with(450, 4), with(75, 5), with(75, 6), Result(450), Int(75), Float(1e-5)],
            false,
        ),
        kernel("softmax", [3, 1, 1], [128, 1, 1], 0, vec![with(903, 7), Result(903), Int(301)], false),
        kernel(
            "gemm_bf16",
            [1, 2, 1],
            [128, 1, 1],
            0,
            vec![
                halves(numbers(128 * 96, 8)),
                halves(numbers(64 * 96, 9)),
                Result(128 * 64),
                Int(128),
                Int(64),
                Int(96),
            ],
            true,
        ),
        kernel("control_flow", [3, 1, 1], [7, 11, 1], 0, vec![Result(231)], true),
    ];
    let positive = numbers(150, 21).iter().map(|v| (v + 1.001) * 3.0).collect();
    let math = vec![kernel(
        "math",
        [2, 1, 1],
        [96, 1, 1],
        0,
        vec![singles(positive), Result(150 * 16), Int(150)],
        false,
    )];
    let simt = vec![
        kernel(
            "sgemm",
            [1, 2, 1],
            [256, 1, 1],
            0,
            vec![with(128 * 48, 10), with(48 * 64, 11), Result(128 * 64), Int(128), Int(64), Int(48)],
            true,
        ),
        kernel("bump", [2, 1, 1], [128, 1, 1], 0, vec![with(200, 12), Int(200)], true),
    ];
    vec![
        (include_str!("../tools/ptx-vm/tests/data/kernels.ptx"), plain),
        (include_str!("../tools/ptx-vm/tests/data/math.ptx"), math),
        (include_str!("../tools/ptx-vm/tests/data/simt.ptx"), simt),
    ]
}

/// Whether `driver` runs this text: code for one architecture runs on no other.
fn runs_on(driver: &dyn Driver, ptx: &str) -> bool {
    !ptx.contains(".target sm_90a") || driver.info().capability == HOPPER
}

#[test]
fn the_interpreters_own_kernels_agree() {
    let (mut vm, mut there) = (interpreter(HOPPER), other(HOPPER));
    let mut failures = Vec::new();
    for (ptx, kernels) in own_kernels() {
        if !runs_on(&*there, ptx) {
            println!("{}: skipped, compiled for compute capability 9.0", kernels[0].name);
            continue;
        }
        for kernel in &kernels {
            let want = run_ptx(&mut *vm, ptx, kernel).unwrap_or_else(|e| panic!("{}: {e}", kernel.name));
            assert!(want.iter().any(|m| m.iter().any(|b| *b != 0)), "{} does nothing", kernel.name);
            let tolerance = (!kernel.exact).then_some(1e-5);
            match run_ptx(&mut *there, ptx, kernel) {
                Err(e) => failures.push(format!("{}: {e}", kernel.name)),
                Ok(got) => {
                    let pairs = || want.iter().zip(&got);
                    let off: usize = pairs().map(|(a, b)| differing(a, b, tolerance)).sum();
                    let unequal: usize = pairs().map(|(a, b)| differing(a, b, None)).sum();
                    let words: usize = want.iter().map(|m| m.len() / 4).sum();
                    println!("{}: {} of {words} words equal bit for bit", kernel.name, words - unequal);
                    if off > 0 {
                        failures.push(format!("{}: {off} of {words} words differ", kernel.name));
                    }
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn words_that_differ_are_counted() {
    let bytes = |x: [f32; 3]| -> Vec<u8> { x.iter().flat_map(|v| v.to_le_bytes()).collect() };
    let (a, b) = (bytes([1.0, f32::NAN, -3.0]), bytes([1.000_001, -f32::NAN, 3.0]));
    assert_eq!((differing(&a, &b, Some(1e-5)), differing(&a, &b, None), differing(&a, &a, None)), (1, 3, 0));
    assert_eq!(differing(&a, &a[..8], None), 1);
}

/// What PTX leaves open of a recorded kernel's results.
struct Open {
    /// How far an approximate instruction may be from the interpreter's: `tanh.approx` is documented to 2^-11, the others to
    /// about 2^-21.
    tolerance: Option<f64>,
    /// Which bits a NaN has: documented as unspecified where no arithmetic makes it anew, and for 64 bits.
    nan: bool,
    /// The largest input for which an accuracy is documented.
    within: f64,
    double: bool,
}

impl Open {
    fn of(body: &str) -> Self {
        let tolerance = match () {
            _ if body.contains("tanh.approx") => Some(1e-3),
            _ if body.contains(".approx") => Some(2e-6),
            _ => None,
        };
        let double = body.contains(".f64");
        let nan = double || ["abs.f32", "neg.f32", "cvt.rna.tf32"].iter().any(|i| body.contains(i));
        let periodic = body.contains("sin.approx") || body.contains("cos.approx");
        Open { tolerance, nan, within: if periodic { std::f64::consts::PI } else { f64::INFINITY }, double }
    }

    /// The bits and the value of each element.
    fn elements(&self, bytes: &[u8]) -> Vec<(u64, f64)> {
        if self.double {
            return bytes
                .chunks_exact(8)
                .map(|w| u64::from_le_bytes(w.try_into().unwrap()))
                .map(|b| (b, f64::from_bits(b)))
                .collect();
        }
        let words = bytes.chunks_exact(4).map(|w| u32::from_le_bytes(w.try_into().unwrap()));
        words.map(|b| (b.into(), f32::from_bits(b).into())).collect()
    }

    /// Which elements differ by more than that, with the first operand of each: threads read three.
    fn differing(&self, input: &[u8], want: &[u8], got: &[u8]) -> Vec<String> {
        let (input, want, got) = (self.elements(input), self.elements(want), self.elements(got));
        let results = want.len() / (input.len() / 3).max(1);
        let mut told = Vec::new();
        for (at, (want, got)) in want.iter().zip(&got).enumerate() {
            let operands = &input[at / results.max(1) * 3..][..3];
            let near = self.tolerance.is_some_and(|t| (want.1 - got.1).abs() <= t * want.1.abs().max(1.0));
            let nan = want.1.is_nan() && got.1.is_nan() && (self.nan || self.tolerance.is_some());
            if want.0 != got.0 && !near && !nan && operands[0].1.abs() <= self.within {
                let operands: Vec<_> = operands.iter().map(|o| format!("{:#x}", o.0)).collect();
                told.push(format!("{:#x}, not {:#x}, of {}", got.0, want.0, operands.join(" ")));
            }
        }
        told
    }
}

#[test]
fn what_the_interpreter_may_do_otherwise_is_told_apart() {
    let bytes = |x: [f32; 3]| -> Vec<u8> { x.iter().flat_map(|v| v.to_le_bytes()).collect() };
    let (input, nan, other) = (bytes([4.0, 0.0, 0.0]), f32::NAN.to_le_bytes(), (-f32::NAN).to_le_bytes());
    let (one, near) = (1f32.to_le_bytes(), 1.000_001f32.to_le_bytes());
    let count = |body: &str, a: &[u8], b: &[u8]| Open::of(body).differing(&input, a, b).len();
    assert_eq!([count("abs.f32", &nan, &other), count("add.f32", &nan, &other)], [0, 1]);
    assert_eq!([count("ex2.approx.f32", &one, &near), count("add.f32", &one, &near)], [0, 1]);
    assert_eq!([count("sin.approx.f32", &one, &nan), count("ex2.approx.f32", &one, &nan)], [0, 1]);
    assert_eq!(count("abs.f32", &one, &nan), 1);
}

/// Kernels `k(in, out)` that the interpreter's tests recorded with PTX_VM_RECORD, in the folder SAIP_ENGINE_PTX_RECORDS.
#[test]
fn recorded_instructions_agree() {
    let Some(folder) = std::env::var_os("SAIP_ENGINE_PTX_RECORDS") else {
        println!("skipped: SAIP_ENGINE_PTX_RECORDS names no folder");
        return;
    };
    let mut driver = other(HOPPER);
    let (mut failures, mut ran) = (Vec::new(), 0);
    for entry in std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{folder:?}: {e}")) {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "ptx") {
            continue;
        }
        let ptx = std::fs::read_to_string(&path).unwrap();
        // Between the loads and the stores that every such kernel has.
        let body = ptx
            .lines()
            .skip_while(|l| !l.starts_with("ld.global"))
            .skip(3)
            .take_while(|l| !l.starts_with("st.global"));
        let body = body.map(str::trim).collect::<Vec<_>>().join(" ");
        let [input, want] = ["in", "out"].map(|e| std::fs::read(path.with_extension(e)).unwrap());
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        let threads: u32 = stem.rsplit('-').next().unwrap().parse().unwrap();
        if !runs_on(&*driver, &ptx) {
            println!("skipped: compiled for compute capability 9.0");
            return;
        }
        let args = vec![Arg::Memory(input.clone()), Arg::Result(want.len() / 4)];
        let kernel = Kernel { name: "k", grid: [1; 3], block: [threads, 1, 1], shared: 0, args, exact: true };
        ran += 1;
        match run_ptx(&mut *driver, &ptx, &kernel) {
            Err(e) => failures.push(format!("{stem} `{body}`: {e}")),
            Ok(got) => {
                let off = Open::of(&body).differing(&input, &want, &got[1]);
                if let Some(first) = off.first() {
                    failures
                        .push(format!("{stem} `{body}`: {} results differ, the first is {first}", off.len()));
                }
            }
        }
    }
    println!("{} of {ran} recorded kernels agree", ran - failures.len());
    assert!(ran > 0, "{folder:?} holds no record");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
