//! Kernels of the CUDA backend against the naive f64 reference, executed by the interpreter of PTX: the very code that
//! NVRTC makes for a GPU. The interpreter also refuses accesses out of bounds, misaligned, racing or of memory that
//! nobody wrote.

mod common;

use common::cases::{Case, cases, equal_values};
use common::check::Precision;
use common::device::{self, compiler};
use common::judge::Judge;
use common::runner::{Placement, run_op};
use common::tensor::{Tensor, in_bf16};
use rayon::prelude::*;
use saip_engine::cuda::{Compiler, CudaBackend, Driver, Family, Sources};
use saip_engine::ir::{Op, OpKind, Rules, ops};
use saip_engine::tensor::DType;
use std::collections::BTreeSet;

const CAPABILITY: (u32, u32) = (8, 0);

fn backend(dtype: DType) -> CudaBackend<Box<dyn Driver>> {
    device::backend(CAPABILITY, dtype)
}

type Open = fn(DType) -> CudaBackend<Box<dyn Driver>>;

fn check_case(case: &Case, dtype: DType, open: Open) -> Result<(), String> {
    let precision = if dtype == DType::Bf16 { Precision::BF16 } else { Precision::F32 };
    let judge = Judge::new(case, precision);
    for placement in [Placement::Regions, Placement::Arena] {
        let poison =
            |b: &mut CudaBackend<Box<dyn Driver>>| b.poison_arena().expect("the arena can be written");
        let updated = case.op.facts().updates;
        let got = run_op(&case.op, &case.inputs, updated, placement, open(dtype), poison)?;
        judge.outputs(&got).map_err(|e| format!("{e} ({placement:?})"))?;
        if placement == Placement::Regions && got.len() != judge.count() {
            return Err(format!("{} outputs instead of {}", got.len(), judge.count()));
        }
    }
    Ok(())
}

fn check(kind: OpKind, dtype: DType, open: Open) {
    let cases = if dtype == DType::Bf16 { in_bf16(|| cases(kind)) } else { cases(kind) };
    assert!(!cases.is_empty(), "{} has no case", kind.name());
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|c| {
            let shapes = || c.inputs.iter().map(|x| format!("{:?}", x.shape())).collect::<Vec<_>>().join(" ");
            check_case(c, dtype, open).err().map(|e| format!("  {} (operands {}): {e}", c.name, shapes()))
        })
        .collect();
    assert!(
        failures.is_empty(),
        "{} in {dtype}: {} of {} cases fail\n{}",
        kind.name(),
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
}

/// As on the CPU: of equal values the first takes a window's gradient.
#[test]
fn the_first_of_the_largest_values_takes_the_gradient() {
    let op = Op::from(ops::MaxPool2dBackward { geometry: equal_values() });
    for dtype in [DType::F32, DType::Bf16] {
        let x = Tensor::new([12, 1], vec![1.0; 12]);
        let dy = Tensor::new([4, 1], vec![2.0, 3.0, 5.0, 7.0]);
        let backend = backend(dtype);
        let dx = run_op(&op, &[dy.into(), x.into()], &[], Placement::Regions, backend, |_| {}).expect("runs");
        assert_eq!(dx[0], [2.0, 3.0, 0.0, 0.0, 5.0, 7.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], "{dtype}");
    }
}

/// Tests of ops, grouped by the kernels' file that they mainly run: a GPU that met an illegal address is lost to the
/// process, so each family is run by one of its own, chosen by `cu_FILE::`. No such name is a part of another.
macro_rules! kernel_tests {
    ($($family:ident { $($test:ident: $kind:ident,)* })*) => {
        $(mod $family {
            $(mod $test {
                #[test]
                fn in_f32() {
                    crate::check(saip_engine::ir::OpKind::$kind, saip_engine::tensor::DType::F32, crate::backend);
                }
                #[test]
                fn in_bf16() {
                    crate::check(saip_engine::ir::OpKind::$kind, saip_engine::tensor::DType::Bf16, crate::backend);
                }
            })*
        })*

        const FAMILIES: &[(&str, &[OpKind])] = &[$((stringify!($family), &[$(OpKind::$kind),*])),*];
    };
}

kernel_tests! {
    cu_pointwise {
        gelu: Gelu,
        gelu_backward: GeluBackward,
        add: Add,
        scale: Scale,
        fill: Fill,
        cast: Cast,
        scale_segments: ScaleSegments,
        weighted_sum: WeightedSum,
        scale_rows: ScaleRows,
        scale_rows_backward: ScaleRowsBackward,
        l2_normalize: L2Normalize,
        l2_normalize_backward: L2NormalizeBackward,
        relu: Relu,
        relu_backward: ReluBackward,
        relu6: Relu6,
        relu6_backward: Relu6Backward,
        relu6_gate: Relu6Gate,
        relu6_gate_backward: Relu6GateBackward,
    }
    cu_layer_norm {
        layer_norm: LayerNorm,
        layer_norm_backward: LayerNormBackward,
    }
    cu_layout {
        select_rows: SelectRows,
        scatter_rows: ScatterRows,
        gather_tokens: GatherTokens,
        scatter_tokens: ScatterTokens,
        add_positions: AddPositions,
    }
    cu_mixup {
        mix_images: MixImages,
        soft_targets: SoftTargets,
        soft_cross_entropy: SoftCrossEntropy,
        soft_cross_entropy_backward: SoftCrossEntropyBackward,
    }
    cu_optim {
        accumulate_grads: AccumulateGrads,
        grad_health: GradHealth,
        adamw: AdamW,
        clip_tensors: ClipTensors,
    }
    cu_gemm {
        linear: Linear,
        linear_backward_input: LinearBackwardInput,
        linear_backward_weight: LinearBackwardWeight,
    }
    cu_conv {
        conv2d: Conv2d,
        conv2d_backward_input: Conv2dBackwardInput,
        conv2d_backward_weight: Conv2dBackwardWeight,
    }
    cu_attention {
        attention: Attention,
        attention_backward: AttentionBackward,
    }
    cu_prototype_ce {
        prototype_cross_entropy: PrototypeCrossEntropy,
        prototype_cross_entropy_backward: PrototypeCrossEntropyBackward,
        expert_statistics: ExpertStatistics,
        center_update: CenterUpdate,
    }
    cu_embed {
        sum_images: SumImages,
        patch_rows: PatchRows,
        pixel_rows: PixelRows,
        embed_tokens: EmbedTokens,
        embed_tokens_backward: EmbedTokensBackward,
        resize_positions: ResizePositions,
        resize_positions_backward: ResizePositionsBackward,
        restore_tokens: RestoreTokens,
        restore_tokens_backward: RestoreTokensBackward,
    }
    cu_dense_loss {
        dynamic_conv: DynamicConv,
        dynamic_conv_backward: DynamicConvBackward,
        masked_mse: MaskedMse,
        masked_mse_backward: MaskedMseBackward,
        bce_with_logits: BceWithLogits,
        bce_with_logits_backward: BceWithLogitsBackward,
    }
    cu_depthwise_conv {
        depthwise_conv2d: DepthwiseConv2d,
        depthwise_conv2d_backward_input: DepthwiseConv2dBackwardInput,
        depthwise_conv2d_backward_weight: DepthwiseConv2dBackwardWeight,
    }
    cu_window_attention {
        window_attention: WindowAttention,
        window_attention_backward: WindowAttentionBackward,
    }
    cu_batch_norm {
        batch_norm: BatchNorm,
        batch_norm_backward: BatchNormBackward,
        batch_norm_inference: BatchNormInference,
        running_statistics: RunningStatistics,
    }
    cu_pool {
        max_pool2d: MaxPool2d,
        max_pool2d_backward: MaxPool2dBackward,
        global_average_pool: GlobalAveragePool,
        global_average_pool_backward: GlobalAveragePoolBackward,
    }
}

/// The ops that multiply, by the newest tier or the tile that products of pixels have to themselves.
macro_rules! hopper_tests {
    ($($family:ident { $($test:ident: $kind:ident,)* })*) => {
        $(mod $family {
            $(#[test]
            fn $test() {
                if crate::device::has_hopper(stringify!($test)) {
                    let bf16 = saip_engine::tensor::DType::Bf16;
                    crate::check(saip_engine::ir::OpKind::$kind, bf16, crate::device::hopper);
                }
            })*
        })*
    };
}

hopper_tests! {
    cu_gemm_sm90 {
        linear: Linear,
        linear_backward_input: LinearBackwardInput,
        linear_backward_weight: LinearBackwardWeight,
        conv2d: Conv2d,
        conv2d_backward_input: Conv2dBackwardInput,
        conv2d_backward_weight: Conv2dBackwardWeight,
    }
    cu_prototype_ce_sm90 {
        prototype_cross_entropy: PrototypeCrossEntropy,
        prototype_cross_entropy_backward: PrototypeCrossEntropyBackward,
        expert_statistics: ExpertStatistics,
    }
}

/// The prototype cross-entropy on Hopper with logits that make every exponential of a stretch the same: sums are those of small
/// integers, and one that is left out, read twice or not scaled shows, as it does not among thousands of random ones.
mod prototypes {
    use super::{DType, Placement, Tensor, run_op};
    use crate::common::device::{has_hopper, hopper};
    use crate::common::tensor::{Input, temperatures};
    use saip_engine::ir::{Op, ops};

    /// Views and width.
    const V: usize = 3;
    const D: usize = 8;

    fn matrix(rows: usize, cols: usize, f: impl Fn(usize, usize) -> f64) -> Input {
        Tensor::from_fn([rows, cols], |i| f(i / cols, i % cols)).into()
    }

    /// Integers from -3 to 3.
    fn integer(i: usize, j: usize) -> f64 {
        ((i * 31 + j * 17 + i * i % 11) % 7) as f64 - 3.0
    }

    fn run(op: impl Into<Op>, x: &[Input]) -> Vec<Vec<f64>> {
        run_op(&op.into(), x, &[], Placement::Regions, hopper(DType::Bf16), |_| {}).expect("runs")
    }

    fn close(what: &str, got: &[f64], want: impl Fn(usize) -> f64, tolerance: f64) {
        for (i, &g) in got.iter().enumerate() {
            let w = want(i);
            assert!((g - w).abs() <= tolerance * (1.0 + w.abs()), "{what} {i}: {g}, not {w}");
        }
    }

    /// Exponents of one of the expert's views rise by 8 from one tile of 64 prototypes to the next, so that all that was summed is
    /// scaled; those of the other fall.
    #[test]
    fn a_rising_maximum_scales_what_was_summed() {
        if !has_hopper("prototypes") {
            return;
        }
        // Several tiles of a span, of either length of tiles.
        const B: usize = 2;
        const K: usize = 8200;
        const CENTER: f64 = 0.25;
        let step = |k: usize| (k / 64 * 8) as f64;
        let w = matrix(K, D, integer);
        let wt = matrix(K, D, |k, c| if c == 0 { step(k) } else { 1.0 });
        let z = matrix(V * B, D, |r, c| f64::from(u8::from(c == 1 + r / B)));
        let zt = matrix(2 * B, D, |r, c| if c == 0 { [1.0, -1.0][r / B] } else { 0.0 });
        let (center, block) = (matrix(1, K, |_, _| CENTER), temperatures(1.0, 1.0, 0.9));
        let x = [z, w, zt.clone(), wt.clone(), center.clone(), block.clone()];
        let y = run(ops::PrototypeCrossEntropy { batch: B }, &x);

        let exponential = |t: usize, k: usize| [step(k) - step(K - 1), -step(k)][t].exp();
        let sums = [0, 1].map(|t| (0..K).map(|k| exponential(t, k)).sum::<f64>());
        let q = |t: usize, k: usize| exponential(t, k) / sums[t];
        let lse = |v: usize| (0..K).map(|k| integer(k, 1 + v).exp()).sum::<f64>().ln();
        let lse_t = |t: usize| [step(K - 1), 0.0][t] + sums[t].ln() - CENTER;
        let cross = |t: usize, v: usize| (0..K).map(|k| q(t, k) * integer(k, 1 + v)).sum::<f64>();
        let pairs = (0..2).flat_map(|t| (0..V).filter(move |&v| v != t).map(move |v| (t, v)));
        let loss = pairs.map(|(t, v)| lse(v) - cross(t, v)).sum::<f64>() / (2 * (V - 1)) as f64;
        close("lse", &y[1], |r| lse(r / B), 1e-6);
        close("lse of the expert", &y[2], |r| lse_t(r / B), 1e-6);
        close("loss", &y[0], |_| loss, 1e-5);

        let features = matrix(2 * B, 4, integer);
        let known = Tensor::from_fn([2 * B], |r| lse_t(r / B)).into();
        let s = run(ops::ExpertStatistics, &[zt, wt, center, block, known, features]);
        let information = |p: f64| if p > 1e-30 { -p * p.ln() } else { 0.0 };
        let entropy = (0..K).map(|k| (information(q(0, k)) + information(q(1, k))) / 2.0).sum::<f64>();
        let of_mean = (0..K).map(|k| information((q(0, k) + q(1, k)) / 2.0)).sum::<f64>();
        // To the rounding of the largest exponent.
        close("entropies", &s[0][..2], |i| [entropy, of_mean][i], 1e-3);
    }

    /// All probabilities 1 for one side, 0 for the other.
    #[test]
    fn gradients_are_sums_of_all_rows() {
        if !has_hopper("prototypes") {
            return;
        }
        // Several blocks of rows and tiles of either side, and several tiles of a span.
        const B: usize = 64;
        const K: usize = 2500;
        // Features are at right angles to prototypes, so that logits are 0.
        let left = |i, c| if c < D / 2 { integer(i, c) } else { 0.0 };
        let right = |i, c| if c < D / 2 { 0.0 } else { integer(i, c) };
        let pairs = |v: usize| if v < 2 { 1.0 } else { 2.0 };
        let vector = |n: usize, value: f64| Input::from(Tensor::new([n], vec![value; n]));
        // A power of two, by which sums stay exact.
        let factor = 1.0 / (2 * (V - 1) * B) as f64;
        for (lse, lse_t, sign) in [(0.0, f64::INFINITY, 1.0), (f64::INFINITY, 0.0, -1.0)] {
            let x = [
                vector(1, 1.0),
                matrix(V * B, D, left),
                matrix(K, D, right),
                matrix(2 * B, D, left),
                matrix(K, D, right),
                matrix(1, K, |_, _| 0.0),
                temperatures(1.0, 1.0, 0.9),
                vector(V * B, lse),
                vector(2 * B, lse_t),
            ];
            let d = run(ops::PrototypeCrossEntropyBackward { batch: B }, &x);
            let of_all = |c| (0..K).map(|k| right(k, c)).sum::<f64>();
            let dz = |i: usize| sign * factor * pairs(i / D / B) * of_all(i % D);
            let rounded = |x: f64| f64::from(half::bf16::from_f64(x));
            close("dz", &d[0], |i| rounded(dz(i)), 0.0);
            let dw = |c| (0..V * B).map(|r| pairs(r / B) * left(r, c)).sum::<f64>();
            close("dw", &d[1], |i| sign * factor * dw(i % D), 0.0);
        }
    }
}

#[test]
fn every_op_is_tested_and_every_file_is_a_family() {
    let tested: Vec<OpKind> = FAMILIES.iter().flat_map(|(_, kinds)| *kinds).copied().collect();
    for kind in OpKind::ALL {
        let times = tested.iter().filter(|k| *k == kind).count();
        assert_eq!(times, 1, "{} is in {times} families", kind.name());
    }
    // Files that serve the same ops as another one.
    let beside = ["attention_resident", "gemm_sm90", "prototype_ce_sm90", "window_attention_resident"];
    let beside = beside.map(|file| format!("cu_{file}"));
    let names: BTreeSet<String> = FAMILIES.iter().map(|(name, _)| (*name).to_owned()).chain(beside).collect();
    let files: BTreeSet<String> =
        Family::ALL.iter().map(|f| format!("cu_{}", f.file().trim_end_matches(".cu"))).collect();
    assert_eq!(names, files);
    // A filter takes every test whose path holds it.
    for name in &names {
        let holding = names.iter().filter(|n| format!("{n}::").contains(&format!("{name}::")));
        assert_eq!(holding.count(), 1, "{name}");
    }
}

/// Architectures that a release supports.
const TARGETS: [(u32, u32); 6] = [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)];

/// Static shared memory that a kernel may have, and registers of a multiprocessor: the same on all of them.
const MOST_SHARED: u32 = 48 << 10;
const REGISTERS: u32 = 65_536;
/// Threads of a block that a kernel must be able to have if it does not say how many it has.
const MOST_THREADS: u32 = 1024;

/// What keeps the kernels of a text from being launched on a GPU of `compiler`'s, or slows them down.
fn defects(compiler: &Compiler, family: Family, given: &[(&'static str, usize)], bf16: bool) -> Vec<String> {
    let (file, source) = (family.file(), family.source(&Sources::built_in(), given, bf16));
    let kernels = match compiler.facts(file, &source) {
        Ok(kernels) if kernels.is_empty() => return vec!["no kernel".to_owned()],
        Ok(kernels) => kernels,
        Err(e) => return vec![e.to_string()],
    };
    let mut defects = Vec::new();
    for k in kernels {
        let threads = k.threads.unwrap_or(MOST_THREADS);
        if std::env::var_os("SAIP_ENGINE_PRINT").is_some() {
            println!("{family:?} bf16 {bf16} {given:?} {threads} threads {k:?}");
        }
        assert!(k.registers > 0, "{family:?} {given:?} {k:?}");
        let mut defect = |is: bool, what: String| {
            if is {
                defects.push(format!("{}: {what}", k.name));
            }
        };
        defect(k.spills > 0, format!("{} bytes of registers are spilt", k.spills));
        defect(k.shared > MOST_SHARED, format!("{} bytes of static shared memory", k.shared));
        // Registers are given to a warp by 256.
        let registers = threads * k.registers.next_multiple_of(8);
        defect(registers > REGISTERS, format!("{threads} threads of {} registers", k.registers));
    }
    defects
}

/// Every kernel with the constants of the recipes, as machine code: nothing is spilt, and a multiprocessor holds a block.
/// By default for the first tensor cores that are supported and for the largest; for all with SAIP_ENGINE_ALL_TARGETS,
/// which takes minutes.
#[test]
fn every_variant_compiles_without_spills() {
    let all = std::env::var_os("SAIP_ENGINE_ALL_TARGETS").is_some();
    let mut variants = Vec::new();
    for capability in TARGETS.into_iter().filter(|t| all || matches!(t, (8, 0) | (9, 0))) {
        for family in Family::ALL {
            for bf16 in [false, true].into_iter().filter(|bf16| family.exists_for(capability, *bf16)) {
                let given = family.variants(bf16).into_iter();
                variants.extend(given.map(|given| (capability, *family, given, bf16)));
            }
        }
    }
    let unfit = variants.par_iter().flat_map_iter(|(capability, family, given, bf16)| {
        let told = move |d| format!("{capability:?} {family:?} bf16 {bf16} {given:?}: {d}");
        defects(&compiler(*capability), *family, given, *bf16).into_iter().map(told)
    });
    let unfit: Vec<String> = unfit.collect();
    assert!(unfit.is_empty(), "kernels that do not fit:\n{}", unfit.join("\n"));
}

/// Sizes that no recipe has, at which the kernels' memory is the largest that their launchers admit.
#[test]
fn the_largest_kernels_fit() {
    let with = |family: Family, bf16, others: &[(&str, usize)]| {
        let mut given = family.variants(bf16).swap_remove(0);
        for (name, value) in others {
            let known = given.iter_mut().find(|g| g.0 == *name);
            known.unwrap_or_else(|| panic!("{family:?} is not given {name}")).1 = *value;
        }
        (family, given, bf16)
    };
    let mut all = Vec::new();
    for bf16 in [false, true] {
        all.extend([64, 65, 96, 127].map(|head| with(Family::Attention, bf16, &[("HEAD", head)])));
        // As the launcher gives them for rows that are no whole packs, of which a multiprocessor holds few.
        let of = |width| [("D", width), ("VEC", 1), ("BACKWARD_BLOCKS", 1)];
        all.extend([769, 1023].map(|width| with(Family::LayerNorm, bf16, &of(width))));
    }
    let compiler = compiler(CAPABILITY);
    let unfit: Vec<String> = all
        .iter()
        .flat_map(|(family, given, bf16)| {
            let told = move |d| format!("{family:?} bf16 {bf16} {given:?}: {d}");
            defects(&compiler, *family, given, *bf16).into_iter().map(told)
        })
        .filter(|defect| !defect.contains("spilt"))
        .collect();
    assert!(unfit.is_empty(), "kernels that do not fit:\n{}", unfit.join("\n"));
}

#[test]
fn a_struct_that_the_host_lays_out_otherwise_does_not_compile() {
    let text = Family::Layout.source(&Sources::built_in(), &Family::Layout.variants(false)[0], false);
    let claim = |at| format!("{text}static_assert(OFFSET_OF(RunParams, len) == {at}, \"disagree\");\n");
    let compiler = compiler(CAPABILITY);
    compiler.ptx("layout.cu", &claim(40)).unwrap();
    let message = compiler.ptx("layout.cu", &claim(44)).unwrap_err().to_string();
    assert!(message.contains("layout.cu") && message.contains("disagree"), "{message}");
}
