//! One picture to all its views, and the sizes of the views at each step's scale.

use image::RgbImage;
use rand::RngExt;

use crate::data::augment::{AugmentConfig, Augmenter};
use crate::data::batch::ViewGeometry;
use crate::data::rng::{Purpose, StreamRng, stream};
use crate::data::scene::{Scene, compose};
use crate::error::{Error, Result};
use crate::saip::config::{PATCH, StepConfig};

/// Range of the scale that is drawn per step.
pub const SCALE_RANGE: [f64; 2] = [0.75, 1.5];

/// `count` scales evenly spaced over `range`, both ends included (the middle when `count` is 1). Each bucket is one
/// compiled step, so there should be few.
pub fn scale_buckets([low, high]: [f64; 2], count: usize) -> Vec<f64> {
    match count {
        0 => Vec::new(),
        1 => vec![0.5 * (low + high)],
        _ => (0..count).map(|i| low + (high - low) * i as f64 / (count - 1) as f64).collect(),
    }
}

/// `size * scale`, each side rounded to the nearest multiple of the patch edge, at least one patch.
pub fn scaled_size(size: [usize; 2], scale: f64) -> [usize; 2] {
    let patch = PATCH as f64;
    size.map(|s| ((s as f64 * scale / patch).round() as usize).max(1) * PATCH)
}

/// `cfg` with the sizes of the rescaled and the masked view at `scale`.
pub fn step_config_at(cfg: &StepConfig, scale: f64) -> StepConfig {
    StepConfig {
        rescaled_size: scaled_size(cfg.local_size, scale),
        masked_size: scaled_size(cfg.global_size, scale),
        ..cfg.clone()
    }
}

/// The view sizes of step `step`: its scale is one of `scales`, drawn by the run's seed and the step alone.
pub fn step_geometry(cfg: &StepConfig, scales: &[f64], seed: u64, step: u64) -> ViewGeometry {
    match draw_scale(scales.len(), seed, step) {
        Some(i) => ViewGeometry::of(&step_config_at(cfg, scales[i])),
        None => ViewGeometry::of(cfg),
    }
}

fn draw_scale(count: usize, seed: u64, step: u64) -> Option<usize> {
    (count > 0).then(|| stream(seed, 0, step, Purpose::Scale).random_range(0..count as u64) as usize)
}

/// Identifies one picture's random numbers: the run's seed, the epoch, and the picture's number within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleKey {
    pub seed: u64,
    pub epoch: u64,
    pub sample: u64,
}

impl SampleKey {
    pub fn stream(&self, purpose: Purpose) -> StreamRng {
        stream(self.seed, self.epoch, self.sample, purpose)
    }
}

/// All views of one picture, as 8-bit pictures before normalisation.
#[derive(Clone, Debug)]
pub struct SampleViews {
    /// View 0 is the anchor.
    pub global: [RgbImage; 2],
    pub local: Vec<RgbImage>,
    /// View 0 is a local crop of its own (the picture pasted as instance 1), view 1 the whole anchor view.
    pub rescaled: [RgbImage; 2],
    /// Global view 1 at the step's scale.
    pub masked: RgbImage,
    /// Row-major positions of the visible patches of `masked`, ascending.
    pub keep: Vec<i32>,
    pub scene: Scene,
}

/// Plans the views of a run: which geometries occur, which one a step has, how a picture becomes its views.
#[derive(Clone, Debug)]
pub struct ViewPlanner {
    augment: AugmentConfig,
    geometries: Vec<ViewGeometry>,
    /// For each scale its geometry: scales that round to the same sizes share one and keep their joint probability.
    bucket_of_scale: Vec<usize>,
}

impl ViewPlanner {
    /// Plans for `step`'s sizes with one of `scales` per step; with no scales, `step`'s own rescaled and masked sizes
    /// are used at every step. Fails on sizes that are not positive multiples of the patch edge, on a scene of fewer
    /// than 2x2 tokens, on scales out of (0, 8], and on a mask ratio that leaves no visible or no hidden patch.
    pub fn new(step: &StepConfig, scales: &[f64], augment: AugmentConfig) -> Result<Self> {
        augment.validate()?;
        let (mut geometries, mut bucket_of_scale) = (Vec::new(), Vec::new());
        for &scale in scales {
            if !(scale > 0.0 && scale <= 8.0) {
                return Err(Error::config("scales", format!("{scale} is not within (0, 8]")));
            }
            let geometry = ViewGeometry::of(&step_config_at(step, scale));
            let known = geometries.iter().position(|g| *g == geometry);
            bucket_of_scale.push(known.unwrap_or(geometries.len()));
            if known.is_none() {
                geometries.push(geometry);
            }
        }
        if geometries.is_empty() {
            geometries.push(ViewGeometry::of(step));
        }
        geometries.iter().try_for_each(check_geometry)?;
        Ok(ViewPlanner { augment, geometries, bucket_of_scale })
    }

    /// The distinct geometries: one compiled step each.
    pub fn geometries(&self) -> &[ViewGeometry] {
        &self.geometries
    }

    pub fn augment(&self) -> &AugmentConfig {
        &self.augment
    }

    /// Index into [`Self::geometries`] of step `step`.
    pub fn bucket(&self, seed: u64, step: u64) -> usize {
        draw_scale(self.bucket_of_scale.len(), seed, step).map_or(0, |i| self.bucket_of_scale[i])
    }

    /// The geometry of step `step`; equals [`step_geometry`] for the same scales.
    pub fn geometry(&self, seed: u64, step: u64) -> &ViewGeometry {
        &self.geometries[self.bucket(seed, step)]
    }

    /// All views of `picture`. `background` provides the scene's background; it gets the scene's stream to choose with.
    pub fn render(
        &self,
        augmenter: &mut Augmenter,
        geometry: &ViewGeometry,
        key: SampleKey,
        picture: &RgbImage,
        background: impl FnOnce(&mut StreamRng) -> Result<RgbImage>,
    ) -> Result<SampleViews> {
        let (cfg, g) = (&self.augment, geometry);
        let rng = &mut key.stream(Purpose::Views);
        let anchor = augmenter.view(cfg, cfg.anchor(), picture, g.global_size, rng)?;
        let second = augmenter.view(cfg, cfg.second(), picture, g.global_size, rng)?;
        let local = (0..g.locals).map(|_| augmenter.view(cfg, cfg.local(), picture, g.local_size, rng));
        let local = local.collect::<Result<Vec<_>>>()?;
        let part = augmenter.view(cfg, cfg.rescaled(), picture, g.rescaled_size, rng)?;
        let whole = augmenter.resampler.fit(&anchor, g.rescaled_size)?;
        let masked = augmenter.resampler.fit(&second, g.masked_size)?;
        let keep = random_positions(g.masked_tokens(), g.visible, &mut key.stream(Purpose::Mask));
        let mut scene_rng = key.stream(Purpose::Scene);
        let behind = background(&mut scene_rng)?;
        let scene = compose(cfg, augmenter, &behind, [&anchor, &part], g.scene_size, &mut scene_rng)?;
        Ok(SampleViews { global: [anchor, second], local, rescaled: [part, whole], masked, keep, scene })
    }
}

fn check_geometry(g: &ViewGeometry) -> Result<()> {
    let sizes = [
        ("global_size", g.global_size),
        ("local_size", g.local_size),
        ("rescaled_size", g.rescaled_size),
        ("masked_size", g.masked_size),
        ("scene_size", [g.scene_size; 2]),
    ];
    for (key, size) in sizes {
        if size.iter().any(|&s| s == 0 || s % PATCH != 0 || s > 4096) {
            let message = format!("{size:?} must be positive multiples of {PATCH} pixels, at most 4096");
            return Err(Error::config(key, message));
        }
    }
    if g.scene_size < 2 * PATCH {
        return Err(Error::config("scene_size", format!("{} is too small for two persons", g.scene_size)));
    }
    if g.visible == 0 || g.visible >= g.masked_tokens() {
        let message =
            format!("leaves {} of {} patches visible; some must be, not all", g.visible, g.masked_tokens());
        return Err(Error::config("mask_ratio", message));
    }
    Ok(())
}

/// `count` of `0..n`, uniform without replacement, ascending.
pub fn random_positions(n: usize, count: usize, rng: &mut StreamRng) -> Vec<i32> {
    let mut all: Vec<i32> = (0..n as i32).collect();
    let count = count.min(n);
    for i in 0..count {
        all.swap(i, rng.random_range(i as u64..n as u64) as usize);
    }
    all.truncate(count);
    all.sort_unstable();
    all
}
