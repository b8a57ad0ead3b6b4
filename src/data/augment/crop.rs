//! Where to crop, and resampling.

use fast_image_resize as fir;
use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use image::RgbImage;
use rand::RngExt;

use crate::data::augment::config::uniform;
use crate::data::rng::StreamRng;
use crate::error::{Error, Result};

/// A region of a picture in whole pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CropBox {
    pub left: u32,
    pub top: u32,
    pub width: u32,
    pub height: u32,
}

impl CropBox {
    /// The whole picture.
    pub fn whole(picture: &RgbImage) -> Self {
        CropBox { left: 0, top: 0, width: picture.width(), height: picture.height() }
    }
}

/// torchvision's `RandomResizedCrop.get_params`: area uniform in `scale` (fraction of the picture), aspect
/// (width / height) log-uniform in `ratio`; after ten misfits the largest centred region of an allowed aspect.
pub fn random_resized_crop(
    width: u32,
    height: u32,
    scale: [f64; 2],
    ratio: [f64; 2],
    rng: &mut StreamRng,
) -> CropBox {
    let (full_w, full_h) = (f64::from(width), f64::from(height));
    for _ in 0..10 {
        let area = full_w * full_h * uniform(rng, scale);
        let aspect = uniform(rng, [ratio[0].ln(), ratio[1].ln()]).exp();
        let w = (area * aspect).sqrt().round();
        let h = (area / aspect).sqrt().round();
        if w >= 1.0 && h >= 1.0 && w <= full_w && h <= full_h {
            let (w, h) = (w as u32, h as u32);
            let top = rng.random_range(0..=height - h);
            let left = rng.random_range(0..=width - w);
            return CropBox { left, top, width: w, height: h };
        }
    }
    let aspect = full_w / full_h;
    let (w, h) = if aspect < ratio[0] {
        (width, (full_w / ratio[0]).round() as u32)
    } else if aspect > ratio[1] {
        ((full_h * ratio[1]).round() as u32, height)
    } else {
        (width, height)
    };
    let (w, h) = (w.clamp(1, width), h.clamp(1, height));
    CropBox { left: (width - w) / 2, top: (height - h) / 2, width: w, height: h }
}

/// Bicubic (Catmull-Rom, PIL's `BICUBIC`) resampling with antialiasing, on 8-bit RGB.
#[derive(Default)]
pub struct Resampler {
    inner: fir::Resizer,
}

impl Resampler {
    /// `crop` of `src` as a picture of `width` x `height`. As with PIL's `resize(box=...)`, the filter may read a pixel
    /// or two beyond the crop. Fails when the crop leaves the picture or a side is zero.
    pub fn resize(&mut self, src: &RgbImage, crop: CropBox, width: usize, height: usize) -> Result<RgbImage> {
        let fail = |why: String| {
            let (w, h) = src.dimensions();
            Error::invariant("resampling", format!("{crop:?} of {w}x{h} to {width}x{height}: {why}"))
        };
        let (Ok(w), Ok(h)) = (u32::try_from(width), u32::try_from(height)) else {
            return Err(fail("side out of range".to_owned()));
        };
        if w == 0 || h == 0 || crop.width == 0 || crop.height == 0 {
            return Err(fail("zero side".to_owned()));
        }
        let mut out = RgbImage::new(w, h);
        // Typed views: `Resizer::resize` would compile the loops of every pixel type into this crate.
        let from = TypedImageRef::<U8x3>::from_buffer(src.width(), src.height(), src.as_raw())
            .map_err(|e| fail(e.to_string()))?;
        let mut to = TypedImage::<U8x3>::from_buffer(w, h, out.as_flat_samples_mut().samples)
            .map_err(|e| fail(e.to_string()))?;
        let options = fir::ResizeOptions::new()
            .resize_alg(fir::ResizeAlg::Convolution(fir::FilterType::CatmullRom))
            .crop(crop.left.into(), crop.top.into(), crop.width.into(), crop.height.into());
        self.inner.resize_typed(&from, &mut to, &options).map_err(|e| fail(e.to_string()))?;
        Ok(out)
    }

    /// The whole of `src` as a picture of `[height, width]`.
    pub fn fit(&mut self, src: &RgbImage, [height, width]: [usize; 2]) -> Result<RgbImage> {
        self.resize(src, CropBox::whole(src), width, height)
    }
}
