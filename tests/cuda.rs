//! Kernels of the CUDA backend against the naive f64 reference, executed by the interpreter of PTX: the very code that
//! NVRTC makes for a GPU. The interpreter also refuses accesses out of bounds, misaligned, racing or of memory that
//! nobody wrote.

mod common;

use common::cases::{Case, cases, in_place};
use common::check::Precision;
use common::judge::Judge;
use common::runner::{Placement, run_op};
use common::tensor::in_bf16;
use saip_engine::cuda::{Choices, Compiler, CudaBackend, Driver, Family, GpuDriver, Sources, VmDriver};
use saip_engine::ir::OpKind;
use saip_engine::tensor::DType;
use std::path::Path;

const CAPABILITY: (u32, u32) = (8, 0);
const MEMORY: u64 = 256 << 20;

/// The interpreter, or with SAIP_ENGINE_TEST_DEVICE=cuda the first GPU.
fn driver() -> Box<dyn Driver> {
    match std::env::var("SAIP_ENGINE_TEST_DEVICE").as_deref() {
        Ok("cuda") => Box::new(GpuDriver::new(0).expect("a GPU was asked for")),
        _ => Box::new(VmDriver::new(CAPABILITY, MEMORY)),
    }
}

/// NVRTC with its cache among the build's files. `tools/test.sh` provides NVRTC where there is none.
fn compiler(capability: (u32, u32)) -> Compiler {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels");
    Compiler::new(capability, Some(cache))
        .expect("run the tests with `bash tools/test.sh`, which fetches NVRTC")
}

fn backend(dtype: DType) -> CudaBackend<Box<dyn Driver>> {
    let driver = driver();
    let compiler = compiler(driver.info().capability);
    CudaBackend::new(driver, compiler, dtype).expect("both types are computed in")
}

/// The interpreter as a Hopper GPU whose products use the newest tier wherever they can.
fn hopper(dtype: DType) -> CudaBackend<Box<dyn Driver>> {
    let driver: Box<dyn Driver> = Box::new(VmDriver::new((9, 0), MEMORY));
    let choices = Choices::new(driver.info()).newest_tier();
    CudaBackend::new(driver, compiler((9, 0)), dtype)
        .expect("both types are computed in")
        .with_choices(choices)
}

type Open = fn(DType) -> CudaBackend<Box<dyn Driver>>;

fn check_case(case: &Case, dtype: DType, open: Open) -> Result<(), String> {
    let precision = if dtype == DType::Bf16 { Precision::BF16 } else { Precision::F32 };
    let judge = Judge::new(case, precision);
    for placement in [Placement::Regions, Placement::Arena] {
        let poison =
            |b: &mut CudaBackend<Box<dyn Driver>>| b.poison_arena().expect("the arena can be written");
        let updated = in_place(case.kind());
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
        .filter_map(|c| check_case(c, dtype, open).err().map(|e| format!("  {}: {e}", c.name)))
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

macro_rules! kernel_tests {
    ($($test:ident: $kind:ident,)*) => {
        $(mod $test {
            #[test]
            fn in_f32() {
                super::check(saip_engine::ir::OpKind::$kind, saip_engine::tensor::DType::F32, super::backend);
            }
            #[test]
            fn in_bf16() {
                super::check(saip_engine::ir::OpKind::$kind, saip_engine::tensor::DType::Bf16, super::backend);
            }
        })*
    };
}

kernel_tests! {
    gelu: Gelu,
    gelu_backward: GeluBackward,
    add: Add,
    scale: Scale,
    fill: Fill,
    cast: Cast,
    layer_norm: LayerNorm,
    layer_norm_backward: LayerNormBackward,
    select_rows: SelectRows,
    scatter_rows: ScatterRows,
    gather_tokens: GatherTokens,
    scatter_tokens: ScatterTokens,
    scale_segments: ScaleSegments,
    weighted_sum: WeightedSum,
    add_positions: AddPositions,
    sum_images: SumImages,
    accumulate_grads: AccumulateGrads,
    grad_health: GradHealth,
    adamw: AdamW,
    l2_normalize: L2Normalize,
    l2_normalize_backward: L2NormalizeBackward,
    // gemm
    linear: Linear,
    linear_backward_input: LinearBackwardInput,
    linear_backward_weight: LinearBackwardWeight,
    // conv
    conv2d: Conv2d,
    conv2d_backward_input: Conv2dBackwardInput,
    conv2d_backward_weight: Conv2dBackwardWeight,
    // attention
    attention: Attention,
    attention_backward: AttentionBackward,
    // prototype_ce
    prototype_cross_entropy: PrototypeCrossEntropy,
    prototype_cross_entropy_backward: PrototypeCrossEntropyBackward,
    expert_statistics: ExpertStatistics,
    center_update: CenterUpdate,
    // embed
    patch_rows: PatchRows,
    embed_tokens: EmbedTokens,
    embed_tokens_backward: EmbedTokensBackward,
    resize_positions: ResizePositions,
    resize_positions_backward: ResizePositionsBackward,
    restore_tokens: RestoreTokens,
    restore_tokens_backward: RestoreTokensBackward,
    // dense_loss
    dynamic_conv: DynamicConv,
    dynamic_conv_backward: DynamicConvBackward,
    masked_mse: MaskedMse,
    masked_mse_backward: MaskedMseBackward,
    bce_with_logits: BceWithLogits,
    bce_with_logits_backward: BceWithLogitsBackward,
    // depthwise_conv
    depthwise_conv2d: DepthwiseConv2d,
    depthwise_conv2d_backward_input: DepthwiseConv2dBackwardInput,
    depthwise_conv2d_backward_weight: DepthwiseConv2dBackwardWeight,
    pixel_rows: PixelRows,
    // window_attention
    window_attention: WindowAttention,
    window_attention_backward: WindowAttentionBackward,
    // batch_norm, pool
    batch_norm: BatchNorm,
    batch_norm_backward: BatchNormBackward,
    batch_norm_inference: BatchNormInference,
    running_statistics: RunningStatistics,
    relu6: Relu6,
    relu6_backward: Relu6Backward,
    relu6_gate: Relu6Gate,
    relu6_gate_backward: Relu6GateBackward,
    global_average_pool: GlobalAveragePool,
    global_average_pool_backward: GlobalAveragePoolBackward,
}

#[test]
fn products_on_hopper() {
    let kinds = [
        OpKind::Linear,
        OpKind::LinearBackwardInput,
        OpKind::LinearBackwardWeight,
        OpKind::PrototypeCrossEntropy,
        OpKind::PrototypeCrossEntropyBackward,
    ];
    for kind in kinds {
        check(kind, DType::Bf16, hopper);
    }
}

/// Architectures that a release supports.
const TARGETS: [(u32, u32); 6] = [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)];

/// Every kernel with the constants of the recipes, as machine code: nothing is spilt. By default for the first tensor
/// cores that are supported and for the largest; for all with SAIP_ENGINE_ALL_TARGETS, which takes minutes.
#[test]
fn every_variant_compiles_without_spills() {
    let all = std::env::var_os("SAIP_ENGINE_ALL_TARGETS").is_some();
    let mut spilt = Vec::new();
    let targets = TARGETS.into_iter().filter(|t| all || matches!(t, (8, 0) | (9, 0)));
    for capability in targets {
        let compiler = Compiler::new(capability, None).unwrap();
        for family in Family::ALL {
            let of = |bf16| family.variants(bf16).into_iter().map(move |given| (given, bf16));
            let both = of(false).chain(of(true));
            for (given, bf16) in both.filter(|(_, bf16)| family.exists_for(capability, *bf16)) {
                let kernels = compiler
                    .facts(family.file(), &family.source(&Sources::built_in(), &given, bf16))
                    .unwrap();
                assert!(!kernels.is_empty(), "{family:?} {given:?}: no kernel");
                for k in kernels {
                    let what = format!("{capability:?} {family:?} bf16 {bf16} {given:?} {k:?}");
                    if std::env::var_os("SAIP_ENGINE_PRINT").is_some() {
                        println!("{what}");
                    }
                    assert!(k.registers > 0, "{what}");
                    if k.spills > 0 {
                        spilt.push(what);
                    }
                }
            }
        }
    }
    assert!(spilt.is_empty(), "registers are spilt:\n{}", spilt.join("\n"));
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
