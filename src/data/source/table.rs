//! Tables of files and the classes that they are of: a source by themselves, or what tells the classes of another's pictures.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use super::files::{Classes, FileSource, usable};
use crate::data::left_out::{self, Kind, LeftOut};
use crate::error::{Error, Result};
use crate::units::{shown, without_bom};

/// Columns of a table of labels.
const FILE: &str = "file";
const LABEL: &str = "label";

/// Bytes of a file in which a header ends.
const HEADER: u64 = 4096;

/// What a table says of a file.
#[derive(Debug)]
pub(super) struct Row {
    pub file: PathBuf,
    pub label: String,
    /// Counted from 1.
    pub line: u64,
}

/// Whether a file begins like a table of labels.
pub(super) fn is_table(path: &Path) -> bool {
    let mut head = Vec::new();
    // A pipe is read once, by whom it is opened for.
    let regular = std::fs::metadata(path).is_ok_and(|meta| meta.is_file());
    let file = std::fs::File::open(path).ok().filter(|_| regular);
    let read = file.and_then(|file| file.take(HEADER).read_to_end(&mut head).ok());
    let line = without_bom(&head).split(|b| *b == b'\n').next().unwrap_or_default();
    let columns = columns(line);
    read.is_some() && columns.is_ok_and(|columns| columns[0].is_some() && columns[1].is_some())
}

/// Where the columns of files and labels are in a header.
fn columns(line: &[u8]) -> std::result::Result<[Option<usize>; 2], csv::Error> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(line);
    let header = reader.headers()?;
    Ok([FILE, LABEL].map(|name| header.iter().position(|column| column == name)))
}

impl FileSource {
    /// The pictures of a table, in the order of its rows; files are absolute or relative to the table's folder.
    ///
    /// # Errors
    /// [`Error::File`] for a table that is none, for rows whose file is not there, and where no picture can be used.
    pub fn table(table: impl AsRef<Path>) -> Result<Self> {
        let table = table.as_ref();
        let root = table.parent().unwrap_or(Path::new("")).to_owned();
        let rows = read(table)?;
        let missing: Vec<&Row> = rows.iter().filter(|row| !root.join(&row.file).exists()).collect();
        if let Some(first) = missing.first() {
            let message = format!(
                "{} of its {} rows name files that are not there, the first is {} (line {}): names are relative to the table's \
                 folder. Mend them, or take the rows away",
                missing.len(),
                rows.len(),
                shown(&first.file),
                first.line
            );
            return Err(Error::file(table, message));
        }
        let (mut files, mut classes, mut left_out) =
            (Vec::<Box<Path>>::new(), Vec::<Box<str>>::new(), Vec::new());
        for row in rows {
            match usable(&root.join(&row.file)) {
                Ok(()) => {
                    files.push(row.file.into());
                    classes.push(row.label.into());
                }
                Err(why) => {
                    let why = format!("line {}: {why}", row.line);
                    left_out.push(LeftOut::new(Kind::Picture, shown(&row.file), why));
                }
            }
        }
        if files.is_empty() {
            let lost = left_out::clause("images", &left_out);
            return Err(Error::file(table, format!("none of its images can be used{lost}")));
        }
        Ok(FileSource { root, files, classes: Classes::Named(classes), left_out })
    }
}

/// The rows of a table in their order, one a file.
///
/// # Errors
/// [`Error::File`] for a table without these columns, without rows, with a row that lacks one, and with two of one file.
pub(super) fn read(table: &Path) -> Result<Vec<Row>> {
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
    let (mut rows, mut lines) = (Vec::new(), HashMap::new());
    for record in reader.records() {
        let record = record.map_err(broken)?;
        let line = record.position().map_or(0, csv::Position::line);
        let [name, label] = [file, label].map(|c| record.get(c).unwrap_or_default());
        if name.is_empty() || label.is_empty() {
            let message = format!("line {line} lacks a {}", if name.is_empty() { FILE } else { LABEL });
            return Err(Error::file(table, format!("{message}: every row names one image and its class")));
        }
        let row = Row { file: plain(Path::new(name)), label: label.to_owned(), line };
        if let Some(earlier) = lines.insert(row.file.clone(), line) {
            let message = format!("{name} has two rows, in lines {earlier} and {line}: keep one");
            return Err(Error::file(table, message));
        }
        rows.push(row);
    }
    if rows.is_empty() {
        return Err(Error::file(table, "has no rows: every one names an image and its class"));
    }
    Ok(rows)
}

/// A path without the parts that lead nowhere.
pub(super) fn plain(path: &Path) -> PathBuf {
    path.components().filter(|c| *c != Component::CurDir).collect()
}

#[cfg(test)]
mod tests {
    use super::super::image_source::ImageSource;
    use super::super::tests::{folder, names, picture};
    use super::*;
    use image::ImageFormat;

    #[test]
    fn pictures_are_in_the_order_of_the_rows_with_their_labels() {
        let jpeg = picture(ImageFormat::Jpeg);
        let dir = folder(&[
            ("i/a.jpg", jpeg.clone()),
            ("i/b.jpg", jpeg),
            ("i/c.heic", b"whatever this is, it is no picture".to_vec()),
            (
                "t.csv",
                b"file, camera, label\n./i/b.jpg, 1,\"x, y\"\ni/c.heic, 1, z\ni/a.jpg, 2, w\n".to_vec(),
            ),
        ]);
        let source = FileSource::table(dir.path().join("t.csv")).unwrap();
        assert_eq!(names(&source), ["i/b.jpg", "i/a.jpg"]);
        assert_eq!([0, 1, 2].map(|i| source.class(i)), [Some("x, y".to_owned()), Some("w".to_owned()), None]);
        assert!(source.load(1).is_ok());
        let [left] = source.left_out() else { panic!("{:?}", source.left_out()) };
        assert!(left.name == "i/c.heic" && left.reason.starts_with("line 3: HEIC"), "{left:?}");
    }

    #[test]
    fn a_row_without_a_file_is_refused_and_lists_are_no_tables() {
        let dir = folder(&[("i/a.jpg", picture(ImageFormat::Jpeg))]);
        let at = dir.path().join("t.csv");
        let refused = |text: &str| {
            std::fs::write(&at, text).unwrap();
            FileSource::table(&at).unwrap_err().to_string()
        };
        let e = refused("file,label\ni/a.jpg,x\ni/b.jpg,x\n");
        assert!(
            ["t.csv", "1 of its 2 rows", "i/b.jpg (line 3)", "take the rows away"]
                .iter()
                .all(|p| e.contains(p)),
            "{e}"
        );
        assert!(is_table(&at));
        assert!(refused("file,label\n").contains("has no rows"));
        assert!(refused("file,label\ni,x\n").contains("none of its images"));
        for list in ["i/a.jpg\n", "file\ni/a.jpg\n", "", "label,files\nx,i/a.jpg\n"] {
            std::fs::write(&at, list).unwrap();
            assert!(!is_table(&at), "{list:?}");
        }
        assert!(!is_table(dir.path()) && !is_table(&dir.path().join("none")));
    }
}
