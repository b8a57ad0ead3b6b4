//! Pictures with classes: what their source tells, or the rows of a table beside them.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use image::RgbImage;

use super::image_source::ImageSource;
use super::table;
use crate::data::left_out::LeftOut;
use crate::data::sample::Labels;
use crate::error::{Error, Result};
use crate::units::shown;

/// How images come to have classes.
const REMEDY: &str = "give a folder with a subfolder for each class, or a table of images (columns file,label), or name such a \
                      table beside the images with `data.labels`";

/// Pictures, each of one class.
pub struct ClassSource {
    source: Box<dyn ImageSource>,
    /// Sorted.
    names: Vec<String>,
    /// The class of each picture, an index into `names`.
    of: Vec<u32>,
}

impl ClassSource {
    /// The pictures of `source`, opened from `path`, with their classes: what `table` says, or else the source itself.
    ///
    /// # Errors
    /// [`Error::File`] for pictures without a label, labels without a picture, a table that is none, and fewer than two
    /// classes, each with the remedy.
    pub fn new(source: Box<dyn ImageSource>, path: &Path, table: Option<&Path>) -> Result<Self> {
        let labels = match table {
            Some(table) => by_table(&*source, path, table)?,
            None => by_source(&*source, path)?,
        };
        let names: Vec<String> = labels.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect();
        if let [only] = &names[..] {
            let message =
                format!("all images are of one class, `{only}`: there is nothing to tell apart; {REMEDY}");
            return Err(Error::file(table.unwrap_or(path), message));
        }
        let number: HashMap<&str, u32> = names.iter().map(String::as_str).zip(0..).collect();
        let of = labels.iter().map(|l| number[l.as_str()]).collect();
        Ok(ClassSource { source, names, of })
    }

    /// Names of the classes, in the order of their numbers.
    pub fn names(&self) -> &[String] {
        &self.names
    }
}

impl ImageSource for ClassSource {
    fn len(&self) -> usize {
        self.source.len()
    }
    fn name(&self, i: usize) -> String {
        self.source.name(i)
    }
    fn load(&self, i: usize) -> Result<RgbImage> {
        self.source.load(i)
    }
    fn left_out(&self) -> &[LeftOut] {
        self.source.left_out()
    }
    fn class(&self, i: usize) -> Option<String> {
        self.names.get(*self.of.get(i)? as usize).cloned()
    }
    fn holds(&self, name: &Path) -> bool {
        self.source.holds(name)
    }
    fn labels(&self, i: usize) -> Labels {
        Labels { class: self.of.get(i).copied() }
    }
}

/// What the source says of every picture.
fn by_source(source: &dyn ImageSource, path: &Path) -> Result<Vec<String>> {
    let labels: Vec<Option<String>> = (0..source.len()).map(|i| source.class(i)).collect();
    all(labels, |without, all, first| {
        let message =
            format!("{without} of {all} images have no class, the first is {}: {REMEDY}", source.name(first));
        Error::file(path, message)
    })
}

/// What the rows of `table` say of every picture.
fn by_table(source: &dyn ImageSource, path: &Path, table: &Path) -> Result<Vec<String>> {
    let rows = table::read(table)?;
    let mut by_name: HashMap<String, _> = rows.into_iter().map(|row| (shown(&row.file), row)).collect();
    let name = |i: usize| table::plain(Path::new(&source.name(i))).display().to_string();
    let labels: Vec<Option<String>> =
        (0..source.len()).map(|i| by_name.remove(&name(i)).map(|row| row.label)).collect();
    // What is there and not among the pictures is told as left out, labelled or not.
    by_name.retain(|_, row| !source.holds(&row.file));
    if let Some(row) = by_name.values().min_by_key(|row| row.line) {
        let message = format!(
            "{} of its rows name files that are not in {}, the first is {} (line {}): names are relative to the images' folder. \
             Mend the table, or point `data.path` to these images",
            by_name.len(),
            path.display(),
            shown(&row.file),
            row.line
        );
        return Err(Error::file(table, message));
    }
    all(labels, |without, all, first| {
        let message = format!(
            "{without} of {all} images of {} have no row, the first is {}: add rows for them, or take the images away",
            path.display(),
            source.name(first)
        );
        Error::file(table, message)
    })
}

/// All labels, or the error of how many there are not, of how many, and which is the first.
fn all(labels: Vec<Option<String>>, none: impl Fn(usize, usize, usize) -> Error) -> Result<Vec<String>> {
    match labels.iter().position(Option::is_none) {
        Some(first) => Err(none(labels.iter().filter(|l| l.is_none()).count(), labels.len(), first)),
        None => Ok(labels.into_iter().flatten().collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::source::open_source;
    use std::fs;
    use tempfile::TempDir;

    fn open(path: &Path, table: Option<&Path>) -> Result<ClassSource> {
        ClassSource::new(open_source(path)?, path, table)
    }

    fn folder(files: &[(&str, &str)]) -> TempDir {
        let dir = TempDir::new().unwrap();
        for (file, text) in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn labelled(source: &ClassSource) -> Vec<(String, &str)> {
        let class = |i| &*source.names()[source.labels(i).class.unwrap() as usize];
        (0..source.len()).map(|i| (source.name(i), class(i))).collect()
    }

    fn refused(dir: &TempDir, path: &str, table: Option<&str>, says: &[&str]) {
        let table = table.map(|t| dir.path().join(t));
        let e = open(&dir.path().join(path), table.as_deref()).err().unwrap().to_string();
        assert!(says.iter().all(|part| e.contains(part)), "{e}");
    }

    #[test]
    fn a_subfolder_is_a_class() {
        let dir = folder(&[("dog/1.jpg", ""), ("cat/deep/2.jpg", ""), ("dog/0.png", ""), ("readme.txt", "")]);
        let source = open(dir.path(), None).unwrap();
        assert_eq!(source.names(), ["cat", "dog"]);
        let of = |name: &str, class| (name.to_owned(), class);
        assert_eq!(
            labelled(&source),
            [of("cat/deep/2.jpg", "cat"), of("dog/0.png", "dog"), of("dog/1.jpg", "dog")]
        );
        assert_eq!(source.labels(3).class, None);
    }

    #[test]
    fn a_table_tells_the_classes_of_a_folder_and_of_a_list() {
        let dir = folder(&[
            ("i/a.jpg", ""),
            ("i/b/c.jpg", ""),
            ("i/d.png", "no png"),
            ("i/e.heic", ""),
            (
                "labels.csv",
                "\u{feff}label, camera, file\nx, 1, ./a.jpg\ny, 2, b/c.jpg\nx, 1, d.png\nz, 1, e.heic\n",
            ),
        ]);
        let table = dir.path().join("labels.csv");
        let source = open(&dir.path().join("i"), Some(&table)).unwrap();
        assert_eq!(source.names(), ["x", "y"]);
        let of = |name: &str, class| (name.to_owned(), class);
        assert_eq!(labelled(&source), [of("a.jpg", "x"), of("b/c.jpg", "y"), of("d.png", "x")]);
        fs::write(&table, "file,label\nb/c.jpg,2\na.jpg,10\n").unwrap();
        let jpeg: &[u8] = b"\xFF\xD8\xFF\xE0\0\x10JFIF";
        for file in ["i/a.jpg", "i/b/c.jpg"] {
            fs::write(dir.path().join(file), jpeg).unwrap();
        }
        fs::write(dir.path().join("i/list.txt"), "b/c.jpg\na.jpg\n").unwrap();
        let source = open(&dir.path().join("i/list.txt"), Some(&table)).unwrap();
        assert_eq!(labelled(&source), [of("b/c.jpg", "2"), of("a.jpg", "10")]);
        refused(&dir, "i/list.txt", None, &["list.txt", "data.labels", "file,label"]);
    }

    #[test]
    fn what_has_no_class_is_named() {
        let dir = folder(&[("a/1.jpg", ""), ("loose.jpg", ""), ("b/2.jpg", "")]);
        refused(&dir, "", None, &["1 of 3 images", "loose.jpg", "data.labels"]);
        refused(&dir, "a", None, &["1.jpg", "no class"]);
        refused(&dir, "absent", None, &["absent"]);
        fs::remove_file(dir.path().join("loose.jpg")).unwrap();
        fs::remove_dir_all(dir.path().join("b")).unwrap();
        refused(&dir, "", None, &["one class, `a`", "subfolder for each class"]);
    }

    #[test]
    fn a_table_must_name_every_image_once() {
        let dir = folder(&[("i/a.jpg", ""), ("i/b.jpg", "")]);
        let says = |text: &str, says: &[&str]| {
            fs::write(dir.path().join("t.csv"), text).unwrap();
            refused(&dir, "i", Some("t.csv"), &[&["t.csv"], says].concat());
        };
        says("file,label\na.jpg,1\n", &["1 of 2 images", "b.jpg", "add rows"]);
        says("file,label\na.jpg,1\nb.jpg,2\nc.jpg,2\n", &["c.jpg (line 4)", "data.path"]);
        says("file,label\na.jpg,1\nb.jpg,1\n", &["one class, `1`"]);
        says("file,label\na.jpg,1\nb.jpg,\n", &["line 3 lacks a label"]);
        says("file,label\n,1\n", &["line 2 lacks a file"]);
        says("file,label\na.jpg,1\nb.jpg,2\n./a.jpg,1\n", &["two rows", "lines 2 and 4"]);
        says("name,label\na.jpg,1\n", &["no column `file`", "file,label", "name,label"]);
        says("file,label\na.jpg,1,2\n", &["no table of labels"]);
        refused(&dir, "i", Some("none.csv"), &["none.csv", "table of labels"]);
    }
}
