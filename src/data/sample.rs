//! A picture and what is known of it.

use image::RgbImage;

/// What a source knows of a picture; what it does not know is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    /// Number of its class, from 0.
    pub class: Option<u32>,
}

/// A picture with its labels.
#[derive(Clone, Debug)]
pub struct Sample {
    pub image: RgbImage,
    pub labels: Labels,
}

impl From<RgbImage> for Sample {
    /// A picture of which nothing is known.
    fn from(image: RgbImage) -> Self {
        Sample { image, labels: Labels::default() }
    }
}
