//! One picture: decoded once, its persons cut out and encoded one after the other.

use std::path::Path;

use image::codecs::jpeg::JpegEncoder;
use image::metadata::Orientation as Turn;
use image::{RgbImage, imageops};

use super::options::{Orientation, PrepareOptions, Skip};
use crate::data::decode::{Bounds, load_stored};
use crate::data::left_out::reason;

/// Pictures above this are refused: no camera makes them, a forged header easily does. Whole scenes are larger than the
/// crops that other commands read.
const SCENE: Bounds = Bounds { side: 1 << 16, bytes: 1 << 30 };

/// A rectangle of whole pixels inside a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rect {
    pub x: u32,
    pub y: u32,
    pub width: u32,
    pub height: u32,
}

/// The part of `bbox` (`[x, y, width, height]`, pixels) inside a picture of `size` (`[width, height]`), and the
/// rectangle to cut: that part with the margin on each side, rounded outwards, inside the picture.
pub fn place(bbox: [f64; 4], size: [u32; 2], options: &PrepareOptions) -> Result<([f64; 4], Rect), Skip> {
    let [x, y, width, height] = bbox;
    if width <= 0.0 || height <= 0.0 {
        return Err(Skip::EmptyBox);
    }
    let [limit_x, limit_y] = size.map(f64::from);
    let (left, right) = (x.max(0.0), (x + width).min(limit_x));
    let (top, bottom) = (y.max(0.0), (y + height).min(limit_y));
    if left >= right || top >= bottom {
        return Err(Skip::OutsideImage);
    }
    // What is not clipped stays as stated, to the last digit.
    let inner_width = if left == x && right == x + width { width } else { right - left };
    let inner_height = if top == y && bottom == y + height { height } else { bottom - top };
    let clipped = [left, top, inner_width, inner_height];
    if clipped[2] < f64::from(options.min_width) || clipped[3] < f64::from(options.min_height) {
        return Err(Skip::TooSmall);
    }
    let (dx, dy) = (clipped[2] * options.margin, clipped[3] * options.margin);
    let (x0, x1) = ((left - dx).max(0.0).floor(), (right + dx).min(limit_x).ceil());
    let (y0, y1) = ((top - dy).max(0.0).floor(), (bottom + dy).min(limit_y).ceil());
    // All four lie between 0 and the picture's size here.
    Ok((clipped, Rect { x: x0 as u32, y: y0 as u32, width: (x1 - x0) as u32, height: (y1 - y0) as u32 }))
}

/// The pixels of `path` in the frame that its boxes refer to, or why they cannot be had. `stated` is the size
/// (`[width, height]`) that the annotations give for it.
pub fn open(
    path: &Path,
    stated: Option<[u32; 2]>,
    orientation: Orientation,
) -> Result<RgbImage, (Skip, String)> {
    let picture = load_stored(path, SCENE).map_err(|e| (Skip::ImageUnreadable, reason(e)))?;
    let (stored, turn) = (picture.size(), picture.orientation);
    let swaps = matches!(turn, Turn::Rotate90 | Turn::Rotate270 | Turn::Rotate90FlipH | Turn::Rotate270FlipH);
    let upright = if swaps { [stored[1], stored[0]] } else { stored };
    let apply = match orientation {
        Orientation::Stored => false,
        Orientation::Upright => true,
        Orientation::Auto => stated.is_some_and(|s| s == upright && s != stored),
    };
    let size = if apply { upright } else { stored };
    if let Some(stated) = stated.filter(|s| *s != size) {
        let message =
            format!("{}x{} pixels; the annotations say {}x{}", size[0], size[1], stated[0], stated[1]);
        return Err((Skip::SizeMismatch, message));
    }
    Ok(if apply { picture.turned() } else { picture.unturned() })
}

/// `rect` of `picture` as JPEG, shrunk so that no side exceeds `limit_side`, with its size `[width, height]`.
pub fn encode(
    picture: &RgbImage,
    rect: Rect,
    limit_side: Option<u32>,
    quality: u8,
) -> image::ImageResult<(Vec<u8>, [u32; 2])> {
    let mut crop = imageops::crop_imm(picture, rect.x, rect.y, rect.width, rect.height).to_image();
    let longest = rect.width.max(rect.height);
    if let Some(limit) = limit_side.filter(|l| *l < longest) {
        let scale = f64::from(limit) / f64::from(longest);
        let shrink = |side: u32| ((f64::from(side) * scale).round() as u32).max(1);
        crop = imageops::resize(
            &crop,
            shrink(rect.width),
            shrink(rect.height),
            imageops::FilterType::CatmullRom,
        );
    }
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, quality).encode_image(&crop)?;
    Ok((bytes, [crop.width(), crop.height()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_are_clipped_first_and_rounded_outwards() {
        let options =
            PrepareOptions { margin: 0.1, min_width: 5, min_height: 5, ..PrepareOptions::default() };
        let (clipped, rect) = place([10.5, 20.0, 20.0, 40.0], [100, 100], &options).unwrap();
        assert_eq!(clipped, [10.5, 20.0, 20.0, 40.0]);
        assert_eq!(rect, Rect { x: 8, y: 16, width: 25, height: 48 });
        // Leaves the picture at every side: the whole picture, and the margin adds nothing.
        let (clipped, rect) = place([-50.0, -1e300, 1e300, 2e300], [60, 30], &options).unwrap();
        assert_eq!(clipped, [0.0, 0.0, 60.0, 30.0]);
        assert_eq!(rect, Rect { x: 0, y: 0, width: 60, height: 30 });
        // The clipped box counts against the smallest size, not the stated one.
        assert_eq!(place([97.0, 10.0, 50.0, 50.0], [100, 100], &options), Err(Skip::TooSmall));
        assert_eq!(place([100.0, 10.0, 50.0, 50.0], [100, 100], &options), Err(Skip::OutsideImage));
        assert_eq!(place([10.0, 10.0, 0.0, 5.0], [100, 100], &options), Err(Skip::EmptyBox));
        assert_eq!(place([10.0, 10.0, 5.0, -5.0], [100, 100], &options), Err(Skip::EmptyBox));
    }

    #[test]
    fn long_sides_are_limited_and_the_shape_kept() {
        let picture = RgbImage::from_pixel(300, 100, image::Rgb([10, 200, 30]));
        let rect = Rect { x: 20, y: 10, width: 200, height: 80 };
        let (bytes, size) = encode(&picture, rect, Some(100), 95).unwrap();
        assert_eq!(size, [100, 40]);
        let read = image::load_from_memory(&bytes).unwrap().into_rgb8();
        assert_eq!(read.dimensions(), (100, 40));
        assert!(read.pixels().all(|p| p.0.iter().zip([10u8, 200, 30]).all(|(a, b)| a.abs_diff(b) <= 3)));
        assert_eq!(encode(&picture, rect, Some(200), 95).unwrap().1, [200, 80]);
    }
}
