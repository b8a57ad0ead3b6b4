//! Whole steps of two ranks whose devices sum: those of one device that makes the micro steps of both.

use crate::group::links;
use crate::kernels::compiler;
use crate::standing::Standing;
use crate::tiny::tiny;
use saip_engine::cuda::{CudaBackend, VmDriver};
use saip_engine::data::batch::Batch;
use saip_engine::ir::Region;
use saip_engine::objectives::Objective;
use saip_engine::step::StepPoint;
use saip_engine::tensor::DType;
use saip_engine::train::engine::{Engine, EngineOptions, Ranks, Summing};
use std::sync::Arc;
use std::time::{Duration, Instant};

const CAPABILITY: (u32, u32) = (8, 0);
const PATIENCE: Duration = Duration::from_secs(100);
const STEPS: usize = 3;
const OPTIONS: EngineOptions = EngineOptions { micro_steps: 2, drop_path: 0.1, recompute: false, seed: 0 };

fn device() -> CudaBackend<VmDriver> {
    CudaBackend::new(VmDriver::new(CAPABILITY, 1 << 30), compiler(CAPABILITY), DType::F32).unwrap()
}

/// Losses of each step, in the order of micro steps, and bits of parameters, expert and second moments behind the last.
type Course = (Vec<f64>, Vec<u32>);

/// `own` are the batches of this engine, so many each step.
fn course(mut engine: Engine, step: &Arc<dyn Objective>, own: &[Vec<&Batch>]) -> Course {
    engine.initialise().unwrap();
    engine.share_state().unwrap();
    let mut losses = Vec::new();
    for (t, batches) in own.iter().enumerate() {
        for (micro_step, batch) in batches.iter().enumerate() {
            let point = StepPoint { micro_step, micro_steps: 2, ..step.point(t as u64 + 1) };
            engine.feed(0, batch, &point).unwrap();
            let last = micro_step + 1 == batches.len();
            engine.start(0, last).unwrap();
            if last {
                engine.start_update().unwrap();
            }
            let round = engine.all_losses(0, false, Instant::now()).unwrap();
            losses.extend(round.losses.iter().map(|l| l.total));
        }
        assert!(engine.health(0).unwrap().finite);
    }
    let regions = [Region::Params, Region::Expert, Region::Moment2];
    let read = |region| engine.read_region(region).unwrap().into_iter().flat_map(|t| t.2);
    let bits = regions.into_iter().flat_map(read).map(|x| (x as f32).to_bits()).collect();
    (losses, bits)
}

#[test]
fn two_devices_make_the_steps_of_one() {
    let standing = Standing::new();
    let (step, batches) = tiny(2 * STEPS);
    let all: Vec<Vec<&Batch>> = batches.chunks(2).map(|pair| pair.iter().collect()).collect();
    let alone = course(Engine::new(Box::new(device()), Arc::clone(&step), OPTIONS).unwrap(), &step, &all);
    standing.log();
    let together: Vec<Course> = std::thread::scope(|scope| {
        let spawn = |(rank, link)| {
            let (step, all, nccl) = (&step, &all, standing.nccl());
            scope.spawn(move || {
                let ranks = Ranks::new(Box::new(link));
                let device = Box::new(device().with_nccl(nccl));
                let summing = Summing { stretch: 6000, wire: DType::F32 };
                let engine =
                    Engine::among(device, Arc::clone(step), OPTIONS, Some((ranks, summing))).unwrap();
                let own: Vec<Vec<&Batch>> = all.iter().map(|pair| vec![pair[rank]]).collect();
                course(engine, step, &own)
            })
        };
        let threads: Vec<_> = links(2, PATIENCE).into_iter().enumerate().map(spawn).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    for (rank, course) in together.iter().enumerate() {
        assert_eq!(course.0, alone.0, "losses of rank {rank}");
        assert_eq!(course.1, alone.1, "state of rank {rank}");
    }
    // Gradients in several pieces, then what the micro steps average, once a step.
    let log = standing.log();
    let sums = log.iter().filter(|l| l.starts_with("0 ncclAllReduce ")).count();
    assert!(sums.is_multiple_of(STEPS) && sums / STEPS > 4, "{sums} sums in {STEPS} steps");
    assert_eq!(standing.live(), 0);
}
