//! One picture to its view, and one batch to the way it is mixed.

use super::config::{Mixing, StepConfig};
use super::model::IMAGE;
use crate::data::augment::{AugmentConfig, Augmenter, Recipe as Strengths, chance};
use crate::data::batch::{Batch, Values};
use crate::data::recipe::{Another, Part, Recipe, SampleKey};
use crate::data::rng::{Purpose, StreamRng, stream};
use crate::data::sample::Sample;
use crate::error::{Error, Result};
use crate::objectives::view_size::check_view_size;
use crate::tensor::{DType, TensorSpec};
use rand::RngExt;
use rand_distr::{Beta, Distribution, StandardNormal};

/// How a batch is mixed: the share of an image in a blend with its partner, and the box `[top, bottom, left, right]` that comes from
/// the partner, ends excluded; where there is one, the share follows from it.
pub(super) type Mix = (f32, [i32; 4]);

impl Mixing {
    /// Draws how a batch of images of `size` is mixed: as timm's `Mixup` does for whole batches.
    ///
    /// # Errors
    /// For parameters that no distribution has.
    pub fn draw(&self, [height, width]: [usize; 2], rng: &mut StreamRng) -> Result<Mix> {
        let cuts = match (self.mixup > 0.0, self.cutmix > 0.0) {
            (true, true) => chance(rng, self.switch),
            (false, false) => return Ok((1.0, [0; 4])),
            (_, cutmix) => cutmix,
        };
        let shape = if cuts { self.cutmix } else { self.mixup };
        let beta = Beta::new(shape, shape).map_err(|e| {
            Error::config("supervised.mixup", format!("{shape} is no Beta distribution's: {e}"))
        })?;
        let lam: f64 = beta.sample(rng);
        if !cuts {
            return Ok((lam as f32, [0; 4]));
        }
        // Around a place in the image, so that boxes at its edges are smaller than their share.
        let edge = (1.0 - lam).max(0.0).sqrt();
        let mut along = |size: usize| {
            let (middle, half) = (rng.random_range(0..size as i64), (size as f64 * edge) as i64 / 2);
            [middle - half, middle + half].map(|at| at.clamp(0, size as i64) as i32)
        };
        let [[top, bottom], [left, right]] = [along(height), along(width)];
        // A box without pixels leaves the images as they are.
        let empty = top >= bottom || left >= right;
        Ok((1.0, if empty { [0; 4] } else { [top, bottom, left, right] }))
    }
}

/// The size of the images, how they are augmented and mixed.
#[derive(Clone, Debug)]
pub(super) struct Classified {
    size: [usize; 2],
    classes: usize,
    augment: AugmentConfig,
    mixing: Mixing,
}

impl Classified {
    /// # Errors
    /// [`Error::Config`] naming a size or an augmentation that is out of range.
    pub fn new(cfg: &StepConfig, augment: AugmentConfig, mixing: Mixing) -> Result<Self> {
        augment.check("augment")?;
        let size = cfg.global_size;
        check_view_size("global_size", size)?;
        Ok(Classified { size, classes: cfg.classes, augment, mixing })
    }

    /// What a batch of `b` images holds.
    pub fn specs(&self, b: usize) -> Vec<TensorSpec> {
        let [h, w] = self.size;
        vec![
            TensorSpec::new(IMAGE, DType::F32, 0, [b, 3, h, w]),
            TensorSpec::new("label", DType::I32, 0, [b]),
            TensorSpec::new("lam", DType::F32, 0, [b]),
            TensorSpec::new("box", DType::I32, 0, [b, 4]),
        ]
    }

    /// A batch of `b` images of normally distributed pixels, half of them blended, half of them cut.
    pub fn random_batch(&self, b: usize, seed: u64) -> Batch {
        let [h, w] = self.size.map(|s| s as i32);
        let mut rng = stream(seed, 0, 0, Purpose::Views);
        let values = |spec: TensorSpec| {
            let count = spec.shape.count();
            let values = match spec.name {
                "label" => Values::I32((0..b).map(|_| rng.random_range(0..self.classes as i32)).collect()),
                "box" => {
                    let boxes =
                        (0..b).map(|i| if i % 2 == 0 { [0; 4] } else { [h / 8, h / 2, w / 4, w - 5] });
                    Values::I32(boxes.flatten().collect())
                }
                "lam" => Values::F32((0..count).map(|_| rng.random()).collect()),
                _ => Values::F32((0..count).map(|_| StandardNormal.sample(&mut rng)).collect()),
            };
            (spec, values)
        };
        let tensors = self.specs(b).into_iter().map(values).collect();
        Batch { bucket: 0, tensors, names: vec!["random".into(); b] }
    }

    /// # Errors
    /// [`Error::Usage`] for values that are out of range, naming their tensor.
    pub fn check(&self, batch: &Batch) -> Result<()> {
        let classes = self.classes;
        if batch.i32s("label")?.iter().any(|l| usize::try_from(*l).map_or(true, |l| l >= classes)) {
            return Err(Error::usage(format!("`view.label` leaves the {classes} classes")));
        }
        if batch.f32s("lam")?.iter().any(|lam| !(0.0..=1.0).contains(lam)) {
            return Err(Error::usage("`view.lam` must be between 0 and 1"));
        }
        let [h, w] = self.size.map(|s| s as i32);
        let inside = |b: &[i32]| {
            (0..=h).contains(&b[0])
                && (0..=h).contains(&b[1])
                && (0..=w).contains(&b[2])
                && (0..=w).contains(&b[3])
        };
        match batch.i32s("box")?.chunks_exact(4).all(inside) {
            true => Ok(()),
            false => Err(Error::usage(format!("`view.box` leaves images of {h}x{w} pixels"))),
        }
    }
}

impl Recipe for Classified {
    fn tensors(&self, _: usize, batch: usize) -> Vec<TensorSpec> {
        self.specs(batch)
    }

    fn paint(
        &self,
        painter: &mut Augmenter,
        _: usize,
        key: SampleKey,
        sample: &Sample,
        _: &mut Another<'_>,
    ) -> Result<Vec<Vec<Part>>> {
        let class = sample.labels.class.filter(|c| (*c as usize) < self.classes).ok_or_else(|| {
            let classes = self.classes;
            Error::usage(format!("an image has class {:?}, not one of {classes}", sample.labels.class))
        })?;
        let strengths = Strengths { scale: self.augment.global_scale, blur: 0.0, solarize: 0.0 };
        let rng = &mut key.stream(Purpose::Views);
        let view = painter.view(&self.augment, strengths, &sample.image, self.size, rng)?;
        let (lam, cut) = self.mixing.draw(self.size, &mut key.batch_stream(Purpose::Mix))?;
        Ok(vec![
            vec![Part::Picture(view)],
            vec![Part::Indices(vec![class as i32])],
            vec![Part::Values(vec![lam])],
            vec![Part::Indices(cut.to_vec())],
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(mixing: Mixing, size: [usize; 2]) -> Vec<Mix> {
        (0..2000).map(|i| mixing.draw(size, &mut stream(3, 0, i, Purpose::Mix)).unwrap()).collect()
    }

    #[test]
    fn batches_are_blended_or_cut_as_often_as_asked() {
        let usual = Mixing { mixup: 0.8, cutmix: 1.0, switch: 0.5 };
        let all = draws(usual, [64, 32]);
        assert_eq!(all, draws(usual, [64, 32]));
        let cut: Vec<[i32; 4]> = all.iter().map(|m| m.1).filter(|b| *b != [0; 4]).collect();
        let whole = all.iter().filter(|m| m.1 == [0; 4] && m.0 == 1.0).count();
        assert!((900..1000).contains(&cut.len()) && whole < 100, "{} cut, {whole} whole", cut.len());
        assert!(cut.iter().all(|b| 0 <= b[0]
            && b[0] < b[1]
            && b[1] <= 64
            && 0 <= b[2]
            && b[2] < b[3]
            && b[3] <= 32));
        // A place anywhere, boxes of any size: on average a quarter or so of the image.
        let area = |b: &[i32; 4]| f64::from((b[1] - b[0]) * (b[3] - b[2])) / (64.0 * 32.0);
        let mean = cut.iter().map(area).sum::<f64>() / cut.len() as f64;
        assert!((0.2..0.45).contains(&mean), "{mean}");
        // Beta(0.8, 0.8): mean 1 / 2, variance 1 / (4 (2 * 0.8 + 1)).
        let lam: Vec<f64> = all.iter().filter(|m| m.1 == [0; 4] && m.0 < 1.0).map(|m| m.0.into()).collect();
        let mean = lam.iter().sum::<f64>() / lam.len() as f64;
        let variance = lam.iter().map(|l| (l - mean) * (l - mean)).sum::<f64>() / lam.len() as f64;
        assert!((mean - 0.5).abs() < 0.05 && (variance - 1.0 / 10.4).abs() < 0.02, "{mean} {variance}");
    }

    /// Views are each image's own, the mixing is the batch's; a label is what the sample says.
    #[test]
    fn a_batch_is_mixed_in_one_way() {
        let recipe = Classified {
            size: [32, 32],
            classes: 3,
            augment: AugmentConfig::default(),
            mixing: Mixing { mixup: 0.8, cutmix: 1.0, switch: 0.5 },
        };
        let image = image::RgbImage::from_fn(40, 80, |x, y| image::Rgb([(5 * x) as u8, (3 * y) as u8, 9]));
        let paint = |sample, batch, class| {
            let labels = crate::data::sample::Labels { class };
            let key = SampleKey { seed: 1, epoch: 2, sample, batch };
            let sample = Sample { image: image.clone(), labels };
            recipe.paint(&mut Augmenter::new(), 0, key, &sample, &mut |_| Err(Error::usage("not asked for")))
        };
        let (one, two) = (paint(3, 7, Some(0)).unwrap(), paint(4, 7, Some(2)).unwrap());
        assert_eq!(one[2..], two[2..]);
        assert_ne!(one[0], two[0]);
        assert_eq!((&one[1], &two[1]), (&vec![Part::Indices(vec![0])], &vec![Part::Indices(vec![2])]));
        let batches: Vec<_> = (0..8).map(|batch| paint(3, batch, Some(0)).unwrap()).collect();
        assert!(batches.iter().skip(1).all(|b| b[0] == batches[0][0] && b[2..] != batches[0][2..]));
        for class in [None, Some(3)] {
            assert!(paint(3, 7, class).unwrap_err().to_string().contains("not one of 3"));
        }
    }

    #[test]
    fn what_is_off_is_never_drawn() {
        let of = |mixup, cutmix, switch| draws(Mixing { mixup, cutmix, switch }, [32, 32]);
        assert!(of(0.0, 0.0, 0.5).iter().all(|m| *m == (1.0, [0; 4])));
        assert!(of(0.8, 0.0, 1.0).iter().all(|m| m.1 == [0; 4]));
        assert!(of(0.0, 1.0, 0.0).iter().all(|m| m.0 == 1.0));
        assert!(of(0.8, 1.0, 0.0).iter().all(|m| m.1 == [0; 4]));
    }
}
