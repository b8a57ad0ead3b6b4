//! Reference lines: features that nobody trained, to stand beside those of an encoder. Clothes alone find many a person
//! again; what an encoder has learned shows only where it does better than they.

use image::RgbImage;

use crate::data::augment::Resampler;
use crate::error::Result;

/// `[height, width]` of the pictures that reference lines are computed on.
pub const SIZE: [usize; 2] = [128, 64];
/// Bins of hue, saturation and value.
const BINS: [usize; 3] = [12, 4, 4];
/// Horizontal stripes, each with a histogram of its own.
const STRIPES: usize = 6;
/// `[height, width]` of the raw pixels.
const PIXELS: [usize; 2] = [32, 16];

/// A feature that needs no encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reference {
    /// Square roots of the shares of 12 x 4 x 4 bins (hue, saturation, value) in each of six horizontal stripes of the
    /// middle three fifths of the width.
    ColorHistogram,
    /// The picture at 32 x 16 (bicubic, antialiased) less its own mean.
    RawPixels,
}

impl Reference {
    pub const ALL: [Reference; 2] = [Reference::ColorHistogram, Reference::RawPixels];

    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Reference::ColorHistogram => "colour histogram",
            Reference::RawPixels => "raw pixels",
        }
    }

    /// The name in files.
    pub fn tag(self) -> &'static str {
        match self {
            Reference::ColorHistogram => "color_histogram",
            Reference::RawPixels => "raw_pixels",
        }
    }

    /// The length of the feature.
    pub fn dim(self) -> usize {
        match self {
            Reference::ColorHistogram => STRIPES * BINS.iter().product::<usize>(),
            Reference::RawPixels => PIXELS[0] * PIXELS[1] * 3,
        }
    }

    /// The feature of a picture that [`at_reference_size`] gave.
    ///
    /// # Errors
    /// Those of resampling.
    pub fn feature(self, picture: &RgbImage) -> Result<Vec<f32>> {
        match self {
            Reference::ColorHistogram => Ok(color_histogram(picture)),
            Reference::RawPixels => raw_pixels(picture),
        }
    }
}

/// All reference features of any picture, in the order of [`Reference::ALL`].
///
/// # Errors
/// Those of resampling.
pub fn features(picture: &RgbImage) -> Result<Vec<Vec<f32>>> {
    let picture = at_reference_size(picture)?;
    Reference::ALL.iter().map(|reference| reference.feature(&picture)).collect()
}

/// The whole picture brought to [`SIZE`].
///
/// # Errors
/// Those of resampling.
pub fn at_reference_size(picture: &RgbImage) -> Result<RgbImage> {
    Resampler::default().fit(picture, SIZE)
}

fn color_histogram(picture: &RgbImage) -> Vec<f32> {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let bins: usize = BINS.iter().product();
    let mut shares = Vec::with_capacity(STRIPES * bins);
    for stripe in 0..STRIPES {
        let rows = stripe * height / STRIPES..(stripe + 1) * height / STRIPES;
        let columns = width / 5..width * 4 / 5;
        let mut counts = vec![0u32; bins];
        for (y, x) in rows.clone().flat_map(|y| columns.clone().map(move |x| (y, x))) {
            let hsv = hsv(picture.get_pixel(x as u32, y as u32).0);
            let bin = (0..3).fold(0, |bin, c| bin * BINS[c] + usize::from(hsv[c]) * BINS[c] / 256);
            counts[bin] += 1;
        }
        let pixels = (rows.len() * columns.len()).max(1) as f64;
        shares.extend(counts.iter().map(|n| (f64::from(*n) / pixels).sqrt() as f32));
    }
    shares
}

/// Hue, saturation and value in 256 levels, as PIL's `convert("HSV")`: levels are cut, not rounded.
fn hsv([r, g, b]: [u8; 3]) -> [u8; 3] {
    let (high, low) = (r.max(g).max(b), r.min(g).min(b));
    if high == low {
        return [0, 0, high];
    }
    let chroma = f32::from(high - low);
    let [rc, gc, bc] = [r, g, b].map(|v| f32::from(high - v) / chroma);
    // Sums in f64, each result kept in f32: that decides on which side of an edge a level falls.
    let [rc, gc, bc] = [rc, gc, bc].map(f64::from);
    let sextant = match high {
        h if h == r => bc - gc,
        h if h == g => 2.0 + rc - bc,
        _ => 4.0 + gc - rc,
    };
    let turns = (f64::from(sextant as f32) / 6.0 + 1.0) % 1.0;
    let saturation = chroma / f32::from(high);
    let level = |share: f32| (f64::from(share) * 255.0) as u8;
    [level(turns as f32), level(saturation), high]
}

fn raw_pixels(picture: &RgbImage) -> Result<Vec<f32>> {
    let small = Resampler::default().fit(picture, PIXELS)?;
    let values = small.as_raw();
    let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / values.len() as f64;
    Ok(values.iter().map(|v| (f64::from(*v) - mean) as f32).collect())
}

#[cfg(test)]
#[path = "reference_tests.rs"]
mod tests;
