//! A small model and its batches, for tests of single steps.

use saip_engine::data::batch::Batch;
use saip_engine::data::loader::{Loader, LoaderConfig};
use saip_engine::data::source::SynthSource;
use saip_engine::data::synth::SynthConfig;
use saip_engine::objectives::Objective;
use saip_engine::train::config::TrainConfig;
use saip_engine::train::objective::objective;
use std::sync::Arc;

const TINY: &[&str] = &[
    "encoder.embed_dim=24",
    "encoder.depth=2",
    "encoder.num_heads=2",
    "encoder.tap=1",
    "csm.hidden=16",
    "csm.bottleneck=8",
    "csm.prototypes=32",
    "csr.dim=16",
    "csr.heads=2",
    "css.dim=16",
    "css.heads=2",
    "views.global_size=[64,32]",
    "views.local_size=[32,32]",
    "views.locals=1",
    "views.scene_size=64",
    "optim.batch=2",
    "optim.effective_batch=2",
];

/// The objective, and the first `count` batches of two images.
pub fn tiny(count: usize) -> (Arc<dyn Objective>, Vec<Batch>) {
    let sets: Vec<String> = TINY.iter().map(|s| (*s).to_owned()).collect();
    let cfg = TrainConfig::resolve(Some("demo"), None, &sets).unwrap();
    let step: Arc<dyn Objective> = Arc::from(objective(&cfg).unwrap().at_scale(1.0).unwrap());
    let persons = SynthConfig { identities: 2, images_per_identity: 4, ..SynthConfig::default() };
    let source = Arc::new(SynthSource::new(persons).unwrap());
    let loader = LoaderConfig { batch: step.batch(), workers: 0, prefetch: 1, ..LoaderConfig::default() };
    let mut loader = Loader::new(source, loader, step.recipe().unwrap()).unwrap();
    let batches = (0..count).map(|_| loader.next().unwrap()).collect();
    (step, batches)
}
