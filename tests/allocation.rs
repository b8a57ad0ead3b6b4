//! A compiled step runs in the memory that compiling it reserved: whatever one more step allocates it gives back.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};

use saip_engine::backend::{Backend, ProgramId};
use saip_engine::cpu::CpuBackend;
use saip_engine::data::batch::Batch;
use saip_engine::data::loader::{Loader, LoaderConfig};
use saip_engine::data::source::SynthSource;
use saip_engine::data::synth::SynthConfig;
use saip_engine::ir::{FeatureMap, Op, ops};
use saip_engine::objectives::Objective;
use saip_engine::step::StepPoint;
use saip_engine::train::config::TrainConfig;
use saip_engine::train::engine::{Engine, EngineOptions};
use saip_engine::train::objective::objective;

/// The system's allocator with a count of what is live and of what was ever asked for, over all threads.
struct Counting;

static LIVE_BYTES: AtomicI64 = AtomicI64::new(0);
static LIVE_BLOCKS: AtomicI64 = AtomicI64::new(0);
static ASKED_BLOCKS: AtomicI64 = AtomicI64::new(0);
static ASKED_BYTES: AtomicI64 = AtomicI64::new(0);

fn count(blocks: i64, bytes: i64) {
    LIVE_BLOCKS.fetch_add(blocks, SeqCst);
    LIVE_BYTES.fetch_add(bytes, SeqCst);
    if bytes > 0 {
        ASKED_BLOCKS.fetch_add(1, SeqCst);
        ASKED_BYTES.fetch_add(bytes, SeqCst);
    }
}

// SAFETY: every call goes to the system's allocator unchanged; counting touches atomics only.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size() as i64);
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size() as i64);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-1, -(layout.size() as i64));
        // SAFETY: as above; `ptr` came from `System` by one of the other methods.
        unsafe { System.dealloc(ptr, layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(0, size as i64 - layout.size() as i64);
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[derive(Clone, Copy, Debug)]
struct Count {
    live_bytes: i64,
    live_blocks: i64,
    asked_blocks: i64,
    asked_bytes: i64,
}

fn now() -> Count {
    Count {
        live_bytes: LIVE_BYTES.load(SeqCst),
        live_blocks: LIVE_BLOCKS.load(SeqCst),
        asked_blocks: ASKED_BLOCKS.load(SeqCst),
        asked_bytes: ASKED_BYTES.load(SeqCst),
    }
}

/// What `work` allocated, and what of it stayed.
fn during(work: impl FnOnce()) -> Count {
    let before = now();
    work();
    let after = now();
    Count {
        live_bytes: after.live_bytes - before.live_bytes,
        live_blocks: after.live_blocks - before.live_blocks,
        asked_blocks: after.asked_blocks - before.asked_blocks,
        asked_bytes: after.asked_bytes - before.asked_bytes,
    }
}

/// A preset whose encoder is made small.
type Small = (&'static str, &'static [&'static str]);

const VIT: Small =
    ("demo", &["encoder.embed_dim=24", "encoder.depth=2", "encoder.num_heads=2", "encoder.tap=1"]);
const STAR_NET: Small =
    ("demo-starnet", &["encoder.base_dim=4", "encoder.depths=[1,1,1,1]", "encoder.mlp_ratio=2"]);
const RES_NET: Small = ("demo-resnet", &["encoder.layers=[1,1,1,1]", "encoder.channels=[4,8,8,12]"]);
const TINY_VIT: Small = (
    "demo-tinyvit",
    &["encoder.embed_dims=[4,8,12,16]", "encoder.depths=[1,1,1,1]", "encoder.num_heads=[1,2,2,2]"],
);

const TINY: &[&str] = &[
    "encoder.drop_path=0.1",
    "csm.hidden=16",
    "csm.bottleneck=8",
    "csm.prototypes=32",
    "csr.dim=16",
    "csr.heads=2",
    "css.dim=16",
    "css.heads=2",
    "views.global_size=[64,32]",
    "views.local_size=[32,32]",
    "views.locals=2",
    "views.scene_size=64",
    "optim.batch=4",
    "optim.effective_batch=4",
];

/// The step of a tiny configuration on the CPU, and a batch for it.
fn tiny((preset, encoder): Small, threads: usize, micro_steps: usize) -> (Engine, Batch, Arc<dyn Objective>) {
    let sets: Vec<String> = TINY.iter().chain(encoder).map(|s| (*s).to_owned()).collect();
    let cfg = TrainConfig::resolve(Some(preset), None, &sets).unwrap();
    let step: Arc<dyn Objective> = Arc::from(objective(&cfg).unwrap().at_scale(1.0).unwrap());
    let backend: Box<dyn Backend> = Box::new(CpuBackend::<f32>::new(threads).unwrap());
    let options = EngineOptions { micro_steps, drop_path: cfg.encoder.drop_path, recompute: false, seed: 0 };
    let mut engine = Engine::new(backend, Arc::clone(&step), options).unwrap();
    engine.initialise().unwrap();
    let persons = SynthConfig { identities: 4, images_per_identity: 4, ..SynthConfig::default() };
    let source = Arc::new(SynthSource::new(persons).unwrap());
    let loader = LoaderConfig { batch: step.batch(), workers: 0, prefetch: 1, ..LoaderConfig::default() };
    let batch = Loader::new(source, loader, step.recipe().unwrap()).unwrap().next().unwrap();
    (engine, batch, step)
}

fn whole_step(engine: &mut Engine, batch: &Batch, step: &dyn Objective, micro_steps: usize, t: u64) {
    for micro_step in 0..micro_steps {
        let point = StepPoint { micro_step, micro_steps, ..step.point(t) };
        let losses = engine.micro_step(0, batch, &point).unwrap();
        assert!(losses.total.is_finite() && losses.parts.len() == 3);
    }
    assert!(engine.update(0).unwrap().finite);
}

/// Work from a thread outside the pool passes through a queue in linked blocks of 63 places: now and then the next block is
/// there already, or the last one still is.
const QUEUE_BLOCKS: i64 = 1;
const QUEUE_BYTES: i64 = 4096;
/// Blocks that the host's side of a micro step takes and gives back: the scalars, the positions that `keep` leaves out, the
/// list of losses, the factors of stochastic depth.
const HOST_BLOCKS: i64 = 4;

/// Nothing stays: of several measurements most are exact, and none is off by more than the queue.
#[track_caller]
///
/// The GEMM crate keeps one slab for each thread, taken when the thread first multiplies, which may be late.
fn assert_nothing_stays(counts: &[Count], threads: usize) {
    let (slabs, counts): (Vec<Count>, Vec<Count>) =
        counts.iter().copied().partition(|c| c.live_blocks == 1 && c.live_bytes > QUEUE_BYTES);
    assert!(slabs.len() <= threads, "{slabs:?}");
    let exact = counts.iter().filter(|c| c.live_bytes == 0 && c.live_blocks == 0).count();
    assert!(2 * exact > counts.len(), "{counts:?}");
    let near = |c: &Count| c.live_blocks.abs() <= QUEUE_BLOCKS && c.live_bytes.abs() <= QUEUE_BYTES;
    assert!(counts.iter().all(near), "{counts:?}");
    let drift: i64 = counts.iter().map(|c| c.live_bytes).sum();
    assert!(drift.abs() <= QUEUE_BYTES, "what is kept adds up: {counts:?}");
}

/// Blocks that one product of the GEMM crate takes from the allocator and gives back: a packed panel of each operand.
const SCRATCH_BLOCKS: i64 = 2;
/// Pieces into which a product is cut at the most.
const PIECES: i64 = 16;

fn windows(maps: &[FeatureMap], size: usize) -> usize {
    maps.iter().map(|m| m.count * m.height.div_ceil(size) * m.width.div_ceil(size)).sum()
}

/// Calls of the GEMM crate that an op can need.
fn products(op: &Op) -> i64 {
    match op {
        Op::Attention(ops::Attention { heads, segments, .. }) => 2 * (heads * segments.count()) as i64,
        Op::AttentionBackward(ops::AttentionBackward { heads, segments, .. }) => {
            5 * (heads * segments.count()) as i64
        }
        Op::WindowAttention(ops::WindowAttention { heads, window, maps }) => {
            2 * (heads * windows(maps, *window)) as i64
        }
        Op::WindowAttentionBackward(ops::WindowAttentionBackward { heads, window, maps }) => {
            5 * (heads * windows(maps, *window)) as i64
        }
        _ => PIECES,
    }
}

/// One test only: the counters are the process's.
#[test]
fn a_step_keeps_nothing_that_it_allocates() {
    let vits = [(VIT, 1, 1), (VIT, 2, 1), (VIT, 1, 2)];
    // They live on: a pool's threads end after it was dropped, and would give back what they hold while another is measured.
    let mut engines = Vec::new();
    for (encoder, threads, micro_steps) in
        vits.into_iter().chain([(STAR_NET, 2, 1), (TINY_VIT, 2, 1), (RES_NET, 2, 1)])
    {
        let (mut engine, batch, step) = tiny(encoder, threads, micro_steps);
        for t in 1..=2 {
            whole_step(&mut engine, &batch, &*step, micro_steps, t);
        }
        let whole: Vec<Count> =
            (3..=12).map(|t| during(|| whole_step(&mut engine, &batch, &*step, micro_steps, t))).collect();
        assert_nothing_stays(&whole, threads);
        let alone: Vec<Count> =
            (0..10).map(|_| during(|| engine.backend().run(ProgramId(0)).unwrap())).collect();
        assert_nothing_stays(&alone, threads);

        let launches = engine.plans()[0].steps.len() as i64;
        println!("{threads} threads, {micro_steps} micro steps: {:?} a step", whole[0]);
        println!("{threads} threads, a program of {launches} launches: {:?}", alone[0]);
        let scratch: i64 = engine.plans()[0].steps.iter().map(|s| SCRATCH_BLOCKS * products(&s.op)).sum();
        assert!(alone.iter().all(|c| c.asked_blocks <= scratch + QUEUE_BLOCKS), "{scratch}: {alone:?}");
        let programs = micro_steps as i64 + i64::from(micro_steps > 1);
        let most = programs * (scratch + QUEUE_BLOCKS) + micro_steps as i64 * HOST_BLOCKS;
        assert!(whole.iter().all(|c| c.asked_blocks <= most), "{whole:?}");
        engines.push(engine);
    }
    // The counter itself: a block that stays is seen.
    let mut kept = Vec::new();
    let seen = during(|| kept = vec![1u8; 12_345]);
    assert!(seen.live_bytes >= 12_345 && seen.live_blocks >= 1, "{seen:?}");
    drop(kept);
}
