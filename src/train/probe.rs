//! Retrieval with the frozen features of the encoder while it is trained.

use super::config::{ProbeFeatures, TrainConfig};
use super::engine::Engine;
use super::features::FeatureProgram;
use crate::data::labelled::PersonSet;
use crate::data::left_out::{self, LeftOut};
use crate::data::loader::eval_image;
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::ir::{PATCH, Region};
use crate::metrics::Features;
use crate::metrics::reference::{self, Reference};
use crate::metrics::retrieval::{RetrievalMetrics, nearest, retrieval};
use crate::metrics::stripes;
use crate::models::EmbedOptions;
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// Images whose features are computed at a time.
pub const BATCH: usize = 32;

/// The encoder in evaluation mode, compiled beside the training step, and the images it is tried on.
pub struct Probe {
    set: PersonSet,
    program: FeatureProgram,
    size: [usize; 2],
    features: ProbeFeatures,
}

/// What the frozen features are worth.
pub struct ProbeResult {
    pub metrics: RetrievalMetrics,
    pub query: Features,
    pub gallery: Features,
    /// Where each row of `query` and `gallery` is found in the source.
    pub query_source: Vec<usize>,
    pub gallery_source: Vec<usize>,
    /// What did not take part: what lies beside the set's images, and those that cannot be read.
    pub left_out: Vec<LeftOut>,
    /// Images that took part; one that is both query and gallery counts once.
    pub images: usize,
}

/// How a picture's patch tokens on a grid of `[rows, columns]` become its feature.
type OfPatches = fn(&[f32], [usize; 2]) -> Vec<f32>;

/// What is made of patch tokens; None where the feature is the image token.
fn of_patches(features: ProbeFeatures) -> Option<OfPatches> {
    match features {
        ProbeFeatures::Image => None,
        ProbeFeatures::Stripes => Some(stripes::stripes),
        ProbeFeatures::Relative => Some(stripes::relative),
    }
}

/// Compiles the student's encoder on the engine's backend, for images of the probe's size.
///
/// # Errors
/// Those of building and compiling.
pub fn compile(engine: &mut Engine, cfg: &TrainConfig) -> Result<FeatureProgram> {
    let (dtype, size, encoder) =
        (engine.backend().dtype(), cfg.run.probe_size(&cfg.views), &cfg.encoder.architecture);
    let patch_tokens = of_patches(cfg.run.probe_features).is_some();
    let opts = EmbedOptions { dtype, region: Region::Params, batch: BATCH, size, patch_tokens };
    let registry = engine.student().clone();
    FeatureProgram::compile(engine.backend(), encoder, &registry, &opts)
}

impl Probe {
    /// Compiles the student's encoder on the engine's backend.
    ///
    /// # Errors
    /// Those of building and compiling.
    pub fn new(engine: &mut Engine, cfg: &TrainConfig, set: PersonSet) -> Result<Self> {
        let program = compile(engine, cfg)?;
        Ok(Probe { set, program, size: cfg.run.probe_size(&cfg.views), features: cfg.run.probe_features })
    }

    pub fn set(&self) -> &PersonSet {
        &self.set
    }

    /// Computes the features of all images with the current parameters, and the metrics. Images that cannot be read are
    /// left out, and listed in the result.
    ///
    /// # Errors
    /// When no image can be read, when features are not finite, or the backend fails; [`Error::Interrupted`].
    pub fn run(&self, engine: &mut Engine, interrupt: &Interrupt) -> Result<ProbeResult> {
        let mut bad = BTreeMap::new();
        let (query, query_source) = self.embed(engine, &self.set.query, interrupt, &mut bad)?;
        let (gallery, gallery_source) = self.embed(engine, &self.set.gallery, interrupt, &mut bad)?;
        let images = query_source.iter().chain(&gallery_source).collect::<BTreeSet<_>>().len();
        let left_out: Vec<LeftOut> = self.set.left_out.iter().cloned().chain(bad.into_values()).collect();
        for (what, rows) in [("query", &query_source), ("gallery", &gallery_source)] {
            if rows.is_empty() {
                let lost = left_out::clause("probe images", &left_out);
                return Err(Error::usage(format!("no {what} image of the probe can be read{lost}")));
            }
        }
        let metrics = retrieval(&query, &gallery)?;
        Ok(ProbeResult { metrics, query, gallery, query_source, gallery_source, left_out, images })
    }

    /// The metrics of features that need no encoder, on the same images: what the encoder's are to be compared with.
    ///
    /// # Errors
    /// As [`Probe::run`].
    pub fn references(&self) -> Result<Vec<(Reference, RetrievalMetrics)>> {
        let both = [&self.set.query, &self.set.gallery];
        let computed: [Vec<Option<Vec<Vec<f32>>>>; 2] = both.map(|indices| {
            let one = |i: &usize| reference::features(&self.set.source.load(*i).ok()?).ok();
            indices.par_iter().map(one).collect()
        });
        let gather = |side: usize, line: usize, dim: usize| {
            let mut features = Features { dim, ..Features::default() };
            for (i, lines) in both[side].iter().zip(&computed[side]) {
                let Some(lines) = lines else { continue };
                features.values.extend(&lines[line]);
                features.identities.push(self.set.identities[*i]);
                features.cameras.push(self.set.cameras[*i]);
            }
            features
        };
        Reference::ALL
            .into_iter()
            .enumerate()
            .map(|(line, r)| Ok((r, retrieval(&gather(0, line, r.dim()), &gather(1, line, r.dim()))?)))
            .collect()
    }

    /// The `k` nearest gallery images of query `row`, as `(index into the source, distance, same identity)`.
    pub fn neighbours(&self, result: &ProbeResult, row: usize, k: usize) -> Result<Vec<(usize, f32, bool)>> {
        let found = nearest(&result.query, row, &result.gallery, k)?;
        let who = result.query.identities[row];
        Ok(found
            .into_iter()
            .map(|(i, d)| (result.gallery_source[i], d, result.gallery.identities[i] == who))
            .collect())
    }

    /// Features of the images `indices`, and which of them could be read; the others join `bad`.
    fn embed(
        &self,
        engine: &mut Engine,
        indices: &[usize],
        interrupt: &Interrupt,
        bad: &mut BTreeMap<usize, LeftOut>,
    ) -> Result<(Features, Vec<usize>)> {
        let grid = self.size.map(|s| s / PATCH);
        let of_patches = of_patches(self.features);
        let (image, patch) = self.program.shapes();
        let dim = match of_patches {
            None => image.iter().product(),
            Some(_) => stripes::dim(grid, patch.and_then(|shape| shape.last().copied()).unwrap_or(0)),
        };
        let mut features = Features { dim, ..Features::default() };
        let mut rows = Vec::with_capacity(indices.len());
        for chunk in indices.chunks(BATCH) {
            interrupt.check()?;
            let loaded: Vec<Result<Vec<f32>>> =
                chunk.par_iter().map(|&i| eval_image(&self.set.source.load(i)?, self.size)).collect();
            let (mut used, mut pixels) = (Vec::with_capacity(chunk.len()), Vec::new());
            for (&i, image) in chunk.iter().zip(loaded) {
                match image {
                    Ok(image) => {
                        pixels.extend(image);
                        used.push(i);
                    }
                    Err(e) => {
                        bad.insert(i, LeftOut::picture(self.set.source.name(i), e));
                    }
                }
            }
            let tokens = self.program.run(engine.backend(), &pixels)?;
            match of_patches {
                None => features.values.extend(tokens.image),
                Some(feature) => {
                    let each = (tokens.patch.len() / used.len().max(1)).max(1);
                    let all = tokens.patch.chunks_exact(each).flat_map(|p| feature(p, grid));
                    features.values.extend(all);
                }
            }
            features.identities.extend(used.iter().map(|&i| self.set.identities[i]));
            features.cameras.extend(used.iter().map(|&i| self.set.cameras[i]));
            rows.extend(used);
        }
        Ok((features, rows))
    }
}
