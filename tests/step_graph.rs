//! The graph of a step: parameter names against the reference, no dead work, the expected amount of work, errors.

use std::collections::{BTreeMap, HashSet};
use std::time::Instant;

use saip_engine::backend::Backend;
use saip_engine::backend::NullBackend;
use saip_engine::cuda::PlanningBackend;
use saip_engine::ir::{Graph, Node, Op, Region, ValueId, ops, verify};
use saip_engine::models::{EmbedOptions, build_embed};
use saip_engine::nn::{ParamRegistry, initialise};
use saip_engine::objectives::Objective;
use saip_engine::objectives::saip::config::StepConfig;
use saip_engine::objectives::saip::{Model, Saip, build_step};
use saip_engine::plan;
use saip_engine::plan::{fuse, plan};
use saip_engine::step::{Step, StepOptions, StepPoint};
use saip_engine::tensor::{DType, Shape};
use saip_engine::train::config::TrainConfig;
use saip_engine::train::objective::objective;

const FIXTURE: &[u8] = include_bytes!("fixtures/vit-micro.safetensors");

const VIT_TINY: &str = r#"{"batch": 256, "global_size": [256, 128], "local_size": [128, 64], "locals": 6,
    "rescaled_size": [160, 80], "masked_size": [320, 160], "scene_size": 224, "mask_ratio": 0.75,
    "student_temp": 0.1, "teacher_temp": 0.04, "center_momentum": 0.9, "momentum": 0.996, "lr": 0.001,
    "weight_decay": 0.05, "adam_eps": 1e-8, "clip_norm": null, "loss_weights": [1.0, 1.0, 1.0],
    "csm": {"hidden": 2048, "bottleneck": 256, "prototypes": 65536}, "csr": {"dim": 512, "depth": 6, "heads": 16},
    "css": {"dim": 512, "depth": 2, "heads": 4, "convs": 4},
    "encoder": {"kind": "vit", "img_size": [256, 128], "embed_dim": 192, "depth": 12, "num_heads": 3, "tap": 6}}"#;

fn vit_tiny() -> StepConfig {
    serde_json::from_str(VIT_TINY).unwrap()
}

/// Encoders with batch normalisation.
const NETS: [&[u8]; 3] = [
    include_bytes!("fixtures/starnet-micro.safetensors"),
    include_bytes!("fixtures/tinyvit-micro.safetensors"),
    include_bytes!("fixtures/saip-resnet-micro.safetensors"),
];

/// The configuration and the shapes of all tensors of the fixture.
fn fixture() -> (StepConfig, BTreeMap<String, Vec<usize>>) {
    read(FIXTURE)
}

fn read(bytes: &[u8]) -> (StepConfig, BTreeMap<String, Vec<usize>>) {
    let (_, meta) = safetensors::SafeTensors::read_metadata(bytes).unwrap();
    let config = meta.metadata().as_ref().unwrap()["config"].clone();
    let shapes = meta.tensors().into_iter().map(|(n, t)| (n, t.shape.clone())).collect();
    (serde_json::from_str(&config).unwrap(), shapes)
}

fn micro() -> StepConfig {
    fixture().0
}

fn build(cfg: &StepConfig) -> Step {
    let step = build_step(cfg, &StepOptions { dtype: DType::F64, ..Default::default() }).unwrap();
    verify(&step.graph, "build").unwrap();
    step
}

#[test]
fn parameters_are_those_of_the_reference() {
    let (cfg, tensors) = fixture();
    let step = build(&cfg);
    for (prefix, registry) in [("student.", &step.registries.student), ("expert.", &step.registries.expert)] {
        let wanted: BTreeMap<&str, &Vec<usize>> =
            tensors.iter().filter_map(|(n, s)| Some((n.strip_prefix(prefix)?, s))).collect();
        let have: BTreeMap<&str, &Vec<usize>> =
            registry.iter().map(|p| (p.name.as_str(), &p.shape)).collect();
        assert_eq!(have, wanted);
    }
}

#[test]
fn inputs_are_those_of_the_reference() {
    let (cfg, tensors) = fixture();
    let step = build(&cfg);
    let wanted: BTreeMap<&str, &[usize]> =
        tensors.iter().filter_map(|(n, s)| Some((n.strip_prefix("view.")?, &s[..]))).collect();
    let have: BTreeMap<&str, &[usize]> = step
        .inputs
        .iter()
        .filter(|s| !["hidden", "scalars", "own_scalars"].contains(&s.name.as_str()))
        .map(|s| (s.name.as_str(), s.shape.dims()))
        .collect();
    assert_eq!(have, wanted);
    assert_eq!(step.input("hidden").unwrap().shape.dims(), [2, 12]);
    assert_eq!(step.state[0].shape.dims(), tensors["state.center"]);
    let names: Vec<_> = step.outputs.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["statistics", "csm", "csr", "css", "total", "health"]);
}

#[test]
fn inputs_do_not_overlap() {
    let cfg = vit_tiny();
    let step =
        build_step(&cfg, &StepOptions { drop_path: 0.1, micro_steps: 2, ..Default::default() }).unwrap();
    let slots: Vec<_> = step.inputs.iter().chain(&step.outputs).chain(&step.state).collect();
    for (i, a) in slots.iter().enumerate() {
        for b in &slots[..i] {
            let apart = a.offset + a.shape.count() <= b.offset || b.offset + b.shape.count() <= a.offset;
            assert!(a.region != b.region || apart, "{} and {}", a.name, b.name);
        }
    }
}

#[test]
fn the_encoder_has_as_many_parameters_as_timms() {
    let step = build(&vit_tiny());
    let count = |prefix: &str| -> usize {
        step.registries.student.iter().filter(|p| p.name.starts_with(prefix)).map(|p| p.len).sum()
    };
    // vit_tiny_patch16_224 without head: 5,524,416 with 197 positions; 129 rows at 256x128.
    assert_eq!(count("encoder.vit."), 5_524_416 - (197 - 129) * 192);
    let tensors = step.registries.student.iter().filter(|p| p.name.starts_with("encoder.vit.")).count();
    assert_eq!(tensors, 2 + 2 + 12 * 12 + 2, "cls_token, pos_embed, patch_embed, blocks, norm");
}

#[test]
fn the_moving_average_is_one_range() {
    let step = build(&vit_tiny());
    let segments = step.graph.nodes.iter().find_map(|n| match &n.op {
        Op::AdamW(ops::AdamW { segments, .. }) => Some(segments),
        _ => None,
    });
    let segments = segments.expect("the step ends with AdamW");
    let averaged: Vec<_> = segments.iter().filter(|s| s.expert.is_some()).collect();
    assert_eq!(averaged.len(), step.registries.expert.iter().count());
    assert!(averaged.iter().all(|s| s.expert == Some(s.start)));
    assert!(segments.iter().skip(averaged.len()).all(|s| s.expert.is_none()));
    let decayed = |name: &str| {
        segments.iter().find(|s| s.start == step.registries.student.get(name).unwrap().offset).unwrap().decay
    };
    assert!(decayed("csm.prototypes") && decayed("encoder.vit.blocks.0.attn.qkv.weight"));
    assert!(!decayed("encoder.vit.pos_embed") && !decayed("csr.mask_token") && !decayed("csr.pred.bias"));
}

/// Nodes none of whose outputs is read or lives in a region.
fn dead(graph: &Graph) -> Vec<&str> {
    let uses = graph.use_counts();
    let needed =
        |n: &&Node| n.outputs.iter().any(|o| uses[o.index()] > 0 || graph.value(*o).binding.is_some());
    graph.nodes.iter().filter(|n| !needed(n)).map(|n| n.path.as_str()).collect()
}

#[test]
fn the_full_step_is_built_at_once_and_without_dead_work() {
    let start = Instant::now();
    let step = build(&vit_tiny());
    assert!(start.elapsed().as_secs_f64() < 1.0, "{:?}", start.elapsed());
    assert_eq!(dead(&step.graph), [""; 0]);
}

#[test]
fn every_gradient_has_its_place() {
    let step = build(&micro());
    let bound: HashSet<(usize, usize)> = step
        .graph
        .values
        .iter()
        .filter(|v| v.producer.is_some())
        .filter_map(|v| v.binding.filter(|b| b.region == Region::Grads).map(|b| (b.offset, v.shape.count())))
        .collect();
    let wanted: HashSet<_> = step.registries.student.iter().map(|p| (p.offset, p.len)).collect();
    assert_eq!(bound, wanted);
    // All parameters of the reference step receive a gradient: none is filled with zeros.
    let fills = step.graph.nodes.iter().filter(|n| matches!(n.op, Op::Fill(_)));
    assert_eq!(fills.map(|n| n.path.as_str()).collect::<Vec<_>>(), ["seed"]);
}

fn rows(graph: &Graph, path: &str) -> Option<usize> {
    let node = graph.nodes.iter().find(|n| n.path == path)?;
    Some(graph.shape(node.outputs[0]).as_matrix().0)
}

#[test]
fn only_what_is_read_is_computed() {
    let cfg = vit_tiny();
    let (b, g) = (cfg.batch, &build(&cfg).graph);
    let at = |path: &str| rows(g, path);
    // The expert's scene (196 tokens) and visible patches (50) leave the stream behind the tap.
    assert_eq!(at("expert.encoder.vit.blocks.6.mlp.fc2"), Some(b * (2 * 129 + 197 + 51)));
    assert_eq!(at("expert.encoder.vit.blocks.7.norm1"), Some(2 * b * 129));
    assert_eq!(at("expert.encoder.vit.blocks.11.attn.proj"), Some(2 * b));
    // The last block goes on with the class rows.
    assert_eq!(at("encoder.vit.blocks.11.attn.qkv"), Some(b * (2 * 129 + 6 * 33 + 2 * 51)));
    assert_eq!(at("encoder.vit.blocks.11.mlp.fc1"), Some(10 * b));
    // The tap's normalisation sees the anchors and the pasted instances only.
    assert_eq!(at("encoder.tap_norm"), Some(b * (128 + 50)));
    // Reconstruction goes on with the hidden patches; the search goes on with the query tokens.
    assert_eq!(at("csr.blocks.4.mlp.fc1"), Some(b * 200));
    assert_eq!(at("csr.blocks.5.attn_self.kv"), Some(b * 200));
    assert_eq!(at("csr.blocks.5.attn_self.q"), Some(b * 150));
    assert_eq!(at("csr.pred"), Some(b * 150));
    assert_eq!(at("css.blocks.1.attn_self.kv"), Some(b * (129 + 51)));
    assert_eq!(at("css.blocks.1.mlp.fc1"), Some(2 * b));
    // The scene's features are computed once for both instances.
    assert_eq!(at("css.convs.3"), Some(b * 196));
    assert_eq!(at("css.cross.attn_cross.kv"), Some(b * 196));
}

fn flops(g: &Graph, n: &Node) -> u64 {
    let shapes = |ids: &[ValueId]| -> Vec<Shape> { ids.iter().map(|i| g.shape(*i).clone()).collect() };
    let (inputs, outputs) = (shapes(&n.inputs), shapes(&n.outputs));
    n.op.matrix_flops(&inputs.iter().collect::<Vec<_>>(), &outputs.iter().collect::<Vec<_>>())
}

#[test]
fn the_work_is_as_estimated() {
    let cfg = vit_tiny();
    let step = build(&cfg);
    let gflop = |wanted: &dyn Fn(&str) -> bool| -> f64 {
        let nodes = step.graph.nodes.iter().filter(|n| wanted(&n.path));
        nodes.map(|n| flops(&step.graph, n)).sum::<u64>() as f64 / 1e9 / cfg.batch as f64
    };
    // Multiplications per sample of the decoders' blocks, by hand; E = 512.
    let e2 = 512.0 * 512.0;
    let block = |q: f64, own: f64, ctx: f64| {
        e2 * (10.0 * q + 2.0 * own) + 1024.0 * q * own + e2 * (2.0 * q + 2.0 * ctx) + 1024.0 * q * ctx
    };
    let csr = 5.0 * block(200.0, 200.0, 128.0) + block(150.0, 200.0, 128.0) + 150.0 * 512.0 * 768.0;
    let css = e2 * 12.0 * 180.0 + e2 * 2.0 * 180.0 + 3.0 * 196.0 * 9.0 * e2 + e2 * 2.0 * 196.0;
    // GFLOP per sample; forward and backward are three times the forward pass. What is left out by hand (embeddings,
    // the search's attention) lies within the tolerance.
    for (part, estimate, tolerance) in [
        ("encoder.", 18.1, 0.02),
        ("expert.encoder.", 4.6, 0.05),
        ("csm", 1.9, 0.05),
        ("csr.", 6e-9 * csr, 0.01),
        ("css.", 6e-9 * css, 0.05),
    ] {
        let have = gflop(&|path| path.starts_with(part) || (part == "csm" && path.starts_with("expert.csm")));
        assert!((have / estimate - 1.0).abs() < tolerance, "{part} {have:.2} instead of {estimate:.2} GFLOP");
    }
}

fn names(step: &Step) -> Vec<&str> {
    step.inputs.iter().map(|s| s.name.as_str()).collect()
}

#[test]
fn an_objective_of_weight_0_is_left_out() {
    let all = ["csm", "csr", "css"];
    for mask in 1..8usize {
        let mut cfg = micro();
        cfg.loss_weights = [0, 1, 2].map(|i| if mask >> i & 1 == 1 { 0.5 } else { 0.0 });
        let step = build(&cfg);
        assert_eq!(dead(&step.graph), [""; 0], "{:?}", cfg.loss_weights);
        for (i, name) in all.iter().enumerate() {
            let on = mask >> i & 1 == 1;
            assert_eq!(step.output(name).is_some(), on);
            assert_eq!(step.registries.student.iter().any(|p| p.name.starts_with(name)), on);
        }
        let inputs = names(&step);
        for (input, bits) in [("local", 1), ("masked", 2), ("keep", 2), ("scene", 4), ("rescaled", 5)] {
            assert_eq!(inputs.contains(&input), mask & bits != 0, "{input} with {:?}", cfg.loss_weights);
        }
        // Without image tokens the encoder ends at the tap, and the parameters behind it do not move.
        let behind = step.graph.nodes.iter().any(|n| n.path.starts_with("encoder.vit.blocks.2"));
        assert_eq!(behind, mask & 1 == 1);
        assert_eq!(step.state.is_empty(), mask & 1 == 0);
    }
}

#[test]
fn accumulation_splits_the_step() {
    let opts = StepOptions { micro_steps: 4, ..Default::default() };
    let step = build_step(&micro(), &opts).unwrap();
    let update = step.update.as_ref().unwrap();
    verify(&step.graph, "build").unwrap();
    verify(update, "build").unwrap();
    assert_eq!((dead(&step.graph), dead(update)), (vec![], vec![]));
    let kinds = |g: &Graph| g.nodes.iter().map(|n| n.op.name()).collect::<Vec<_>>();
    // Gradients, rows of the center, the loss.
    assert_eq!(kinds(&step.graph).iter().filter(|k| **k == "accumulate_grads").count(), 3);
    assert!(!kinds(&step.graph).contains(&"adamw"));
    assert_eq!(kinds(update), ["l2_normalize", "grad_health", "adamw", "center_update"]);
    assert_eq!(step.state[1].name, "center_rows");
    assert!(step.summed.is_empty(), "there is one rank");
}

/// Ranks sum gradients in pieces of whole parameters, the last ones first, each of which is complete long before the last.
#[test]
fn gradients_are_summed_in_pieces() {
    let opts = StepOptions { stretch: Some(3000), ..Default::default() };
    let step = build_step(&micro(), &opts).unwrap();
    let student = &step.registries.student;
    let pieces: Vec<_> = step.summed.iter().filter(|s| s.0 == Region::Grads).collect();
    assert!(pieces.len() > 3);
    let mut end = student.len();
    for (_, start, len) in &pieces {
        assert_eq!(start + len, end, "one behind the other");
        assert!(student.iter().any(|p| p.offset == *start) && (*len >= 3000 || *start == 0));
        end = *start;
    }
    assert_eq!(end, 0, "all of them");
    let rows: Vec<&str> =
        step.state.iter().map(|s| s.name.as_str()).filter(|name| name.ends_with("_rows")).collect();
    assert_eq!((rows, step.summed.len()), (vec!["center_rows", "total_rows"], pieces.len() + 2));
    let plan = saip_engine::plan::compile(step.graph, false, &NullBackend::new(DType::F32)).unwrap();
    let sums: Vec<usize> = (0..plan.steps.len()).filter(|i| plan.steps[*i].path == "accumulate").collect();
    assert_eq!(sums.len(), pieces.len());
    assert!(sums[0] < plan.steps.len() * 9 / 10, "{sums:?} of {}", plan.steps.len());
}

#[test]
fn stochastic_depth_scales_every_branch_but_the_first_blocks() {
    let step = build_step(&micro(), &StepOptions { drop_path: 0.2, ..Default::default() }).unwrap();
    verify(&step.graph, "build").unwrap();
    // 4 global, 6 local, 4 rescaled images; 3 blocks.
    assert_eq!(step.input("drop_path").unwrap().shape.dims(), [6, 14]);
    let scaled = |backward: bool| {
        let of = |n: &&Node| matches!(n.op, Op::ScaleSegments(_)) && n.path.ends_with("/grad") == backward;
        step.graph.nodes.iter().filter(of).count()
    };
    assert_eq!((scaled(false), scaled(true)), (4, 4));
    assert!(!step.graph.nodes.iter().any(|n| n.path.starts_with("expert.") && n.path.contains("drop_path")));
}

#[test]
fn a_frozen_expert_has_its_own_encoder_and_an_adapter() {
    let mut cfg = micro();
    cfg.expert_encoder = serde_json::from_str(
        r#"{"kind": "vit", "img_size": [64, 32], "embed_dim": 20, "depth": 2, "num_heads": 2, "tap": 0}"#,
    )
    .unwrap();
    let step = build(&cfg);
    assert_eq!(dead(&step.graph), [""; 0]);
    let shape = |r: &ParamRegistry, name: &str| r.get(name).map(|p| p.shape.clone());
    assert_eq!(shape(&step.registries.student, "adapter.weight"), Some(vec![20, 12]));
    assert_eq!(shape(&step.registries.student, "csr.embed_masked.weight"), Some(vec![16, 20]));
    assert_eq!(shape(&step.registries.expert, "encoder.vit.pos_embed"), Some(vec![1, 9, 20]));
    let model = Model::new(&cfg).unwrap();
    let followers = model.segments(&step.registries).iter().filter(|s| s.expert.is_some()).count();
    assert_eq!(followers, 7, "the image-level decoder alone");
}

#[test]
fn features_and_pictures() {
    let cfg = micro();
    let step = build(&cfg);
    for (region, registry) in
        [(Region::Params, &step.registries.student), (Region::Expert, &step.registries.expert)]
    {
        let opts = EmbedOptions { dtype: DType::F32, region, batch: 5, size: [48, 32], patch_tokens: true };
        let embed = build_embed(&cfg.encoder, registry, &opts).unwrap();
        verify(&embed.graph, "build").unwrap();
        assert_eq!(dead(&embed.graph), [""; 0]);
        let shapes: Vec<_> = embed.outputs.iter().map(|s| (s.name.as_str(), s.shape.dims())).collect();
        assert_eq!(shapes, [("image", &[5, 12][..]), ("patch", &[5, 6, 12])]);
        let opts = EmbedOptions { size: [40, 32], ..opts };
        assert!(
            build_embed(&cfg.encoder, registry, &opts).unwrap_err().to_string().contains("multiples of 16")
        );
    }
    let inspect = Saip::of(cfg.clone()).unwrap().inspect(DType::F32).unwrap();
    verify(&inspect.graph, "build").unwrap();
    assert_eq!(dead(&inspect.graph), [""; 0]);
    assert_eq!(inspect.registries.student, step.registries.student);
    let shapes: Vec<_> = inspect.outputs.iter().map(|s| (s.name.as_str(), s.shape.dims())).collect();
    assert_eq!(
        shapes,
        [
            ("reconstruction", &[2, 12, 768][..]),
            ("search", &[2, 2, 16]),
            ("image", &[2, 12]),
            ("qkv", &[2, 9, 36])
        ]
    );
}

#[test]
fn initial_values_are_finite_and_follow_timm() {
    let step = build(&micro());
    let values = initialise(&step.registries.student, 3).unwrap();
    assert!(values.iter().all(|v| v.is_finite()));
    let of =
        |name: &str| step.registries.student.get(name).map(|p| &values[p.offset..p.offset + p.len]).unwrap();
    assert!(of("encoder.vit.blocks.1.attn.qkv.bias").iter().all(|v| *v == 0.0));
    assert!(of("encoder.vit.norm.weight").iter().all(|v| *v == 1.0));
    let largest = |name: &str| of(name).iter().fold(0.0f32, |a, v| a.max(v.abs()));
    let bound = 1.0 / 768f32.sqrt();
    assert!(largest("encoder.vit.patch_embed.proj.weight") <= bound);
    assert!(largest("encoder.vit.patch_embed.proj.weight") > 0.95 * bound);
    assert!(largest("encoder.vit.cls_token") < 1e-5);
    assert!(largest("csr.pred.bias") > 0.2 && largest("csr.pred.bias") <= 0.25);
}

#[test]
fn the_scalar_block_follows_the_step() {
    let cfg = micro();
    let at = StepPoint { micro_step: 1, micro_steps: 4, ..Saip::of(cfg.clone()).unwrap().point(2) };
    let block = at.block();
    assert_eq!(at.own, [0.1, 0.04, 0.9]);
    let wanted = [1e-3, 0.05, 0.9, 0.95, 1e-2, 1.0 - 0.81, 1.0 - 0.9025, 0.0, 0.996, 1.0, 0.25];
    for (have, wanted) in block.iter().zip(wanted) {
        assert!((have - wanted).abs() < 1e-15, "{block:?}");
    }
}

type Breaking = fn(&mut StepConfig);

#[test]
fn bad_configurations_name_the_key() {
    let cases: [(&str, Breaking); 9] = [
        ("batch", |c| c.batch = 0),
        ("local_size", |c| c.local_size = [32, 20]),
        ("scene_size", |c| c.scene_size = 0),
        ("mask_ratio", |c| c.mask_ratio = 0.99),
        ("loss_weights", |c| c.loss_weights = [0.0; 3]),
        ("loss_weights", |c| c.loss_weights[1] = f64::NAN),
        ("csr.heads", |c| c.csr.heads = 3),
        ("css.convs", |c| c.css.convs = 0),
        ("csm.prototypes", |c| c.csm.prototypes = 0),
    ];
    for (key, break_it) in cases {
        let mut cfg = micro();
        break_it(&mut cfg);
        let e = build_step(&cfg, &StepOptions::default()).unwrap_err().to_string();
        assert!(e.contains(&format!("`{key}`")), "{key}: {e}");
    }
    for (key, encoder) in [
        (
            "encoder.tap",
            r#"{"kind": "vit", "img_size": [64, 32], "embed_dim": 12, "depth": 3, "num_heads": 3, "tap": 3}"#,
        ),
        (
            "encoder.num_heads",
            r#"{"kind": "vit", "img_size": [64, 32], "embed_dim": 12, "depth": 3, "num_heads": 5, "tap": 1}"#,
        ),
        (
            "encoder.img_size",
            r#"{"kind": "vit", "img_size": [60, 32], "embed_dim": 12, "depth": 3, "num_heads": 3, "tap": 1}"#,
        ),
        ("encoder.base_dim", r#"{"kind": "starnet", "base_dim": 0, "depths": [2, 2, 8, 4], "mlp_ratio": 4}"#),
        (
            "encoder.mlp_ratio",
            r#"{"kind": "starnet", "base_dim": 32, "depths": [2, 2, 8, 4], "mlp_ratio": 0}"#,
        ),
        (
            "encoder.depths",
            r#"{"kind": "starnet", "base_dim": 32, "depths": [2, 2, 9000, 4], "mlp_ratio": 4}"#,
        ),
        ("encoder.layers", r#"{"kind": "resnet", "layers": [2, 0, 2, 2], "channels": [64, 128, 256, 512]}"#),
        ("encoder.channels", r#"{"kind": "resnet", "layers": [2, 2, 2, 2], "channels": [64, 128, 0, 512]}"#),
        (
            "encoder.num_heads",
            r#"{"kind": "tinyvit", "embed_dims": [4, 8, 10, 20], "depths": [1, 1, 2, 1], "num_heads": [1, 3, 2, 4],
                "window_sizes": [7, 7, 14, 7]}"#,
        ),
        (
            "encoder.window_sizes",
            r#"{"kind": "tinyvit", "embed_dims": [4, 8, 10, 20], "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 4],
                "window_sizes": [7, 7, 0, 7]}"#,
        ),
        (
            "encoder.embed_dims",
            r#"{"kind": "tinyvit", "embed_dims": [1, 8, 10, 20], "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 4],
                "window_sizes": [7, 7, 14, 7]}"#,
        ),
    ] {
        let mut cfg = micro();
        cfg.encoder = serde_json::from_str(encoder).unwrap();
        let e = build_step(&cfg, &StepOptions::default()).unwrap_err().to_string();
        assert!(e.contains(&format!("`{key}`")), "{key}: {e}");
    }
    for opts in [
        StepOptions { dtype: DType::I32, ..Default::default() },
        StepOptions { micro_steps: 0, ..Default::default() },
        StepOptions { drop_path: 1.0, ..Default::default() },
    ] {
        assert!(build_step(&micro(), &opts).is_err());
    }
}

#[test]
fn in_bf16_weight_matrices_and_activations_are_narrow_and_nothing_else() {
    let step = build_step(
        &micro(),
        &StepOptions { dtype: DType::Bf16, drop_path: 0.1, micro_steps: 1, stretch: None },
    )
    .unwrap();
    verify(&step.graph, "build").unwrap();
    let narrow = [Region::Weights, Region::ExpertWeights];
    for v in &step.graph.values {
        if let Some(at) = v.binding.filter(|at| at.region != Region::Indices) {
            let want = if narrow.contains(&at.region) { DType::Bf16 } else { DType::F32 };
            assert_eq!(v.dtype, want, "{} in {}", v.name, at.region.name());
        }
    }
    let type_of = |name: &str| step.graph.values.iter().find(|v| v.name == name).map(|v| v.dtype);
    let wanted = [
        ("encoder.vit.blocks.0.attn.qkv.weight", DType::Bf16),
        ("expert.csm.prototypes", DType::Bf16),
        ("encoder.vit.blocks.0.attn.qkv.bias", DType::F32),
        ("encoder.vit.pos_embed", DType::F32),
        ("encoder.vit.blocks.1.add2", DType::Bf16),
        ("css.dynamic_conv", DType::F32),
        ("csr.loss", DType::F32),
        ("encoder.vit.blocks.0.attn.qkv/grad:1", DType::F32),
    ];
    for (name, dtype) in wanted {
        assert_eq!(type_of(name), Some(dtype), "{name}");
    }
    for graph in [
        Saip::of(micro()).unwrap().inspect(DType::Bf16).unwrap().graph,
        build_embed(
            &micro().encoder,
            &step.registries.student,
            &EmbedOptions {
                dtype: DType::Bf16,
                region: Region::Params,
                batch: 2,
                size: [32, 32],
                patch_tokens: true,
            },
        )
        .unwrap()
        .graph,
    ] {
        verify(&graph, "build").unwrap();
        plan(&graph, &NullBackend::new(DType::Bf16)).unwrap();
    }
}

/// At 256 images and the largest scale, with kernels that take these sizes.
#[test]
fn full_steps_in_bf16_fit_gpus_of_24_and_48_gb() {
    for (preset, kept, recomputed) in [
        ("saip-vit-tiny", 24_000_000_000, 8_000_000_000),
        ("saip-tinyvit-5m", 48_000_000_000, 24_000_000_000),
        ("saip-starnet-s3", 48_000_000_000, 12_000_000_000),
    ] {
        let sets = ["optim.batch=256", "optim.effective_batch=256"].map(str::to_owned);
        let cfg = TrainConfig::resolve(Some(preset), None, &sets).unwrap();
        let step = objective(&cfg).unwrap().at_scale(cfg.views.scale[1]).unwrap();
        let opts = StepOptions { dtype: DType::Bf16, ..Default::default() };
        for (again, most) in [(false, kept), (true, recomputed)] {
            let mut backend = PlanningBackend::new(DType::Bf16);
            let plan = plan::compile(step.step(0, &opts).unwrap().graph, again, &backend).unwrap();
            let bytes = plan.arena_bytes + plan.regions.iter().map(|r| r.bytes()).sum::<usize>();
            assert!(bytes <= most, "{preset}, recomputed {again}: {bytes} bytes");
            backend.compile(plan).unwrap_or_else(|e| panic!("{preset}, recomputed {again}: {e}"));
        }
    }
}

#[test]
fn parameters_and_statistics_of_convolutional_encoders_are_those_of_the_reference() {
    for (cfg, tensors) in NETS.map(read) {
        let step = build(&cfg);
        let sides = [
            ("student.", &step.registries.student, &step.registries.student_buffers),
            ("expert.", &step.registries.expert, &step.registries.expert_buffers),
        ];
        for (prefix, parameters, buffers) in sides {
            let wanted: BTreeMap<&str, &Vec<usize>> = tensors
                .iter()
                .filter(|(n, _)| !n.ends_with(".num_batches_tracked"))
                .filter_map(|(n, s)| Some((n.strip_prefix(prefix)?, s)))
                .collect();
            let have: BTreeMap<&str, &Vec<usize>> =
                parameters.iter().chain(buffers).map(|p| (p.name.as_str(), &p.shape)).collect();
            assert_eq!(have, wanted);
            assert_eq!(parameters.iter().count() + buffers.iter().count(), have.len());
        }
        assert_eq!(dead(&step.graph), [""; 0]);
    }
}

/// Every choice of objectives, types and micro steps; and an expert of another kind that stays frozen.
#[test]
fn steps_of_convolutional_encoders_can_be_fused_and_planned() {
    for (cfg, _) in NETS.map(read) {
        let frozen = StepConfig { expert_encoder: Some(read(NETS[0]).0.encoder), ..cfg.clone() };
        for mut cfg in [cfg, frozen] {
            for bits in 1..8u8 {
                cfg.loss_weights = [1, 2, 4].map(|b| f64::from(u8::from(bits & b != 0)));
                for (dtype, micro_steps) in [(DType::Bf16, 1), (DType::F32, 2)] {
                    let opts = StepOptions { dtype, micro_steps, drop_path: 0.1, stretch: None };
                    let step = build_step(&cfg, &opts).unwrap();
                    assert_eq!(dead(&step.graph), [""; 0]);
                    let updates = |n: &Node| matches!(n.op, Op::RunningStatistics(_));
                    let expert_updates =
                        step.graph.nodes.iter().filter(|n| updates(n) && n.path.starts_with("expert."));
                    assert!(cfg.expert_encoder.is_none() || expert_updates.count() == 0);
                    for mut graph in std::iter::once(step.graph).chain(step.update) {
                        fuse(&mut graph, &NullBackend::new(dtype));
                        verify(&graph, "fuse").unwrap();
                        plan(&graph, &NullBackend::new(dtype)).unwrap();
                    }
                }
            }
        }
    }
}

#[test]
fn features_of_convolutional_encoders_come_from_running_statistics() {
    for (cfg, _) in NETS.map(read) {
        let step = build(&cfg);
        let opts = EmbedOptions {
            dtype: DType::F32,
            region: Region::Expert,
            batch: 1,
            size: [48, 32],
            patch_tokens: true,
        };
        let embed = build_embed(&cfg.encoder, &step.registries.expert, &opts).unwrap();
        verify(&embed.graph, "build").unwrap();
        assert_eq!(dead(&embed.graph), [""; 0]);
        assert!(!embed.graph.nodes.iter().any(|n| matches!(n.op, Op::BatchNorm(_))));
        let reads =
            |v: &&saip_engine::ir::Value| v.binding.is_some_and(|b| b.region == Region::ExpertBuffers);
        assert_eq!(
            embed.graph.values.iter().filter(reads).count(),
            step.registries.expert_buffers.iter().count()
        );
        let inspect = Saip::of(cfg.clone()).unwrap().inspect(DType::F32).unwrap();
        verify(&inspect.graph, "build").unwrap();
        assert_eq!(dead(&inspect.graph), [""; 0]);
    }
}

#[test]
fn a_step_can_be_fused_and_planned() {
    for dtype in [DType::Bf16, DType::F32, DType::F64] {
        for micro_steps in [1, 2] {
            let opts = StepOptions { dtype, micro_steps, drop_path: 0.1, stretch: None };
            let step = build_step(&micro(), &opts).unwrap();
            for mut graph in std::iter::once(step.graph).chain(step.update) {
                fuse(&mut graph, &NullBackend::new(dtype));
                verify(&graph, "fuse").unwrap();
                plan(&graph, &NullBackend::new(dtype)).unwrap();
            }
        }
    }
}
