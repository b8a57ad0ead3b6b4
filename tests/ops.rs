//! Every op of the CPU backend against the naive reference, and backward ops against central differences of it: in f64
//! and f32, on one thread and several, in regions with guard values around every tensor and in the arena where the planner
//! may work in place; everything an op must write is poisoned with NaN before it runs.

mod common;
#[path = "common/golden.rs"]
mod golden;

use common::cases::{Case, cases, equal_values};
use common::check::Precision;
use common::judge::Judge;
use common::runner::{Placement, constant, run_on_cpu};
use common::tensor::{Tensor, scalars};
use saip_engine::cpu::Real;
use saip_engine::ir::{Op, OpKind, Rules, ops};

/// Runs all cases of an op and lists those that fail.
fn check<T: Real>(kind: OpKind, precision: Precision) {
    let cases = cases(kind);
    assert!(!cases.is_empty(), "{} has no case", kind.name());
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|c| check_case::<T>(c, precision).err().map(|e| format!("  {}: {e}", c.name)))
        .collect();
    assert!(
        failures.is_empty(),
        "{} in {}: {} of {} cases fail\n{}",
        kind.name(),
        T::DTYPE,
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
}

fn check_case<T: Real>(case: &Case, precision: Precision) -> Result<(), String> {
    let run = |placement, threads| {
        run_on_cpu::<T>(&case.op, &case.inputs, case.op.facts().updates, placement, threads)
    };
    let judge = Judge::new(case, precision);
    for placement in [Placement::Regions, Placement::Arena] {
        let [one, three] = [run(placement, 1)?, run(placement, 3)?];
        let same = |a: &Vec<f64>, b: &Vec<f64>| a.iter().zip(b).all(|(x, y)| x.to_bits() == y.to_bits());
        if !one.iter().zip(&three).all(|(a, b)| same(a, b)) {
            return Err(format!("one thread and three give different bits ({placement:?})"));
        }
        // Working in place may round in another order.
        judge.outputs(&one).map_err(|e| format!("{e} ({placement:?})"))?;
        if placement == Placement::Regions && one.len() != judge.count() {
            return Err(format!("{} outputs instead of {}", one.len(), judge.count()));
        }
    }
    Ok(())
}

macro_rules! op_tests {
    ($($test:ident: $kind:ident,)*) => {
        $(mod $test {
            use super::*;
            #[test]
            fn in_f64() {
                check::<f64>(OpKind::$kind, Precision::F64);
            }
            #[test]
            fn in_f32() {
                check::<f32>(OpKind::$kind, Precision::F32);
            }
        })*

        #[test]
        fn every_op_is_tested_under_its_name() {
            let tested = [$((OpKind::$kind, stringify!($test))),*];
            for kind in OpKind::ALL {
                assert!(tested.contains(&(*kind, kind.name())), "{} is not tested", kind.name());
                assert!(cases(*kind).iter().all(|c| c.kind() == *kind), "a case of another op: {}", kind.name());
            }
        }
    };
}

op_tests! {
    patch_rows: PatchRows,
    embed_tokens: EmbedTokens,
    embed_tokens_backward: EmbedTokensBackward,
    resize_positions: ResizePositions,
    resize_positions_backward: ResizePositionsBackward,
    linear: Linear,
    linear_backward_input: LinearBackwardInput,
    linear_backward_weight: LinearBackwardWeight,
    gelu: Gelu,
    gelu_backward: GeluBackward,
    add: Add,
    cast: Cast,
    scale: Scale,
    fill: Fill,
    scale_segments: ScaleSegments,
    layer_norm: LayerNorm,
    layer_norm_backward: LayerNormBackward,
    attention: Attention,
    attention_backward: AttentionBackward,
    select_rows: SelectRows,
    scatter_rows: ScatterRows,
    gather_tokens: GatherTokens,
    scatter_tokens: ScatterTokens,
    restore_tokens: RestoreTokens,
    restore_tokens_backward: RestoreTokensBackward,
    add_positions: AddPositions,
    sum_images: SumImages,
    conv2d: Conv2d,
    conv2d_backward_input: Conv2dBackwardInput,
    conv2d_backward_weight: Conv2dBackwardWeight,
    depthwise_conv2d: DepthwiseConv2d,
    depthwise_conv2d_backward_input: DepthwiseConv2dBackwardInput,
    depthwise_conv2d_backward_weight: DepthwiseConv2dBackwardWeight,
    pixel_rows: PixelRows,
    batch_norm: BatchNorm,
    batch_norm_backward: BatchNormBackward,
    batch_norm_inference: BatchNormInference,
    running_statistics: RunningStatistics,
    relu: Relu,
    relu_backward: ReluBackward,
    relu6: Relu6,
    relu6_backward: Relu6Backward,
    relu6_gate: Relu6Gate,
    relu6_gate_backward: Relu6GateBackward,
    max_pool2d: MaxPool2d,
    max_pool2d_backward: MaxPool2dBackward,
    global_average_pool: GlobalAveragePool,
    global_average_pool_backward: GlobalAveragePoolBackward,
    window_attention: WindowAttention,
    window_attention_backward: WindowAttentionBackward,
    dynamic_conv: DynamicConv,
    dynamic_conv_backward: DynamicConvBackward,
    scale_rows: ScaleRows,
    scale_rows_backward: ScaleRowsBackward,
    l2_normalize: L2Normalize,
    l2_normalize_backward: L2NormalizeBackward,
    prototype_cross_entropy: PrototypeCrossEntropy,
    prototype_cross_entropy_backward: PrototypeCrossEntropyBackward,
    expert_statistics: ExpertStatistics,
    center_update: CenterUpdate,
    masked_mse: MaskedMse,
    masked_mse_backward: MaskedMseBackward,
    bce_with_logits: BceWithLogits,
    bce_with_logits_backward: BceWithLogitsBackward,
    mix_images: MixImages,
    soft_targets: SoftTargets,
    soft_cross_entropy: SoftCrossEntropy,
    soft_cross_entropy_backward: SoftCrossEntropyBackward,
    weighted_sum: WeightedSum,
    accumulate_grads: AccumulateGrads,
    grad_health: GradHealth,
    adamw: AdamW,
    clip_tensors: ClipTensors,
}

/// Whether `grad_health` calls a step sound.
fn sound<T: Real>(grads: Vec<f64>, loss: f64) -> bool {
    let x = [Tensor::new([grads.len()], grads).into(), constant(loss), scalars(&[])];
    let health = run_on_cpu::<T>(&ops::GradHealth.into(), &x, &[], Placement::Regions, 1)
        .expect("runs")
        .swap_remove(0);
    assert!(health[2] == 0.0 || health[2] == 1.0, "{health:?}");
    health[2] == 1.0
}

#[test]
fn non_finite_steps_are_recognised() {
    let grads = |bad: f64, at: usize| (0..300).map(|i| if i == at { bad } else { 0.5 }).collect::<Vec<_>>();
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        for at in [0, 150, 299] {
            assert!(!sound::<f64>(grads(bad, at), 1.0), "{bad} at {at}");
            assert!(!sound::<f32>(grads(bad, at), 1.0), "{bad} at {at}");
        }
        assert!(!sound::<f64>(grads(0.5, 0), bad), "loss {bad}");
        assert!(!sound::<f32>(grads(0.5, 0), bad), "loss {bad}");
    }
    assert!(sound::<f64>(grads(0.5, 0), 1.0) && sound::<f32>(grads(0.5, 0), 1.0));
}

/// Of equal values the first takes a window's gradient, as in PyTorch; windows at the edges begin inside of the map.
#[test]
fn the_first_of_the_largest_values_takes_the_gradient() {
    let op = Op::from(ops::MaxPool2dBackward { geometry: equal_values() });
    let x = Tensor::new([12, 1], vec![1.0; 12]);
    let dy = Tensor::new([4, 1], vec![2.0, 3.0, 5.0, 7.0]);
    let dx = run_on_cpu::<f32>(&op, &[dy.into(), x.into()], &[], Placement::Regions, 2).expect("runs");
    assert_eq!(dx[0], [2.0, 3.0, 0.0, 0.0, 5.0, 7.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
}

/// A skipped step must leave no trace even when the gradients are NaN.
#[test]
fn a_skipped_step_changes_nothing() {
    for mut case in cases(OpKind::AdamW).into_iter().filter(|c| c.name.ends_with("finite 0")) {
        case.inputs[1].float_mut().data.fill(f64::NAN);
        let placed = case.op.facts().updates;
        let got = run_on_cpu::<f32>(&case.op, &case.inputs, placed, Placement::Regions, 2).expect("runs");
        for (slot, input) in [0, 2, 3, 4].into_iter().enumerate() {
            assert_eq!(got[slot], case.inputs[input].float().data, "{} output {slot}", case.name);
        }
    }
}
