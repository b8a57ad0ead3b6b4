//! Pictures with classes: the folder that each lies in, or the rows of a table beside them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Component, Path, PathBuf};

use image::RgbImage;

use crate::data::left_out::LeftOut;
use crate::data::sample::Labels;
use crate::data::source::{FileSource, ImageSource};
use crate::error::{Error, Result};
use crate::units::{shown, without_bom};

/// Columns of a table of labels.
const FILE: &str = "file";
const LABEL: &str = "label";

/// Picture files, each of one class.
#[derive(Debug)]
pub struct ClassSource {
    source: FileSource,
    /// Sorted.
    names: Vec<String>,
    /// The class of each picture, an index into `names`.
    of: Vec<u32>,
}

impl ClassSource {
    /// The pictures of a folder, or those that a list names, with their classes: what `table` says, or else the first folder on the
    /// way from `path` to the picture.
    ///
    /// # Errors
    /// Those of [`FileSource`]; [`Error::File`] for pictures without a label, labels without a picture, a table that is none, and
    /// fewer than two classes, each with the remedy.
    pub fn open(path: &Path, table: Option<&Path>) -> Result<Self> {
        let list = !std::fs::metadata(path).map_err(|e| Error::io(path, "open the images", e))?.is_dir();
        let source = if list { FileSource::list(path)? } else { FileSource::folder(path)? };
        let labels = match table {
            Some(table) => by_table(&source, path, table)?,
            None if list => {
                let message = "a list of images says nothing of their classes: name a table of them with `data.labels` (columns \
                               file,label), or give a folder with a subfolder for each class";
                return Err(Error::file(path, message));
            }
            None => by_folder(&source, path)?,
        };
        let names: Vec<String> = labels.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect();
        if let [only] = &names[..] {
            let message = format!(
                "all images are of one class, `{only}`: there is nothing to tell apart. Give a folder with a subfolder for each \
                 class, or a table of labels as `data.labels`"
            );
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
    fn labels(&self, i: usize) -> Labels {
        Labels { class: self.of.get(i).copied() }
    }
}

/// The first folder on the way to every picture.
fn by_folder(source: &FileSource, root: &Path) -> Result<Vec<String>> {
    let folder = |path: &Path| {
        let mut parts = path.components();
        let first = parts.next().filter(|_| parts.next().is_some())?;
        Some(shown(Path::new(first.as_os_str())))
    };
    let labels: Vec<Option<String>> = source.files().iter().map(|path| folder(path)).collect();
    let loose: Vec<usize> = (0..labels.len()).filter(|i| labels[*i].is_none()).collect();
    if let Some(&first) = loose.first() {
        let message = format!(
            "{} of {} images lie in no subfolder and so have no class, the first is {}: put every image into a folder named as \
             its class, or name a table of labels with `data.labels` (columns file,label)",
            loose.len(),
            labels.len(),
            source.name(first)
        );
        return Err(Error::file(root, message));
    }
    Ok(labels.into_iter().flatten().collect())
}

/// What the rows of `table` say of every picture.
fn by_table(source: &FileSource, root: &Path, table: &Path) -> Result<Vec<String>> {
    let mut rows = read_table(table)?;
    let labels: Vec<Option<String>> =
        source.files().iter().map(|path| rows.remove(&plain(path)).map(|row| row.label)).collect();
    // What is there and cannot be used is told as left out, labelled or not.
    rows.retain(|path, _| !source.root().join(path).exists());
    if let Some((path, row)) = rows.iter().min_by_key(|(_, row)| row.line) {
        let message = format!(
            "{} of its rows name files that are not in {}, the first is {} (line {}): names are relative to the images' folder. \
             Mend the table, or point `data.path` to these images",
            rows.len(),
            source.root().display(),
            shown(path),
            row.line
        );
        return Err(Error::file(table, message));
    }
    let unlabelled: Vec<usize> = (0..labels.len()).filter(|i| labels[*i].is_none()).collect();
    if let Some(&first) = unlabelled.first() {
        let message = format!(
            "{} of {} images of {} have no row, the first is {}: add rows for them, or take the images away",
            unlabelled.len(),
            labels.len(),
            root.display(),
            source.name(first)
        );
        return Err(Error::file(table, message));
    }
    Ok(labels.into_iter().flatten().collect())
}

struct Row {
    line: u64,
    label: String,
}

/// A path without the parts that lead nowhere.
fn plain(path: &Path) -> PathBuf {
    path.components().filter(|c| *c != Component::CurDir).collect()
}

/// The labels of a table by file.
fn read_table(table: &Path) -> Result<BTreeMap<PathBuf, Row>> {
    let bytes = std::fs::read(table).map_err(|e| Error::io(table, "read the table of labels", e))?;
    let broken = |e: csv::Error| Error::file(table, format!("is no table of labels: {e}"));
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(without_bom(&bytes));
    let header = reader.headers().map_err(broken)?.clone();
    let column = |name: &str| {
        header.iter().position(|c| c == name).ok_or_else(|| {
            let there = header.iter().collect::<Vec<_>>().join(",");
            let message =
                format!("has no column `{name}`: its first line must be {FILE},{LABEL}, not {there}");
            Error::file(table, message)
        })
    };
    let (file, label) = (column(FILE)?, column(LABEL)?);
    let mut rows = BTreeMap::new();
    for record in reader.records() {
        let record = record.map_err(broken)?;
        let line = record.position().map_or(0, csv::Position::line);
        let [name, label] = [file, label].map(|c| record.get(c).unwrap_or_default());
        if name.is_empty() || label.is_empty() {
            let message = format!("line {line} lacks a {}", if name.is_empty() { FILE } else { LABEL });
            return Err(Error::file(table, format!("{message}: every row names one image and its class")));
        }
        let row = Row { line, label: label.to_owned() };
        if let Some(earlier) = rows.insert(plain(Path::new(name)), row) {
            let message = format!("{name} has two rows, in lines {} and {line}: keep one", earlier.line);
            return Err(Error::file(table, message));
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use tempfile::TempDir;

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
        let e = ClassSource::open(&dir.path().join(path), table.as_deref()).unwrap_err().to_string();
        assert!(says.iter().all(|part| e.contains(part)), "{e}");
    }

    #[test]
    fn a_subfolder_is_a_class() {
        let dir = folder(&[("dog/1.jpg", ""), ("cat/deep/2.jpg", ""), ("dog/0.png", ""), ("readme.txt", "")]);
        let source = ClassSource::open(dir.path(), None).unwrap();
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
        let source = ClassSource::open(&dir.path().join("i"), Some(&table)).unwrap();
        assert_eq!(source.names(), ["x", "y"]);
        let of = |name: &str, class| (name.to_owned(), class);
        assert_eq!(labelled(&source), [of("a.jpg", "x"), of("b/c.jpg", "y"), of("d.png", "x")]);
        fs::write(&table, "file,label\nb/c.jpg,2\na.jpg,10\n").unwrap();
        let jpeg: &[u8] = b"\xFF\xD8\xFF\xE0\0\x10JFIF";
        for file in ["i/a.jpg", "i/b/c.jpg"] {
            fs::write(dir.path().join(file), jpeg).unwrap();
        }
        fs::write(dir.path().join("i/list.txt"), "b/c.jpg\na.jpg\n").unwrap();
        let source = ClassSource::open(&dir.path().join("i/list.txt"), Some(&table)).unwrap();
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
