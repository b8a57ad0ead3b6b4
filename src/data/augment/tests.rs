use approx::assert_abs_diff_eq;
use image::{Rgb, RgbImage};
use rand::RngExt;

use super::*;
use crate::data::augment::blur::gaussian_kernel;
use crate::data::augment::color::{Jitter, brightness, contrast, grayscale, hue, saturation, solarize};
use crate::data::augment::normalize::{MEAN, STD, denormalise, eval_image, normalize_into};
use crate::data::rng::{Purpose, stream};

fn rng(i: u64) -> StreamRng {
    stream(7, 0, i, Purpose::Views)
}

/// The picture of the resampling reference below.
fn pattern(w: u32, h: u32) -> RgbImage {
    RgbImage::from_fn(w, h, |x, y| {
        Rgb([x * 37 + y * 11, x * x * 5 + y * 29, x * 13 + y * y * 7].map(|v| v as u8))
    })
}

fn noise(w: u32, h: u32) -> RgbImage {
    let mut rng = rng(99);
    RgbImage::from_fn(w, h, |_, _| Rgb(rng.random()))
}

fn planes(picture: &RgbImage) -> Planes {
    let mut planes = Planes::default();
    planes.load(picture);
    planes
}

/// Compares `op` on planes with `naive` on f64 pixels.
fn check_pixelwise(op: impl Fn(&mut Planes), naive: impl Fn([f64; 3]) -> [f64; 3], tolerance: f32) {
    let mut picture = noise(37, 23);
    for (i, fixed) in
        [[0, 0, 0], [255, 255, 255], [90, 90, 90], [255, 0, 0], [0, 255, 255]].into_iter().enumerate()
    {
        picture.put_pixel(i as u32, 0, Rgb(fixed));
    }
    let mut got = planes(&picture);
    op(&mut got);
    let n = 37 * 23;
    for (i, px) in picture.pixels().enumerate() {
        let want = naive(px.0.map(|v| f64::from(v) / 255.0));
        for (c, want) in want.into_iter().enumerate() {
            assert_abs_diff_eq!(got.data[c * n + i], want as f32, epsilon = tolerance);
        }
    }
}

fn luma(p: [f64; 3]) -> f64 {
    0.299 * p[0] + 0.587 * p[1] + 0.114 * p[2]
}

#[test]
fn brightness_saturation_grayscale_solarize_match_their_formulas() {
    for f in [0.6, 1.0, 1.4] {
        check_pixelwise(|p| brightness(p, f as f32), |p| p.map(|v| (v * f).min(1.0)), 1e-6);
        let naive = |p: [f64; 3]| p.map(|v| (f * v + (1.0 - f) * luma(p)).clamp(0.0, 1.0));
        check_pixelwise(|p| saturation(p, f as f32), naive, 1e-6);
    }
    check_pixelwise(grayscale, |p| [luma(p); 3], 1e-6);
    // PIL: values of 128 and above are inverted.
    let naive = |p: [f64; 3]| p.map(|v| if v * 255.0 > 127.5 { 1.0 - v } else { v });
    check_pixelwise(solarize, naive, 1e-6);
}

#[test]
fn contrast_blends_with_the_mean_luma() {
    let picture = noise(37, 23);
    let mut first = picture.clone();
    for (i, fixed) in
        [[0, 0, 0], [255, 255, 255], [90, 90, 90], [255, 0, 0], [0, 255, 255]].into_iter().enumerate()
    {
        first.put_pixel(i as u32, 0, Rgb(fixed));
    }
    let mean = first.pixels().map(|p| luma(p.0.map(|v| f64::from(v) / 255.0))).sum::<f64>() / (37.0 * 23.0);
    for f in [0.6, 1.4] {
        let naive = |p: [f64; 3]| p.map(|v| (f * v + (1.0 - f) * mean).clamp(0.0, 1.0));
        check_pixelwise(|p| contrast(p, f as f32), naive, 1e-5);
    }
}

/// HSV there and back with branches and remainders, as in textbooks.
fn naive_hue([r, g, b]: [f64; 3], turns: f64) -> [f64; 3] {
    let (max, min) = (r.max(g).max(b), r.min(g).min(b));
    let d = max - min;
    let h = if d == 0.0 {
        0.0
    } else if max == r {
        ((g - b) / d).rem_euclid(6.0)
    } else if max == g {
        (b - r) / d + 2.0
    } else {
        (r - g) / d + 4.0
    };
    let h = (h / 6.0 + turns).rem_euclid(1.0) * 6.0;
    let s = if max == 0.0 { 0.0 } else { d / max };
    let (sector, f) = (h.floor(), h - h.floor());
    let (p, q, t) = (max * (1.0 - s), max * (1.0 - s * f), max * (1.0 - s * (1.0 - f)));
    match sector as i32 % 6 {
        0 => [max, t, p],
        1 => [q, max, p],
        2 => [p, max, t],
        3 => [p, q, max],
        4 => [t, p, max],
        _ => [max, p, q],
    }
}

#[test]
fn hue_matches_textbook_hsv() {
    for turns in [-0.5, -0.1, -0.01, 0.0, 0.03, 0.1, 0.5] {
        check_pixelwise(|p| hue(p, turns as f32), |p| naive_hue(p, turns), 2e-6);
    }
}

#[test]
fn jitter_applies_all_four_steps_in_its_order() {
    let base = planes(&noise(16, 16));
    let jitter = |order| Jitter { order, brightness: 1.3, contrast: 0.7, saturation: 1.2, hue: 0.05 };
    let mut got = base.clone();
    jitter([2, 0, 3, 1]).apply(&mut got);
    let mut want = base.clone();
    saturation(&mut want, 1.2);
    brightness(&mut want, 1.3);
    hue(&mut want, 0.05);
    contrast(&mut want, 0.7);
    assert_eq!(got.data, want.data);
    let mut other = base;
    jitter([0, 1, 2, 3]).apply(&mut other);
    assert_ne!(got.data, other.data);
    // Every order occurs, and every factor stays within its range.
    let cfg = AugmentConfig::default();
    let draws: Vec<_> = (0..500).map(|i| Jitter::draw(&cfg, &mut rng(i))).collect();
    let orders: std::collections::HashSet<_> = draws.iter().map(|j| j.order).collect();
    assert_eq!(orders.len(), 24);
    assert!(draws.iter().all(|j| (0.6..=1.4).contains(&j.brightness) && j.hue.abs() <= 0.1));
    assert!(draws.iter().all(|j| (0.8..=1.2).contains(&j.saturation) && (0.6..=1.4).contains(&j.contrast)));
}

#[test]
fn blur_matches_a_direct_convolution() {
    let (w, h) = (19i64, 14i64);
    let picture = noise(w as u32, h as u32);
    for sigma in [0.4f32, 1.0, 2.0] {
        let mut got = planes(&picture);
        Blur::default().apply(&mut got, sigma);
        let radius = (3.0 * sigma).ceil() as i64;
        let weight = |d: i64| (-0.5 * (d as f64 / f64::from(sigma)).powi(2)).exp();
        let total: f64 = (-radius..=radius).map(weight).sum();
        for (x, y, c) in [(0, 0, 0), (w - 1, h - 1, 1), (9, 7, 2), (0, 6, 1), (12, 1, 0)] {
            let mut want = 0.0;
            for dy in -radius..=radius {
                for dx in -radius..=radius {
                    let px =
                        picture.get_pixel((x + dx).clamp(0, w - 1) as u32, (y + dy).clamp(0, h - 1) as u32);
                    want += weight(dx) * weight(dy) * f64::from(px.0[c]) / 255.0;
                }
            }
            let i = c * (w * h) as usize + (y * w + x) as usize;
            assert_abs_diff_eq!(got.data[i], (want / total / total) as f32, epsilon = 2e-6);
        }
    }
    let mut kernel = Vec::new();
    gaussian_kernel(2.0, &mut kernel);
    assert_eq!(kernel.len(), 13);
    assert_abs_diff_eq!(kernel.iter().sum::<f32>(), 1.0, epsilon = 1e-6);
}

/// Values of `Image.resize(size, BICUBIC, box)` of Pillow 13 for the first seven pixels of `pattern(12, 10)`.
#[test]
fn resampling_is_pillows_bicubic() {
    let src = pattern(12, 10);
    let whole = CropBox::whole(&src);
    let part = CropBox { left: 2, top: 1, width: 9, height: 8 };
    let cases: [(CropBox, usize, usize, [u8; 21]); 2] = [
        (
            whole,
            5,
            7,
            [31, 11, 11, 121, 57, 41, 175, 156, 73, 48, 133, 104, 124, 141, 134, 46, 50, 28, 135, 99, 58],
        ),
        (
            part,
            6,
            6,
            [96, 58, 40, 150, 102, 58, 219, 188, 79, 89, 103, 97, 51, 119, 118, 119, 94, 138, 112, 98, 74],
        ),
    ];
    for (crop, w, h, want) in cases {
        let got = Resampler::default().resize(&src, crop, w, h).unwrap();
        for (i, (g, w)) in got.as_raw().iter().zip(want).enumerate() {
            assert!(g.abs_diff(w) <= 1, "value {i} of {crop:?}: {g}, Pillow gives {w}");
        }
    }
    let outside = CropBox { left: 8, top: 0, width: 9, height: 8 };
    assert!(Resampler::default().resize(&src, outside, 4, 4).is_err());
    assert!(Resampler::default().resize(&src, whole, 0, 4).is_err());
}

#[test]
fn crops_keep_scale_ratio_and_bounds() {
    let (w, h) = (128u32, 256u32);
    let ratio = [0.375, 2.0 / 3.0];
    let mut areas = Vec::new();
    for i in 0..2000 {
        let c = random_resized_crop(w, h, [0.05, 0.5], ratio, &mut rng(i));
        assert!(c.width >= 1 && c.height >= 1 && c.left + c.width <= w && c.top + c.height <= h);
        let aspect = f64::from(c.width) / f64::from(c.height);
        assert!(aspect > 0.35 && aspect < 0.72, "{aspect}");
        areas.push(f64::from(c.width * c.height) / f64::from(w * h));
    }
    assert!(areas.iter().all(|a| (0.045..0.51).contains(a)));
    let mean = areas.iter().sum::<f64>() / 2000.0;
    assert!((mean - 0.275).abs() < 0.01, "uniform in area, mean {mean}");
}

#[test]
fn impossible_crops_fall_back_to_the_centre() {
    // A landscape picture cannot hold a tall crop of 90 % of its area: full height, widest allowed aspect.
    let c = random_resized_crop(400, 100, [0.9, 1.0], [0.4, 0.6], &mut rng(1));
    assert_eq!(c, CropBox { left: 170, top: 0, width: 60, height: 100 });
    let c = random_resized_crop(50, 400, [0.9, 1.0], [0.4, 0.5], &mut rng(1));
    assert_eq!(c, CropBox { left: 0, top: 137, width: 50, height: 125 });
    // Extreme shapes never leave the picture.
    for (w, h) in [(8, 9000), (9000, 8), (8, 8)] {
        let c = random_resized_crop(w, h, [0.05, 0.5], [0.375, 0.667], &mut rng(2));
        assert!(c.width >= 1 && c.height >= 1 && c.left + c.width <= w && c.top + c.height <= h);
    }
}

#[test]
fn planes_round_trip_every_level() {
    let picture = RgbImage::from_fn(256, 2, |x, y| Rgb([x as u8, 255 - x as u8, (x * y) as u8]));
    let mut back = RgbImage::new(256, 2);
    planes(&picture).store(&mut back);
    assert_eq!(picture, back);
}

#[test]
fn normalisation_uses_imagenet_statistics_and_inverts() {
    let picture = noise(17, 9);
    let mut chw = vec![0.0; 3 * 17 * 9];
    normalize_into(&picture, &mut chw).unwrap();
    for (i, px) in picture.pixels().enumerate() {
        for c in 0..3 {
            let want = (f32::from(px.0[c]) / 255.0 - MEAN[c]) / STD[c];
            assert_abs_diff_eq!(chw[c * 17 * 9 + i], want, epsilon = 1e-5);
        }
    }
    assert_eq!(denormalise(&chw, 9, 17).unwrap(), picture);
    assert!(denormalise(&chw, 9, 16).is_err());
    assert!(normalize_into(&picture, &mut [0.0; 12]).is_err());
    assert_eq!(eval_image(&picture, [9, 17]).unwrap(), chw);
    assert_eq!(eval_image(&picture, [32, 16]).unwrap().len(), 3 * 32 * 16);
    assert!(eval_image(&picture, [0, 16]).is_err());
}

#[test]
fn views_follow_their_recipe() {
    let src = noise(40, 80);
    let off = AugmentConfig {
        flip: 0.0,
        color_jitter: 0.0,
        grayscale: 0.0,
        blur: [0.0; 3],
        solarize: 0.0,
        global_scale: [1.0, 1.0],
        ratio: [1.0, 1.0],
        ..Default::default()
    };
    off.check("augment").unwrap();
    let mut augmenter = Augmenter::new();
    let plain = augmenter.view(&off, off.anchor(), &src, [80, 40], &mut rng(0)).unwrap();
    assert_eq!(plain, src, "everything off is the identity");
    let mirrored = AugmentConfig { flip: 1.0, ..off.clone() };
    let view = augmenter.view(&mirrored, mirrored.anchor(), &src, [80, 40], &mut rng(0)).unwrap();
    assert_eq!(view, image::imageops::flip_horizontal(&src));
    let gray = AugmentConfig { grayscale: 1.0, ..off.clone() };
    let view = augmenter.view(&gray, gray.anchor(), &src, [80, 40], &mut rng(0)).unwrap();
    assert!(view.pixels().all(|p| p.0[0] == p.0[1] && p.0[1] == p.0[2]));
    // Solarisation belongs to the second view only.
    let solar = AugmentConfig { solarize: 1.0, ..off };
    assert_eq!(augmenter.view(&solar, solar.anchor(), &src, [80, 40], &mut rng(0)).unwrap(), src);
    let view = augmenter.view(&solar, solar.second(), &src, [80, 40], &mut rng(0)).unwrap();
    assert!(view.iter().zip(src.iter()).all(|(v, s)| *v == if *s >= 128 { 255 - s } else { *s }));
}

#[test]
fn probabilities_are_frequencies() {
    let cfg = AugmentConfig { color_jitter: 0.0, grayscale: 0.0, ..Default::default() };
    let src = RgbImage::from_fn(8, 8, |x, _| Rgb([(x * 10) as u8; 3]));
    let mut augmenter = Augmenter::new();
    let recipe = Recipe { blur: 0.0, ..cfg.anchor() };
    let flips = (0..1000).filter(|&i| {
        let mut out = src.clone();
        augmenter.photometric(&cfg, recipe, &mut out, &mut rng(i));
        out != src
    });
    let flips = flips.count();
    assert!((430..570).contains(&flips), "{flips} of 1000 at p = 0.5");
}

#[test]
fn config_refuses_what_it_cannot_use() {
    let message = |cfg: AugmentConfig| cfg.check("augment").unwrap_err().to_string();
    let bad = AugmentConfig { local_scale: [0.6, 0.2], ..Default::default() };
    assert!(message(bad).contains("augment.local_scale"));
    let bad = AugmentConfig { flip: f64::NAN, ..Default::default() };
    assert!(message(bad).contains("augment.flip"));
    assert!(message(AugmentConfig { hue: 0.7, ..Default::default() }).contains("augment.hue"));
    assert!(toml::from_str::<AugmentConfig>("flipp = 0.1").is_err());
}

#[test]
fn normalisation_is_undone_per_channel() {
    let chw = [vec![-MEAN[0] / STD[0]; 256], vec![0.0; 256], vec![(1.0 - MEAN[2]) / STD[2]; 256]].concat();
    assert_eq!(denormalise(&chw, 16, 16).unwrap().get_pixel(3, 3).0, [0, 116, 255]);
    let clipped = denormalise(&[f32::NAN, 9.0, -9.0], 1, 1).unwrap();
    assert_eq!(clipped.get_pixel(0, 0).0, [0, 255, 0]);
}
