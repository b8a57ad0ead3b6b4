//! Bytes of an image file to 8-bit RGB. The input is untrusted: limits are checked before pixels are allocated, and a
//! panicking codec is reported like any other defect of the file.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};

use crate::data::formats::{ACCEPTED, sniff, sniff_unread, unread};
use crate::error::{Error, Result};
use crate::units::{human_bytes, shown};

/// Shortest usable side in pixels. Below it a crop holds no structure to learn from (and RandomResizedCrop's area
/// fractions round to single pixels), so such pictures are skipped with a reason.
pub const MIN_SIDE: u32 = 8;
/// Longest accepted side in pixels.
pub const MAX_SIDE: u32 = 16_384;
/// Most bytes a decoder may allocate for one picture; also the largest file that is read.
pub const MAX_ALLOC: u64 = 512 << 20;

/// The ImageNet mean colour: transparent pixels become this, so that after normalisation they are close to zero.
const MATTE: [u8; 3] = [124, 116, 104];

/// How large a picture may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Longest side in pixels.
    pub side: u32,
    /// Most bytes of the file, and most bytes that its decoder may allocate.
    pub bytes: u64,
}

/// Pictures that are used whole.
pub const WHOLE: Bounds = Bounds { side: MAX_SIDE, bytes: MAX_ALLOC };

/// Why a picture cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("the file is empty (0 bytes)")]
    Empty,
    #[error("not an image: the content is none of {ACCEPTED}")]
    Unrecognised,
    #[error("{}", unread(.0))]
    Unread(&'static str),
    #[error("truncated JPEG: the end-of-image marker is missing")]
    Truncated,
    #[error("{width}x{height} pixels: too small, at least {MIN_SIDE} pixels a side are needed")]
    TooSmall { width: u32, height: u32 },
    #[error("{width}x{height} pixels: too large, at most {} pixels a side and {} decoded", most.side, human_bytes(most.bytes))]
    TooLarge { width: u32, height: u32, most: Bounds },
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

/// Decodes one picture: content decides the format, EXIF orientation is applied, 16-bit and palette pictures become
/// 8-bit RGB, CMYK and YCCK JPEGs are converted, grey is repeated over the channels, and alpha is composited over the
/// ImageNet mean colour. Embedded colour profiles are ignored, as PIL-based pipelines do.
pub fn decode(bytes: &[u8]) -> std::result::Result<RgbImage, DecodeError> {
    decode_stored(bytes, WHOLE).map(|stored| stored.turned())
}

/// A picture as its file stores it.
pub struct Stored {
    picture: DynamicImage,
    /// What the file's EXIF block says is to be done before it is shown.
    pub orientation: Orientation,
}

impl Stored {
    /// Width and height as stored.
    pub fn size(&self) -> [u32; 2] {
        [self.picture.width(), self.picture.height()]
    }

    /// As a viewer shows it.
    pub fn turned(mut self) -> RgbImage {
        self.picture.apply_orientation(self.orientation);
        flatten(self.picture)
    }

    /// As it is stored, the orientation passed over.
    pub fn unturned(self) -> RgbImage {
        flatten(self.picture)
    }
}

/// The pixels and the orientation of a picture within `most`: what every command decodes with, so that all of them take
/// and refuse the same files.
pub fn decode_stored(bytes: &[u8], most: Bounds) -> std::result::Result<Stored, DecodeError> {
    // A decoder works on its own state only, which is dropped when it unwinds.
    catch_unwind(AssertUnwindSafe(|| decode_trusting(bytes, most))).unwrap_or(Err(DecodeError::Panicked))
}

fn decode_trusting(bytes: &[u8], most: Bounds) -> std::result::Result<Stored, DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    let unknown = || sniff_unread(bytes).map_or(DecodeError::Unrecognised, DecodeError::Unread);
    let format = sniff(bytes).ok_or_else(unknown)?;
    // The JPEG decoder fills missing scanlines with grey and reports success: such pictures would poison training.
    if format == ImageFormat::Jpeg && !jpeg_is_complete(bytes) {
        return Err(DecodeError::Truncated);
    }
    let mut limits = Limits::default();
    limits.max_alloc = Some(most.bytes);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    let mut decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    if width > most.side || height > most.side || decoder.total_bytes() > most.bytes {
        return Err(DecodeError::TooLarge { width, height, most });
    }
    if width < MIN_SIDE || height < MIN_SIDE {
        return Err(DecodeError::TooSmall { width, height });
    }
    // A broken EXIF block must not cost the picture: it then counts as not rotated.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    Ok(Stored { picture: DynamicImage::from_decoder(decoder)?, orientation })
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
    load_stored(path, WHOLE).map(Stored::turned)
}

/// Reads and decodes one file as it is stored. Errors name the file.
pub fn load_stored(path: &Path, most: Bounds) -> Result<Stored> {
    let size = std::fs::metadata(path).map_err(|e| not_read(path, e))?.len();
    if size > most.bytes {
        let most = human_bytes(most.bytes);
        return Err(Error::file(path, format!("{size} bytes: too large, at most {most} are read")));
    }
    let bytes = std::fs::read(path).map_err(|e| not_read(path, e))?;
    decode_stored(&bytes, most).map_err(|e| Error::file(path, e.to_string()))
}

/// Says of a link to nothing where it leads: the link itself is there to see, so "no such file" would puzzle.
pub fn not_read(path: &Path, e: std::io::Error) -> Error {
    match std::fs::read_link(path) {
        Ok(target) if e.kind() == std::io::ErrorKind::NotFound => {
            Error::file(path, format!("a link to {}, which is not there", shown(&target)))
        }
        _ => Error::io(path, "read", e),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use base64::Engine;
    use image::{DynamicImage, GrayImage, ImageBuffer, Luma, Rgb, Rgba, RgbaImage};

    use super::*;

    /// A 16x16 Adobe CMYK JPEG (written by Pillow): left half (200, 40, 30), right half (20, 60, 220).
    const CMYK: &str = "/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwADAgIDAgIDAwMDBAMDBAUIBQUEBAUKBwcGCAwKDAwLCgsLDQ4SEA0OEQ4LCxAWEBETFBUV\
        FQwPFxgWFBgSFBUU/8AAFAgAEAAQBEMRAE0RAFkRAEsRAP/EABcAAQEBAQAAAAAAAAAAAAAAAAkABgj/xAAUEAEAAAAAAAAAAAAAAAAAAAAA\
        /9oADgRDAE0AWQBLAAA/AOwHCg+ipgfbY/SPAxIBUB9tj9J//9k=";

    pub(crate) fn encode(picture: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut out = Cursor::new(Vec::new());
        picture.into().write_to(&mut out, format).unwrap();
        out.into_inner()
    }

    /// Left half red, right half blue, top row of blocks darker: every rotation and mirroring differs.
    pub(crate) fn sample(w: u32, h: u32) -> RgbImage {
        RgbImage::from_fn(w, h, |x, y| {
            let v = if y < h / 2 { 90 } else { 220 };
            Rgb(if x < w / 2 { [v, 10, 10] } else { [10, 10, v] })
        })
    }

    fn close(a: &RgbImage, b: &RgbImage, tolerance: u8) -> bool {
        a.dimensions() == b.dimensions() && a.iter().zip(b.iter()).all(|(a, b)| a.abs_diff(*b) <= tolerance)
    }

    /// `jpeg` with an EXIF segment of one tag: the orientation.
    fn with_orientation(jpeg: &[u8], orientation: u8) -> Vec<u8> {
        let mut exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
        exif.extend([orientation, 0, 0, 0, 0, 0, 0]);
        let mut out = vec![0xFF, 0xD8, 0xFF, 0xE1];
        out.extend(((exif.len() + 2) as u16).to_be_bytes());
        out.extend(exif);
        out.extend(&jpeg[2..]);
        out
    }

    #[test]
    fn lossless_formats_are_exact() {
        let picture = sample(24, 32);
        use ImageFormat::*;
        for format in [Png, Bmp, Tiff, WebP] {
            assert_eq!(decode(&encode(picture.clone(), format)).unwrap(), picture, "{format:?}");
        }
        assert!(close(&decode(&encode(picture.clone(), Gif)).unwrap(), &picture, 8));
    }

    #[test]
    fn deep_grey_and_transparent_pictures_become_rgb() {
        let deep = ImageBuffer::<Rgb<u16>, _>::from_fn(16, 16, |x, _| Rgb([x as u16 * 257, 65535, 0]));
        let got = decode(&encode(deep, ImageFormat::Png)).unwrap();
        assert!(got.enumerate_pixels().all(|(x, _, p)| p.0 == [x as u8, 255, 0]));
        let deep = ImageBuffer::<Luma<u16>, _>::from_pixel(16, 16, Luma([257 * 77]));
        assert!(decode(&encode(deep, ImageFormat::Png)).unwrap().pixels().all(|p| p.0 == [77; 3]));
        let grey = GrayImage::from_pixel(16, 16, Luma([99]));
        for format in [ImageFormat::Png, ImageFormat::Jpeg] {
            let got = decode(&encode(grey.clone(), format)).unwrap();
            assert!(got.pixels().all(|p| p.0.iter().all(|v| v.abs_diff(99) <= 1)));
        }
        let alpha = RgbaImage::from_fn(16, 16, |x, _| Rgba([200, 100, 0, [0, 255, 51][x as usize % 3]]));
        let got = decode(&encode(alpha, ImageFormat::Png)).unwrap();
        assert_eq!(got.get_pixel(0, 0).0, MATTE, "transparent is the mean colour");
        assert_eq!(got.get_pixel(1, 0).0, [200, 100, 0]);
        // A fifth of the picture, four fifths of the matte.
        assert_eq!(got.get_pixel(2, 0).0, [139, 113, 83]);
    }

    #[test]
    fn cmyk_jpegs_have_natural_colours() {
        let bytes = base64::engine::general_purpose::STANDARD.decode(CMYK).unwrap();
        let got = decode(&bytes).unwrap();
        for (x, want) in [(3, [200, 40, 30]), (12, [20, 60, 220])] {
            let px = got.get_pixel(x, 5).0;
            assert!(px.iter().zip(want).all(|(a, b)| a.abs_diff(b) <= 4), "{px:?}, Pillow gives {want:?}");
        }
    }

    #[test]
    fn ycck_jpegs_are_converted() {
        // The same coefficients read as YCCK: only the transform byte of the Adobe segment differs.
        let mut bytes = base64::engine::general_purpose::STANDARD.decode(CMYK).unwrap();
        let adobe = bytes.windows(5).position(|w| w == b"Adobe").unwrap();
        bytes[adobe + 11] = 2;
        let got = decode(&bytes).unwrap();
        for (x, want) in [(3, [192, 0, 211]), (12, [106, 255, 255])] {
            let px = got.get_pixel(x, 5).0;
            assert!(px.iter().zip(want).all(|(a, b)| a.abs_diff(b) <= 4), "{px:?}, Pillow gives {want:?}");
        }
    }

    #[test]
    fn exif_orientation_is_applied() {
        use image::imageops::{flip_horizontal, rotate90, rotate180, rotate270};
        let upright = sample(32, 48);
        let jpeg = encode(upright.clone(), ImageFormat::Jpeg);
        let plain = decode(&jpeg).unwrap();
        assert!(close(&plain, &upright, 12));
        let cases = [
            (1, plain.clone()),
            (2, flip_horizontal(&plain)),
            (3, rotate180(&plain)),
            (6, rotate90(&plain)),
            (8, rotate270(&plain)),
        ];
        for (orientation, want) in cases {
            assert_eq!(
                decode(&with_orientation(&jpeg, orientation)).unwrap(),
                want,
                "orientation {orientation}"
            );
        }
        assert_eq!(decode(&with_orientation(&jpeg, 77)).unwrap(), plain, "nonsense counts as upright");
    }

    #[test]
    fn defects_are_named() {
        let reason = |bytes: &[u8]| decode(bytes).unwrap_err().to_string();
        assert!(reason(b"").contains("empty"));
        assert!(reason(b"GIFT shop opening hours").contains("not an image"));
        assert!(reason(&encode(sample(1, 1), ImageFormat::Png)).contains("too small"));
        assert!(reason(&encode(sample(7, 900), ImageFormat::Jpeg)).contains("7x900"));
        use ImageFormat::*;
        for format in [Jpeg, Png, Bmp, Gif, WebP, Tiff] {
            let whole = encode(sample(64, 64), format);
            for part in [whole.len() / 2, whole.len() * 9 / 10, 20, 3] {
                assert!(decode(&whole[..part]).is_err(), "{format:?} cut to {part} of {} bytes", whole.len());
            }
        }
    }

    #[test]
    fn a_thumbnails_end_marker_does_not_hide_truncation() {
        let jpeg = encode(sample(64, 64), ImageFormat::Jpeg);
        let thumbnail = encode(sample(8, 8), ImageFormat::Jpeg);
        let mut bytes = vec![0xFF, 0xD8, 0xFF, 0xE1];
        bytes.extend(((thumbnail.len() + 2) as u16).to_be_bytes());
        bytes.extend(&thumbnail);
        bytes.extend(&jpeg[2..]);
        assert!(decode(&bytes).is_ok());
        let cut = bytes.len() - 20;
        assert!(matches!(decode(&bytes[..cut]), Err(DecodeError::Truncated)));
    }

    #[test]
    fn giants_are_refused_before_they_are_allocated() {
        // A PNG header that promises 60000 x 60000 pixels; its checksum must be right to be believed.
        let mut bytes = encode(sample(16, 16), ImageFormat::Png);
        bytes[16..20].copy_from_slice(&60_000u32.to_be_bytes());
        bytes[20..24].copy_from_slice(&60_000u32.to_be_bytes());
        let crc = bytes[12..29].iter().fold(u32::MAX, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |c, _| if c & 1 == 1 { c >> 1 ^ 0xEDB8_8320 } else { c >> 1 })
        });
        bytes[29..33].copy_from_slice(&(!crc).to_be_bytes());
        assert!(
            matches!(decode(&bytes), Err(DecodeError::TooLarge { width: 60_000, .. })),
            "{:?}",
            decode(&bytes).err()
        );
    }

    #[test]
    fn damaged_bytes_never_panic() {
        use rand::RngExt;
        let mut rng = crate::data::rng::stream(0, 0, 0, crate::data::rng::Purpose::Views);
        use ImageFormat::*;
        for format in [Jpeg, Png, Bmp, Gif, WebP, Tiff] {
            let whole = encode(sample(24, 24), format);
            for _ in 0..60 {
                let mut bytes = whole.clone();
                for _ in 0..4 {
                    let at = rng.random_range(0..bytes.len() as u32) as usize;
                    bytes[at] = rng.random();
                }
                // Either result is fine; reaching the next line is the check.
                let _ = decode(&bytes);
            }
        }
    }
}
