//! Invariants of the planner, on random graphs: what a step reads is what was written for it, whatever was reused.

use proptest::prelude::*;
use saip_engine::Result;
use saip_engine::backend::{Backend, HostSlice, HostSliceMut, NullBackend, ProgramId};
use saip_engine::ir::{Binding, Graph, Op, Region, ValueId, differentiate, ops, verify};
use saip_engine::plan::{
    Interval, OperandType, Plan, Space, Target, fuse, lower_bound, place, plan, recompute,
};
use saip_engine::tensor::DType;
use std::collections::BTreeMap;

/// The null backend with workspaces and in-place pairs, so that the planner has something to get wrong.
struct Greedy(NullBackend);

impl Target for Greedy {
    fn workspace(&self, op: &Op, inputs: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        if matches!(op, Op::Linear(_)) { inputs[0].shape.count() * 2 } else { 0 }
    }
    fn in_place(&self, op: &Op) -> &'static [usize] {
        match op {
            Op::Add(_) => &[0, 1],
            Op::Gelu(_) | Op::GeluBackward(_) => &[0],
            _ => &[],
        }
    }

    fn finishes_rows(&self, _: usize) -> bool {
        true
    }
}

impl Backend for Greedy {
    fn name(&self) -> String {
        "greedy".into()
    }
    fn dtype(&self) -> DType {
        self.0.dtype()
    }
    fn compile(&mut self, plan: Plan) -> Result<ProgramId> {
        self.0.compile(plan)
    }
    fn write(&mut self, region: Region, offset: usize, data: HostSlice<'_>) -> Result<()> {
        self.0.write(region, offset, data)
    }
    fn read(&self, region: Region, offset: usize, data: HostSliceMut<'_>) -> Result<()> {
        self.0.read(region, offset, data)
    }
    fn run(&mut self, program: ProgramId) -> Result<()> {
        self.0.run(program)
    }
}

/// A random network over `[rows, width]` values: each choice is (op, operand a, operand b, in a block of its own).
fn network(choices: &[(u8, usize, usize, bool)], rows: usize, width: usize) -> Graph {
    let mut g = Graph::new();
    let mut weights = 0;
    let mut source = |g: &mut Graph, name: &str, shape: Vec<usize>| {
        let v = g.source(
            name,
            saip_engine::tensor::Shape::new(shape.clone()),
            DType::F32,
            Binding { region: Region::Params, offset: weights },
        );
        weights += shape.iter().product::<usize>();
        v
    };
    let x = source(&mut g, "x", vec![rows, width]);
    let mut values = vec![x];
    let mut params = Vec::new();
    for (i, &(op, a, b, block)) in choices.iter().enumerate() {
        let (a, b) = (values[a % values.len()], values[b % values.len()]);
        let path = format!("n{i}");
        let w = source(&mut g, &format!("{path}.w"), vec![width, width]);
        let c = source(&mut g, &format!("{path}.b"), vec![width]);
        let push = |g: &mut Graph| match op % 4 {
            0 => g.push1(&path, ops::Gelu, &[a]),
            1 => g.push1(&path, ops::Add, &[a, b]),
            2 => {
                let y = g.push1(
                    format!("{path}.fc"),
                    ops::Linear { epilogue: saip_engine::ir::Epilogue::None },
                    &[a, w, c],
                )?;
                if i % 2 == 0 { g.push1(&path, ops::Gelu, &[y]) } else { g.push1(&path, ops::Add, &[b, y]) }
            }
            _ => g.push1(&path, ops::LayerNorm { eps: 1e-6 }, &[a, c, c]),
        };
        let y = if block { g.in_block(push) } else { push(&mut g) }.unwrap();
        if op % 4 == 2 {
            params.push(w);
        }
        values.push(y);
    }
    let target = g.source("target", [rows, width], DType::F32, Binding { region: Region::Inputs, offset: 0 });
    let last = *values.last().unwrap();
    let loss = g.push1("loss", ops::BceWithLogits { groups: 1 }, &[last, target]).unwrap();
    g.bind(loss, Binding { region: Region::Outputs, offset: 0 });
    let grads = differentiate(&mut g, loss, &params).unwrap();
    let mut offset = 0;
    for d in grads.into_iter().flatten() {
        if g.value(d).binding.is_none() && g.value(d).producer.is_some() {
            g.bind(d, Binding { region: Region::Grads, offset });
            offset += width * width;
        }
    }
    verify(&g, "test").unwrap();
    g
}

/// Runs the plan symbolically: memory holds names of values; every read must find the value it wants, whole.
fn execute(graph: &Graph, plan: &Plan) {
    let mut by_path: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (n, node) in graph.nodes.iter().enumerate() {
        by_path.entry(&node.path).or_default().push(n);
    }
    let mut memory: BTreeMap<usize, (usize, ValueId)> = BTreeMap::new(); // offset -> (bytes, value)
    let mut written = vec![false; graph.values.len()];
    for step in &plan.steps {
        // Nodes of one path and op are told apart by what was written already.
        let candidates: Vec<usize> = by_path[step.path.as_str()]
            .iter()
            .copied()
            .filter(|&n| {
                graph.nodes[n].op == step.op && !graph.nodes[n].outputs.iter().any(|o| written[o.index()])
            })
            .collect();
        let n = *candidates
            .iter()
            .find(|&&n| reads_match(graph, n, step, &memory))
            .unwrap_or_else(|| panic!("{}: an operand was overwritten or never written", step.path));
        let (w_at, w_bytes) = step.workspace;
        let mut clobbered: Vec<(usize, usize)> = vec![(w_at, w_bytes)];
        for slot in &step.outputs {
            if slot.space == Space::Arena {
                clobbered.push((slot.offset, slot.shape.count() * slot.dtype.bytes()));
            }
        }
        for (k, (at, bytes)) in clobbered.iter().enumerate() {
            assert!(at + bytes <= plan.arena_bytes);
            for (other, len) in &clobbered[k + 1..] {
                assert!(at + bytes <= *other || other + len <= *at, "{}: outputs overlap", step.path);
            }
            // Scratch must not touch what this step reads.
            for input in step.inputs.iter().filter(|s| k == 0 && *bytes > 0 && s.space == Space::Arena) {
                let end = input.offset + input.shape.count() * input.dtype.bytes();
                assert!(at + bytes <= input.offset || end <= *at, "{}: scratch over an operand", step.path);
            }
            memory.retain(|o, (len, _)| o + *len <= *at || at + bytes <= *o);
        }
        for (slot, id) in step.outputs.iter().zip(&graph.nodes[n].outputs) {
            written[id.index()] = true;
            if slot.space == Space::Arena {
                memory.insert(slot.offset, (slot.shape.count() * slot.dtype.bytes(), *id));
            }
        }
    }
    assert_eq!(plan.steps.len(), graph.nodes.len());
}

fn reads_match(
    graph: &Graph,
    n: usize,
    step: &saip_engine::plan::Step,
    memory: &BTreeMap<usize, (usize, ValueId)>,
) -> bool {
    graph.nodes[n].inputs.iter().zip(&step.inputs).all(|(id, slot)| match slot.space {
        Space::Arena => memory.get(&slot.offset).is_some_and(|(_, v)| v == id),
        Space::Region(_) | Space::Unused => true,
    })
}

fn planned(graph: &Graph) -> Plan {
    plan(graph, &Greedy(NullBackend::new(DType::F32))).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn placed_buffers_never_meet(raw in prop::collection::vec((0usize..60, 0usize..20, 1usize..5000), 0..80)) {
        let buffers: Vec<Interval> =
            raw.iter().map(|&(start, life, bytes)| Interval { start, end: start + life, bytes }).collect();
        let (offsets, total) = place(&buffers);
        for (i, a) in buffers.iter().enumerate() {
            prop_assert!(offsets[i] + a.bytes <= total);
            prop_assert_eq!(offsets[i] % 64, 0);
            for (j, b) in buffers.iter().enumerate().skip(i + 1) {
                let in_time = a.start <= b.end && b.start <= a.end;
                let in_space = offsets[i] < offsets[j] + b.bytes && offsets[j] < offsets[i] + a.bytes;
                prop_assert!(!(in_time && in_space), "{a:?} at {} meets {b:?} at {}", offsets[i], offsets[j]);
            }
        }
        prop_assert!(total >= lower_bound(&buffers));
    }

    #[test]
    fn every_read_finds_what_was_written(
        choices in prop::collection::vec((any::<u8>(), any::<usize>(), any::<usize>(), any::<bool>()), 1..40),
        rows in 1usize..9, width in 1usize..9,
    ) {
        let raw = network(&choices, rows, width);
        execute(&raw, &planned(&raw));
        let mut fused = raw.clone();
        fuse(&mut fused, &Greedy(NullBackend::new(DType::F32)));
        verify(&fused, "fuse").unwrap();
        execute(&fused, &planned(&fused));
        let mut again = raw;
        recompute(&mut again);
        verify(&again, "recompute").unwrap();
        fuse(&mut again, &Greedy(NullBackend::new(DType::F32)));
        verify(&again, "fuse").unwrap();
        execute(&again, &planned(&again));
    }
}

#[test]
fn recomputation_keeps_less() {
    // Twelve blocks of linear + GELU with wide insides: without recomputation all insides are kept for the backward pass.
    let mut g = Graph::new();
    let source = |g: &mut Graph, shape: [usize; 2], offset| {
        g.source("p", shape, DType::F32, Binding { region: Region::Params, offset })
    };
    let linear = Op::from(ops::Linear { epilogue: saip_engine::ir::Epilogue::None });
    let x = source(&mut g, [64, 16], 0);
    let mut v = x;
    let mut weights = Vec::new();
    for i in 0..12 {
        let up = source(&mut g, [256, 16], 1024 + i * 20000);
        let down = source(&mut g, [16, 256], 8000 + i * 20000);
        let b =
            g.source("b", [256], DType::F32, Binding { region: Region::Params, offset: 15000 + i * 20000 });
        let c =
            g.source("c", [16], DType::F32, Binding { region: Region::Params, offset: 15500 + i * 20000 });
        weights.extend([up, down]);
        v = g
            .in_block(|g| {
                let h = g.push1(format!("{i}.fc1"), linear.clone(), &[v, up, b])?;
                let h = g.push1(format!("{i}.act"), ops::Gelu, &[h])?;
                let y = g.push1(format!("{i}.fc2"), linear.clone(), &[h, down, c])?;
                g.push1(format!("{i}.add"), ops::Add, &[v, y])
            })
            .unwrap();
    }
    let target = g.source("t", [64, 16], DType::F32, Binding { region: Region::Inputs, offset: 0 });
    let loss = g.push1("loss", ops::BceWithLogits { groups: 1 }, &[v, target]).unwrap();
    g.bind(loss, Binding { region: Region::Outputs, offset: 0 });
    let grads = differentiate(&mut g, loss, &weights).unwrap();
    for (i, d) in grads.into_iter().enumerate() {
        g.bind(d.unwrap(), Binding { region: Region::Grads, offset: i * 4096 });
    }
    let mut kept = g.clone();
    fuse(&mut kept, &Greedy(NullBackend::new(DType::F32)));
    let mut again = g;
    recompute(&mut again);
    fuse(&mut again, &Greedy(NullBackend::new(DType::F32)));
    let (kept, again) = (planned(&kept), planned(&again));
    assert!(again.arena_bytes * 2 < kept.arena_bytes, "{} against {}", again.arena_bytes, kept.arena_bytes);
    assert!(kept.arena_bytes <= kept.lower_bound_bytes * 11 / 10);
}

#[test]
fn the_full_step_fits_closely() {
    use saip_engine::step::StepOptions;
    use saip_engine::train::config::TrainConfig;
    use saip_engine::train::objective::objective;
    let sets = ["optim.batch=256".to_owned(), "optim.effective_batch=256".to_owned()];
    let cfg = TrainConfig::resolve(Some("saip-vit-tiny"), None, &sets).unwrap();
    let cpu = saip_engine::cpu::CpuBackend::<f32>::new(2).unwrap();
    for scale in [0.75, 1.25, 1.5] {
        let step = objective(&cfg).unwrap().at_scale(scale).unwrap();
        let graph = step.step(0, &StepOptions::default()).unwrap().graph;
        let plan = saip_engine::plan::compile(graph, false, &cpu).unwrap();
        assert!(
            plan.arena_bytes as f64 <= 1.005 * plan.lower_bound_bytes as f64,
            "scale {scale}: {} against {}",
            plan.arena_bytes,
            plan.lower_bound_bytes
        );
        // The bound is that of the buffers the plan placed; it must hold what the backward pass cannot do without.
        assert!(plan.lower_bound_bytes > 10 << 30);
    }
}
