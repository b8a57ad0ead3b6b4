//! Pictures that a text file names.

use std::path::{Path, PathBuf};

use super::files::{Classes, FileSource, usable};
use crate::data::left_out::{self, Kind, LeftOut};
use crate::data::listing::starts_like_image;
use crate::error::{Error, Result};
use crate::units::{shown, without_bom};

impl FileSource {
    /// The pictures named in a text file: one path a line, absolute or relative to the text file's folder; empty lines
    /// and lines that begin with `#` are ignored. Checks that the files exist. Missing ones are left out and reported in
    /// [`ImageSource::left_out`](super::ImageSource::left_out); when nothing remains, that is an error.
    pub fn list(list: impl AsRef<Path>) -> Result<Self> {
        let list = list.as_ref();
        // A pipe is read once.
        if list.is_file() && starts_like_image(list) {
            let message = "this is an image; give a folder of images or a text file with a path a line";
            return Err(Error::file(list, message));
        }
        let text = std::fs::read(list).map_err(|e| Error::io(list, "read the image list", e))?;
        let unusable = |what: &str| Error::file(list, format!("{what}; expected one image path a line"));
        if text.starts_with(b"\xFF\xFE") || text.starts_with(b"\xFE\xFF") {
            return Err(unusable("a text file in UTF-16: save it as UTF-8"));
        }
        if text.contains(&0) {
            return Err(unusable("not a text file"));
        }
        let root = list.parent().unwrap_or(Path::new("")).to_owned();
        let (mut files, mut left_out) = (Vec::<Box<Path>>::new(), Vec::new());
        for (number, line) in without_bom(&text).split(|b| *b == b'\n').enumerate() {
            let line = line.trim_ascii();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let path = path_of(line);
            match usable(&root.join(&path)) {
                Ok(()) => files.push(path.into()),
                Err(why) => {
                    let why = format!("line {}: {why}", number + 1);
                    left_out.push(LeftOut::new(Kind::Picture, shown(&path), why));
                }
            }
        }
        if files.is_empty() {
            if left_out.is_empty() {
                return Err(unusable("the list names no images"));
            }
            let lost = left_out::clause("listed images", &left_out);
            return Err(Error::file(list, format!("none of the listed images can be used{lost}")));
        }
        Ok(FileSource { root, files, classes: Classes::Unknown, left_out })
    }
}

/// A line of a list as a path: where file names are bytes, whatever their encoding.
fn path_of(line: &[u8]) -> PathBuf {
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        PathBuf::from(std::ffi::OsStr::from_bytes(line))
    }
    #[cfg(not(unix))]
    PathBuf::from(String::from_utf8_lossy(line).into_owned())
}
