//! Where a run's images come from: a source of the user's, or synthetic persons; and how they come as batches.

use super::config::{PROBE_PERSONS, TrainConfig};
use super::engine::Ranks;
use crate::data::labelled::PersonSet;
use crate::data::loader::{Loader, LoaderConfig};
use crate::data::market::RetrievalSet;
use crate::data::recipe::Recipe;
use crate::data::source::{ClassSource, ImageSource, Quarantine, SynthSource, open_source};
use crate::data::synth::SynthConfig;
use crate::error::{Error, Result};
use crate::objectives::learns_classes;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

/// The drawn persons by which encoders are compared, whatever they were trained on: the first of a world of their own, twelve
/// times each by its six cameras. Nobody trains on them, and a test holds their pixels.
const PROBE_WORLD: SynthConfig = SynthConfig {
    seed: 77,
    identities: PROBE_PERSONS,
    first_identity: 0,
    images_per_identity: 12,
    cameras: 6,
    height: 256,
    width: 128,
};

/// The images to train on. At least one of them can be used: a folder without any is refused before a run begins.
///
/// # Errors
/// Those of [`open_source`], of [`ClassSource::new`] where classes are learned; no usable image; a synthetic set that is out
/// of range.
pub fn training_source(cfg: &TrainConfig) -> Result<Arc<dyn ImageSource>> {
    let learns = learns_classes(&cfg.objective);
    let (source, path) = match &cfg.data.path {
        Some(path) => (open_source(path)?, path.as_path()),
        None => {
            if learns {
                check_classes(cfg, synthetic_classes(cfg)?)?;
            }
            let persons = SynthSource::new(synthetic(cfg))?;
            (Box::new(persons) as Box<dyn ImageSource>, Path::new("data.synth"))
        }
    };
    let source: Box<dyn ImageSource> = match learns {
        true => {
            let source = ClassSource::new(source, path, cfg.data.labels.as_deref())?;
            check_classes(cfg, source.names().len())?;
            Box::new(source)
        }
        false => source,
    };
    if cfg.data.path.is_some() {
        Quarantine::new().load(&*source, 0).map_err(|e| Error::file(path, e.to_string()))?;
    }
    Ok(Arc::from(source))
}

fn check_classes(cfg: &TrainConfig, there: usize) -> Result<()> {
    match cfg.supervised.classes {
        Some(told) if told != there => Err(Error::config(
            "supervised.classes",
            format!(
                "is {told}, but the images are of {there} classes: leave it `none`, or name the images that it is for"
            ),
        )),
        _ => Ok(()),
    }
}

fn synthetic_classes(cfg: &TrainConfig) -> Result<usize> {
    match cfg.data.synth.identities {
        0 | 1 => {
            let message = "a single person is a single class: draw 2 or more to tell apart";
            Err(Error::config("data.synth.identities", message))
        }
        n => Ok(n),
    }
}

/// How many classes are learned: as the configuration says, else those of its images.
///
/// # Errors
/// Those of [`open_source`] and [`ClassSource::new`]; too few synthetic persons.
pub fn classes(cfg: &TrainConfig) -> Result<usize> {
    match (cfg.supervised.classes, &cfg.data.path) {
        (Some(told), _) => Ok(told),
        (None, Some(path)) => {
            Ok(ClassSource::new(open_source(path)?, path, cfg.data.labels.as_deref())?.names().len())
        }
        (None, None) => synthetic_classes(cfg),
    }
}

/// `cfg` with the number of its images' classes where these are learned, so that its model is known without the images.
///
/// # Errors
/// Those of [`classes`].
pub fn with_classes(mut cfg: TrainConfig) -> Result<TrainConfig> {
    if learns_classes(&cfg.objective) {
        cfg.supervised.classes = Some(classes(&cfg)?);
    }
    Ok(cfg)
}

/// The persons to train on: never those of the probe, whatever the seed.
fn synthetic(cfg: &TrainConfig) -> SynthConfig {
    let s = &cfg.data.synth;
    SynthConfig {
        seed: cfg.data.seed,
        identities: s.identities,
        first_identity: if cfg.data.seed == PROBE_WORLD.seed { PROBE_PERSONS } else { 0 },
        images_per_identity: s.images_per_identity,
        cameras: s.cameras,
        ..SynthConfig::default()
    }
}

/// The images that the frozen features are tried on: the folder `run.probe`, or with synthetic data drawn persons who are never
/// trained on; None without either.
///
/// # Errors
/// Those of [`RetrievalSet::open`].
pub fn probe_set(cfg: &TrainConfig) -> Result<Option<PersonSet>> {
    if cfg.run.probe_every == 0 {
        return Ok(None);
    }
    match (&cfg.run.probe, &cfg.data.path) {
        (Some(folder), _) => PersonSet::new(RetrievalSet::open(folder)?).map(Some),
        (None, Some(_)) => Ok(None),
        (None, None) => drawn_probe(cfg.run.probe_persons).map(Some),
    }
}

/// The first `persons` of the probe's world.
fn drawn_probe(persons: usize) -> Result<PersonSet> {
    let source = SynthSource::new(SynthConfig { identities: persons, ..PROBE_WORLD })?;
    let label = |x: usize| x as i64;
    let identities: Vec<i64> = (0..source.len()).map(|i| label(source.persons().identity_of(i))).collect();
    let cameras: Vec<i64> = (0..source.len()).map(|i| label(source.persons().camera_of(i))).collect();
    // As Market-1501: one query per identity and camera, everything else is gallery.
    let mut seen = BTreeSet::new();
    let (query, gallery) = (0..source.len()).partition(|&i| seen.insert((identities[i], cameras[i])));
    Ok(PersonSet { source: Arc::new(source), identities, cameras, query, gallery, left_out: Vec::new() })
}

/// The images as batches of `recipe` for this rank, behind `start` updates.
///
/// # Errors
/// Those of [`Loader::new`]; ranks that cannot share an update alike.
pub fn loader(
    cfg: &TrainConfig,
    source: &Arc<dyn ImageSource>,
    recipe: Arc<dyn Recipe>,
    start: u64,
    ranks: Option<&Ranks>,
) -> Result<Loader> {
    let (rank, world) = ranks.map_or((0, 1), |r| (r.rank(), r.world()));
    let config = LoaderConfig {
        batch: cfg.optim.batch,
        seed: cfg.data.seed,
        workers: workers(cfg),
        prefetch: cfg.data.prefetch.max(1),
        start_step: start * cfg.optim.accumulation(world)? as u64,
        rank,
        world,
        micro_steps: cfg.optim.accumulation(1)?,
    };
    Loader::new(Arc::clone(source), config, recipe)
}

/// Loader threads: as configured, or one per four cores and at least one.
fn workers(cfg: &TrainConfig) -> usize {
    match cfg.data.workers {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get().div_ceil(4)),
        n => n,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    /// A change of a pixel, a label or a query makes numbers of different days incomparable.
    #[test]
    fn the_persons_of_the_probe_stay_as_they_are() {
        let set = drawn_probe(PROBE_PERSONS).unwrap();
        let mut hash = Sha256::new();
        for i in (0..set.source.len()).step_by(61) {
            hash.update(set.source.name(i));
            hash.update(set.source.load(i).unwrap().as_raw());
        }
        for i in set.query.iter().chain(&set.gallery) {
            hash.update(format!("{i} {} {},", set.identities[*i], set.cameras[*i]));
        }
        let hash = hash.finalize().iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        assert_eq!((set.query.len(), set.gallery.len()), (576, 576));
        assert_eq!(hash, "0397188b814d311f267fb5ef6fd3edc7a004a8cabb24732042580f715bc1dfa7");
    }

    /// Whatever the seed, nobody of the probe is among those who are trained on.
    #[test]
    fn nobody_of_the_probe_is_trained_on() {
        let train = |seed: u64| {
            let sets = [format!("data.seed={seed}")];
            synthetic(&TrainConfig::resolve(Some("demo"), None, &sets).unwrap())
        };
        assert_eq!(train(0).first_identity, 0);
        let same_world = train(PROBE_WORLD.seed);
        assert!(same_world.first_identity >= PROBE_WORLD.first_identity + PROBE_WORLD.identities);
    }
}
