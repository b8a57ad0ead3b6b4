//! Bytes of an image file to 8-bit RGB. The input is untrusted: limits are checked before pixels are allocated, and a
//! panicking codec is reported like any other defect of the file.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};

use crate::error::{Error, Result};

/// Shortest usable side in pixels. Below it a crop holds no structure to learn from (and RandomResizedCrop's area
/// fractions round to single pixels), so such pictures are skipped with a reason.
pub const MIN_SIDE: u32 = 8;
/// Longest accepted side in pixels.
pub const MAX_SIDE: u32 = 16_384;
/// Most bytes a decoder may allocate for one picture; also the largest file that is read.
pub const MAX_ALLOC: u64 = 512 << 20;
/// What [`decode`] accepts, for messages.
pub const ACCEPTED: &str = "JPEG, PNG, WebP, BMP, GIF (first frame), TIFF";

/// The ImageNet mean colour: transparent pixels become this, so that after normalisation they are close to zero.
const MATTE: [u8; 3] = [124, 116, 104];

/// Why a picture cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("the file is empty (0 bytes)")]
    Empty,
    #[error("not an image: the content is none of {ACCEPTED}")]
    Unrecognised,
    #[error("truncated JPEG: the end-of-image marker is missing")]
    Truncated,
    #[error("{width}x{height} pixels: too small, at least {MIN_SIDE} pixels a side are needed")]
    TooSmall { width: u32, height: u32 },
    #[error("{width}x{height} pixels: too large, at most {MAX_SIDE} pixels a side and 512 MiB decoded")]
    TooLarge { width: u32, height: u32 },
    #[error("cannot decode: {0}")]
    Codec(String),
    #[error("cannot decode: the decoder panicked")]
    Panicked,
}

impl From<image::ImageError> for DecodeError {
    fn from(e: image::ImageError) -> Self {
        DecodeError::Codec(e.to_string())
    }
}

/// The accepted format whose signature `head` (the first bytes of a file, 16 or more) carries.
pub fn sniff(head: &[u8]) -> Option<ImageFormat> {
    use ImageFormat::*;
    image::guess_format(head).ok().filter(|f| matches!(f, Jpeg | Png | WebP | Bmp | Gif | Tiff))
}

/// Decodes one picture: content decides the format, EXIF orientation is applied, 16-bit and palette pictures become
/// 8-bit RGB, CMYK and YCCK JPEGs are converted, grey is repeated over the channels, and alpha is composited over the
/// ImageNet mean colour. Embedded colour profiles are ignored, as PIL-based pipelines do.
pub fn decode(bytes: &[u8]) -> std::result::Result<RgbImage, DecodeError> {
    // A decoder works on its own state only, which is dropped when it unwinds.
    catch_unwind(AssertUnwindSafe(|| decode_trusting(bytes))).unwrap_or(Err(DecodeError::Panicked))
}

fn decode_trusting(bytes: &[u8]) -> std::result::Result<RgbImage, DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    let format = sniff(bytes).ok_or(DecodeError::Unrecognised)?;
    // The JPEG decoder fills missing scanlines with grey and reports success: such pictures would poison training.
    if format == ImageFormat::Jpeg && !jpeg_is_complete(bytes) {
        return Err(DecodeError::Truncated);
    }
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_ALLOC);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    let mut decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    if width > MAX_SIDE || height > MAX_SIDE || decoder.total_bytes() > MAX_ALLOC {
        return Err(DecodeError::TooLarge { width, height });
    }
    if width < MIN_SIDE || height < MIN_SIDE {
        return Err(DecodeError::TooSmall { width, height });
    }
    // A broken EXIF block must not cost the picture: it then counts as not rotated.
    let orientation = decoder.orientation().unwrap_or(image::metadata::Orientation::NoTransforms);
    let mut picture = DynamicImage::from_decoder(decoder)?;
    picture.apply_orientation(orientation);
    Ok(flatten(picture))
}

/// Whether an end-of-image marker follows the first scan. Segments before it are stepped over by their lengths, because
/// an EXIF thumbnail is a whole JPEG with an end marker of its own.
fn jpeg_is_complete(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some(&[marker_lead, marker]) = bytes.get(at..at + 2) {
        if marker_lead != 0xFF {
            // Some writers leave stray bytes between segments; decoders skip them.
            at += 1;
            continue;
        }
        match marker {
            0xFF => at += 1,
            0x01 | 0xD0..=0xD8 => at += 2,
            0xD9 => return true,
            _ => {
                let Some(&[high, low]) = bytes.get(at + 2..at + 4) else { return false };
                at += 2 + usize::from(u16::from_be_bytes([high, low]));
                if marker == 0xDA {
                    let scan = bytes.get(at..).unwrap_or_default();
                    return scan.windows(2).rev().any(|w| w == [0xFF, 0xD9]);
                }
            }
        }
    }
    false
}

fn flatten(picture: DynamicImage) -> RgbImage {
    if !picture.color().has_alpha() {
        return picture.into_rgb8();
    }
    let rgba = picture.into_rgba8();
    let (width, height) = rgba.dimensions();
    let mut out = RgbImage::new(width, height);
    for (to, from) in out.chunks_exact_mut(3).zip(rgba.chunks_exact(4)) {
        let alpha = u32::from(from[3]);
        for c in 0..3 {
            let mixed = u32::from(from[c]) * alpha + u32::from(MATTE[c]) * (255 - alpha);
            to[c] = ((mixed + 127) / 255) as u8;
        }
    }
    out
}

/// Reads and decodes one file. Errors name the file.
pub fn load_file(path: &Path) -> Result<RgbImage> {
    let size = std::fs::metadata(path).map_err(|e| Error::io(path, "read", e))?.len();
    if size > MAX_ALLOC {
        return Err(Error::file(path, format!("{size} bytes: too large, at most 512 MiB are read")));
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
    decode(&bytes).map_err(|e| Error::file(path, e.to_string()))
}
