//! Labelled images to try frozen features on: who is on them and which camera took them, or which class they are of.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use image::RgbImage;

use crate::data::decode::load_file;
use crate::data::left_out::LeftOut;
use crate::data::market::{Labelled, RetrievalSet, has_layout, parse_name};
use crate::data::source::{FileSource, ImageSource};
use crate::error::{Error, Result};
use crate::units::shown;

/// Folders of classes that hold the images to vote, and those to classify.
const TRAIN: &str = "train";
const TEST: [&str; 3] = ["test", "val", "validation"];
const EXPECTED: &str = "expected Market-1501's layout (`query` and `bounding_box_test`), one folder of images named \
                        <identity>_c<camera>..., or a folder for each class (perhaps below `train` and `val` or `test`)";

/// Image files named one by one.
struct Files(Vec<PathBuf>);

impl ImageSource for Files {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn name(&self, i: usize) -> String {
        shown(&self.0[i])
    }
    fn load(&self, i: usize) -> Result<RgbImage> {
        load_file(&self.0[i])
    }
}

/// Images for retrieval, split into queries and gallery.
#[derive(Clone)]
pub struct PersonSet {
    pub source: Arc<dyn ImageSource>,
    pub identities: Vec<i64>,
    pub cameras: Vec<i64>,
    /// Indices into the source.
    pub query: Vec<usize>,
    pub gallery: Vec<usize>,
    /// What was found beside the images and is not among them.
    pub left_out: Vec<LeftOut>,
}

impl PersonSet {
    /// The images of `set`; each is read once, whether it is query, gallery or both.
    ///
    /// # Errors
    /// [`Error::Invariant`] when an image is lost.
    pub fn new(set: RetrievalSet) -> Result<Self> {
        // A flat folder lists its images on both sides.
        let mut all: Vec<_> = set.query.iter().chain(&set.gallery).cloned().collect();
        all.sort_by(|a, b| a.path.cmp(&b.path));
        all.dedup_by(|a, b| a.path == b.path);
        let find = |image: &Labelled| {
            all.binary_search_by(|l| l.path.cmp(&image.path))
                .map_err(|_| Error::invariant("labelled images", "an image is lost"))
        };
        Ok(PersonSet {
            query: set.query.iter().map(find).collect::<Result<_>>()?,
            gallery: set.gallery.iter().map(find).collect::<Result<_>>()?,
            identities: all.iter().map(|l| l.identity).collect(),
            cameras: all.iter().map(|l| l.camera).collect(),
            left_out: set.left_out,
            source: Arc::new(Files(all.into_iter().map(|l| l.path).collect())),
        })
    }
}

/// Images in folders that are named as their classes.
#[derive(Clone)]
pub struct ClassSet {
    pub source: Arc<dyn ImageSource>,
    /// Names of the classes, sorted.
    pub names: Vec<String>,
    /// The class of each image, an index into `names`.
    pub labels: Vec<i64>,
    /// Images that vote and images that are classified; `None`: each is classified by all others.
    pub split: Option<(Vec<usize>, Vec<usize>)>,
    /// What was found beside the images and is not among them.
    pub left_out: Vec<LeftOut>,
}

/// What a folder can be evaluated by.
pub enum LabelledSet {
    Persons(PersonSet),
    Classes(ClassSet),
}

impl LabelledSet {
    /// What was found beside the images and is not among them.
    pub fn left_out(&self) -> &[LeftOut] {
        match self {
            LabelledSet::Persons(set) => &set.left_out,
            LabelledSet::Classes(set) => &set.left_out,
        }
    }

    /// Reads the labels of a folder: Market-1501's layout, one folder of images with Market-1501's names, or a folder
    /// for each class. Says in lines what was left out.
    ///
    /// # Errors
    /// A folder that cannot be read or has another layout.
    pub fn open(folder: &Path) -> Result<(Self, Vec<String>)> {
        let found = std::fs::metadata(folder).map_err(|e| Error::io(folder, "read the folder", e))?;
        if !found.is_dir() {
            return Err(Error::file(folder, format!("is no folder; {EXPECTED}")));
        }
        let persons = |notes| {
            let set = PersonSet::new(RetrievalSet::open(folder)?)?;
            Ok((LabelledSet::Persons(set), notes))
        };
        if has_layout(folder)? {
            return persons(Vec::new());
        }
        let source = FileSource::folder(folder)?;
        let names: Vec<PathBuf> = (0..source.len()).map(|i| source.name(i).into()).collect();
        let (within, loose): (Vec<_>, Vec<_>) = names.iter().partition(|n| n.components().count() > 1);
        let labelled = loose.iter().filter(|n| parse_name(&n.to_string_lossy()).is_some()).count();
        if within.is_empty() || labelled > 0 {
            let below =
                format!("{} images in folders below {} do not take part", within.len(), folder.display());
            return persons(if within.is_empty() { Vec::new() } else { vec![below] });
        }
        let mut notes = Vec::new();
        let count = loose.len();
        if count > 0 {
            notes.push(format!(
                "{count} images directly in {} are of no class and do not take part",
                folder.display()
            ));
        }
        Ok((LabelledSet::Classes(classes(folder, Arc::new(source), &names)?), notes))
    }
}

/// The parts of a path below the folder.
fn parts(name: &Path) -> Vec<String> {
    name.components()
        .filter_map(|c| match c {
            Component::Normal(part) => Some(part.to_string_lossy().into_owned()),
            _ => None,
        })
        .collect()
}

fn classes(folder: &Path, source: Arc<dyn ImageSource>, names: &[PathBuf]) -> Result<ClassSet> {
    let paths: Vec<Vec<String>> = names.iter().map(|n| parts(n)).collect();
    let first = |part: &str| paths.iter().any(|p| p.len() > 2 && p[0] == part);
    let test = TEST.into_iter().find(|part| first(part)).filter(|_| first(TRAIN));
    // Where the class stands in the path, and the images that have one.
    let depth = usize::from(test.is_some());
    let taken = |p: &[String]| p.len() > depth + 1 && test.is_none_or(|test| p[0] == TRAIN || p[0] == test);
    let mut of: BTreeMap<&str, i64> =
        paths.iter().filter(|p| taken(p)).map(|p| (p[depth].as_str(), 0)).collect();
    if of.len() < 2 {
        return Err(Error::file(folder, format!("holds images of {} class; {EXPECTED}", of.len())));
    }
    of.values_mut().zip(0..).for_each(|(number, i)| *number = i);
    let kept: Vec<usize> = (0..paths.len()).filter(|i| taken(&paths[*i])).collect();
    let labels = kept.iter().map(|i| of[paths[*i][depth].as_str()]).collect();
    let split = test.map(|_| (0..kept.len()).partition(|i| paths[kept[*i]][0] == TRAIN));
    let names = of.keys().map(|name| (*name).to_owned()).collect();
    let left_out = source.left_out().to_vec();
    Ok(ClassSet { source: Arc::new(Part { source, kept }), names, labels, split, left_out })
}

/// Some images of a source.
struct Part {
    source: Arc<dyn ImageSource>,
    kept: Vec<usize>,
}

impl ImageSource for Part {
    fn len(&self) -> usize {
        self.kept.len()
    }
    fn name(&self, i: usize) -> String {
        self.source.name(self.kept[i])
    }
    fn load(&self, i: usize) -> Result<RgbImage> {
        self.source.load(self.kept[i])
    }
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

    fn class_set(files: &[&str]) -> (ClassSet, Vec<String>) {
        match LabelledSet::open(folder(files).path()).unwrap() {
            (LabelledSet::Classes(set), notes) => (set, notes),
            _ => panic!("persons"),
        }
    }

    #[test]
    fn folders_are_classes() {
        let (set, notes) = class_set(&["dog/1.jpg", "cat/a/2.jpg", "dog/0.png", "cover.jpg"]);
        assert_eq!(set.names, ["cat", "dog"]);
        assert_eq!((set.labels, set.source.len()), (vec![0, 1, 1], 3));
        assert!(set.split.is_none());
        assert!(notes[0].starts_with("1 images directly in"), "{notes:?}");
        let (set, _) = class_set(&["train/a/1.jpg", "train/b/2.jpg", "val/b/3.jpg", "other/c/4.jpg"]);
        assert_eq!((set.names, set.labels), (vec!["a".to_owned(), "b".into()], vec![0, 1, 1]));
        assert_eq!(set.split, Some((vec![0, 1], vec![2])));
        // A class that is called train is one.
        assert_eq!(class_set(&["train/1.jpg", "bus/2.jpg"]).0.names, ["bus", "train"]);
    }

    #[test]
    fn persons_are_known_by_layout_or_name() {
        for files in [["query/1_c1.jpg", "bounding_box_test/1_c2.jpg"], ["1_c1.jpg", "1_c2.jpg"]] {
            let set = LabelledSet::open(folder(&files).path()).unwrap().0;
            assert!(matches!(set, LabelledSet::Persons(_)), "{files:?}");
        }
        let e = |files: &[&str]| LabelledSet::open(folder(files).path()).err().unwrap().to_string();
        assert!(e(&["a/1.jpg", "a/2.jpg"]).contains("1 class"));
        assert!(e(&["a.jpg", "b.jpg"]).contains("Market-1501"));
        assert!(e(&["readme.txt"]).contains("no images"));
    }
}
