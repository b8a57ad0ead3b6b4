//! One picture to all its views, and the sizes of the views at each step's scale.

use image::RgbImage;
use rand::RngExt;
use rand_distr::{Distribution, StandardNormal};

use super::geometry::ViewGeometry;
use crate::data::augment::{AugmentConfig, Augmenter};
use crate::data::batch::{Batch, Values};
use crate::data::recipe::{Another, Part, Recipe, SampleKey};
use crate::data::rng::{Purpose, StreamRng, stream};
use crate::data::sample::Sample;
use crate::data::scene::{Scene, compose, tokens_into};
use crate::error::{Error, Result};
use crate::ir::PATCH;
use crate::objectives::view_size::check_view_size;
use crate::tensor::TensorSpec;

/// Range of the scale that is drawn per step.
pub const SCALE_RANGE: [f64; 2] = [0.75, 1.5];
/// The largest scale of a run's views.
pub const MOST_SCALE: f64 = 8.0;

/// `count` scales evenly spaced over `range`, both ends included (the middle when `count` is 1). Each bucket is one
/// compiled step, so there should be few.
pub fn scale_buckets([low, high]: [f64; 2], count: usize) -> Vec<f64> {
    match count {
        0 => Vec::new(),
        1 => vec![0.5 * (low + high)],
        _ => (0..count).map(|i| low + (high - low) * i as f64 / (count - 1) as f64).collect(),
    }
}

fn draw_scale(count: usize, seed: u64, step: u64) -> Option<usize> {
    (count > 0).then(|| stream(seed, 0, step, Purpose::Scale).random_range(0..count as u64) as usize)
}

/// A batch of `b` images of normally distributed pixels with random masks and boxes.
pub(super) fn random_batch(geometry: &ViewGeometry, b: usize, seed: u64) -> Batch {
    let g = geometry;
    let mut rng = stream(seed, 0, 0, Purpose::Views);
    let mut pixels = |images: usize, [h, w]: [usize; 2]| -> Values {
        Values::F32((0..images * 3 * h * w).map(|_| StandardNormal.sample(&mut rng)).collect())
    };
    let (global, local) = (pixels(2 * b, g.global_size), pixels(g.locals * b, g.local_size));
    let (rescaled, masked) = (pixels(2 * b, g.rescaled_size), pixels(b, g.masked_size));
    let scene = pixels(b, [g.scene_size; 2]);
    let mut rng = stream(seed, 0, 0, Purpose::Mask);
    let keep: Vec<Vec<i32>> =
        (0..b).map(|_| random_positions(g.masked_tokens(), g.visible, &mut rng)).collect();
    let hidden = keep.iter().flat_map(|keep| others(keep, g.masked_tokens())).collect();
    let side = g.scene_size / PATCH;
    let boxes = (0..2 * b * side * side).map(|i| f32::from(u8::from(i % 3 == 0))).collect();
    let values = [
        global,
        local,
        rescaled,
        scene,
        Values::F32(boxes),
        masked,
        Values::I32(keep.concat()),
        Values::I32(hidden),
    ];
    let tensors = g.tensors(b).into_iter().zip(values).collect();
    Batch { bucket: 0, tensors, names: vec!["random".into(); b] }
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

impl SampleViews {
    /// In the order of [`ViewGeometry::tensors`].
    fn parts(self, g: &ViewGeometry) -> Vec<Vec<Part>> {
        let pictures = |views: Vec<RgbImage>| views.into_iter().map(Part::Picture).collect::<Vec<_>>();
        let boxes = self.scene.boxes.iter().map(|at| {
            let mut tokens = vec![0.0; g.scene_tokens()];
            tokens_into(at, g.scene_size, &mut tokens);
            Part::Values(tokens)
        });
        let hidden = others(&self.keep, g.masked_tokens());
        vec![
            pictures(self.global.into()),
            pictures(self.local),
            pictures(self.rescaled.into()),
            pictures(vec![self.scene.picture]),
            boxes.collect(),
            pictures(vec![self.masked]),
            vec![Part::Indices(self.keep)],
            vec![Part::Indices(hidden)],
        ]
    }
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
    /// Plans for `step`'s sizes with one of `scales` per step, and `mask_ratio` of the masked view hidden at each; with no scales, `step`'s own rescaled and masked sizes
    /// are used at every step. Fails on sizes that are not positive multiples of the patch edge, on a scene of fewer
    /// than 2x2 tokens, on scales out of (0, 8], and on a mask ratio that leaves no visible or no hidden patch.
    pub fn new(step: &ViewGeometry, mask_ratio: f64, scales: &[f64], augment: AugmentConfig) -> Result<Self> {
        augment.check("augment")?;
        let (mut geometries, mut bucket_of_scale) = (Vec::new(), Vec::new());
        for &scale in scales {
            if !(scale > 0.0 && scale <= MOST_SCALE) {
                return Err(Error::config("scales", format!("{scale} is not within (0, {MOST_SCALE}]")));
            }
            let geometry = step.at_scale(scale, mask_ratio);
            let known = geometries.iter().position(|g| *g == geometry);
            bucket_of_scale.push(known.unwrap_or(geometries.len()));
            if known.is_none() {
                geometries.push(geometry);
            }
        }
        if geometries.is_empty() {
            geometries.push(step.clone());
        }
        geometries.iter().try_for_each(check_geometry)?;
        Ok(ViewPlanner { augment, geometries, bucket_of_scale })
    }

    /// The same augmentation for views of one geometry.
    ///
    /// # Errors
    /// [`Error::Config`] naming a size that is out of range.
    pub fn fixed(&self, geometry: &ViewGeometry) -> Result<Self> {
        check_geometry(geometry)?;
        let augment = self.augment.clone();
        Ok(ViewPlanner { augment, geometries: vec![geometry.clone()], bucket_of_scale: Vec::new() })
    }

    /// The distinct geometries: one compiled step each.
    pub fn geometries(&self) -> &[ViewGeometry] {
        &self.geometries
    }

    /// All views of `picture`. `background` provides the scene's background; it gets the scene's stream to choose with.
    pub fn render(
        &self,
        augmenter: &mut Augmenter,
        geometry: &ViewGeometry,
        key: SampleKey,
        picture: &RgbImage,
        background: &mut Another<'_>,
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

impl Recipe for ViewPlanner {
    fn buckets(&self) -> usize {
        self.geometries.len()
    }

    fn bucket(&self, seed: u64, step: u64) -> usize {
        draw_scale(self.bucket_of_scale.len(), seed, step).map_or(0, |i| self.bucket_of_scale[i])
    }

    fn tensors(&self, bucket: usize, batch: usize) -> Vec<TensorSpec> {
        self.geometries[bucket].tensors(batch)
    }

    fn paint(
        &self,
        painter: &mut Augmenter,
        bucket: usize,
        key: SampleKey,
        sample: &Sample,
        another: &mut Another<'_>,
    ) -> Result<Vec<Vec<Part>>> {
        let geometry = &self.geometries[bucket];
        Ok(self.render(painter, geometry, key, &sample.image, another)?.parts(geometry))
    }
}

/// Derives `hidden` from `keep`, whose positions must ascend within each image and lie within the masked view.
///
/// # Errors
/// [`Error::Usage`] when they do not.
pub(super) fn complete_positions(batch: &mut Batch) -> Result<()> {
    let [visible, hidden] = ["keep", "hidden"].map(|name| batch.tensor(name).map(|t| t.0.part()));
    let (visible, tokens) = (visible?, hidden? + batch.tensor("keep")?.0.part());
    let keep = batch.i32s("keep")?;
    if keep.iter().any(|i| usize::try_from(*i).map_or(true, |i| i >= tokens)) {
        return Err(Error::usage(format!("`view.keep` leaves the {tokens} patches of the masked view")));
    }
    let images = || keep.chunks_exact(visible.max(1));
    if images().any(|k| k.windows(2).any(|w| w[0] >= w[1])) {
        return Err(Error::usage("`view.keep` must ascend within each image"));
    }
    let all: Vec<i32> = images().flat_map(|keep| others(keep, tokens)).collect();
    if let Some((spec, values)) = batch.tensors.iter_mut().find(|t| t.0.name == "hidden") {
        if all.len() != spec.shape.count() {
            return Err(Error::invariant("completing a batch", "positions are lost"));
        }
        *values = Values::I32(all);
    }
    Ok(())
}

/// The positions below `n` that `keep` lacks; both ascend.
pub(super) fn others(keep: &[i32], n: usize) -> Vec<i32> {
    let mut kept = keep.iter().copied().peekable();
    (0..n as i32).filter(|i| kept.next_if_eq(i).is_none()).collect()
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
        check_view_size(key, size)?;
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

#[cfg(test)]
pub(crate) mod tests {
    use image::Rgb;

    use super::super::geometry::{scaled_size, visible_patches};
    use super::*;

    pub(crate) const MASK_RATIO: f64 = 0.75;
    use crate::data::augment::Resampler;

    /// A step with the given sizes, three quarters of the masked view hidden.
    pub(crate) fn step(global: [usize; 2], local: [usize; 2], locals: usize, scene: usize) -> ViewGeometry {
        let visible = visible_patches(global[0] / PATCH * (global[1] / PATCH), MASK_RATIO);
        ViewGeometry {
            global_size: global,
            local_size: local,
            locals,
            rescaled_size: local,
            masked_size: global,
            scene_size: scene,
            visible,
        }
    }

    #[test]
    fn sizes_are_scaled_and_rounded_to_patches() {
        let full = step([256, 128], [128, 64], 6, 224);
        let at = full.at_scale(1.25, MASK_RATIO);
        assert_eq!((at.rescaled_size, at.masked_size), ([160, 80], [320, 160]));
        assert_eq!(scaled_size([128, 64], 0.75), [96, 48]);
        assert_eq!(scaled_size([32, 16], 0.3), [16, 16], "never below one patch");
        assert_eq!(at.visible, 50);
    }

    #[test]
    fn buckets_are_evenly_spaced_and_merge_when_equal() {
        assert_eq!(scale_buckets(SCALE_RANGE, 4), [0.75, 1.0, 1.25, 1.5]);
        assert_eq!(scale_buckets([0.5, 1.5], 1), [1.0]);
        assert!(scale_buckets(SCALE_RANGE, 0).is_empty());
        let full = step([256, 128], [128, 64], 6, 224);
        let planner =
            ViewPlanner::new(&full, MASK_RATIO, &scale_buckets(SCALE_RANGE, 4), AugmentConfig::default())
                .unwrap();
        assert_eq!(planner.geometries().len(), 4);
        let close =
            ViewPlanner::new(&full, MASK_RATIO, &[1.0, 1.001, 1.5], AugmentConfig::default()).unwrap();
        assert_eq!(close.geometries().len(), 2);
        let own = ViewPlanner::new(&full, MASK_RATIO, &[], AugmentConfig::default()).unwrap();
        assert_eq!(own.geometries(), std::slice::from_ref(&full));
    }

    #[test]
    fn every_step_draws_its_scale_from_seed_and_step_alone() {
        let (full, scales) = (step([256, 128], [128, 64], 6, 224), scale_buckets(SCALE_RANGE, 4));
        let planner = ViewPlanner::new(&full, MASK_RATIO, &scales, AugmentConfig::default()).unwrap();
        let mut counts = [0; 4];
        for s in 0..400 {
            let scale = draw_scale(scales.len(), 3, s).unwrap();
            assert_eq!(planner.geometries[planner.bucket(3, s)], full.at_scale(scales[scale], MASK_RATIO));
            counts[planner.bucket(3, s)] += 1;
        }
        assert!(counts.iter().all(|c| (65..140).contains(c)), "{counts:?}");
        assert!((0..50).any(|s| planner.bucket(3, s) != planner.bucket(4, s)));
    }

    #[test]
    fn unusable_sizes_are_named() {
        let new = |step: ViewGeometry, scales: &[f64]| {
            ViewPlanner::new(&step, MASK_RATIO, scales, AugmentConfig::default())
        };
        let message = |cfg, scales| new(cfg, scales).unwrap_err().to_string();
        assert!(message(step([250, 128], [128, 64], 6, 224), &[]).contains("global_size"));
        assert!(message(step([256, 128], [128, 64], 6, 16), &[]).contains("scene_size"));
        assert!(message(step([256, 128], [128, 64], 6, 224), &[f64::NAN]).contains("scales"));
        let mut all_hidden = step([32, 16], [16, 16], 1, 64);
        all_hidden.visible = visible_patches(all_hidden.masked_tokens(), 0.9);
        assert!(message(all_hidden, &[]).contains("mask_ratio"));
    }

    #[test]
    fn visible_positions_are_a_uniform_ascending_subset() {
        let mut counts = vec![0; 40];
        for i in 0..2000 {
            let keep = random_positions(40, 10, &mut stream(0, 0, i, Purpose::Mask));
            assert_eq!(keep.len(), 10);
            assert!(keep.windows(2).all(|w| w[0] < w[1]) && keep[0] >= 0 && keep[9] < 40);
            keep.iter().for_each(|&k| counts[k as usize] += 1);
        }
        // Expected 500 each; the standard deviation is 19.
        assert!(counts.iter().all(|c| (400..600).contains(c)), "{counts:?}");
    }

    #[test]
    fn views_are_what_the_reference_says() {
        let cfg = step([64, 32], [32, 16], 3, 64);
        let planner = ViewPlanner::new(&cfg, MASK_RATIO, &[1.25], AugmentConfig::default()).unwrap();
        let g = planner.geometries[0].clone();
        let person = RgbImage::from_fn(50, 100, |x, y| Rgb([(5 * x) as u8, (2 * y) as u8, (x * y) as u8]));
        let behind = RgbImage::from_pixel(50, 100, Rgb([10, 20, 30]));
        let key = SampleKey { seed: 0, epoch: 1, sample: 2, batch: 0 };
        let render = |key| {
            planner.render(&mut Augmenter::new(), &g, key, &person, &mut |_| Ok(behind.clone())).unwrap()
        };
        let v = render(key);
        assert_eq!(v.local.len(), 3);
        assert!(v.local.iter().all(|p| p.dimensions() == (16, 32)));
        assert_eq!(v.keep.len(), g.visible);
        let fit = |p: &RgbImage, size| Resampler::default().fit(p, size).unwrap();
        assert_eq!(v.rescaled[1], fit(&v.global[0], g.rescaled_size), "the whole anchor at small size");
        assert_eq!(v.masked, fit(&v.global[1], g.masked_size), "the pixels of global view 1");
        assert_ne!(v.global[0], v.global[1]);
        // The middle of each box holds the anchor's and the rescaled crop's own pixels.
        for (source, at) in [&v.global[0], &v.rescaled[0]].into_iter().zip(v.scene.boxes) {
            let want = fit(source, [at.height, at.width]);
            let (x, y) = (at.width as u32 / 2, at.height as u32 / 2);
            let got = v.scene.picture.get_pixel(at.left as u32 + x, at.top as u32 + y);
            assert_eq!(got, want.get_pixel(x, y));
        }
        let again = render(key);
        assert_eq!((v.global, v.local, v.keep), (again.global, again.local, again.keep));
        assert_ne!(render(SampleKey { sample: 3, ..key }).masked, again.masked);
        assert_ne!(render(SampleKey { epoch: 2, ..key }).masked, again.masked);
    }
}
