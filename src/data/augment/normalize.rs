//! 8-bit RGB to normalised f32 planes and back.

use image::RgbImage;

use crate::data::augment::Resampler;
use crate::error::{Error, Result};

/// ImageNet mean of the red, green and blue channel, for values in [0, 1].
pub const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// ImageNet standard deviation.
pub const STD: [f32; 3] = [0.229, 0.224, 0.225];

/// [`normalize_with`] ImageNet's mean and deviation.
pub fn normalize_into(picture: &RgbImage, out: &mut [f32]) -> Result<()> {
    normalize_with(picture, [MEAN, STD], out)
}

/// Writes `(v / 255 - mean) / std` as `[3, height, width]`. Fails unless `out` has exactly that many elements.
pub fn normalize_with(picture: &RgbImage, [mean, std]: [[f32; 3]; 2], out: &mut [f32]) -> Result<()> {
    let pixels = picture.width() as usize * picture.height() as usize;
    if out.len() != 3 * pixels || pixels == 0 {
        let (w, h) = picture.dimensions();
        let message = format!("a {w}x{h} picture does not fill {} elements", out.len());
        return Err(Error::invariant("normalisation", message));
    }
    let scale = std.map(|s| 1.0 / (255.0 * s));
    let shift = [-mean[0] / std[0], -mean[1] / std[1], -mean[2] / std[2]];
    let (r, rest) = out.split_at_mut(pixels);
    let (g, b) = rest.split_at_mut(pixels);
    for (((r, g), b), px) in r.iter_mut().zip(g).zip(b).zip(picture.as_raw().chunks_exact(3)) {
        *r = f32::from(px[0]) * scale[0] + shift[0];
        *g = f32::from(px[1]) * scale[1] + shift[1];
        *b = f32::from(px[2]) * scale[2] + shift[2];
    }
    Ok(())
}

/// The picture that was normalised to `chw` (`[3, h, w]`), for reports. Values outside the 8-bit range are clipped;
/// fails when the sizes disagree.
pub fn denormalise(chw: &[f32], h: usize, w: usize) -> Result<RgbImage> {
    let shape =
        || Error::shape("report", "denormalise", format!("{} values are not 3 x {h} x {w}", chw.len()));
    let pixels = h.checked_mul(w).ok_or_else(shape)?;
    let (Ok(width), Ok(height)) = (u32::try_from(w), u32::try_from(h)) else { return Err(shape()) };
    if pixels == 0 || pixels.checked_mul(3) != Some(chw.len()) {
        return Err(shape());
    }
    let mut out = RgbImage::new(width, height);
    for (i, px) in out.chunks_exact_mut(3).enumerate() {
        for c in 0..3 {
            px[c] = ((chw[c * pixels + i] * STD[c] + MEAN[c]) * 255.0 + 0.5) as u8;
        }
    }
    Ok(out)
}

/// The deterministic preprocessing of evaluation: the whole picture resized to `[height, width]` (bicubic, antialiased,
/// aspect not kept, as re-identification does) and normalised, `[3, height, width]`.
pub fn eval_image(picture: &RgbImage, size: [usize; 2]) -> Result<Vec<f32>> {
    eval_image_with(picture, size, [MEAN, STD])
}

/// [`eval_image`] with a mean and deviation other than ImageNet's.
pub fn eval_image_with(picture: &RgbImage, size: [usize; 2], normal: [[f32; 3]; 2]) -> Result<Vec<f32>> {
    let resized = Resampler::default().fit(picture, size)?;
    let mut out = vec![0.0; 3 * size[0] * size[1]];
    normalize_with(&resized, normal, &mut out)?;
    Ok(out)
}
