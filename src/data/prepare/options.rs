//! What to cut, and why something was not.

use super::BoxFormat;
use serde::Serialize;
use std::path::PathBuf;

/// In which frame the boxes of a picture with an EXIF orientation are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Orientation {
    /// Upright where the stated size fits the upright picture only, else as stored.
    #[default]
    Auto,
    /// As stored in the file: the EXIF orientation is ignored.
    Stored,
    /// As a viewer shows it: the EXIF orientation is applied before cutting.
    Upright,
}

/// What to cut, from where to where.
#[derive(Clone, Debug, Serialize)]
pub struct PrepareOptions {
    /// The COCO-style JSON file.
    pub annotations: PathBuf,
    /// The folder with the pictures.
    pub images: PathBuf,
    /// The folder to write; absent, empty, or written by an earlier run.
    #[serde(skip)]
    pub out: PathBuf,
    /// The category to cut out.
    pub category: String,
    /// What the four numbers of a box are.
    pub boxes: BoxFormat,
    /// Added on each side of the clipped box, as a fraction of its width (left, right) and height (top, bottom).
    pub margin: f64,
    /// Smallest height of the clipped box, in pixels.
    pub min_height: u32,
    /// Smallest width of the clipped box, in pixels.
    pub min_width: u32,
    /// Fewest labelled keypoints.
    pub min_keypoints: u32,
    /// Crops with a longer side than this are shrunk to it, in pixels.
    pub limit_side: Option<u32>,
    /// JPEG quality, 1 to 100.
    pub quality: u8,
    pub orientation: Orientation,
}

impl Default for PrepareOptions {
    fn default() -> Self {
        PrepareOptions {
            annotations: PathBuf::new(),
            images: PathBuf::new(),
            out: PathBuf::new(),
            category: "person".to_owned(),
            boxes: BoxFormat::Xywh,
            margin: 0.1,
            min_height: 32,
            min_width: 16,
            min_keypoints: 0,
            limit_side: None,
            quality: 95,
            orientation: Orientation::Auto,
        }
    }
}

/// Why an annotation gave no crop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Skip {
    NoObject,
    OtherCategory,
    Crowd,
    Ignored,
    NoBox,
    EmptyBox,
    OutsideImage,
    TooSmall,
    TooFewKeypoints,
    ImageNotListed,
    ImageIdTwice,
    ImageMissing,
    ImageAmbiguous,
    ImageUnreadable,
    SizeMismatch,
}

impl Skip {
    pub fn reason(self) -> &'static str {
        match self {
            Skip::NoObject => "no JSON object",
            Skip::OtherCategory => "other category",
            Skip::Crowd => "marked as a crowd",
            Skip::Ignored => "marked to be ignored",
            Skip::NoBox => "no box of four finite numbers",
            Skip::EmptyBox => "box without area",
            Skip::OutsideImage => "box outside the image",
            Skip::TooSmall => "box too small",
            Skip::TooFewKeypoints => "too few keypoints",
            Skip::ImageNotListed => "image not listed",
            Skip::ImageIdTwice => "several images of that id",
            Skip::ImageMissing => "image file missing",
            Skip::ImageAmbiguous => "several image files of that name",
            Skip::ImageUnreadable => "image file unreadable",
            Skip::SizeMismatch => "image of another size",
        }
    }
}
