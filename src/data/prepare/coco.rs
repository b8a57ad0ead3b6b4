//! COCO-style annotation files, read leniently: whatever cropping does not need is passed over without being
//! stored, whatever it needs may be missing or ill-typed in single annotations without losing the others.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::json::PythonJson;
use super::lenient::{NumberList, Outline, Scalar, drain_list, object, visitor};
use crate::error::{Error, Result};

const EXPECTED: &str = "expected COCO-style JSON: an object with the lists `images` (with `id`, `file_name`) and \
                        `annotations` (with `image_id`, `bbox`: [x, y, width, height] in pixels)";

/// One entry of `images`.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageRecord {
    /// `id` as text: files number their images, or name them.
    pub id: String,
    /// `file_name` (or the end of `coco_url`, for LVIS) with `/` between folders.
    pub file_name: String,
    /// `[width, height]` in pixels, where both are stated.
    pub size: Option<[u32; 2]>,
    /// Whether another entry gives the same `id` to another file: nobody knows which of them its annotations mean.
    pub ambiguous: bool,
}

/// What the four numbers of a `bbox` are, in pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum BoxFormat {
    /// Left, top, width, height: COCO's own.
    #[default]
    Xywh,
    /// Left, top, right, bottom.
    Xyxy,
}

/// One entry of `annotations`, reduced to what cropping needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Annotation {
    /// `id`, or `n` and the position in the list where it has none.
    pub id: String,
    pub image_id: String,
    /// `[x, y, width, height]` in pixels: finite numbers, nothing more is promised. `None`: missing or no such list.
    pub bbox: Option<[f64; 4]>,
    /// Whether `bbox` is the extent of `segmentation`, because the file's own is missing or without area.
    pub outlined: bool,
    /// Labelled keypoints: `num_keypoints`, else those with a visibility flag above 0; 0 without keypoints.
    pub keypoints: u32,
    pub crowd: bool,
    /// `ignore`, by which converted detection sets mark regions that are no single person.
    pub ignore: bool,
    /// Whether its category is the wanted one.
    pub wanted: bool,
    /// Whether the entry is an object at all.
    pub is_object: bool,
}

/// An annotation file in document order.
#[derive(Clone, Debug)]
pub struct CocoFile {
    pub images: Vec<ImageRecord>,
    /// Entries of `images` that say too little: their place (`images[3]`) and what is wrong.
    pub bad_images: Vec<(String, String)>,
    pub annotations: Vec<Annotation>,
}

/// Reads `path`, marking the annotations of `category` as wanted. Where the file lists no categories, all are wanted.
///
/// # Errors
/// A file that cannot be read, is no COCO-style JSON, has no usable image, or lists categories among which `category` is
/// not.
pub fn read(path: &Path, category: &str, boxes: BoxFormat) -> Result<CocoFile> {
    let file = File::open(path).map_err(|e| Error::io(path, "read", e))?;
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let head = reader.fill_buf().map_err(|e| Error::io(path, "read", e))?;
    if head.starts_with(b"\xFF\xFE") || head.starts_with(b"\xFE\xFF") {
        return Err(Error::file(path, "is in UTF-16: save it as UTF-8"));
    }
    let raw: RawFile = serde_json::from_reader(PythonJson::new(reader)).map_err(|e| {
        if e.is_io() {
            Error::io(path, "read", e.into())
        } else {
            Error::file(path, format!("{e}; {EXPECTED}"))
        }
    })?;
    if !raw.is_object {
        return Err(Error::file(path, format!("is no JSON object; {EXPECTED}")));
    }
    let images = raw.images.ok_or_else(|| Error::file(path, format!("has no `images`; {EXPECTED}")))?;
    let annotations =
        raw.annotations.ok_or_else(|| Error::file(path, format!("has no `annotations`; {EXPECTED}")))?;
    let mut categories = raw.categories.unwrap_or_default();
    categories.retain(|c| c.is_object);
    let wanted = Wanted::of(&categories, category).map_err(|m| Error::file(path, m))?;
    let (images, bad_images) = image_records(images);
    if let ([], [(place, why), ..]) = (images.as_slice(), bad_images.as_slice()) {
        return Err(Error::file(path, format!("{place} {why}, and no other image is better; {EXPECTED}")));
    }
    let annotations = annotations.into_iter().enumerate().map(|(i, a)| a.reduce(i, &wanted, boxes)).collect();
    Ok(CocoFile { images, bad_images, annotations })
}

/// The usable entries of `images`, and of the others their place and what is wrong with them.
fn image_records(raw: Vec<RawImage>) -> (Vec<ImageRecord>, Vec<(String, String)>) {
    let mut first_of: HashMap<String, [usize; 2]> = HashMap::with_capacity(raw.len());
    let (mut records, mut bad) = (Vec::<ImageRecord>::with_capacity(raw.len()), Vec::new());
    for (index, image) in raw.into_iter().enumerate() {
        let place = format!("images[{index}]");
        let record = match image.reduce() {
            Ok(record) => record,
            Err(why) => {
                bad.push((place, why));
                continue;
            }
        };
        if let Some(&[first, at]) = first_of.get(&record.id) {
            bad.push((place, format!("has the same `id` ({}) as images[{first}]", record.id)));
            records[at].ambiguous |= records[at].file_name != record.file_name;
            continue;
        }
        first_of.insert(record.id.clone(), [index, records.len()]);
        records.push(record);
    }
    (records, bad)
}

impl RawImage {
    fn reduce(self) -> Result<ImageRecord, String> {
        if !self.is_object {
            return Err("is no object".to_owned());
        }
        let id = self.id.id().ok_or("has no `id`")?;
        let file_name = self.file_name.text().map(str::to_owned).filter(|name| !name.is_empty());
        let file_name = file_name.or_else(|| self.coco_url.text().and_then(url_tail));
        let file_name = file_name.ok_or_else(|| format!("(id {id}) has no `file_name`"))?;
        let side = |value: &Scalar| value.number().and_then(pixels);
        let size = side(&self.width).zip(side(&self.height)).map(|(w, h)| [w, h]);
        Ok(ImageRecord { id, file_name: file_name.replace('\\', "/"), size, ambiguous: false })
    }
}

fn pixels(value: f64) -> Option<u32> {
    (value >= 1.0 && value <= f64::from(u32::MAX) && value.fract() == 0.0).then_some(value as u32)
}

/// `http://host/train2017/1.jpg` -> `train2017/1.jpg`.
fn url_tail(url: &str) -> Option<String> {
    let mut parts = url.rsplit('/');
    let name = parts.next().filter(|n| !n.is_empty())?;
    Some(parts.next().map_or(name.to_owned(), |folder| format!("{folder}/{name}")))
}

/// Which categories to keep.
enum Wanted {
    All,
    /// `lone`: the file knows a single category, so annotations need not repeat it.
    Ids {
        ids: Vec<String>,
        lone: bool,
    },
}

impl Wanted {
    fn of(categories: &[RawCategory], name: &str) -> Result<Self, String> {
        if categories.is_empty() {
            return Ok(Wanted::All);
        }
        let is_named = |c: &RawCategory| c.name.text().is_some_and(|n| n.trim().eq_ignore_ascii_case(name));
        let mut ids: Vec<String> =
            categories.iter().filter(|c| is_named(c)).filter_map(|c| c.id.id()).collect();
        if ids.is_empty() {
            // COCO's own numbering, for lists that number their categories without naming them.
            let unnamed = |c: &&RawCategory| c.name.text().is_none_or(|n| n.trim().is_empty());
            ids =
                categories.iter().filter(unnamed).filter_map(|c| c.id.id()).filter(|id| id == "1").collect();
        }
        if ids.is_empty() {
            let known: Vec<&str> = categories.iter().take(20).filter_map(|c| c.name.text()).collect();
            return Err(format!(
                "no category is named `{name}`; the file has: {}. Name the one to cut out with --category",
                if known.is_empty() { "no named category".to_owned() } else { known.join(", ") }
            ));
        }
        Ok(Wanted::Ids { ids, lone: categories.len() == 1 })
    }

    fn has(&self, id: Option<&str>) -> bool {
        match self {
            Wanted::All => true,
            Wanted::Ids { ids, lone } => id.map_or(*lone, |id| ids.iter().any(|i| i == id)),
        }
    }
}

object!(
    /// The file; a list that is none makes the file unusable.
    RawFile,
    RawFileVisitor {
        images: Option<Vec<RawImage>>,
        annotations: Option<Vec<RawAnnotation>>,
        categories: Option<Vec<RawCategory>>,
    }
);
object!(
    RawImage,
    RawImageVisitor { id: Scalar, file_name: Scalar, coco_url: Scalar, width: Scalar, height: Scalar }
);
object!(RawCategory, RawCategoryVisitor { id: Scalar, name: Scalar });
object!(
    RawAnnotation,
    RawAnnotationVisitor {
        id: Scalar,
        image_id: Scalar,
        category_id: Scalar,
        bbox: NumberList,
        segmentation: Outline,
        keypoints: NumberList,
        num_keypoints: Scalar,
        iscrowd: Scalar,
        ignore: Scalar,
    }
);

impl RawAnnotation {
    fn reduce(self, index: usize, wanted: &Wanted, boxes: BoxFormat) -> Annotation {
        let stated =
            (self.bbox.count == 4).then_some(self.bbox.first).filter(|b| b.iter().all(|v| v.is_finite()));
        let stated = stated.map(|[x, y, c, d]| match boxes {
            BoxFormat::Xywh => [x, y, c, d],
            BoxFormat::Xyxy => [x, y, c - x, d - y],
        });
        let has_area = stated.is_some_and(|[_, _, w, h]| w > 0.0 && h > 0.0);
        let outlined = self.segmentation.bbox().filter(|_| !has_area);
        let keypoints = self.num_keypoints.number().filter(|n| *n >= 0.0).map(|n| n as u32);
        Annotation {
            id: self.id.id().unwrap_or_else(|| format!("n{index}")),
            image_id: self.image_id.id().unwrap_or_default(),
            outlined: outlined.is_some(),
            bbox: outlined.or(stated),
            keypoints: keypoints.unwrap_or(self.keypoints.visible),
            crowd: self.iscrowd.flag(),
            ignore: self.ignore.flag(),
            wanted: wanted.has(self.category_id.id().as_deref()),
            is_object: self.is_object,
        }
    }
}

/// Reads a whole annotation file from memory; for tests of the parser.
#[cfg(test)]
fn parse(text: &str) -> Result<CocoFile> {
    let mut file = tempfile::NamedTempFile::new().map_err(|e| Error::io("temporary file", "create", e))?;
    std::io::Write::write_all(&mut file, text.as_bytes()).map_err(|e| Error::io(file.path(), "write", e))?;
    read(file.path(), "person", BoxFormat::Xywh)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_fields_lose_their_annotation_only() {
        let file = parse(
            r#"{"extra": {"deep": [1, {"a": null}]},
                "images": [{"id": "a", "file_name": "d\\x.jpg", "width": 64.0, "height": 48},
                           {"id": 2, "coco_url": "http://h/val2017/000002.jpg", "width": null}],
                "annotations": [
                  {"id": 7, "image_id": "a", "bbox": [1, 2.5, 3, 4], "segmentation": {"counts": "Zei6", "size": [1, 2]}},
                  {"id": 8.0, "image_id": "2", "bbox": null, "iscrowd": true, "segmentation": [[1, 2], "x"]},
                  {"image_id": 2.0, "bbox": [NaN, 2, -Infinity, 4], "keypoints": [1, 1, 2, 0, 0, 0, 5, 5, 1]},
                  {"id": null, "image_id": 2, "bbox": {"x": 1}, "iscrowd": null, "num_keypoints": 4, "ignore": 1},
                  {"id": 11, "bbox": [1, 2, "three", 4], "keypoints": "none", "iscrowd": 0},
                  {"id": 12, "image_id": 2, "bbox": [1, 2, 3, 4, 5]}]}"#,
        )
        .unwrap();
        assert_eq!(
            file.images[0],
            ImageRecord {
                id: "a".into(),
                file_name: "d/x.jpg".into(),
                size: Some([64, 48]),
                ambiguous: false
            }
        );
        assert_eq!(file.images[1].file_name, "val2017/000002.jpg");
        assert_eq!(file.images[1].size, None);
        let a = &file.annotations;
        assert_eq!(a[0].bbox, Some([1.0, 2.5, 3.0, 4.0]));
        assert_eq!((a[1].id.as_str(), a[1].image_id.as_str(), a[1].crowd), ("8", "2", true));
        assert_eq!((a[2].id.as_str(), a[2].image_id.as_str(), a[2].keypoints), ("n2", "2", 2));
        assert_eq!((a[3].keypoints, a[3].ignore, a[3].crowd), (4, true, false));
        assert!(a[1..].iter().all(|a| a.bbox.is_none()));
        assert!(a.iter().all(|a| a.wanted));
    }

    #[test]
    fn bad_entries_cost_themselves_only() {
        let file = parse(
            r#"{"images": [{"id": 1, "file_name": "a"}, null, {"id": 2}, {"file_name": "b"}, "x", {"id": 1, "file_name": "c"},
                           {"id": "3", "id": 3, "file_name": "d", "width": "64", "height": "48"}, {"id": 3, "file_name": "d"}],
                "annotations": [null, 7, [1], "x", {"id": 1, "id": 2, "image_id": 3, "bbox": ["1", "2", "3", "4.5"],
                                "iscrowd": "0", "ignore": "false", "num_keypoints": "17"}]}"#,
        )
        .unwrap();
        let bad: Vec<&str> = file.bad_images.iter().map(|(place, _)| place.as_str()).collect();
        assert_eq!(bad, ["images[1]", "images[2]", "images[3]", "images[4]", "images[5]", "images[7]"]);
        let images: Vec<_> = file.images.iter().map(|i| (i.id.as_str(), i.ambiguous, i.size)).collect();
        assert_eq!(images, [("1", true, None), ("3", false, Some([64, 48]))]);
        let [bad @ .., good] = file.annotations.as_slice() else { panic!() };
        assert!(bad.len() == 4 && bad.iter().all(|a| !a.is_object) && good.is_object);
        assert_eq!(good.bbox, Some([1.0, 2.0, 3.0, 4.5]));
        assert_eq!((good.id.as_str(), good.crowd, good.ignore, good.keypoints), ("2", false, false, 17));
    }

    #[test]
    fn boxes_come_from_polygons_where_there_are_none() {
        let polygon = r#""segmentation": [[10, 20, 40, 20, 40, 60]]"#;
        let of = |bbox: &str| {
            let text = format!(r#"{{"images": [], "annotations": [{{{bbox} {polygon}}}]}}"#);
            let annotation = parse(&text).unwrap().annotations.remove(0);
            (annotation.bbox.unwrap(), annotation.outlined)
        };
        let outline = ([10.0, 20.0, 30.0, 40.0], true);
        for bbox in ["", "\"bbox\": [],", "\"bbox\": null,", "\"bbox\": [0, 0, 0, 0],", "\"bbox\": [1, 2],"] {
            assert_eq!(of(bbox), outline, "{bbox}");
        }
        assert_eq!(of("\"bbox\": [1, 2, 3, 4],"), ([1.0, 2.0, 3.0, 4.0], false));
    }

    #[test]
    fn marks_of_windows_tools_are_read_or_named() {
        let text = r#"{"images": [], "annotations": []}"#;
        assert!(parse(&format!("\u{feff}{text}")).is_ok());
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let wide: Vec<u8> = "\u{feff}{}".encode_utf16().flat_map(u16::to_le_bytes).collect();
        std::io::Write::write_all(&mut file, &wide).unwrap();
        let error = read(file.path(), "person", BoxFormat::Xywh).unwrap_err().to_string();
        assert!(error.contains("UTF-16"), "{error}");
    }

    #[test]
    fn persons_are_found_by_name_not_by_number() {
        let with = |categories: &str| {
            parse(&format!(
                r#"{{"images": [], "categories": {categories}, "annotations":
                    [{{"category_id": 1}}, {{"category_id": 793}}, {{}}]}}"#
            ))
        };
        let wanted = |c: &str| with(c).unwrap().annotations.iter().map(|a| a.wanted).collect::<Vec<_>>();
        assert_eq!(
            wanted(r#"[{"id": 1, "name": "car"}, {"id": 793, "name": "Person"}]"#),
            [false, true, false]
        );
        assert_eq!(wanted(r#"[{"id": 1}, {"id": 2}]"#), [true, false, false]);
        assert_eq!(wanted("[]"), [true, true, true]);
        assert_eq!(wanted(r#"[{"id": 793, "name": "person"}]"#), [false, true, true]);
        let error = with(r#"[{"id": 1, "name": "car"}]"#).unwrap_err().to_string();
        assert!(
            error.contains("`person`") && error.contains("car") && error.contains("--category"),
            "{error}"
        );
    }

    #[test]
    fn what_is_no_annotation_file_is_named() {
        for (text, hint) in [
            ("", "EOF"),
            ("[1, 2]", "COCO-style"),
            ("[]", "is no JSON object; expected COCO-style"),
            ("[[], [], []]", "is no JSON object; expected COCO-style"),
            ("7", "is no JSON object; expected COCO-style"),
            (r#"{"annotations": []}"#, "`images`"),
            (r#"{"images": []}"#, "`annotations`"),
            (r#"{"images": [{"id": 1}], "annotations": []}"#, "`file_name`"),
            (r#"{"images": [{"file_name": "a"}], "annotations": []}"#, "`id`"),
            (r#"{"images": [7, null], "annotations": []}"#, "images[0] is no object"),
            (r#"{"images": 7, "annotations": []}"#, "COCO-style"),
            (r#"{"images": [], "annotations": [{"bbox": [1, 2"#, "EOF"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
        assert!(parse(&"[".repeat(100_000)).is_err());
    }
}
