//! A synthetic world as a folder: Market-1501's layout with COCO keypoints, attributes and part maps beside it.

use super::{Attributes, KEYPOINT_NAMES, SKELETON, SynthConfig, SynthPerson, SynthPersons};
use crate::files::atomic::{self, write_new};
use crate::files::disk;
use crate::{Error, Result};
use image::ImageEncoder;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;

/// JPEG quality of the pictures.
const JPEG_QUALITY: u8 = 95;
/// Cameras that can be told apart by name.
const NAMED_CAMERAS: usize = 9;
/// Marks a folder as written by this module, and says from what.
const MARKER: &str = "synth.json";

/// Which part of the benchmark an image belongs to, by Market-1501's folder names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    Train,
    Query,
    Gallery,
}

impl Split {
    /// The folder of the split.
    pub const fn folder(self) -> &'static str {
        match self {
            Split::Train => "bounding_box_train",
            Split::Query => "query",
            Split::Gallery => "bounding_box_test",
        }
    }
}

/// What to export, stored in the folder as `synth.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Export {
    pub config: SynthConfig,
    /// Query images of each test identity: the first of each camera, up to this many.
    pub queries_per_identity: usize,
}

/// How many images of each split a folder holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub train: usize,
    pub query: usize,
    pub gallery: usize,
}

/// A COCO `person_keypoints` file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Coco {
    pub info: CocoInfo,
    pub images: Vec<CocoImage>,
    pub annotations: Vec<CocoAnnotation>,
    pub categories: Vec<CocoCategory>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CocoInfo {
    pub description: String,
    pub version: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CocoImage {
    pub id: usize,
    pub file_name: String,
    pub width: u32,
    pub height: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CocoAnnotation {
    pub id: usize,
    pub image_id: usize,
    pub category_id: usize,
    pub iscrowd: u8,
    /// Visible pixels of the person.
    pub area: f32,
    /// Left, top, width, height.
    pub bbox: [f32; 4],
    pub num_keypoints: usize,
    /// x, y, visibility of each keypoint in turn.
    pub keypoints: Vec<f32>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CocoCategory {
    pub id: usize,
    pub name: String,
    pub supercategory: String,
    pub keypoints: Vec<String>,
    pub skeleton: Vec<[usize; 2]>,
}

/// One row of `attributes.csv`.
#[derive(Serialize)]
struct Row<'a> {
    file: &'a str,
    identity: usize,
    camera: usize,
    split: &'static str,
    action: &'static str,
    /// Degrees; 0 faces the camera.
    yaw: f32,
    figure: &'static str,
    age: &'static str,
    stature: &'static str,
    build: &'static str,
    skin: u8,
    hair: &'static str,
    hair_color: &'static str,
    beard: bool,
    hat: &'static str,
    eyewear: &'static str,
    upper: &'static str,
    upper_color: &'static str,
    upper_print: &'static str,
    second_color: &'static str,
    long_sleeves: bool,
    open_front: bool,
    lower: &'static str,
    lower_color: &'static str,
    shoes: &'static str,
    shoe_color: &'static str,
    scarf: bool,
    backpack: bool,
    handbag: bool,
    shoulder_bag: bool,
    umbrella: bool,
    phone: bool,
    bag_color: &'static str,
}

/// What is kept of an image once its files are written.
struct Entry {
    file: String,
    split: Split,
    identity: usize,
    camera: usize,
    action: &'static str,
    yaw: f32,
    attributes: Attributes,
    annotation: CocoAnnotation,
}

impl Export {
    /// Checks that the split leaves something in each folder.
    pub fn validate(&self) -> Result<()> {
        let config = &self.config;
        config.validate()?;
        if config.cameras > NAMED_CAMERAS {
            let message = format!(
                "{} is not in 1..={NAMED_CAMERAS}: Market-1501's names have one digit for them",
                config.cameras
            );
            return Err(Error::config("synth.cameras", message));
        }
        if config.identities < 2 {
            return Err(Error::usage("a benchmark needs at least 2 identities: half train, half test"));
        }
        let limit = config.images_per_identity.saturating_sub(1);
        if !(1..=limit).contains(&self.queries_per_identity) {
            return Err(Error::usage(format!(
                "{} queries an identity out of {} images: it takes at least 1, and one image must be left for the \
                 gallery; raise the images or lower the queries per identity",
                self.queries_per_identity, config.images_per_identity
            )));
        }
        Ok(())
    }

    /// The split of an image: the first half of the identities trains; of the others, the first image of each
    /// camera is a query.
    pub fn split_of(&self, index: usize) -> Split {
        let shots = self.config.images_per_identity;
        let shot = index % shots;
        if index / shots < self.config.identities.div_ceil(2) {
            Split::Train
        } else if shot < self.config.cameras.min(self.queries_per_identity) {
            // The cameras take turns, so the first shots are the first of their cameras.
            Split::Query
        } else {
            Split::Gallery
        }
    }

    /// Writes the world into `out`, calling `tick` after each image.
    ///
    /// A folder left by an interrupted run of the same export is completed; files already there are left alone.
    ///
    /// # Errors
    /// When the configuration is out of range, when `out` holds anything else, or when it cannot be written.
    pub fn write(&self, out: &Path, tick: impl Fn() + Sync) -> Result<Summary> {
        self.validate()?;
        let _lock = claim(out, self)?;
        for folder in [Split::Train.folder(), Split::Query.folder(), Split::Gallery.folder(), "parts"] {
            let path = out.join(folder);
            disk::create_dir_all(&path).map_err(|e| Error::io(&path, "create the folder", e))?;
            atomic::sweep(&path)?;
        }
        let world = SynthPersons::new(self.config.clone())?;
        let entries: Vec<Entry> = (0..world.len())
            .into_par_iter()
            .map(|index| {
                let entry = self.write_image(&world, index, out)?;
                tick();
                Ok(entry)
            })
            .collect::<Result<_>>()?;
        write_new(&out.join("annotations.json"), &json(&self.coco(&entries), out)?)?;
        write_new(&out.join("attributes.csv"), &table(&entries, out)?)?;
        let count = |split| entries.iter().filter(|entry| entry.split == split).count();
        Ok(Summary { train: count(Split::Train), query: count(Split::Query), gallery: count(Split::Gallery) })
    }

    fn write_image(&self, world: &SynthPersons, index: usize, out: &Path) -> Result<Entry> {
        let person = world.person(index);
        let name = world.name(index);
        let split = self.split_of(index);
        let file = format!("{}/{name}", split.folder());
        let path = out.join(&file);
        let (width, height) = person.image.dimensions();
        let failed =
            |path: &Path, e: image::ImageError| Error::file(path, format!("cannot encode the picture: {e}"));
        let mut bytes = Vec::new();
        image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY)
            .write_image(&person.image, width, height, image::ExtendedColorType::Rgb8)
            .map_err(|e| failed(&path, e))?;
        write_new(&path, &bytes)?;
        let path = out.join("parts").join(Path::new(&name).with_extension("png"));
        let mut bytes = Vec::new();
        image::codecs::png::PngEncoder::new(&mut bytes)
            .write_image(&person.part_mask, width, height, image::ExtendedColorType::L8)
            .map_err(|e| failed(&path, e))?;
        write_new(&path, &bytes)?;
        Ok(Entry {
            file,
            split,
            identity: person.identity,
            camera: person.camera,
            action: person.action.name(),
            yaw: person.yaw.to_degrees().rem_euclid(360.0),
            annotation: annotation(&person, index),
            attributes: person.attributes,
        })
    }

    fn coco(&self, entries: &[Entry]) -> Coco {
        let (width, height) = (self.config.width as u32, self.config.height as u32);
        let image = |entry: &Entry| CocoImage {
            id: entry.annotation.image_id,
            file_name: entry.file.clone(),
            width,
            height,
        };
        Coco {
            info: CocoInfo {
                description: "synthetic persons drawn by saip-engine".to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            },
            images: entries.iter().map(image).collect(),
            annotations: entries.iter().map(|entry| entry.annotation.clone()).collect(),
            categories: vec![CocoCategory {
                id: 1,
                name: "person".to_owned(),
                supercategory: "person".to_owned(),
                keypoints: KEYPOINT_NAMES.map(str::to_owned).to_vec(),
                skeleton: SKELETON.to_vec(),
            }],
        }
    }
}

/// COCO's record of a person; ids count from 1.
fn annotation(person: &SynthPerson, index: usize) -> CocoAnnotation {
    let b = &person.bbox;
    CocoAnnotation {
        id: index + 1,
        image_id: index + 1,
        category_id: 1,
        iscrowd: 0,
        area: person.part_mask.as_raw().iter().filter(|label| **label != 0).count() as f32,
        bbox: [b.x, b.y, b.width, b.height],
        num_keypoints: person.keypoints.iter().filter(|point| point.visibility > 0).count(),
        keypoints: person.keypoints.iter().flat_map(|p| [p.x, p.y, f32::from(p.visibility)]).collect(),
    }
}

fn json<T: Serialize>(value: &T, out: &Path) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::file(out, format!("cannot encode the annotations: {e}")))
}

fn table(entries: &[Entry], out: &Path) -> Result<Vec<u8>> {
    let failed = |e: String| Error::file(out, format!("cannot encode attributes.csv: {e}"));
    let mut writer = csv::Writer::from_writer(Vec::new());
    for entry in entries {
        writer.serialize(row(entry)).map_err(|e| failed(e.to_string()))?;
    }
    writer.into_inner().map_err(|e| failed(e.to_string()))
}

fn row(entry: &Entry) -> Row<'_> {
    let a = &entry.attributes;
    Row {
        file: &entry.file,
        identity: entry.identity,
        camera: entry.camera,
        split: entry.split.folder(),
        action: entry.action,
        yaw: entry.yaw,
        figure: a.figure.name(),
        age: a.age.name(),
        stature: a.stature.name(),
        build: a.build.name(),
        skin: a.skin,
        hair: a.hair.name(),
        hair_color: a.hair_color,
        beard: a.beard,
        hat: a.hat.name(),
        eyewear: a.eyewear.name(),
        upper: a.upper.name(),
        upper_color: a.upper_color.name(),
        upper_print: a.upper_print.name(),
        second_color: a.second_color.name(),
        long_sleeves: a.long_sleeves,
        open_front: a.open_front,
        lower: a.lower.name(),
        lower_color: a.lower_color.name(),
        shoes: a.shoes.name(),
        shoe_color: a.shoe_color.name(),
        scarf: a.scarf,
        backpack: a.backpack,
        handbag: a.handbag,
        shoulder_bag: a.shoulder_bag,
        umbrella: a.umbrella,
        phone: a.phone,
        bag_color: a.bag_color.name(),
    }
}

/// Makes `out` ours: creates it, or takes up an interrupted run of the same export.
fn claim(out: &Path, export: &Export) -> Result<Option<fs::File>> {
    disk::create_dir_all(out).map_err(|e| Error::io(out, "create the folder", e))?;
    let lock = atomic::lock_folder(out)?;
    let marker = out.join(MARKER);
    match fs::read(&marker) {
        Ok(bytes) => {
            let found: Option<Export> = serde_json::from_slice(&bytes).ok();
            if found.as_ref() == Some(export) {
                return Ok(lock);
            }
            Err(Error::file(
                out,
                "holds synthetic persons of another configuration (see synth.json there); \
                 give another folder, or the same options to complete it",
            ))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let mut inside = fs::read_dir(out).map_err(|e| Error::io(out, "list the folder", e))?;
            if inside.next().is_some() {
                return Err(Error::file(
                    out,
                    "is not empty and was not written by this command; give a new folder",
                ));
            }
            let text = serde_json::to_vec_pretty(export)
                .map_err(|e| Error::file(&marker, format!("cannot encode the configuration: {e}")))?;
            write_new(&marker, &text).map(|()| lock)
        }
        Err(e) => Err(Error::io(&marker, "read", e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Export {
        let config = SynthConfig {
            seed: 5,
            identities: 3,
            images_per_identity: 4,
            cameras: 2,
            height: 96,
            width: 48,
            ..Default::default()
        };
        Export { config, queries_per_identity: 2 }
    }

    #[test]
    fn folder_has_market_layout_and_coco_round_trips() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("world");
        let summary = small().write(&out, || ()).unwrap();
        assert_eq!(summary, Summary { train: 8, query: 2, gallery: 2 });
        let list = |folder: &str| {
            let entries = fs::read_dir(out.join(folder)).unwrap();
            let mut names: Vec<String> =
                entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(list("query"), ["0003_c1s1_000001_00.jpg", "0003_c2s1_000000_00.jpg"]);
        assert_eq!(list("bounding_box_test"), ["0003_c1s1_000003_00.jpg", "0003_c2s1_000002_00.jpg"]);
        assert_eq!(list("bounding_box_train").len(), 8);
        assert_eq!(list("parts").len(), 12);

        let text = fs::read(out.join("annotations.json")).unwrap();
        let coco: Coco = serde_json::from_slice(&text).unwrap();
        assert_eq!(serde_json::to_vec(&coco).unwrap(), text);
        assert_eq!((coco.images.len(), coco.annotations.len()), (12, 12));
        let world = SynthPersons::new(small().config).unwrap();
        for (index, (image, note)) in coco.images.iter().zip(&coco.annotations).enumerate() {
            let decoded = image::open(out.join(&image.file_name)).unwrap().to_rgb8();
            assert_eq!(decoded.dimensions(), (image.width, image.height));
            let person = world.person(index);
            assert_eq!((note.image_id, note.keypoints.len()), (image.id, 51));
            assert_eq!(note.keypoints[15], person.keypoints[5].x);
            let png = Path::new(&image.file_name).with_extension("png");
            let parts = image::open(out.join("parts").join(png.file_name().unwrap())).unwrap().to_luma8();
            assert_eq!(parts.as_raw(), person.part_mask.as_raw());
        }
        let mut table = csv::Reader::from_path(out.join("attributes.csv")).unwrap();
        assert_eq!(table.records().count(), 12);
    }

    #[test]
    fn nothing_foreign_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let export = small();
        let file = dir.path().join("keep.txt");
        fs::write(&file, "mine").unwrap();
        let error = export.write(dir.path(), || ()).unwrap_err().to_string();
        assert!(error.contains("not empty"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        // A file where a folder should be.
        assert!(export.write(&file.join("out"), || ()).is_err());

        let out = dir.path().join("out");
        export.write(&out, || ()).unwrap();
        let mark = out.join("query/0003_c2s1_000000_00.jpg");
        fs::write(&mark, "changed").unwrap();
        let lost = out.join("query/0003_c1s1_000001_00.jpg");
        fs::remove_file(&lost).unwrap();
        export.write(&out, || ()).unwrap();
        assert_eq!(fs::read(&mark).unwrap(), b"changed", "an existing file was overwritten");
        assert!(lost.exists(), "a missing file was not completed");
        let mut other = small();
        other.config.seed = 6;
        let error = other.write(&out, || ()).unwrap_err().to_string();
        assert!(error.contains("another configuration"), "{error}");
    }

    #[test]
    fn a_benchmark_needs_test_identities_and_a_gallery() {
        let mut export = small();
        export.config.identities = 1;
        assert!(export.validate().is_err());
        let mut export = small();
        export.queries_per_identity = 4;
        assert!(export.validate().unwrap_err().to_string().contains("gallery"));
    }
}
