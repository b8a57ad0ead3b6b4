use super::*;
use crate::cpu::CpuBackend;
use crate::data::loader::{Loader, LoaderConfig};
use crate::data::source::SynthSource;
use crate::data::synth::SynthConfig;
use crate::train::config::TrainConfig;
use crate::train::objective::objective;
use std::sync::Arc;

const SMALL: &[&str] = &[
    "encoder.embed_dim=24",
    "encoder.num_heads=2",
    "csm.hidden=16",
    "csm.bottleneck=8",
    "csm.prototypes=32",
    "csr.dim=16",
    "css.dim=16",
    "views.global_size=[64,32]",
    "views.local_size=[32,32]",
    "views.scene_size=64",
    "optim.batch=4",
    "optim.effective_batch=4",
];

fn small(micro_steps: usize) -> (Engine, Batch, Arc<dyn Objective>) {
    let sets: Vec<String> = SMALL.iter().map(|s| (*s).to_owned()).collect();
    let cfg = TrainConfig::resolve(Some("demo"), None, &sets).unwrap();
    let objective: Arc<dyn Objective> = Arc::from(objective(&cfg).unwrap().at_scale(1.0).unwrap());
    let options = EngineOptions { micro_steps, drop_path: 0.0, recompute: false, seed: 0 };
    let backend = Box::new(CpuBackend::<f32>::new(1).unwrap());
    let engine = Engine::new(backend, Arc::clone(&objective), options).unwrap();
    let persons = SynthConfig { identities: 4, images_per_identity: 4, ..SynthConfig::default() };
    let source = Arc::new(SynthSource::new(persons).unwrap());
    let loader = LoaderConfig { batch: objective.batch(), ..LoaderConfig::default() };
    let batch = Loader::new(source, loader, objective.recipe().unwrap()).unwrap().next().unwrap();
    (engine, batch, objective)
}

fn center(state: &EngineState) -> Vec<f32> {
    state.iter().find(|t| t.0 == "state.center").unwrap().2.to_vec()
}

#[test]
fn calibration_leaves_initial_weights_and_the_batchs_own_center() {
    for micro_steps in [1, 2] {
        let (mut engine, batch, objective) = small(micro_steps);
        engine.initialise().unwrap();
        let fresh = engine.state().unwrap();
        let first = StepPoint { micro_steps, ..objective.point(1) };
        engine.set_up(0, &batch, &first).unwrap();
        let calibrated = engine.state().unwrap();
        for (before, after) in fresh.iter().zip(calibrated.iter()) {
            let center = before.0 == "state.center";
            assert_eq!(center, before != after, "{}", before.0);
        }
        // The expert is the initial one, so the mean of its logits is the center already.
        let (_, mean) = objective.setup(&objective.point(1)).unwrap();
        engine.micro_step(0, &batch, &mean).unwrap();
        engine.update(0).unwrap();
        assert_eq!(center(&engine.state().unwrap()), center(&calibrated));
    }
}
