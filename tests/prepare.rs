//! Cutting person crops out of annotated pictures, end to end.

use std::fs;
use std::path::Path;

use image::{Rgb, RgbImage};
use saip_engine::data::prepare::{BoxFormat, Orientation, PrepareOptions, PrepareReport, Skip, prepare};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A picture whose pixel (x, y) is (x, y, 0): a crop tells where it was cut.
fn ramp(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| Rgb([x as u8, y as u8, 0]))
}

/// `picture` as a JPEG that carries EXIF orientation `turn`.
fn jpeg_turned(picture: &RgbImage, turn: u8) -> Vec<u8> {
    let mut jpeg = Vec::new();
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, 100).encode_image(picture).unwrap();
    // APP1: "Exif", big-endian TIFF header, one entry: tag 0x0112, SHORT, count 1.
    let mut exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01".to_vec();
    exif.extend_from_slice(&[0, turn, 0, 0, 0, 0, 0, 0]);
    let mut out = jpeg[..2].to_vec();
    out.extend_from_slice(&[0xff, 0xe1]);
    out.extend_from_slice(&(exif.len() as u16 + 2).to_be_bytes());
    out.extend_from_slice(&exif);
    out.extend_from_slice(&jpeg[2..]);
    out
}

struct Set {
    dir: TempDir,
}

impl Set {
    fn new(annotations: &Value) -> Self {
        let dir = TempDir::new().unwrap();
        fs::create_dir_all(dir.path().join("pictures/deep")).unwrap();
        fs::write(dir.path().join("a.json"), annotations.to_string()).unwrap();
        Set { dir }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn options(&self) -> PrepareOptions {
        PrepareOptions {
            annotations: self.path("a.json"),
            images: self.path("pictures"),
            out: self.path("out"),
            margin: 0.0,
            ..PrepareOptions::default()
        }
    }

    fn run(&self) -> saip_engine::Result<PrepareReport> {
        prepare(&self.options(), &mut |_, _| {})
    }

    fn crop(&self, name: &str) -> RgbImage {
        image::open(self.path("out/images").join(name)).unwrap().into_rgb8()
    }

    fn manifest(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("out/manifest.jsonl")).unwrap();
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }
}

/// Everything under `folder` with its contents, in a fixed order.
fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let files = walkdir::WalkDir::new(folder).sort_by_file_name().into_iter().map(|e| e.unwrap());
    let files = files.filter(|e| e.file_type().is_file());
    files.map(|e| (e.path().display().to_string(), fs::read(e.path()).unwrap())).collect()
}

fn close(pixel: &Rgb<u8>, want: [u8; 3]) -> bool {
    pixel.0.iter().zip(want).all(|(a, b)| a.abs_diff(b) <= 6)
}

/// Two pictures, one of them found by its name in a sub-folder, and one annotation for each reason to skip.
fn varied() -> Set {
    let set = Set::new(&json!({
        "images": [
            {"id": 1, "file_name": "one.png", "width": 200, "height": 100},
            {"id": 2, "file_name": "elsewhere/two.png"},
            {"id": 3, "file_name": "gone.png"},
            {"id": 4, "file_name": "broken.png"},
            {"id": 5, "file_name": "one.png", "width": 99, "height": 99},
            {"id": 6, "file_name": "../a.json"}
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}],
        "annotations": [
            {"id": 10, "image_id": 1, "category_id": 1, "bbox": [20, 10, 40, 60], "segmentation": [[1, 2]], "iscrowd": 0},
            {"id": 11, "image_id": 1, "category_id": 1, "bbox": [150.5, -20, 100, 90.25],
             "segmentation": {"counts": "Zei6", "size": [100, 200]}},
            {"id": 12, "image_id": 2, "category_id": 1, "bbox": [0, 0, 30, 40], "keypoints": [1, 1, 2, 0, 0, 0]},
            {"id": 20, "image_id": 1, "category_id": 3, "bbox": [20, 10, 40, 60]},
            {"id": 21, "image_id": 1, "category_id": 1, "bbox": [20, 10, 40, 60], "iscrowd": 1},
            {"id": 22, "image_id": 1, "category_id": 1},
            {"id": 23, "image_id": 1, "category_id": 1, "bbox": [20, 10, 0, 60]},
            {"id": 24, "image_id": 1, "category_id": 1, "bbox": [300, 10, 40, 60]},
            {"id": 25, "image_id": 1, "category_id": 1, "bbox": [195, 10, 40, 60]},
            {"id": 26, "image_id": 9, "category_id": 1, "bbox": [20, 10, 40, 60]},
            {"id": 27, "image_id": 3, "category_id": 1, "bbox": [20, 10, 40, 60]},
            {"id": 28, "image_id": 4, "category_id": 1, "bbox": [20, 10, 40, 60]},
            {"id": 29, "image_id": 5, "category_id": 1, "bbox": [20, 10, 40, 60]},
            {"id": 30, "image_id": 6, "category_id": 1, "bbox": [20, 10, 40, 60]},
            {"id": 31, "image_id": 1, "category_id": 1, "bbox": [20, 10, 40, 60], "ignore": 1}
        ]
    }));
    ramp(200, 100).save(set.path("pictures/one.png")).unwrap();
    ramp(60, 50).save(set.path("pictures/deep/two.png")).unwrap();
    fs::write(set.path("pictures/broken.png"), b"\x89PNG\r\n\x1a\nnot really").unwrap();
    set
}

#[test]
fn crops_come_from_where_the_boxes_are() {
    let set = varied();
    let report = set.run().unwrap();
    assert_eq!((report.images, report.annotations, report.crops), (6, 15, 3));
    let one = set.crop("one_10.jpg");
    assert_eq!(one.dimensions(), (40, 60));
    assert!(close(one.get_pixel(0, 0), [20, 10, 0]) && close(one.get_pixel(39, 59), [59, 69, 0]));
    let leaving = set.crop("one_11.jpg");
    assert_eq!(leaving.dimensions(), (50, 71));
    assert!(close(leaving.get_pixel(0, 0), [150, 0, 0]));
    assert_eq!(set.crop("two_12.jpg").dimensions(), (30, 40));

    let manifest = set.manifest();
    assert_eq!(manifest.len(), 3);
    assert_eq!(
        manifest[1],
        json!({"file": "images/one_11.jpg", "source": "one.png", "image_id": "1", "annotation_id": "11",
               "bbox": [150.5, 0.0, 49.5, 70.25], "crop": [150, 0, 50, 71], "width": 50, "height": 71, "keypoints": 0})
    );
    assert_eq!(manifest[2]["keypoints"], 1);
}

#[test]
fn every_annotation_is_accounted_for() {
    let set = varied();
    let report = set.run().unwrap();
    let mut reader = csv::Reader::from_path(set.path("out/skipped.csv")).unwrap();
    let mut rows: Vec<(u32, String)> =
        reader.records().map(|r| r.unwrap()).map(|r| (r[0].parse().unwrap(), r[2].to_owned())).collect();
    rows.sort();
    let want = [
        (20, Skip::OtherCategory),
        (21, Skip::Crowd),
        (22, Skip::NoBox),
        (23, Skip::EmptyBox),
        (24, Skip::OutsideImage),
        (25, Skip::TooSmall),
        (26, Skip::ImageNotListed),
        (27, Skip::ImageMissing),
        (28, Skip::ImageUnreadable),
        (29, Skip::SizeMismatch),
        (30, Skip::ImageMissing),
        (31, Skip::Ignored),
    ];
    let named: Vec<(u32, String)> = want.iter().map(|(id, skip)| (*id, skip.reason().to_owned())).collect();
    assert_eq!(rows, named);
    assert_eq!(report.skipped.values().sum::<usize>() + report.crops, report.annotations);
    assert_eq!(report.skipped[&Skip::ImageMissing], 2);

    let few = PrepareOptions { min_keypoints: 1, out: set.path("few"), ..set.options() };
    let report = prepare(&few, &mut |_, _| {}).unwrap();
    assert_eq!((report.crops, report.skipped[&Skip::TooFewKeypoints]), (1, 9));
}

#[test]
fn output_does_not_depend_on_threads_and_a_second_run_replaces_it() {
    let set = varied();
    set.run().unwrap();
    let first = contents(&set.path("out"));
    assert_eq!(first.len(), 6, "three crops, manifest, skipped, options; nothing left over");
    let single = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    single.install(|| set.run()).unwrap();
    assert_eq!(contents(&set.path("out")), first);

    // A stricter run leaves none of the earlier crops behind.
    let strict = PrepareOptions { min_height: 70, ..set.options() };
    assert_eq!(prepare(&strict, &mut |_, _| {}).unwrap().crops, 1);
    assert_eq!(fs::read_dir(set.path("out/images")).unwrap().count(), 1);
    assert_eq!(set.manifest().len(), 1);
}

#[test]
fn files_of_others_are_never_overwritten() {
    let set = varied();
    let refuse = |what: &str| {
        let before = contents(set.dir.path());
        let error = set.run().unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
        assert_eq!(contents(set.dir.path()), before);
    };
    fs::create_dir(set.path("out")).unwrap();
    fs::write(set.path("out/thesis.tex"), "x").unwrap();
    refuse("thesis.tex");
    fs::remove_file(set.path("out/thesis.tex")).unwrap();
    fs::write(set.path("out/manifest.jsonl"), "x").unwrap();
    refuse("manifest.jsonl");
    fs::remove_file(set.path("out/manifest.jsonl")).unwrap();
    set.run().unwrap();
    fs::write(set.path("out/images/mine.jpg"), "x").unwrap();
    refuse("mine.jpg");
    fs::remove_dir_all(set.path("out")).unwrap();
    fs::write(set.path("out"), "a file").unwrap();
    refuse("is a file");
}

#[test]
fn a_run_without_crops_or_with_bad_input_leaves_nothing() {
    let set = varied();
    set.run().unwrap();
    let before = contents(&set.path("out"));
    let none = PrepareOptions { min_height: 5000, ..set.options() };
    assert_eq!(prepare(&none, &mut |_, _| {}).unwrap().crops, 0);
    assert_eq!(contents(&set.path("out")), before);

    let bad = |options: PrepareOptions, what: &str| {
        let error = prepare(&options, &mut |_, _| {}).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
        assert!(!set.path("new").exists());
    };
    let fresh = || PrepareOptions { out: set.path("new"), ..set.options() };
    bad(PrepareOptions { annotations: set.path("none.json"), ..fresh() }, "none.json");
    bad(PrepareOptions { annotations: set.path("pictures/one.png"), ..fresh() }, "COCO-style");
    bad(PrepareOptions { images: set.path("nowhere"), ..fresh() }, "nowhere");
    bad(PrepareOptions { images: set.path("a.json"), ..fresh() }, "--images");
    bad(PrepareOptions { category: "zebra".into(), ..fresh() }, "zebra");
    bad(PrepareOptions { margin: f64::NAN, ..fresh() }, "--margin");
    bad(PrepareOptions { quality: 0, ..fresh() }, "--quality");
    bad(PrepareOptions { out: set.path("a.json/new"), ..set.options() }, "a.json");
}

#[test]
fn the_stated_size_tells_the_frame_of_the_boxes() {
    // Stored 120x80 with orientation 6: shown upright it is 80x120, and its left edge is the stored bottom edge.
    let set = Set::new(&json!({
        "images": [{"id": 1, "file_name": "stored.jpg", "width": 120, "height": 80},
                   {"id": 2, "file_name": "shown.jpg", "width": 80, "height": 120},
                   {"id": 3, "file_name": "unstated.jpg"}],
        "annotations": [{"id": 1, "image_id": 1, "bbox": [0, 0, 20, 40]},
                        {"id": 2, "image_id": 2, "bbox": [0, 0, 20, 40]},
                        {"id": 3, "image_id": 3, "bbox": [0, 0, 20, 40]}]
    }));
    for name in ["stored", "shown", "unstated"] {
        fs::write(set.path(&format!("pictures/{name}.jpg")), jpeg_turned(&ramp(120, 80), 6)).unwrap();
    }
    assert_eq!(set.run().unwrap().crops, 3);
    assert!(close(set.crop("stored_1.jpg").get_pixel(0, 0), [0, 0, 0]));
    assert!(close(set.crop("shown_2.jpg").get_pixel(0, 0), [0, 79, 0]));
    assert!(close(set.crop("shown_2.jpg").get_pixel(0, 39), [39, 79, 0]));
    assert!(close(set.crop("unstated_3.jpg").get_pixel(0, 0), [0, 0, 0]));

    let upright = PrepareOptions { orientation: Orientation::Upright, out: set.path("up"), ..set.options() };
    let report = prepare(&upright, &mut |_, _| {}).unwrap();
    assert_eq!((report.crops, report.skipped[&Skip::SizeMismatch]), (2, 1));
    let stored = PrepareOptions { orientation: Orientation::Stored, out: set.path("st"), ..set.options() };
    let report = prepare(&stored, &mut |_, _| {}).unwrap();
    assert_eq!((report.crops, report.skipped[&Skip::SizeMismatch]), (2, 1));
}

#[test]
fn a_name_in_several_folders_is_settled_by_its_folder_or_not_at_all() {
    let set = Set::new(&json!({
        "images": [{"id": 1, "file_name": "old/val/x.png"}, {"id": 2, "file_name": "x.png"}],
        "annotations": [{"id": 1, "image_id": 1, "bbox": [0, 0, 20, 40]}, {"id": 2, "image_id": 2, "bbox": [0, 0, 20, 40]}]
    }));
    for (folder, red) in [("train", 10), ("val", 200)] {
        fs::create_dir(set.path(&format!("pictures/{folder}"))).unwrap();
        let picture = RgbImage::from_pixel(50, 50, Rgb([red, 0, 0]));
        picture.save(set.path(&format!("pictures/{folder}/x.png"))).unwrap();
    }
    let report = set.run().unwrap();
    assert_eq!((report.crops, report.skipped[&Skip::ImageAmbiguous]), (1, 1));
    assert!(close(set.crop("x_1.jpg").get_pixel(5, 5), [200, 0, 0]));
}

#[test]
fn damaged_photographs_are_skipped_as_everywhere() {
    let annotations = [1, 2, 3, 4].map(|i| json!({"id": i, "image_id": i, "bbox": [0, 0, 20, 40]}));
    let set = Set::new(&json!({
        "images": [{"id": 1, "file_name": "whole.jpg"}, {"id": 2, "file_name": "cut.jpg"},
                   {"id": 3, "file_name": "new.heic"}, {"id": 4, "file_name": "gone.jpg"}],
        "annotations": annotations
    }));
    let mut jpeg = Vec::new();
    image::codecs::jpeg::JpegEncoder::new(&mut jpeg).encode_image(&ramp(60, 80)).unwrap();
    fs::write(set.path("pictures/whole.jpg"), &jpeg).unwrap();
    fs::write(set.path("pictures/cut.jpg"), &jpeg[..jpeg.len() / 2]).unwrap();
    fs::write(set.path("pictures/new.heic"), b"\0\0\0\x18ftypheic\0\0\0\0").unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink("../annex/1.jpg", set.path("pictures/gone.jpg")).unwrap();
    let report = set.run().unwrap();
    assert_eq!((report.crops, report.pictures, report.left_out.len()), (1, 1, 3));
    let csv = fs::read_to_string(set.path("out/skipped.csv")).unwrap();
    for part in ["cut.jpg: truncated JPEG", "new.heic: HEIC pictures are not read"] {
        assert!(csv.contains(part), "{csv}");
    }
    if cfg!(unix) {
        assert!(csv.contains("gone.jpg: a link to ../annex/1.jpg, which is not there"), "{csv}");
    }
}

#[test]
fn the_list_is_written_even_without_a_crop() {
    let set = Set::new(&json!({
        "images": [{"id": 1, "file_name": "gone.jpg"}],
        "annotations": [{"id": 1, "image_id": 1, "bbox": [0, 0, 20, 40]}]
    }));
    for (name, reason) in [("else.jpg", "image file missing"), ("gone.jpg", "image file unreadable")] {
        fs::write(set.path("pictures").join(name), b"no picture").unwrap();
        assert_eq!(set.run().unwrap().crops, 0);
        let csv = fs::read_to_string(set.path("out/skipped.csv")).unwrap();
        assert!(csv.contains(reason) && csv.contains("gone.jpg"), "{csv}");
    }
}

#[test]
fn sloppy_annotations_are_cut_where_they_can_be() {
    let set = Set::new(&json!({
        "images": [null, {"id": 1}, {"id": 2, "file_name": "a%20b.png", "width": "60", "height": "80"},
                   {"id": 3, "file_name": "one.png"}, {"id": 3, "file_name": "two.png"}],
        "annotations": [7, {"id": 1, "image_id": 2, "bbox": ["5", "10", "20", "40"], "iscrowd": "0"},
                        {"id": 2, "image_id": 2, "bbox": [], "segmentation": [[30, 20, 50, 20, 50, 70, 30, 70]]},
                        {"id": 3, "image_id": 1, "bbox": [0, 0, 20, 40]}, {"id": 4, "image_id": 3, "bbox": [0, 0, 20, 40]}]
    }));
    let text = fs::read_to_string(set.path("a.json")).unwrap();
    fs::write(set.path("a.json"), format!("\u{feff}{text}")).unwrap();
    ramp(60, 80).save(set.path("pictures/deep/a b.png")).unwrap();
    let report = set.run().unwrap();
    assert_eq!((report.images, report.annotations, report.crops, report.outlined), (5, 5, 2, 1));
    assert_eq!(
        report.skipped,
        [(Skip::NoObject, 1), (Skip::ImageNotListed, 1), (Skip::ImageIdTwice, 1)].into()
    );
    let names: Vec<&str> = report.left_out.iter().map(|l| l.name.as_str()).collect();
    assert_eq!(names, ["images[0]", "images[1]", "images[4]"]);
    assert!(close(set.crop("a_20b_1.jpg").get_pixel(0, 0), [5, 10, 0]));
    let outlined = set.crop("a_20b_2.jpg");
    assert!(outlined.dimensions() == (20, 50) && close(outlined.get_pixel(0, 0), [30, 20, 0]));
    let csv = fs::read_to_string(set.path("out/skipped.csv")).unwrap();
    assert!(csv.contains("images[1] (id 1) has no `file_name`"), "{csv}");
}

#[test]
fn corner_pairs_are_suspected_and_read_when_told() {
    let set = Set::new(&json!({
        "images": [{"id": 1, "file_name": "x.png"}],
        "annotations": [{"id": 1, "image_id": 1, "bbox": [60, 20, 100, 70]}, {"id": 2, "image_id": 1, "bbox": [10, 5, 40, 60]}]
    }));
    ramp(120, 80).save(set.path("pictures/x.png")).unwrap();
    assert!(set.run().unwrap().hint().unwrap().contains("1 of 2 boxes leave"));
    let told = PrepareOptions { boxes: BoxFormat::Xyxy, ..set.options() };
    let report = prepare(&told, &mut |_, _| {}).unwrap();
    assert!(report.hint().is_none() && set.crop("x_1.jpg").dimensions() == (40, 50));
}
