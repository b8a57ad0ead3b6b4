//! Where the picture files are.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

use walkdir::WalkDir;

use super::Skip;
use crate::error::{Error, Result};

/// Finds pictures under a folder: at the stated path, else by name in any sub-folder.
pub struct Lookup {
    root: PathBuf,
    /// Not searched: crops of an earlier run may lie under `root`.
    out: PathBuf,
    /// File name -> paths relative to `root`, sorted. Made when first needed: walking a large folder takes time.
    index: OnceLock<HashMap<String, Vec<PathBuf>>>,
}

impl Lookup {
    pub fn new(root: &Path, out: &Path) -> Result<Self> {
        let meta = std::fs::metadata(root).map_err(|e| Error::io(root, "read the folder", e))?;
        if !meta.is_dir() {
            return Err(Error::file(root, "is no folder; --images takes the folder with the pictures"));
        }
        let out = out.canonicalize().unwrap_or_else(|_| out.to_owned());
        Ok(Lookup { root: root.to_owned(), out, index: OnceLock::new() })
    }

    /// The file for `file_name` (folders separated by `/`). Never leaves the folder: the name comes from a file that
    /// may be anybody's.
    pub fn find(&self, file_name: &str) -> Result<PathBuf, (Skip, String)> {
        let stated = Path::new(file_name);
        let inside = stated.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
        if inside {
            let path = self.root.join(stated);
            if path.is_file() {
                return Ok(path);
            }
        }
        let missing = || (Skip::ImageMissing, format!("{}: holds no {file_name}", self.root.display()));
        let name = stated.file_name().and_then(|n| n.to_str()).ok_or_else(missing)?;
        let found = self.index.get_or_init(|| self.walk()).get(name).ok_or_else(missing)?;
        // Of several files of that name, the one whose folders agree with most of the stated ones.
        let agreement = |path: &Path| {
            path.components().rev().zip(stated.components().rev()).take_while(|(a, b)| a == b).count()
        };
        let best = found.iter().map(|p| agreement(p)).max().unwrap_or(0);
        let mut candidates = found.iter().filter(|p| agreement(p) == best);
        match (candidates.next(), candidates.next()) {
            (Some(only), None) => Ok(self.root.join(only)),
            (Some(first), Some(second)) => Err((
                Skip::ImageAmbiguous,
                format!(
                    "{}: {file_name} could be {} or {}",
                    self.root.display(),
                    first.display(),
                    second.display()
                ),
            )),
            _ => Err(missing()),
        }
    }

    fn walk(&self) -> HashMap<String, Vec<PathBuf>> {
        let mut index: HashMap<String, Vec<PathBuf>> = HashMap::new();
        // Every folder's canonical path would cost a call each; only one can be `out`, and it is known by its name.
        let is_out = |path: &Path| {
            path.file_name() == self.out.file_name() && path.canonicalize().is_ok_and(|p| p == self.out)
        };
        let entries = WalkDir::new(&self.root).sort_by_file_name().into_iter();
        // The root itself may be `out`'s parent or `out`; what the user names as --images is searched.
        let entries =
            entries.filter_entry(|e| e.depth() == 0 || !(e.file_type().is_dir() && is_out(e.path())));
        for entry in entries.flatten().filter(|e| !e.file_type().is_dir()) {
            if let (Some(name), Ok(path)) =
                (entry.file_name().to_str(), entry.path().strip_prefix(&self.root))
            {
                index.entry(name.to_owned()).or_default().push(path.to_owned());
            }
        }
        index
    }
}
