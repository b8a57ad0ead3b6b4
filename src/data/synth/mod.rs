//! Synthetic persons: a labelled, reproducible stand-in for photographs.
//!
//! Each identity has a body, hair and clothes of its own; each image puts it into a pose by forward kinematics, in
//! front of one of several cameras with its own place, light and colours, and draws it. Everything about an image is
//! known: identity, camera, attributes, COCO keypoints, a part map with LIP's labels, the bounding box. Image `k`
//! is a pure function of the configuration and `k`.

mod camera;
mod canvas;
mod carried;
mod dice;
pub mod export;
mod figure;
mod film;
mod geometry;
mod hair;
mod head;
mod identity;
mod labels;
mod limbs;
mod occluder;
mod pose;
mod render;
mod scene;
mod trunk;

#[cfg(test)]
mod tests;

pub use identity::{
    AgeGroup, Attributes, Build, ColorName, Eyewear, Figure, Hair, Hat, Lower, Print, Shoes, Stature, Upper,
};
pub use labels::{BoundingBox, KEYPOINT_NAMES, Keypoint, PART_NAMES, Part, SKELETON};
pub use pose::Action;

use crate::{Error, Result};
use camera::Camera;
use identity::Identity;
use image::{GrayImage, RgbImage};
use std::sync::OnceLock;

/// Which world to draw, and how much of it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SynthConfig {
    /// Seed of the world: cameras, identities, images.
    pub seed: u64,
    /// Identities to draw, at least 1.
    pub identities: usize,
    /// Identities to skip: identity numbers run from `first_identity + 1`. Two generators of one seed whose ranges
    /// do not overlap share the cameras and no person.
    pub first_identity: usize,
    /// Images of each identity, at least 1, taken by the cameras in turn.
    pub images_per_identity: usize,
    /// Cameras, 1 to 999. Each keeps its panorama once it is seen: 1.8 MB.
    pub cameras: usize,
    /// Picture height, 64 to 2048 pixels.
    pub height: usize,
    /// Picture width, 32 to 2048 pixels.
    pub width: usize,
}

impl Default for SynthConfig {
    fn default() -> Self {
        SynthConfig {
            seed: 0,
            identities: 500,
            first_identity: 0,
            images_per_identity: 24,
            cameras: 6,
            height: 256,
            width: 128,
        }
    }
}

/// Largest identity number: it must fit the stream key together with the shot.
const MAX_IDENTITY: usize = 100_000_000;
/// Largest number of images of an identity.
const MAX_SHOTS: usize = 1 << 24;
/// Largest number of cameras: below 2 GB of panoramas.
pub const MAX_CAMERAS: usize = 999;

impl SynthConfig {
    /// Checks all ranges; the error names the key.
    pub fn validate(&self) -> Result<()> {
        let check = |ok: bool, key: &str, value: usize, range: &str| {
            if ok {
                Ok(())
            } else {
                Err(Error::config(format!("synth.{key}"), format!("{value} is not in {range}")))
            }
        };
        check((1..=MAX_IDENTITY).contains(&self.identities), "identities", self.identities, "1..=100000000")?;
        check(
            self.first_identity <= MAX_IDENTITY - self.identities,
            "first_identity",
            self.first_identity,
            "0..=100000000 less the number of identities",
        )?;
        check(
            (1..=MAX_SHOTS).contains(&self.images_per_identity),
            "images_per_identity",
            self.images_per_identity,
            "1..=16777216",
        )?;
        check((1..=MAX_CAMERAS).contains(&self.cameras), "cameras", self.cameras, "1..=999")?;
        check((64..=2048).contains(&self.height), "height", self.height, "64..=2048")?;
        check((32..=2048).contains(&self.width), "width", self.width, "32..=2048")
    }
}

/// One image with everything that is known about it.
#[derive(Clone, Debug)]
pub struct SynthPerson {
    /// RGB, `height` x `width` of the configuration.
    pub image: RgbImage,
    /// Identity number, from 1.
    pub identity: usize,
    /// Camera number, from 1.
    pub camera: usize,
    /// Attributes of the identity: the same in all its images.
    pub attributes: Attributes,
    /// What the person does in this image.
    pub action: Action,
    /// The direction the body turns to, radians: 0 faces the camera, ±pi shows the back.
    pub yaw: f32,
    /// In the order of [`KEYPOINT_NAMES`].
    pub keypoints: [Keypoint; 17],
    /// Labels of [`Part`], one a pixel, of the size of `image`.
    pub part_mask: GrayImage,
    /// Encloses the visible pixels of the person and what it carries.
    pub bbox: BoundingBox,
}

/// A set of synthetic person images, drawn when asked for.
#[derive(Clone, Debug)]
pub struct SynthPersons {
    config: SynthConfig,
    /// Set up when first looked through: a picture needs one of them.
    cameras: Vec<OnceLock<Camera>>,
}

impl SynthPersons {
    /// A world of which nothing is drawn yet.
    ///
    /// # Errors
    /// When the configuration is out of range ([`SynthConfig::validate`]).
    pub fn new(config: SynthConfig) -> Result<Self> {
        config.validate()?;
        let cameras = (0..config.cameras).map(|_| OnceLock::new()).collect();
        Ok(SynthPersons { config, cameras })
    }

    pub fn config(&self) -> &SynthConfig {
        &self.config
    }

    /// Number of images. The images of an identity follow each other.
    pub fn len(&self) -> usize {
        self.config.identities * self.config.images_per_identity
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Identity number (from 1, plus the configured offset) of an image.
    pub fn identity_of(&self, index: usize) -> usize {
        self.config.first_identity + index / self.config.images_per_identity + 1
    }

    /// Camera number (from 1) of an image: an identity meets the cameras in turn.
    pub fn camera_of(&self, index: usize) -> usize {
        let shot = index % self.config.images_per_identity;
        (shot + self.identity_of(index)) % self.config.cameras + 1
    }

    /// A file name in Market-1501's style, such as `0012_c3s1_000045_00.jpg`.
    pub fn name(&self, index: usize) -> String {
        let shot = index % self.config.images_per_identity;
        format!("{:04}_c{}s1_{:06}_00.jpg", self.identity_of(index), self.camera_of(index), shot)
    }

    /// Attributes of the identity of an image.
    pub fn attributes(&self, index: usize) -> Attributes {
        Identity::new(self.config.seed, self.identity_of(index)).attributes
    }

    /// Draws image `index` (taken modulo [`SynthPersons::len`]), without labels.
    pub fn image(&self, index: usize) -> RgbImage {
        self.render(index, false).image
    }

    /// Draws image `index` (taken modulo [`SynthPersons::len`]) with all its labels.
    pub fn person(&self, index: usize) -> SynthPerson {
        let index = index % self.len();
        let shot = self.render(index, true);
        let (width, height) = (self.config.width as u32, self.config.height as u32);
        let parts = shot.labels.iter().map(|code| code.0).collect();
        SynthPerson {
            image: shot.image,
            identity: self.identity_of(index),
            camera: self.camera_of(index),
            attributes: shot.attributes,
            action: shot.action,
            yaw: shot.yaw,
            keypoints: shot.keypoints,
            bbox: render::enclosing_box(&shot.labels, width as usize),
            part_mask: GrayImage::from_raw(width, height, parts).unwrap_or_default(),
        }
    }

    fn render(&self, index: usize, labelled: bool) -> render::Shot {
        let index = index % self.len();
        let camera = self.camera_of(index) - 1;
        render::Render {
            seed: self.config.seed,
            identity: self.identity_of(index),
            shot: index % self.config.images_per_identity,
            camera: self.cameras[camera].get_or_init(|| Camera::new(self.config.seed, camera)),
            size: (self.config.width as u32, self.config.height as u32),
            labelled,
        }
        .run()
    }
}
