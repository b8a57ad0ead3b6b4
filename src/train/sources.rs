//! Where a run's images come from: a folder or list of the user's, or synthetic persons; and how they come as batches.

use super::config::TrainConfig;
use crate::data::classes::ClassSource;
use crate::data::labelled::PersonSet;
use crate::data::loader::{Loader, LoaderConfig};
use crate::data::market::RetrievalSet;
use crate::data::recipe::Recipe;
use crate::data::sample::Labels;
use crate::data::source::{ImageSource, Quarantine, open_source};
use crate::data::synth::{SynthConfig, SynthPersons};
use crate::error::{Error, Result};
use crate::objectives::learns_classes;
use image::RgbImage;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// Synthetic pictures kept in memory after they were drawn; drawing one takes milliseconds.
const KEPT: usize = 4096;

/// Held-out identities of the default probe.
const PROBE_IDENTITIES: usize = 48;

/// Synthetic persons as a source of images; the first [`KEPT`] pictures stay in memory once drawn.
pub struct SynthSource {
    persons: SynthPersons,
    /// The number of its first identity.
    first: usize,
    drawn: Vec<OnceLock<RgbImage>>,
}

impl SynthSource {
    pub fn new(config: SynthConfig) -> Result<Self> {
        let first = config.first_identity + 1;
        let persons = SynthPersons::new(config)?;
        let drawn = (0..persons.len().min(KEPT)).map(|_| OnceLock::new()).collect();
        Ok(SynthSource { persons, first, drawn })
    }
}

impl ImageSource for SynthSource {
    fn len(&self) -> usize {
        self.persons.len()
    }
    fn name(&self, i: usize) -> String {
        format!("synthetic/{}", self.persons.name(i))
    }
    fn load(&self, i: usize) -> Result<RgbImage> {
        Ok(match self.drawn.get(i) {
            Some(cell) => cell.get_or_init(|| self.persons.image(i)).clone(),
            None => self.persons.image(i),
        })
    }
    /// A person is a class.
    fn labels(&self, i: usize) -> Labels {
        Labels { class: u32::try_from(self.persons.identity_of(i) - self.first).ok() }
    }
}

/// The images to train on. At least one of them can be used: a folder without any is refused before a run begins.
///
/// # Errors
/// Those of [`open_source`], of [`ClassSource::open`] where classes are learned; no usable image; a synthetic set that is out
/// of range.
pub fn training_source(cfg: &TrainConfig) -> Result<Arc<dyn ImageSource>> {
    match &cfg.data.path {
        Some(path) => {
            let source: Box<dyn ImageSource> = match learns_classes(&cfg.objective) {
                true => Box::new(class_source(cfg, path)?),
                false => open_source(path)?,
            };
            Quarantine::new().load(&*source, 0).map_err(|e| Error::file(path, e.to_string()))?;
            Ok(Arc::from(source))
        }
        None => {
            if learns_classes(&cfg.objective) {
                check_classes(cfg, synthetic_classes(cfg)?)?;
            }
            Ok(Arc::new(SynthSource::new(synthetic(cfg, 0, cfg.data.synth.identities))?))
        }
    }
}

/// The images at `path` with their classes, as many as the configuration says.
fn class_source(cfg: &TrainConfig, path: &Path) -> Result<ClassSource> {
    let source = ClassSource::open(path, cfg.data.labels.as_deref())?;
    check_classes(cfg, source.names().len())?;
    Ok(source)
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
/// Those of [`ClassSource::open`]; too few synthetic persons.
pub fn classes(cfg: &TrainConfig) -> Result<usize> {
    match (cfg.supervised.classes, &cfg.data.path) {
        (Some(told), _) => Ok(told),
        (None, Some(path)) => Ok(ClassSource::open(path, cfg.data.labels.as_deref())?.names().len()),
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

fn synthetic(cfg: &TrainConfig, first_identity: usize, identities: usize) -> SynthConfig {
    let s = &cfg.data.synth;
    SynthConfig {
        seed: cfg.data.seed,
        identities,
        first_identity,
        images_per_identity: s.images_per_identity,
        cameras: s.cameras,
        ..SynthConfig::default()
    }
}

/// The images that the frozen features are tried on: the folder `run.probe`, or with synthetic data persons of identities
/// that are not trained on, seen by the same cameras; None without either.
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
        (None, None) => held_out(cfg).map(Some),
    }
}

fn held_out(cfg: &TrainConfig) -> Result<PersonSet> {
    let s = &cfg.data.synth;
    for (key, value) in
        [("data.synth.images_per_identity", s.images_per_identity), ("data.synth.cameras", s.cameras)]
    {
        if value < 2 {
            return Err(Error::config(
                key,
                format!(
                    "{value} leaves the probe no image of a person by another camera: use 2 or more, or switch the \
                     probe off with `run.probe_every=0`"
                ),
            ));
        }
    }
    let source = SynthSource::new(synthetic(cfg, s.identities, PROBE_IDENTITIES))?;
    let label = |x: usize| x as i64;
    let identities: Vec<i64> = (0..source.len()).map(|i| label(source.persons.identity_of(i))).collect();
    let cameras: Vec<i64> = (0..source.len()).map(|i| label(source.persons.camera_of(i))).collect();
    // As Market-1501: one query per identity and camera, everything else is gallery; but at most half of the images are
    // queries, so that few images by many cameras leave a gallery.
    let most = s.cameras.min(s.images_per_identity / 2);
    let mut seen = BTreeMap::<i64, BTreeSet<i64>>::new();
    let (query, gallery) = (0..source.len()).partition(|&i| {
        let by = seen.entry(identities[i]).or_default();
        by.len() < most && by.insert(cameras[i])
    });
    Ok(PersonSet { source: Arc::new(source), identities, cameras, query, gallery, left_out: Vec::new() })
}

/// The loader of a run's batches, from micro step `start` on.
///
/// # Errors
/// Those of [`Loader::new`].
/// The images as batches of `recipe`, from the micro step `start` on.
///
/// # Errors
/// Those of [`Loader::new`].
pub fn loader(
    cfg: &TrainConfig,
    source: &Arc<dyn ImageSource>,
    recipe: Arc<dyn Recipe>,
    start: u64,
) -> Result<Loader> {
    let config = LoaderConfig {
        batch: cfg.optim.batch,
        seed: cfg.data.seed,
        workers: workers(cfg),
        prefetch: cfg.data.prefetch.max(1),
        start_step: start,
        ..LoaderConfig::default()
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
