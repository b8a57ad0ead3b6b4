use super::*;
use crate::data::decode::decode;
use crate::data::synth::{SynthConfig, SynthPersons};
use crate::metrics::Features;
use crate::metrics::retrieval::retrieval;
use image::ImageEncoder;
use rayon::prelude::*;

/// Pictures as `synth` writes and `eval` reads them, of `identities` persons from `first` on.
fn persons(first: usize, identities: usize, shots: usize) -> (Vec<RgbImage>, Vec<[i64; 2]>) {
    let config = SynthConfig {
        seed: 77,
        identities,
        first_identity: first,
        images_per_identity: shots,
        height: 128,
        width: 64,
        ..SynthConfig::default()
    };
    let world = SynthPersons::new(config).unwrap();
    let picture = |i: usize| {
        let (drawn, mut bytes) = (world.image(i), Vec::new());
        image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 95)
            .write_image(drawn.as_raw(), drawn.width(), drawn.height(), image::ExtendedColorType::Rgb8)
            .unwrap();
        decode(&bytes).unwrap()
    };
    let labels = |i| [world.identity_of(i) as i64, world.camera_of(i) as i64];
    ((0..world.len()).into_par_iter().map(picture).collect(), (0..world.len()).map(labels).collect())
}

/// Queries are the first `queries` of every `shots` pictures, the rest is the gallery.
fn features(values: &[Vec<f32>], labels: &[[i64; 2]], take: impl Fn(usize) -> bool) -> Features {
    let mut all = Features { dim: values[0].len(), ..Features::default() };
    for i in (0..values.len()).filter(|i| take(*i)) {
        all.values.extend(&values[i]);
        all.identities.push(labels[i][0]);
        all.cameras.push(labels[i][1]);
    }
    all
}

/// Hue, saturation and value in 256 levels by their definition, in exact fractions.
fn hsv_by_definition(px: [u8; 3]) -> [usize; 3] {
    let [r, g, b] = px.map(i64::from);
    let (high, low) = (r.max(g).max(b), r.min(g).min(b));
    let chroma = high - low;
    if chroma == 0 {
        return [0, 0, high as usize];
    }
    // Sixths of a turn times chroma.
    let sixths = if high == r {
        g - b
    } else if high == g {
        2 * chroma + b - r
    } else {
        4 * chroma + r - g
    };
    let hue = sixths.rem_euclid(6 * chroma) * 255 / (6 * chroma);
    [hue as usize, (chroma * 255 / high) as usize, high as usize]
}

fn histogram_by_definition(picture: &RgbImage) -> Vec<f32> {
    let mut counts = vec![0f64; 6 * 12 * 4 * 4];
    let mut totals = [0f64; 6];
    for (x, y, px) in picture.enumerate_pixels() {
        let stripe = (0..6).rfind(|s| y as usize >= s * picture.height() as usize / 6).unwrap();
        if x < picture.width() / 5 || x >= picture.width() * 4 / 5 {
            continue;
        }
        let [h, s, v] = hsv_by_definition(px.0);
        counts[stripe * 192 + (h * 12 / 256) * 16 + (s * 4 / 256) * 4 + v * 4 / 256] += 1.0;
        totals[stripe] += 1.0;
    }
    counts.iter().enumerate().map(|(i, n)| (n / totals[i / 192]).sqrt() as f32).collect()
}

/// PIL's bicubic with its support stretched by the factor, in f64 throughout: rows and columns at once.
fn pixels_by_definition(picture: &RgbImage) -> Vec<f64> {
    let cubic = |x: f64| {
        let x = x.abs();
        match x {
            x if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            x if x < 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
            _ => 0.0,
        }
    };
    let weights = |from: u32, to: u32, at: u32| {
        let scale = f64::from(from) / f64::from(to);
        let center = (f64::from(at) + 0.5) * scale;
        let all: Vec<f64> = (0..from).map(|i| cubic((f64::from(i) + 0.5 - center) / scale)).collect();
        let sum: f64 = all.iter().sum();
        all.into_iter().map(|w| w / sum).collect::<Vec<_>>()
    };
    let mut out = Vec::new();
    for (y, x) in (0..32).flat_map(|y| (0..16).map(move |x| (y, x))) {
        let (down, across) = (weights(picture.height(), 32, y), weights(picture.width(), 16, x));
        let mut sums = [0f64; 3];
        for (i, j, px) in picture.enumerate_pixels() {
            let w = across[i as usize] * down[j as usize];
            (0..3).for_each(|c| sums[c] += w * f64::from(px.0[c]));
        }
        out.extend(sums.map(|v| v.clamp(0.0, 255.0)));
    }
    let mean = out.iter().sum::<f64>() / out.len() as f64;
    out.into_iter().map(|v| v - mean).collect()
}

#[test]
fn features_agree_with_their_definitions() {
    let (pictures, _) = persons(0, 3, 2);
    for picture in &pictures {
        // A level that rounding puts on the other side of an edge may change the bin of a few pixels of 4992.
        let moved: f32 = color_histogram(picture)
            .iter()
            .zip(histogram_by_definition(picture))
            .map(|(a, b)| (a * a - b * b).abs() / 2.0)
            .sum();
        assert!(moved / 6.0 < 0.01, "{moved}");
        let (got, expected) = (raw_pixels(picture).unwrap(), pixels_by_definition(picture));
        // Either direction rounds to whole levels and cuts what overshoots; another filter is off by tens of levels.
        let worst = got.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
        assert!(worst <= 3.0, "{worst}");
    }
    for (reference, feature) in Reference::ALL.iter().zip(super::features(&pictures[0]).unwrap()) {
        assert_eq!(feature.len(), reference.dim());
    }
}

#[test]
fn levels_of_colours_are_those_of_pil() {
    // Values that PIL 12 gives.
    for (rgb, expected) in [
        ([0, 0, 0], [0, 0, 0]),
        ([255, 0, 0], [0, 255, 255]),
        ([0, 255, 0], [85, 255, 255]),
        ([0, 0, 255], [170, 255, 255]),
        ([200, 100, 50], [14, 191, 200]),
        ([50, 100, 200], [155, 191, 200]),
        ([255, 0, 1], [254, 255, 255]),
        ([17, 18, 17], [85, 14, 18]),
    ] {
        assert_eq!(hsv(rgb), expected, "{rgb:?}");
        assert_eq!(hsv_by_definition(rgb), expected.map(usize::from), "{rgb:?}");
    }
}

/// The benchmark `synth --identities 96 --images-per-identity 12 --seed 77 --size 128x64`, against an independent
/// computation with NumPy and PIL.
#[test]
fn a_known_benchmark_gives_the_known_lines() {
    let (pictures, labels) = persons(48, 48, 12);
    let all: Vec<Vec<Vec<f32>>> = pictures.par_iter().map(|p| super::features(p).unwrap()).collect();
    let expected = [[22.36, 40.63, 66.67, 80.90], [20.50, 27.78, 59.03, 71.88]];
    for (line, (reference, expected)) in Reference::ALL.iter().zip(expected).enumerate() {
        let values: Vec<Vec<f32>> = all.iter().map(|f| f[line].clone()).collect();
        let (query, gallery) =
            (features(&values, &labels, |i| i % 12 < 6), features(&values, &labels, |i| i % 12 >= 6));
        let m = retrieval(&query, &gallery).unwrap();
        assert_eq!(m.valid_queries, 288);
        // One query more or less is a third of a point; the further ranks have twice the room.
        let got = [(m.map, 0.5), (m.rank1, 0.5), (m.rank5, 1.0), (m.rank10, 1.0)];
        for ((got, room), expected) in got.iter().zip(expected) {
            assert!((100.0 * got - expected).abs() < *room, "{}: {m:?}", reference.name());
        }
    }
}
