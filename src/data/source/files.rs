//! Picture files below a folder: what folders, lists and tables of them have in common.

use std::path::{Path, PathBuf};

use image::RgbImage;

use super::image_source::ImageSource;
use crate::data::decode::{load_file, not_read};
use crate::data::left_out::{self, LeftOut};
use crate::data::listing;
use crate::error::Result;
use crate::units::shown;

/// Picture files, in a fixed order.
#[derive(Debug)]
pub struct FileSource {
    /// What the files are relative to.
    pub(super) root: PathBuf,
    pub(super) files: Vec<Box<Path>>,
    pub(super) classes: Classes,
    pub(super) left_out: Vec<LeftOut>,
}

/// What tells the classes of files.
#[derive(Debug)]
pub(super) enum Classes {
    Unknown,
    /// The first folder on the way to each.
    Folders,
    /// One a file.
    Named(Vec<Box<str>>),
}

impl ImageSource for FileSource {
    fn len(&self) -> usize {
        self.files.len()
    }
    fn name(&self, i: usize) -> String {
        shown(&self.files[i])
    }
    fn load(&self, i: usize) -> Result<RgbImage> {
        load_file(&self.root.join(&self.files[i]))
    }
    fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }
    fn class(&self, i: usize) -> Option<String> {
        match &self.classes {
            Classes::Unknown => None,
            Classes::Folders => {
                let mut parts = self.files.get(i)?.components();
                let first = parts.next().filter(|_| parts.next().is_some())?;
                Some(shown(Path::new(first.as_os_str())))
            }
            Classes::Named(classes) => classes.get(i).map(|class| class.to_string()),
        }
    }
    fn holds(&self, name: &Path) -> bool {
        self.root.join(name).exists()
    }
}

/// Whether a file that a list names is worth loading, else why not.
pub(super) fn usable(path: &Path) -> std::result::Result<(), String> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_file() => listing::judge_content(path).map(drop).map_err(|(_, why)| why),
        Ok(meta) if meta.is_dir() => Err("a folder; a list names images".to_owned()),
        Ok(_) => Err("no regular file".to_owned()),
        Err(e) => Err(left_out::reason(not_read(path, e))),
    }
}
