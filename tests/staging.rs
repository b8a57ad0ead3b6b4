//! Inputs of the next step travel while a step runs: in the right order, and without a trace in the results.

mod kernels;
mod tiny;

use kernels::compiler;
use saip_engine::cuda::{
    CudaBackend, DeviceInfo, Driver, GraphId, ImageKind, KernelId, Launch, Measured, TensorMap, VmDriver,
    Work,
};
use saip_engine::data::batch::Batch;
use saip_engine::error::Result;
use saip_engine::objectives::Objective;
use saip_engine::step::StepPoint;
use saip_engine::tensor::DType;
use saip_engine::train::engine::{Engine, EngineOptions, Losses};
use std::sync::{Arc, Mutex};
use tiny::tiny;

/// The interpreter; what is asked of it is written down.
struct Recorder {
    vm: VmDriver,
    log: Arc<Mutex<Vec<&'static str>>>,
    /// Forgets to order the copies before what needs them.
    careless: bool,
}

impl Recorder {
    fn note(&self, what: &'static str) {
        self.log.lock().unwrap().push(what);
    }
}

impl Driver for Recorder {
    fn info(&self) -> &DeviceInfo {
        self.vm.info()
    }
    fn image_kind(&self) -> ImageKind {
        self.vm.image_kind()
    }
    fn memory(&self) -> Result<[u64; 2]> {
        self.vm.memory()
    }
    fn allocate(&mut self, bytes: usize) -> Result<u64> {
        self.vm.allocate(bytes)
    }
    fn free(&mut self, at: u64) -> Result<()> {
        self.vm.free(at)
    }
    fn upload(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        self.vm.upload(at, bytes)
    }
    fn stage(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        self.note("stage");
        self.vm.stage(at, bytes)
    }
    fn join(&mut self) -> Result<()> {
        self.note("join");
        if self.careless { Ok(()) } else { self.vm.join() }
    }
    fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.note("copy");
        self.vm.copy(to, from, bytes)
    }
    fn download(&self, at: u64, bytes: &mut [u8]) -> Result<()> {
        self.note("download");
        self.vm.download(at, bytes)
    }
    fn load(&mut self, image: &[u8], name: &str, shared: u32) -> Result<KernelId> {
        self.vm.load(image, name, shared)
    }
    fn launch(&mut self, launch: &Launch) -> Result<()> {
        self.vm.launch(launch)
    }
    fn tensor_map(&self, map: &TensorMap) -> Result<[u64; 16]> {
        self.vm.tensor_map(map)
    }
    fn start(&mut self, work: &Work) -> Result<()> {
        self.vm.start(work)
    }
    fn record(&mut self, work: &[Work]) -> Result<GraphId> {
        self.vm.record(work)
    }
    fn replay(&mut self, graph: GraphId) -> Result<()> {
        self.note("replay");
        self.vm.replay(graph)
    }
    fn forget(&mut self, graph: GraphId) -> Result<()> {
        self.vm.forget(graph)
    }
    fn measure(&mut self, work: &[Work], repeats: usize) -> Result<Measured> {
        self.vm.measure(work, repeats)
    }
    fn finish(&mut self) -> Result<()> {
        self.vm.finish()
    }
}

type Log = Arc<Mutex<Vec<&'static str>>>;

/// The step of a tiny configuration, three batches for it, and what the driver is asked.
fn recorded(careless: bool) -> (Engine, Vec<Batch>, Arc<dyn Objective>, Log) {
    let (step, batches) = tiny(3);
    let log = Log::default();
    let driver = Recorder { vm: VmDriver::new((8, 0), 1 << 30), log: log.clone(), careless };
    let backend = Box::new(CudaBackend::new(driver, compiler((8, 0)), DType::F32).unwrap());
    let options = EngineOptions { micro_steps: 1, drop_path: 0.0, recompute: false, seed: 0 };
    let mut engine = Engine::new(backend, Arc::clone(&step), options).unwrap();
    engine.initialise().unwrap();
    (engine, batches, step, log)
}

fn point(step: &dyn Objective, i: usize) -> StepPoint {
    step.point(i as u64 + 1)
}

#[test]
fn looking_ahead_changes_no_bit() {
    let (mut engine, batches, step, log) = recorded(false);
    let one_by_one: Vec<Losses> =
        (0..3).map(|i| engine.micro_step(0, &batches[i], &point(&*step, i)).unwrap()).collect();
    let end = engine.state().unwrap();

    let (mut engine, batches, step, ahead_log) = recorded(false);
    engine.feed(0, &batches[0], &point(&*step, 0)).unwrap();
    ahead_log.lock().unwrap().clear();
    let mut ahead = Vec::new();
    for i in 0..3 {
        engine.start(0, true).unwrap();
        if i + 1 < 3 {
            engine.feed(0, &batches[i + 1], &point(&*step, i + 1)).unwrap();
        }
        ahead.push(engine.losses(0).unwrap());
    }
    assert_eq!(one_by_one, ahead);
    assert!(ahead[0] != ahead[1], "all steps are alike");
    let state = engine.state().unwrap();
    for ((name, _, a), (_, _, b)) in end.iter().zip(state.iter()) {
        assert!(a.iter().map(|v| v.to_bits()).eq(b.iter().map(|v| v.to_bits())), "{name}");
    }

    // The next inputs are on their way before anybody waits for the step's results.
    let mut steps: Vec<&str> = ahead_log.lock().unwrap().clone();
    steps.dedup();
    let one = ["join", "copy", "replay", "stage", "download"];
    assert_eq!(steps[..10], [one, one].concat(), "{steps:?}");
    assert!(!log.lock().unwrap().is_empty());
}

#[test]
fn a_driver_that_orders_nothing_is_caught() {
    let (mut engine, batches, step, _) = recorded(true);
    let message = engine.micro_step(0, &batches[0], &point(&*step, 0)).unwrap_err().to_string();
    assert!(message.contains("nobody wrote it"), "{message}");
}

#[test]
fn what_was_staged_for_one_step_waits_for_it() {
    let (mut engine, batches, step, _) = recorded(false);
    let first = engine.micro_step(0, &batches[0], &point(&*step, 0)).unwrap();
    let (mut again, _, _, _) = recorded(false);
    // Fed twice before the start: the later inputs count.
    again.feed(0, &batches[1], &point(&*step, 5)).unwrap();
    assert_eq!(again.micro_step(0, &batches[0], &point(&*step, 0)).unwrap(), first);
}
