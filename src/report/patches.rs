//! From patch predictions back to pictures.
//!
//! The reconstruction targets are normalised per patch, so a prediction alone has no brightness or contrast: for
//! display it borrows the mean and deviation of the true patch, as masked-autoencoder figures do.

use image::RgbImage;

use crate::data::augment::normalize::denormalise;
use crate::error::{Error, Result};
use crate::ir::PATCH;

const CHANNELS: usize = 3;
/// Values of one patch.
const PATCH_LEN: usize = PATCH * PATCH * CHANNELS;
/// Added to the variance when targets are normalised.
const VARIANCE_EPS: f32 = 1e-6;

/// Lays patches out as an image: `patches` is `[n, 16 * 16 * 3]`, values ordered (row, column, channel) inside a
/// patch, n = `grid[0] * grid[1]` patches in row-major order. Returns `[3, grid[0] * 16, grid[1] * 16]`.
///
/// # Errors
/// When the length does not fit the grid.
pub fn assemble_patches(patches: &[f32], grid: [usize; 2]) -> Result<Vec<f32>> {
    let expected = grid[0].checked_mul(grid[1]).and_then(|n| n.checked_mul(PATCH_LEN));
    if expected != Some(patches.len()) {
        return Err(Error::shape(
            "report",
            "assemble_patches",
            format!("a {} x {} grid needs n * {PATCH_LEN} values, found {}", grid[0], grid[1], patches.len()),
        ));
    }
    let mut image = vec![0.0; patches.len()];
    let [h, w] = [grid[0] * PATCH, grid[1] * PATCH];
    for (position, patch) in patches.chunks_exact(PATCH_LEN).enumerate() {
        write_patch(&mut image, h, w, position, patch);
    }
    Ok(image)
}

/// The masked input and the reconstruction pasted over it, both ready for display.
///
/// `image` is `[3, h, w]`, normalised with the ImageNet mean and deviation; `hidden` holds row-major positions on
/// the `h / 16` x `w / 16` grid; `predictions` is `[hidden.len(), 16 * 16 * 3]` in the space of the per-patch
/// normalised targets. Hidden patches of the masked picture show the ImageNet mean colour.
///
/// # Errors
/// When the sizes do not fit together or a position lies outside the grid.
pub fn reconstruct(
    image: &[f32],
    h: usize,
    w: usize,
    hidden: &[usize],
    predictions: &[f32],
) -> Result<(RgbImage, RgbImage)> {
    let fail = |message: String| Err(Error::shape("report", "reconstruct", message));
    if !h.is_multiple_of(PATCH) || !w.is_multiple_of(PATCH) || h == 0 || w == 0 {
        return fail(format!("image size {h} x {w} is not a positive multiple of {PATCH}"));
    }
    if h.checked_mul(w).and_then(|n| n.checked_mul(CHANNELS)) != Some(image.len()) {
        return fail(format!("an image of {h} x {w} has 3 * h * w values, found {}", image.len()));
    }
    if hidden.len().checked_mul(PATCH_LEN) != Some(predictions.len()) {
        return fail(format!(
            "{} hidden patches need {PATCH_LEN} values each, found {}",
            hidden.len(),
            predictions.len()
        ));
    }
    let tokens = (h / PATCH) * (w / PATCH);
    if let Some(bad) = hidden.iter().find(|&&p| p >= tokens) {
        return fail(format!("hidden position {bad} is outside the grid of {tokens} patches"));
    }
    let (mut masked, mut predicted) = (image.to_vec(), image.to_vec());
    for (&position, prediction) in hidden.iter().zip(predictions.chunks_exact(PATCH_LEN)) {
        let truth = read_patch(image, h, w, position);
        // The statistics are those of the normalised pixels: that is the space in which targets are made.
        let (mean, std) = patch_statistics(&truth);
        let restored: Vec<f32> = prediction.iter().map(|v| v * std + mean).collect();
        write_patch(&mut masked, h, w, position, &[0.0; PATCH_LEN]);
        write_patch(&mut predicted, h, w, position, &restored);
    }
    Ok((denormalise(&masked, h, w)?, denormalise(&predicted, h, w)?))
}

/// Mean and deviation (unbiased variance plus eps, as in the loss) over all values of a patch.
fn patch_statistics(patch: &[f32]) -> (f32, f32) {
    let n = patch.len() as f64;
    let mean = patch.iter().map(|&v| v as f64).sum::<f64>() / n;
    let variance = patch.iter().map(|&v| (v as f64 - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean as f32, (variance as f32 + VARIANCE_EPS).sqrt())
}

/// Offset in `[3, h, w]` of the value `i` (ordered row, column, channel) of the patch at `position`.
fn offset(h: usize, w: usize, position: usize, i: usize) -> usize {
    let (patch_row, patch_column) = (position / (w / PATCH), position % (w / PATCH));
    let (row, column, channel) = (i / (PATCH * CHANNELS), i / CHANNELS % PATCH, i % CHANNELS);
    (channel * h + patch_row * PATCH + row) * w + patch_column * PATCH + column
}

fn write_patch(image: &mut [f32], h: usize, w: usize, position: usize, patch: &[f32]) {
    for (i, &value) in patch.iter().enumerate() {
        image[offset(h, w, position, i)] = value;
    }
}

fn read_patch(image: &[f32], h: usize, w: usize, position: usize) -> Vec<f32> {
    (0..PATCH_LEN).map(|i| image[offset(h, w, position, i)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `[3, h, w]` with a distinct value everywhere.
    fn ramp(h: usize, w: usize) -> Vec<f32> {
        (0..3 * h * w).map(|i| ((i * 7919) % 9973) as f32 / 9973.0 * 4.0 - 2.0).collect()
    }

    /// The reference's patchify, written as its reshape and permute: six nested axes, output pushed in order.
    fn patchify(image: &[f32], gh: usize, gw: usize) -> Vec<f32> {
        let strides = [gh * PATCH * gw * PATCH, PATCH * gw * PATCH, gw * PATCH, PATCH, 1]; // c, gh, p, gw, q
        let mut out = Vec::new();
        for a in 0..gh {
            for b in 0..gw {
                for p in 0..PATCH {
                    for q in 0..PATCH {
                        for c in 0..3 {
                            let index = [c, a, p, b, q];
                            out.push(image[index.iter().zip(strides).map(|(i, s)| i * s).sum::<usize>()]);
                        }
                    }
                }
            }
        }
        out
    }

    #[test]
    fn assembling_undoes_patchify() {
        let (gh, gw) = (3, 2);
        let image = ramp(gh * PATCH, gw * PATCH);
        assert_eq!(assemble_patches(&patchify(&image, gh, gw), [gh, gw]).unwrap(), image);
        assert!(assemble_patches(&image[1..], [gh, gw]).is_err());
        assert!(assemble_patches(&image, [usize::MAX, 2]).is_err());
    }

    #[test]
    fn a_perfect_prediction_restores_the_picture() {
        let (gh, gw) = (2, 3);
        let (h, w) = (gh * PATCH, gw * PATCH);
        let image: Vec<f32> = ramp(h, w).iter().map(|v| v * 0.4).collect();
        let hidden = [0, 4, 5];
        let mut predictions = Vec::new();
        for &position in &hidden {
            let patch = &patchify(&image, gh, gw)[position * PATCH_LEN..][..PATCH_LEN];
            let mean = patch.iter().sum::<f32>() / PATCH_LEN as f32;
            let sum_sq: f32 = patch.iter().map(|v| (v - mean) * (v - mean)).sum();
            let std = (sum_sq / (PATCH_LEN - 1) as f32 + 1e-6).sqrt();
            predictions.extend(patch.iter().map(|v| (v - mean) / std));
        }
        let (masked, predicted) = reconstruct(&image, h, w, &hidden, &predictions).unwrap();
        let truth = denormalise(&image, h, w).unwrap();
        let worst = |a: &RgbImage| a.iter().zip(truth.iter()).map(|(x, y)| x.abs_diff(*y)).max().unwrap();
        assert!(worst(&predicted) <= 1, "{}", worst(&predicted));
        assert!(worst(&masked) > 20);
        assert_eq!(masked.get_pixel(0, 0).0, [124, 116, 104]);
        assert_eq!(masked.get_pixel(16, 0), truth.get_pixel(16, 0));
    }

    #[test]
    fn sizes_are_checked() {
        let image = ramp(16, 32);
        assert!(reconstruct(&image, 16, 32, &[2], &[0.0; PATCH_LEN]).is_err());
        assert!(reconstruct(&image, 16, 32, &[1], &[0.0; 3]).is_err());
        assert!(reconstruct(&image, 15, 32, &[], &[]).is_err());
        assert!(reconstruct(&image[3..], 16, 32, &[], &[]).is_err());
        assert!(reconstruct(&image, 16, 32, &[], &[]).is_ok());
    }
}
