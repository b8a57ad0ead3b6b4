//! Several ranks make the updates that one process makes with as many micro steps.

mod support;

use saip_engine::backend::Collective;
use saip_engine::cpu::CpuBackend;
use saip_engine::data::loader::Loader;
use saip_engine::interrupt::Interrupt;
use saip_engine::ir::Region;
use saip_engine::objectives::Objective;
use saip_engine::train::config::TrainConfig;
use saip_engine::train::engine::{Engine, EngineOptions, Ranks, Summing};
use saip_engine::train::objective::objective;
use saip_engine::train::sources;
use saip_engine::train::stepper::Stepper;
use std::sync::Arc;
use support::threads;

/// Updates that are compared: a few, or as many as SAIP_RANK_STEPS says.
fn steps() -> u64 {
    std::env::var("SAIP_RANK_STEPS").ok().and_then(|n| n.parse().ok()).unwrap_or(3)
}

/// Losses of every step, then all of the state.
type Course = (Vec<Vec<f64>>, Vec<(String, Vec<f64>)>);

fn config(preset: &str, sets: &[&str]) -> TrainConfig {
    let small = [
        "csm.hidden=16",
        "csm.bottleneck=8",
        "csm.prototypes=32",
        "csr.dim=16",
        "css.dim=16",
        "views.global_size=[64,32]",
        "views.local_size=[32,32]",
        "views.scene_size=64",
        "views.locals=1",
        "optim.batch=2",
        "optim.effective_batch=8",
        "optim.steps=60",
        // Rounding grows with every step, the faster the larger the steps are.
        "optim.base_lr=1e-3",
        "encoder.drop_path=0.2",
        "data.synth.identities=6",
        "data.synth.images_per_identity=5",
        "data.workers=1",
    ];
    let sets: Vec<String> = small.iter().chain(sets).map(|s| (*s).to_owned()).collect();
    TrainConfig::resolve(Some(preset), None, &sets).unwrap()
}

/// The first `steps` updates as `link`'s rank sees them.
fn course(cfg: &TrainConfig, link: Option<Box<dyn Collective>>, steps: u64) -> Course {
    let source = sources::training_source(cfg).unwrap();
    let schedule = cfg.schedule(source.len()).unwrap();
    let objective: Arc<dyn Objective> = objective(cfg).unwrap();
    let ranks = link.map(Ranks::new);
    let options = EngineOptions {
        micro_steps: cfg.optim.accumulation(1).unwrap(),
        drop_path: cfg.encoder.drop_path,
        recompute: false,
        seed: cfg.data.seed,
    };
    let backend = Box::new(CpuBackend::<f64>::new(1).unwrap());
    let summing = Summing { stretch: 5000, wire: cfg.dist.wire() };
    let among = ranks.clone().map(|r| (r, summing));
    let mut engine = Engine::among(backend, Arc::clone(&objective), options, among).unwrap();
    engine.initialise().unwrap();
    engine.share_state().unwrap();
    let loader: Loader =
        sources::loader(cfg, &source, objective.recipe().unwrap(), 0, ranks.as_ref()).unwrap();
    let link = ranks.clone();
    let mut stepper = Stepper::new(cfg, (engine, loader), (objective, schedule), ranks, 0).unwrap();
    let mut losses = Vec::new();
    for _ in 0..steps {
        let updated = stepper.update(&Interrupt::default()).unwrap();
        let mut all = vec![updated.losses.total, updated.health.grad_norm];
        all.extend(updated.losses.parts.iter().map(|p| p.1));
        all.extend(updated.losses.statistics);
        assert!(updated.health.finite && updated.images == cfg.optim.effective_batch);
        losses.push(all);
    }
    stepper.compare().unwrap();
    link.iter().for_each(|link| link.leave(None));
    let engine = stepper.engine;
    let regions = [Region::Params, Region::Expert, Region::Moment2, Region::Buffers, Region::ExpertBuffers];
    let mut state: Vec<(String, Vec<f64>)> = Vec::new();
    for region in regions {
        let named = engine.read_region(region).unwrap();
        state
            .extend(named.into_iter().map(|(name, _, values)| (format!("{}.{name}", region.name()), values)));
    }
    state.extend(engine.read_state().unwrap().into_iter().map(|(name, _, values)| (name, values)));
    (losses, state)
}

/// The largest difference, in units of the larger of 1 and the largest value of the same tensor, and where it is.
fn apart(a: &Course, b: &Course) -> (f64, String) {
    let off = |x: &[f64], y: &[f64]| {
        assert_eq!(x.len(), y.len());
        let scale = x.iter().fold(1.0f64, |m, v| m.max(v.abs()));
        x.iter().zip(y).map(|(x, y)| (x - y).abs() / scale).fold(0.0, f64::max)
    };
    let losses =
        a.0.iter().zip(&b.0).enumerate().map(|(i, (x, y))| (off(x, y), format!("losses of step {i}")));
    let state = a.1.iter().zip(&b.1).map(|(x, y)| {
        assert_eq!(x.0, y.0);
        (off(&x.1, &y.1), x.0.clone())
    });
    let worst = losses.chain(state).max_by(|x, y| x.0.total_cmp(&y.0));
    worst.unwrap()
}

fn several(cfg: &TrainConfig, world: usize, steps: u64) -> Vec<Course> {
    let run = |link| course(cfg, Some(link), steps);
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            threads::links(world).into_iter().map(|link| scope.spawn(move || run(link))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

fn ranks_are_micro_steps(preset: &str, sets: &[&str]) {
    let cfg = config(preset, sets);
    let alone = course(&cfg, None, steps());
    for world in [1, 2, 4] {
        // One rank has no other order to sum in.
        let steps = if world == 1 { 2 } else { self::steps() };
        let all = several(&cfg, world, steps);
        for (rank, one) in all.iter().enumerate() {
            assert_eq!(one, &all[0], "rank {rank} of {world}");
        }
        let alone = if world == 1 { course(&cfg, None, steps) } else { alone.clone() };
        let (off, place) = apart(&alone, &all[0]);
        println!("{preset}, {world} ranks: {off:.1e} ({place})");
        assert!(off < 1e-9, "{preset}, {world} ranks: {off:.1e} ({place})");
        let again = self::steps().min(2);
        assert_eq!(several(&cfg, world, again)[0].0, all[0].0[..again as usize], "from run to run");
    }
}

#[test]
fn vit() {
    ranks_are_micro_steps("demo", &["encoder.embed_dim=24", "encoder.num_heads=2"]);
}

#[test]
fn tinyvit() {
    // Small batches that are normalised let rounding grow faster.
    let keys = [
        "encoder.embed_dims=[8,16,24,32]",
        "encoder.num_heads=[1,1,1,1]",
        "optim.batch=4",
        "optim.effective_batch=16",
    ];
    ranks_are_micro_steps("demo-tinyvit", &keys);
}

#[test]
fn starnet() {
    ranks_are_micro_steps("demo-starnet", &["encoder.base_dim=8"]);
}

#[test]
fn resnet() {
    ranks_are_micro_steps("demo-resnet", &["encoder.channels=[8,8,16,16]"]);
}
