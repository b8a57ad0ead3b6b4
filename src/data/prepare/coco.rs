//! COCO-style annotation files, read leniently: whatever cropping does not need is passed over without being
//! stored, whatever it needs may be missing or ill-typed in single annotations without losing the others.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};

use super::json::PythonJson;
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
}

/// One entry of `annotations`, reduced to what cropping needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Annotation {
    /// `id`, or `n` and the position in the list where it has none.
    pub id: String,
    pub image_id: String,
    /// `[x, y, width, height]` in pixels: finite numbers, nothing more is promised. `None`: missing or no such list.
    pub bbox: Option<[f64; 4]>,
    /// Labelled keypoints: `num_keypoints`, else those with a visibility flag above 0; 0 without keypoints.
    pub keypoints: u32,
    pub crowd: bool,
    /// `ignore`, by which converted detection sets mark regions that are no single person.
    pub ignore: bool,
    /// Whether its category is the wanted one.
    pub wanted: bool,
}

/// An annotation file in document order.
#[derive(Clone, Debug)]
pub struct CocoFile {
    pub images: Vec<ImageRecord>,
    pub annotations: Vec<Annotation>,
}

/// Reads `path`, marking the annotations of `category` as wanted. Where the file lists no categories, all are wanted.
///
/// # Errors
/// A file that cannot be read, is no COCO-style JSON, or lists categories among which `category` is not.
pub fn read(path: &Path, category: &str) -> Result<CocoFile> {
    let file = File::open(path).map_err(|e| Error::io(path, "read", e))?;
    let reader = BufReader::with_capacity(1 << 20, file);
    let raw: RawFile = serde_json::from_reader(PythonJson::new(reader)).map_err(|e| {
        if e.is_io() {
            Error::io(path, "read", e.into())
        } else {
            Error::file(path, format!("{e}; {EXPECTED}"))
        }
    })?;
    let images = raw.images.ok_or_else(|| Error::file(path, format!("has no `images`; {EXPECTED}")))?;
    let annotations =
        raw.annotations.ok_or_else(|| Error::file(path, format!("has no `annotations`; {EXPECTED}")))?;
    let wanted =
        Wanted::of(&raw.categories.unwrap_or_default(), category).map_err(|m| Error::file(path, m))?;
    let images = image_records(images).map_err(|m| Error::file(path, format!("{m}; {EXPECTED}")))?;
    let annotations = annotations.into_iter().enumerate().map(|(i, a)| a.reduce(i, &wanted)).collect();
    Ok(CocoFile { images, annotations })
}

fn image_records(raw: Vec<RawImage>) -> Result<Vec<ImageRecord>, String> {
    let mut first_of: HashMap<String, usize> = HashMap::with_capacity(raw.len());
    let mut records = Vec::with_capacity(raw.len());
    for (index, image) in raw.into_iter().enumerate() {
        let size =
            image.width.good().zip(image.height.good()).and_then(|(w, h)| Some([pixels(w)?, pixels(h)?]));
        let id = image.id.text().ok_or_else(|| format!("images[{index}] has no `id`"))?;
        let file_name = image.file_name.good().or_else(|| image.coco_url.good().and_then(|u| url_tail(&u)));
        let file_name = file_name.ok_or_else(|| format!("images[{index}] (id {id}) has no `file_name`"))?;
        if let Some(first) = first_of.insert(id.clone(), index) {
            return Err(format!("images[{index}] has the same `id` ({id}) as images[{first}]"));
        }
        records.push(ImageRecord { id, file_name: file_name.replace('\\', "/"), size });
    }
    Ok(records)
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
        let is_named =
            |c: &RawCategory| c.name.as_ref().good().is_some_and(|n| n.trim().eq_ignore_ascii_case(name));
        let mut ids: Vec<String> =
            categories.iter().filter(|c| is_named(c)).filter_map(|c| c.id.text()).collect();
        if ids.is_empty() {
            // COCO's own numbering, for lists that number their categories without naming them.
            let unnamed = |c: &&RawCategory| c.name.as_ref().good().is_none_or(|n| n.trim().is_empty());
            ids = categories
                .iter()
                .filter(unnamed)
                .filter_map(|c| c.id.text())
                .filter(|id| id == "1")
                .collect();
        }
        if ids.is_empty() {
            let known: Vec<&str> = categories
                .iter()
                .take(20)
                .filter_map(|c| c.name.as_ref().good().map(String::as_str))
                .collect();
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

#[derive(Deserialize)]
struct RawFile {
    images: Option<Vec<RawImage>>,
    annotations: Option<Vec<RawAnnotation>>,
    categories: Option<Vec<RawCategory>>,
}

#[derive(Deserialize)]
struct RawImage {
    #[serde(default)]
    id: Loose<RawId>,
    #[serde(default)]
    file_name: Loose<String>,
    #[serde(default)]
    coco_url: Loose<String>,
    #[serde(default)]
    width: Loose<f64>,
    #[serde(default)]
    height: Loose<f64>,
}

#[derive(Deserialize)]
struct RawCategory {
    #[serde(default)]
    id: Loose<RawId>,
    #[serde(default)]
    name: Loose<String>,
}

#[derive(Deserialize)]
struct RawAnnotation {
    #[serde(default)]
    id: Loose<RawId>,
    #[serde(default)]
    image_id: Loose<RawId>,
    #[serde(default)]
    category_id: Loose<RawId>,
    #[serde(default)]
    bbox: NumberList,
    #[serde(default)]
    keypoints: NumberList,
    #[serde(default)]
    num_keypoints: Loose<f64>,
    #[serde(default)]
    iscrowd: Loose<Flag>,
    #[serde(default)]
    ignore: Loose<Flag>,
}

impl RawAnnotation {
    fn reduce(self, index: usize, wanted: &Wanted) -> Annotation {
        let bbox =
            (self.bbox.count == 4).then_some(self.bbox.first).filter(|b| b.iter().all(|v| v.is_finite()));
        let stated = self.num_keypoints.good().filter(|n| *n >= 0.0).map(|n| n as u32);
        Annotation {
            id: self.id.text().unwrap_or_else(|| format!("n{index}")),
            image_id: self.image_id.text().unwrap_or_default(),
            bbox,
            keypoints: stated.unwrap_or(self.keypoints.visible),
            crowd: self.iscrowd.good().is_some_and(|f| f.set()),
            ignore: self.ignore.good().is_some_and(|f| f.set()),
            wanted: wanted.has(self.category_id.text().as_deref()),
        }
    }
}

/// A value of the expected type, or anything else, kept apart so that one odd field does not lose the file.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Loose<T> {
    Good(T),
    Other(IgnoredAny),
}

impl<T> Default for Loose<T> {
    fn default() -> Self {
        Loose::Other(IgnoredAny)
    }
}

impl<T> Loose<T> {
    fn good(self) -> Option<T> {
        match self {
            Loose::Good(value) => Some(value),
            Loose::Other(_) => None,
        }
    }

    fn as_ref(&self) -> Loose<&T> {
        match self {
            Loose::Good(value) => Loose::Good(value),
            Loose::Other(_) => Loose::Other(IgnoredAny),
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawId {
    Integer(i64),
    Unsigned(u64),
    Float(f64),
    Text(String),
}

impl Loose<RawId> {
    /// `7`, `7.0` and `"7"` are the same identifier: tools that pass tables around change one into the other.
    fn text(&self) -> Option<String> {
        match self.as_ref().good()? {
            RawId::Integer(n) => Some(n.to_string()),
            RawId::Unsigned(n) => Some(n.to_string()),
            RawId::Float(f) => (f.is_finite() && f.fract() == 0.0).then(|| format!("{f:.0}")),
            RawId::Text(s) => (!s.is_empty()).then(|| s.clone()),
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Flag {
    Bool(bool),
    Number(f64),
}

impl Flag {
    fn set(&self) -> bool {
        match self {
            Flag::Bool(b) => *b,
            Flag::Number(n) => *n != 0.0,
        }
    }
}

/// A list of numbers seen once, of which a few facts are kept: a file holds millions of keypoints.
struct NumberList {
    count: usize,
    /// The first four; what is no number is NaN.
    first: [f64; 4],
    /// Triples (x, y, visibility) whose visibility is above 0.
    visible: u32,
}

impl Default for NumberList {
    fn default() -> Self {
        NumberList { count: 0, first: [f64::NAN; 4], visible: 0 }
    }
}

impl<'de> Deserialize<'de> for NumberList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumberListVisitor)
    }
}

struct NumberListVisitor;

/// What is no list counts as an absent one.
macro_rules! absent {
    ($($method:ident($ty:ty)),*) => {
        $(fn $method<E>(self, _: $ty) -> Result<NumberList, E> { Ok(NumberList::default()) })*
    };
}

impl<'de> Visitor<'de> for NumberListVisitor {
    type Value = NumberList;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a list of numbers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<NumberList, A::Error> {
        let mut list = NumberList::default();
        while let Some(value) = seq.next_element::<Loose<f64>>()? {
            let value = value.good().unwrap_or(f64::NAN);
            if let Some(slot) = list.first.get_mut(list.count) {
                *slot = value;
            }
            if list.count % 3 == 2 && value > 0.0 {
                list.visible = list.visible.saturating_add(1);
            }
            list.count += 1;
        }
        Ok(list)
    }

    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<NumberList, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(NumberList::default())
    }

    absent!(visit_bool(bool), visit_i64(i64), visit_u64(u64), visit_f64(f64), visit_str(&str));

    fn visit_unit<E>(self) -> Result<NumberList, E> {
        Ok(NumberList::default())
    }
}

/// Reads a whole annotation file from memory; for tests of the parser.
#[cfg(test)]
fn parse(text: &str) -> Result<CocoFile> {
    let mut file = tempfile::NamedTempFile::new().map_err(|e| Error::io("temporary file", "create", e))?;
    std::io::Write::write_all(&mut file, text.as_bytes()).map_err(|e| Error::io(file.path(), "write", e))?;
    read(file.path(), "person")
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
                  {"id": 11, "bbox": [1, 2, "3", 4], "keypoints": "none", "iscrowd": 0},
                  {"id": 12, "image_id": 2, "bbox": [1, 2, 3, 4, 5]}]}"#,
        )
        .unwrap();
        assert_eq!(
            file.images[0],
            ImageRecord { id: "a".into(), file_name: "d/x.jpg".into(), size: Some([64, 48]) }
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
            (r#"{"annotations": []}"#, "`images`"),
            (r#"{"images": []}"#, "`annotations`"),
            (r#"{"images": [{"id": 1}], "annotations": []}"#, "`file_name`"),
            (r#"{"images": [{"file_name": "a"}], "annotations": []}"#, "`id`"),
            (
                r#"{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}], "annotations": []}"#,
                "same `id`",
            ),
            (r#"{"images": [], "annotations": [{"bbox": [1, 2"#, "EOF"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
        assert!(parse(&"[".repeat(100_000)).is_err());
    }
}
