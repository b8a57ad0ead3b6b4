//! Automatic differentiation: for every differentiable op, the gradients of a scalar behind it, computed in f64 on the CPU
//! by the graph that `ir::differentiate` makes, against central differences of the same graph's forward pass.

mod common;

use common::cases::{Case, cases};
use common::check::{compare_gradients, probes};
use common::runner::{Bench, Runner};
use common::tensor::{Gen, Input};
use saip_engine::Result;
use saip_engine::backend::Backend;
use saip_engine::cpu::CpuBackend;
use saip_engine::ir::{self, ConvGeometry, Epilogue, Op, OpKind, ValueId, ops};
use saip_engine::plan::fuse;
use saip_engine::tensor::DType;

/// Operands in which the op can be differentiated. Exhaustive: a new op has to take a stand.
fn differentiable(op: &Op, operands: usize) -> Vec<usize> {
    match op {
        Op::EmbedTokens(ops::EmbedTokens { layout }) => {
            (0..operands - usize::from(layout.kept.is_some())).collect()
        }
        Op::ResizePositions(_)
        | Op::Gelu(_)
        | Op::Add(_)
        | Op::Scale(_)
        | Op::LayerNorm(_)
        | Op::Attention(_)
        | Op::SelectRows(_)
        | Op::ScatterRows(_)
        | Op::AddPositions(_)
        | Op::SumImages(_)
        | Op::DynamicConv(_)
        | Op::Cast(_)
        | Op::L2Normalize(_)
        | Op::ScaleRows(_)
        | Op::Relu(_)
        | Op::MaxPool2d(_)
        | Op::Relu6(_)
        | Op::Relu6Gate(_)
        | Op::GlobalAveragePool(_)
        | Op::WindowAttention(_)
        | Op::WeightedSum(_) => (0..operands).collect(),
        // What follows comes from fusion, behind differentiation.
        Op::DepthwiseConv2d(ops::DepthwiseConv2d { residual, .. }) => {
            if *residual {
                vec![]
            } else {
                (0..operands).collect()
            }
        }
        Op::BatchNorm(ops::BatchNorm { then, .. }) => match then {
            None => (0..operands).collect(),
            Some(_) => vec![],
        },
        Op::Linear(ops::Linear { epilogue }) | Op::Conv2d(ops::Conv2d { epilogue, .. }) => match epilogue {
            Epilogue::None => (0..operands).collect(),
            Epilogue::Gelu | Epilogue::Residual | Epilogue::Norm { .. } => vec![],
        },
        Op::ScaleSegments(_)
        | Op::GatherTokens(_)
        | Op::ScatterTokens(_)
        | Op::MaskedMse(_)
        | Op::BceWithLogits(_)
        | Op::SoftCrossEntropy(_) => vec![0],
        Op::RestoreTokens(_) => vec![0, 2, 3],
        Op::PrototypeCrossEntropy(_) => vec![0, 1],
        // Pixels, constants, derivatives and what follows them.
        Op::PatchRows(_)
        | Op::Fill(_)
        | Op::EmbedTokensBackward(_)
        | Op::ResizePositionsBackward(_)
        | Op::LinearBackwardInput(_)
        | Op::LinearBackwardWeight(_)
        | Op::GeluBackward(_)
        | Op::LayerNormBackward(_)
        | Op::AttentionBackward(_)
        | Op::RestoreTokensBackward(_)
        | Op::Conv2dBackwardInput(_)
        | Op::Conv2dBackwardWeight(_)
        | Op::DepthwiseConv2dBackwardInput(_)
        | Op::DepthwiseConv2dBackwardWeight(_)
        | Op::BatchNormBackward(_)
        | Op::ReluBackward(_)
        | Op::MaxPool2dBackward(_)
        | Op::Relu6Backward(_)
        | Op::Relu6GateBackward(_)
        | Op::GlobalAveragePoolBackward(_)
        | Op::WindowAttentionBackward(_)
        | Op::PixelRows(_)
        | Op::BatchNormInference(_)
        | Op::RunningStatistics(_)
        | Op::DynamicConvBackward(_)
        | Op::L2NormalizeBackward(_)
        | Op::ScaleRowsBackward(_)
        | Op::ClipTensors(_)
        | Op::PrototypeCrossEntropyBackward(_)
        | Op::ExpertStatistics(_)
        | Op::CenterUpdate(_)
        | Op::MaskedMseBackward(_)
        | Op::BceWithLogitsBackward(_)
        | Op::MixImages(_)
        | Op::SoftTargets(_)
        | Op::SoftCrossEntropyBackward(_)
        | Op::AccumulateGrads(_)
        | Op::GradHealth(_)
        | Op::AdamW(_) => vec![],
    }
}

/// A random linear functional of `y`: every row against a row of its own (a dynamic convolution over one token), summed.
fn functional(bench: &mut Bench, rng: &mut Gen, y: ValueId) -> Result<ValueId> {
    if bench.graph.shape(y).dims() == [1] {
        return Ok(bench.push(&ops::WeightedSum { weights: vec![0.75] }.into(), &[y])?[0]);
    }
    let (rows, cols) = bench.graph.shape(y).as_matrix();
    let kernel = bench.source(&rng.normal(&[rows, cols]));
    let products = bench.push(&ops::DynamicConv { tokens: 1 }.into(), &[kernel, y])?[0];
    Ok(bench.push(&ops::SumImages { tokens: 1 }.into(), &[products])?[0])
}

type Cpu = Runner<CpuBackend<f64>>;

/// The op, a scalar behind it and, with `wrt`, its gradients, compiled: the runner, the sources, the loss, the gradients.
fn compiled(case: &Case, wrt: Option<&[usize]>) -> Result<(Cpu, Vec<ValueId>, ValueId, Vec<ValueId>)> {
    let backend = CpuBackend::<f64>::new(1)?;
    let mut bench = Bench::new(backend.dtype());
    let sources: Vec<ValueId> = case.inputs.iter().map(|x| bench.source(x)).collect();
    let y = bench.push(&case.op, &sources)?[0];
    let loss = functional(&mut bench, &mut Gen::new(&case.name), y)?;
    let mut grads = vec![];
    if let Some(wrt) = wrt {
        let ids: Vec<ValueId> = wrt.iter().map(|&i| sources[i]).collect();
        for (grad, id) in ir::differentiate(&mut bench.graph, loss, &ids)?.into_iter().zip(&ids) {
            let grad = grad.expect("the loss depends on every one of them");
            assert_eq!(
                bench.graph.shape(grad).count(),
                bench.graph.shape(*id).count(),
                "{}: shape of a gradient",
                case.name
            );
            bench.result(grad);
            grads.push(grad);
        }
    }
    bench.result(loss);
    Ok((bench.compile(backend, CpuBackend::poison_arena)?, sources, loss, grads))
}

fn check_case(case: &Case, wrt: &[usize]) -> Result<(), String> {
    let text = |e: saip_engine::Error| e.to_string();
    let (mut forward, sources, loss, _) = compiled(case, None).map_err(text)?;
    let mut value = |x: &[Input]| -> f64 {
        for &i in wrt {
            forward.set(sources[i], &x[i]).expect("a source");
        }
        forward.run().expect("runs");
        forward.get(loss).expect("a result")[0]
    };
    let (mut backward, _, loss, grads) = compiled(case, Some(wrt)).map_err(text)?;
    backward.run().map_err(text)?;
    backward.check_guards()?;
    let (plain, with_grads) = (value(&case.inputs), backward.get(loss).map_err(text)?[0]);
    let same = (plain - with_grads).abs() <= 1e-12 * (1.0 + plain.abs());
    if !same {
        return Err(format!("the loss is {plain:e}, with its gradients {with_grads:e}"));
    }
    let got = grads.iter().map(|&g| backward.get(g).map_err(text)).collect::<Result<Vec<_>, _>>()?;
    // The absolute part covers gradients that are 0 but for the rounding of the differences.
    compare_gradients(
        &got,
        &probes(&case.name, &case.inputs, wrt, &mut value),
        &vec![(1e-6, 1e-9); wrt.len()],
    )
}

fn check(kind: OpKind) {
    let mut checked = 0;
    let mut failures = Vec::new();
    for case in cases(kind) {
        let wrt = differentiable(&case.op, case.inputs.len());
        if wrt.is_empty() {
            continue;
        }
        checked += 1;
        let run = || check_case(&case, &wrt);
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
            Ok(Ok(())) => {}
            Ok(Err(e)) => failures.push(format!("  {}: {e}", case.name)),
            Err(_) => failures.push(format!("  {}: panicked", case.name)),
        }
    }
    assert!(checked > 0, "{} has no case to differentiate", kind.name());
    assert!(
        failures.is_empty(),
        "{}: {} of {checked} cases fail\n{}",
        kind.name(),
        failures.len(),
        failures.join("\n")
    );
}

macro_rules! gradient_tests {
    ($($test:ident: $kind:ident,)*) => {
        $(#[test]
        fn $test() {
            check(OpKind::$kind);
        })*

        #[test]
        fn every_differentiable_op_is_tested() {
            let tested = [$(OpKind::$kind),*];
            for kind in OpKind::ALL {
                let has = cases(*kind).iter().any(|c| !differentiable(&c.op, c.inputs.len()).is_empty());
                assert_eq!(tested.contains(kind), has, "{}", kind.name());
            }
        }
    };
}

gradient_tests! {
    embed_tokens: EmbedTokens,
    resize_positions: ResizePositions,
    linear: Linear,
    gelu: Gelu,
    add: Add,
    cast: Cast,
    scale: Scale,
    scale_segments: ScaleSegments,
    layer_norm: LayerNorm,
    attention: Attention,
    select_rows: SelectRows,
    scatter_rows: ScatterRows,
    gather_tokens: GatherTokens,
    scatter_tokens: ScatterTokens,
    restore_tokens: RestoreTokens,
    add_positions: AddPositions,
    sum_images: SumImages,
    conv2d: Conv2d,
    depthwise_conv2d: DepthwiseConv2d,
    batch_norm: BatchNorm,
    relu: Relu,
    relu6: Relu6,
    relu6_gate: Relu6Gate,
    max_pool2d: MaxPool2d,
    global_average_pool: GlobalAveragePool,
    window_attention: WindowAttention,
    dynamic_conv: DynamicConv,
    scale_rows: ScaleRows,
    l2_normalize: L2Normalize,
    prototype_cross_entropy: PrototypeCrossEntropy,
    masked_mse: MaskedMse,
    bce_with_logits: BceWithLogits,
    soft_cross_entropy: SoftCrossEntropy,
    weighted_sum: WeightedSum,
}

/// What cannot be differentiated says so instead of giving no gradient.
#[test]
fn ops_without_a_derivative_are_refused() {
    for kind in OpKind::ALL {
        for case in cases(*kind).into_iter().take(1) {
            // Ops that have a derivative, and constants, which depend on nothing.
            let has_derivative = !differentiable(&case.op, case.inputs.len()).is_empty();
            if has_derivative || case.inputs.is_empty() {
                continue;
            }
            let mut bench = Bench::new(DType::F64);
            let sources: Vec<ValueId> = case.inputs.iter().map(|x| bench.source(x)).collect();
            let y = bench.push(&case.op, &sources).expect("a case is well-formed")[0];
            let loss = functional(&mut bench, &mut Gen::new("refused"), y).expect("any matrix has one");
            match ir::differentiate(&mut bench.graph, loss, &sources[..1]) {
                Ok(_) => panic!("{} was differentiated", kind.name()),
                Err(e) => assert!(e.to_string().contains(kind.name()), "{}: {e}", kind.name()),
            }
        }
    }
}

/// A value read twice receives the sum of both contributions; one that plays no part has no gradient.
#[test]
fn contributions_add_up() {
    let backend = CpuBackend::<f64>::new(1).expect("starts");
    let mut rng = Gen::new("contributions");
    let mut bench = Bench::new(DType::F64);
    let (x, other) = (bench.source(&rng.normal(&[4, 3])), bench.source(&rng.normal(&[4, 3])));
    let twice = bench.push(&ops::Add.into(), &[x, x]).expect("fits")[0];
    let thrice = bench.push(&ops::Add.into(), &[twice, x]).expect("fits")[0];
    let kernel = rng.normal(&[4, 3]);
    let k = bench.source(&kernel);
    let rows = bench.push(&ops::DynamicConv { tokens: 1 }.into(), &[k, thrice]).expect("fits")[0];
    let loss = bench.push(&ops::SumImages { tokens: 1 }.into(), &[rows]).expect("fits")[0];
    let grads = ir::differentiate(&mut bench.graph, loss, &[x, other]).expect("differentiable");
    assert_eq!(grads[1], None);
    let grad = grads[0].expect("depends on x");
    bench.result(grad);
    let mut runner = bench.compile(backend, CpuBackend::poison_arena).expect("compiles");
    runner.run().expect("runs");
    for (g, k) in runner.get(grad).expect("a result").iter().zip(&kernel.float().data) {
        assert!((g - 3.0 * k).abs() < 1e-14, "{g} {k}");
    }
}

/// What else reads the value between a normalisation and its activation.
#[derive(Clone, Copy, PartialEq)]
enum Other {
    Nobody,
    AnotherOp,
    TheUser,
}

/// A normalisation with `activation` behind it: the ops of the step, and its loss and gradients.
fn normalised(activation: &Op, other: Other, fused: bool) -> (Vec<&'static str>, Vec<Vec<f64>>) {
    let backend = CpuBackend::<f32>::new(1).expect("starts");
    let mut rng = Gen::new("normalised");
    let mut bench = Bench::new(DType::F32);
    let sources: Vec<ValueId> =
        [&[12, 5][..], &[5], &[5]].map(|shape| bench.source(&rng.normal(shape))).to_vec();
    let norm = ops::BatchNorm { eps: 1e-5, groups: vec![8, 4], then: None };
    let y = bench.push(&norm.into(), &sources).expect("fits")[0];
    let mut a = bench.push(activation, &[y]).expect("fits")[0];
    match other {
        Other::Nobody => {}
        Other::AnotherOp => a = bench.push(&ops::Add.into(), &[a, y]).expect("fits")[0],
        Other::TheUser => bench.result(y),
    }
    let loss = functional(&mut bench, &mut rng, a).expect("fits");
    let grads = ir::differentiate(&mut bench.graph, loss, &sources).expect("differentiable");
    let results: Vec<ValueId> = grads.into_iter().flatten().chain([loss]).collect();
    results.iter().for_each(|&v| bench.result(v));
    if fused {
        fuse(&mut bench.graph, &backend);
    }
    let ops = bench.graph.nodes.iter().map(|n| n.op.name()).collect();
    let mut runner = bench.compile(backend, CpuBackend::poison_arena).expect("compiles");
    runner.run().expect("runs");
    (ops, results.iter().map(|&v| runner.get(v).expect("a result")).collect())
}

/// The normalisation and its backward op take the activation over, with the same results bit for bit; not where its value has
/// other readers.
#[test]
fn activations_move_into_normalisations() {
    for activation in [Op::from(ops::Gelu), ops::Relu.into(), ops::Relu6.into()] {
        for other in [Other::Nobody, Other::AnotherOp, Other::TheUser] {
            let name = activation.name();
            let [(plain, want), (fused, got)] = [false, true].map(|f| normalised(&activation, other, f));
            assert_eq!(want, got, "{name}");
            let left = fused.iter().filter(|op| op.starts_with(name)).count();
            assert_eq!(left, if other == Other::Nobody { 0 } else { 2 }, "{name}: {fused:?}");
            assert_eq!(plain.iter().filter(|op| op.starts_with(name)).count(), 2, "{name}: {plain:?}");
        }
    }
}

/// `x + dwconv(x)` with its gradients: the ops of the step, and its results.
fn residual(stride: usize, fused: bool) -> (Vec<&'static str>, Vec<Vec<f64>>) {
    let backend = CpuBackend::<f32>::new(1).expect("starts");
    let mut rng = Gen::new("residual");
    let mut bench = Bench::new(DType::F32);
    let sources: Vec<ValueId> =
        [&[20, 5][..], &[5, 1, 3, 3], &[5]].map(|shape| bench.source(&rng.normal(shape))).to_vec();
    let geometry = ConvGeometry { stride, ..ConvGeometry::same(1, 5, 4, 3) };
    let rows = geometry.output_rows();
    let conv = ops::DepthwiseConv2d { geometry, residual: false };
    let y = bench.push(&conv.into(), &sources).expect("fits")[0];
    let other = if stride == 1 { sources[0] } else { bench.source(&rng.normal(&[rows, 5])) };
    let sum = bench.push(&ops::Add.into(), &[other, y]).expect("fits")[0];
    let loss = functional(&mut bench, &mut rng, sum).expect("fits");
    let grads = ir::differentiate(&mut bench.graph, loss, &sources).expect("differentiable");
    let results: Vec<ValueId> = grads.into_iter().flatten().chain([loss]).collect();
    results.iter().for_each(|&v| bench.result(v));
    if fused {
        fuse(&mut bench.graph, &backend);
    }
    let ops = bench.graph.nodes.iter().map(|n| n.op.name()).collect();
    let mut runner = bench.compile(backend, CpuBackend::poison_arena).expect("compiles");
    runner.run().expect("runs");
    (ops, results.iter().map(|&v| runner.get(v).expect("a result")).collect())
}

/// A depthwise convolution adds its residual, and its backward op the residual's gradient, with the same results bit for bit.
#[test]
fn residuals_move_into_depthwise_convolutions() {
    for stride in [1, 2] {
        let [(plain, want), (fused, got)] = [false, true].map(|f| residual(stride, f));
        assert_eq!(want, got, "stride {stride}");
        let sums = |ops: &[&str]| ops.iter().filter(|op| **op == "add").count();
        assert_eq!([sums(&plain), sums(&fused)], [3 - stride, 0], "{plain:?} {fused:?}");
    }
}
