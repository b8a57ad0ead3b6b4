//! Labelled person images with Market-1501's layout and file names.

use std::path::{Path, PathBuf};

use crate::data::left_out::{self, LeftOut};
use crate::data::listing;
use crate::error::{Error, Result};

/// One labelled image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labelled {
    pub path: PathBuf,
    /// Who is on it; 0 for a distractor, which is nobody's match.
    pub identity: i64,
    pub camera: i64,
}

/// What retrieval is measured on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetrievalSet {
    pub query: Vec<Labelled>,
    pub gallery: Vec<Labelled>,
    /// What lies beside them and is no picture that can be read.
    pub left_out: Vec<LeftOut>,
}

const QUERY: &str = "query";
const GALLERY: &str = "bounding_box_test";
const EXPECTED: &str = "expected Market-1501's layout (the folders `query` and `bounding_box_test`), or one folder of \
                        images named <identity>_c<camera>..., such as 0002_c1s1_000451_03.jpg";

impl RetrievalSet {
    /// Reads the labels of a folder: Market-1501's folders in it or one level below, or else one flat folder, whose
    /// images are both query and gallery (the metrics hide each query's own camera, so no image finds itself).
    ///
    /// Identity -1 (junk) is dropped everywhere; identity 0 (distractors) stays in the gallery and is never a query.
    /// Both lists are in the order of their file names.
    ///
    /// # Errors
    /// A folder that cannot be read, has another layout, holds an image with another name, or no query or gallery.
    pub fn open(path: &Path) -> Result<Self> {
        let meta = std::fs::metadata(path).map_err(|e| Error::io(path, "read the folder", e))?;
        if !meta.is_dir() {
            return Err(Error::file(path, format!("is no folder; {EXPECTED}")));
        }
        let mut left_out = Vec::new();
        let mut read = |folder: &Path, part: &str| read_folder(folder, part, &mut left_out);
        let (mut query, gallery) = match root_of(path)? {
            Some(root) => (read(&root.join(QUERY), QUERY)?, read(&root.join(GALLERY), GALLERY)?),
            None => {
                let images = read(path, "")?;
                (images.clone(), images)
            }
        };
        query.retain(|image| image.identity != 0);
        for (what, list) in [("query", &query), ("gallery", &gallery)] {
            if list.is_empty() {
                return Err(Error::file(path, format!("has no {what} image of a known person; {EXPECTED}")));
            }
        }
        Ok(RetrievalSet { query, gallery, left_out })
    }
}

/// Whether `path` has Market-1501's folders, in it or in one below.
///
/// # Errors
/// As [`RetrievalSet::open`], where the layout is half there.
pub fn has_layout(path: &Path) -> Result<bool> {
    Ok(root_of(path)?.is_some())
}

/// Where Market-1501's folders are: in `path`, or in its only such sub-folder; `None` where `path` has no such folder.
fn root_of(path: &Path) -> Result<Option<PathBuf>> {
    let has = |root: &Path, name: &str| root.join(name).is_dir();
    let parts = [QUERY, GALLERY];
    let mut roots = vec![path.to_owned()];
    for entry in std::fs::read_dir(path).map_err(|e| Error::io(path, "read the folder", e))? {
        let entry = entry.map_err(|e| Error::io(path, "read the folder", e))?.path();
        // The archive unpacks into a folder of its own: Market-1501-v15.09.15.
        if entry.is_dir() {
            roots.push(entry);
        }
    }
    roots.retain(|root| parts.iter().any(|part| has(root, part)));
    roots.sort();
    let root = match roots.as_slice() {
        [] => return Ok(None),
        [first, ..] if first == path => first,
        [only] => only,
        [first, second, ..] => {
            return Err(Error::file(
                path,
                format!("holds several sets: {} and {}; name one of them", first.display(), second.display()),
            ));
        }
    };
    match parts.iter().find(|part| !has(root, part)) {
        Some(missing) => Err(Error::file(root, format!("has no folder `{missing}`; {EXPECTED}"))),
        None => Ok(Some(root.clone())),
    }
}

/// All labelled images directly in `folder`, junk left out, by file name. What is no picture that can be read joins
/// `left_out` with `part`, the folder's name, before its own.
fn read_folder(folder: &Path, part: &str, left_out: &mut Vec<LeftOut>) -> Result<Vec<Labelled>> {
    std::fs::read_dir(folder).map_err(|e| Error::io(folder, "read the folder", e))?;
    let listing = listing::list(folder, 1, &|_| true);
    let mut images = Vec::with_capacity(listing.files.len());
    for file in listing.files {
        let path = folder.join(&file);
        let (identity, camera) = parse_name(&file.to_string_lossy()).ok_or_else(|| {
            Error::file(
                &path,
                format!("its name does not say who is on it and which camera took it; {EXPECTED}"),
            )
        })?;
        if identity != -1 {
            images.push(Labelled { path, identity, camera });
        }
    }
    if images.is_empty() {
        let lost = left_out::clause("images", &listing.left_out);
        return Err(Error::file(folder, format!("holds no labelled image; {EXPECTED}{lost}")));
    }
    let named =
        |l: LeftOut| if part.is_empty() { l } else { LeftOut { name: format!("{part}/{}", l.name), ..l } };
    left_out.extend(listing.left_out.into_iter().map(named));
    Ok(images)
}

/// The first match of `([-\d]+)_c(\d+)` in `name`: identity and camera. (Market-1501's own pattern takes one digit
/// for the camera; its six cameras read the same, and sets with ten and more keep theirs apart.)
pub fn parse_name(name: &str) -> Option<(i64, i64)> {
    let bytes = name.as_bytes();
    let is_label = |b: &u8| b.is_ascii_digit() || *b == b'-';
    let mut start = 0;
    while start < bytes.len() {
        let length = bytes[start..].iter().take_while(|b| is_label(b)).count();
        let end = start + length;
        if length > 0 && bytes[end..].starts_with(b"_c") {
            let digits = bytes[end + 2..].iter().take_while(|b| b.is_ascii_digit()).count();
            if digits > 0 {
                // Both ends lie next to ASCII characters, so they are character boundaries.
                let identity = name.get(start..end)?.parse().ok()?;
                return Some((identity, name.get(end + 2..end + 2 + digits)?.parse().ok()?));
            }
        }
        start = end.max(start + 1);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use tempfile::TempDir;

    fn folder(files: &[&str]) -> TempDir {
        let dir = TempDir::new().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        dir
    }

    fn labels(list: &[Labelled]) -> Vec<(i64, i64)> {
        list.iter().map(|l| (l.identity, l.camera)).collect()
    }

    #[test]
    fn names_are_read_as_the_pattern_says() {
        for (name, want) in [
            ("0002_c1s1_000451_03.jpg", Some((2, 1))),
            ("-1_c3s2_000551_02.jpg", Some((-1, 3))),
            ("0000_c6s3_077467_04.jpg", Some((0, 6))),
            ("0005_c2_f0046985.jpg", Some((5, 2))),
            ("12_c15.png", Some((12, 15))),
            ("set9_0007_c2.jpg", Some((7, 2))),
            ("3_cx_4_c5.jpg", Some((4, 5))),
            ("ü7_c1é.jpg", Some((7, 1))),
            ("0002_s1.jpg", None),
            ("_c1.jpg", None),
            ("--_c1.jpg", None),
            ("99999999999999999999_c1.jpg", None),
            ("", None),
        ] {
            assert_eq!(parse_name(name), want, "{name}");
        }
    }

    #[test]
    fn market_layout_is_found_here_or_one_level_below() {
        let files = [
            "query/0002_c1s1_000451_03.jpg",
            "query/0001_c2s1_000451_03.jpg",
            "query/Thumbs.db",
            "query/._0001_c2s1_000451_03.jpg",
            "bounding_box_test/-1_c1s1_000401_03.jpg",
            "bounding_box_test/0000_c1s1_000151_01.jpg",
            "bounding_box_test/0002_c3s1_000551_01.JPG",
            "bounding_box_train/0900_c3s1_000551_01.jpg",
        ];
        let direct = folder(&files);
        let nested =
            folder(&files.map(|f| format!("Market-1501-v15.09.15/{f}")).each_ref().map(|f| f.as_str()));
        for dir in [&direct, &nested] {
            let set = RetrievalSet::open(dir.path()).unwrap();
            assert_eq!(labels(&set.query), [(1, 2), (2, 1)]);
            assert_eq!(labels(&set.gallery), [(0, 1), (2, 3)]);
            let names: Vec<&str> = set.left_out.iter().map(|l| l.name.as_str()).collect();
            assert_eq!(names, ["query/._0001_c2s1_000451_03.jpg"]);
            assert!(set.gallery.iter().all(|l| l.path.is_file()));
        }
    }

    #[test]
    fn a_flat_folder_is_both_query_and_gallery() {
        let dir = folder(&["1_c1.png", "1_c2.png", "0_c1.png", "-1_c1.png", "notes.txt"]);
        let set = RetrievalSet::open(dir.path()).unwrap();
        assert_eq!(labels(&set.query), [(1, 1), (1, 2)]);
        assert_eq!(labels(&set.gallery), [(0, 1), (1, 1), (1, 2)]);
    }

    #[test]
    fn what_is_no_such_folder_is_explained() {
        let says = |files: &[&str], below: &str, what: &str| {
            let dir = folder(files);
            let error = RetrievalSet::open(&dir.path().join(below)).unwrap_err().to_string();
            assert!(error.contains(what) && error.contains(dir.path().to_str().unwrap()), "{error}");
        };
        says(&[], "", "Market-1501");
        says(&[], "absent", "absent");
        says(&["1_c1.jpg"], "1_c1.jpg", "no folder");
        says(&["query/1_c1.jpg"], "", "no folder `bounding_box_test`");
        says(&["a/query/1_c1.jpg", "b/query/1_c1.jpg"], "", "several sets");
        says(&["1_c1.jpg", "holiday.jpg"], "", "holiday.jpg");
        says(&["0_c1.jpg"], "", "no query");
    }
}
