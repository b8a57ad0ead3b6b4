//! Pictures below a folder; no labels, no naming scheme needed.

use std::path::Path;

use super::files::{Classes, FileSource};
use crate::data::formats::ACCEPTED;
use crate::data::left_out;
use crate::data::listing::{self, Listing};
use crate::error::{Error, Result};

impl FileSource {
    /// Every picture in a folder and its subfolders, sorted by path. Links are followed, link loops are not; hidden files
    /// and folders are passed over. A file with an unknown extension counts when its content starts like a picture. Fails
    /// when nothing is found.
    pub fn folder(root: impl AsRef<Path>) -> Result<Self> {
        let root = root.as_ref();
        let meta = std::fs::metadata(root).map_err(|e| Error::io(root, "open the image folder", e))?;
        if !meta.is_dir() {
            return Err(Error::file(root, "not a folder; give a folder of images or a .txt list of paths"));
        }
        let Listing { files, left_out } = listing::list(root, usize::MAX, &|_| true);
        if files.is_empty() {
            let lost = left_out::clause("images", &left_out);
            let message =
                format!("no images in this folder or its subfolders; accepted formats: {ACCEPTED}{lost}");
            return Err(Error::file(root, message));
        }
        Ok(FileSource { root: root.to_owned(), files, classes: Classes::Folders, left_out })
    }
}
