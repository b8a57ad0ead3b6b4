//! A small model's step, as the tests run it: the gradients of one micro step, which are summed over the ranks.

use crate::kernels::compiler;
use saip_engine::backend::{Backend, HostSliceMut, ProgramId};
use saip_engine::cuda::{CudaBackend, Driver};
use saip_engine::data::batch::Batch;
use saip_engine::ir::Region;
use saip_engine::objectives::Objective;
use saip_engine::plan;
use saip_engine::step::StepOptions;
use saip_engine::tensor::DType;
use saip_engine::train::engine::{Engine, EngineOptions};
use std::sync::Arc;

pub fn backend<D: Driver>(driver: D, capability: (u32, u32)) -> CudaBackend<D> {
    CudaBackend::new(driver, compiler(capability), DType::F32).unwrap()
}

/// The micro step as the engine runs it: it hands its gradients over at its end, as it adds them up.
pub const ADDED_UP: ProgramId = ProgramId(0);
/// The same without that: gradients are final one after the other.
pub const ONE_BY_ONE: ProgramId = ProgramId(2);

/// An engine with both programs, fed with `batch`.
pub fn engine(backend: Box<dyn Backend>, step: &Arc<dyn Objective>, batch: &Batch) -> Engine {
    let options = EngineOptions { micro_steps: 2, drop_path: 0.0, recompute: false, seed: 0 };
    let mut engine = Engine::new(backend, Arc::clone(step), options).unwrap();
    let opts = StepOptions { dtype: DType::F32, micro_steps: 2, drop_path: 0.0, stretch: None };
    let mut graph = step.step(0, &opts).unwrap().graph;
    let added = |v: &&mut saip_engine::ir::Value| {
        v.producer.is_some() && v.binding.is_some_and(|b| b.region == Region::Grads)
    };
    graph.values.iter_mut().filter(added).for_each(|v| v.binding = None);
    let planned = plan::compile(graph, false, engine.backend()).unwrap();
    assert_eq!(engine.backend().compile(planned).unwrap(), ONE_BY_ONE);
    engine.initialise().unwrap();
    engine.feed(0, batch, &step.point(1)).unwrap();
    // The inputs come into their places with the program that they were fed for.
    engine.start(0, true).unwrap();
    engine
}

/// The parameters' elements.
pub fn elements(step: &Arc<dyn Objective>) -> usize {
    let opts = StepOptions { dtype: DType::F32, micro_steps: 2, drop_path: 0.0, stretch: None };
    step.step(0, &opts).unwrap().registries.student.len()
}

/// All fresh gradients in four stretches of unequal sizes, last parameters first, and an odd border within a tensor.
pub fn stretches(elements: usize) -> Vec<(Region, usize, usize)> {
    let borders = [0, elements / 7, elements / 3 + 1, elements / 2, elements];
    let of = |i: usize| (Region::MicroGrads, borders[i], borders[i + 1] - borders[i]);
    (0..4).rev().map(of).collect()
}

pub fn read(engine: &mut Engine, region: Region, elements: usize) -> Vec<f32> {
    let mut values = vec![0.0; elements];
    engine.backend().read(region, 0, HostSliceMut::F32(&mut values)).unwrap();
    values
}
