//! Where the picture files are.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

use super::options::Skip;
use crate::data::left_out::{Kind, LeftOut};
use crate::data::listing;
use crate::error::{Error, Result};
use crate::units::shown;

/// Finds pictures under a folder: at the stated path, else by name in any sub-folder.
pub struct Lookup {
    root: PathBuf,
    /// Not searched: crops of an earlier run may lie under `root`.
    out: PathBuf,
    /// Made when first needed: walking a large folder takes time.
    index: OnceLock<Index>,
}

#[derive(Default)]
struct Index {
    /// File name -> paths relative to the root, sorted.
    paths: HashMap<String, Vec<PathBuf>>,
    /// Folders that could not be searched.
    unopened: Vec<LeftOut>,
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

    /// The file for `file_name` (folders separated by `/`), as it stands or as a URL writes it. Never leaves the folder:
    /// the name comes from a file that may be anybody's.
    pub fn find(&self, file_name: &str) -> Result<PathBuf, (Skip, String)> {
        for spelling in spellings(file_name) {
            if let Some(found) = self.find_spelled(&spelling) {
                return found;
            }
        }
        Err((Skip::ImageMissing, format!("{} holds no such file", shown(&self.root))))
    }

    /// Folders that a search could not enter, known after the first search.
    pub fn unopened(&self) -> &[LeftOut] {
        self.index.get().map_or(&[], |index| &index.unopened)
    }

    fn find_spelled(&self, file_name: &str) -> Option<Result<PathBuf, (Skip, String)>> {
        let stated = Path::new(file_name);
        let inside = stated.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
        if inside {
            let path = self.root.join(stated);
            if path.is_file() {
                return Some(Ok(path));
            }
        }
        let name = stated.file_name().and_then(|n| n.to_str())?;
        let found = self.index.get_or_init(|| self.walk()).paths.get(name)?;
        // Of several files of that name, the one whose folders agree with most of the stated ones.
        let agreement = |path: &Path| {
            path.components().rev().zip(stated.components().rev()).take_while(|(a, b)| a == b).count()
        };
        let best = found.iter().map(|p| agreement(p)).max().unwrap_or(0);
        let mut candidates = found.iter().filter(|p| agreement(p) == best);
        match (candidates.next(), candidates.next()) {
            (Some(first), Some(second)) => {
                let why = format!("could be {} or {}", shown(first), shown(second));
                Some(Err((Skip::ImageAmbiguous, why)))
            }
            (only, _) => only.map(|only| Ok(self.root.join(only))),
        }
    }

    fn walk(&self) -> Index {
        let mut index = Index::default();
        // Every folder's canonical path would cost a call each; only one can be `out`, and it is known by its name.
        let is_out = |path: &Path| {
            path.file_name() == self.out.file_name() && path.canonicalize().is_ok_and(|p| p == self.out)
        };
        let listing = listing::list(&self.root, usize::MAX, &|folder| !is_out(folder));
        let mut paths: Vec<PathBuf> = listing.files.into_iter().map(PathBuf::from).collect();
        for lost in listing.left_out {
            match lost.kind {
                // Found by its name, it is refused with its reason.
                Kind::Picture => paths.push(PathBuf::from(lost.name)),
                Kind::Unopened => index.unopened.push(lost),
                Kind::System => {}
            }
        }
        paths.sort_unstable();
        for path in paths {
            if let Some(name) = path.file_name().and_then(|n| n.to_str()) {
                index.paths.entry(name.to_owned()).or_default().push(path);
            }
        }
        index
    }
}

/// `file_name` itself, and what it means where it is (part of) a URL: no query behind it, `%20` for a blank.
fn spellings(file_name: &str) -> Vec<String> {
    let mut all = vec![file_name.to_owned()];
    let mut add = |name: String| {
        if !all.contains(&name) {
            all.push(name);
        }
    };
    let end = file_name.find(['?', '#']).filter(|_| file_name.contains("://")).unwrap_or(file_name.len());
    add(file_name[..end].to_owned());
    if let Some(decoded) = decode_percent(&file_name[..end]) {
        add(decoded);
    }
    all
}

/// `a%20b.jpg` -> `a b.jpg`; `None` where the bytes are no UTF-8.
fn decode_percent(name: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let [first, behind @ ..] = rest {
        let code = match rest {
            [b'%', high, low, ..] => (*high as char).to_digit(16).zip((*low as char).to_digit(16)),
            _ => None,
        };
        match code {
            // Two digits of four bits each.
            Some((high, low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = &rest[3..];
            }
            None => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_stand_first_and_then_as_urls() {
        assert_eq!(spellings("a b.jpg"), ["a b.jpg"]);
        assert_eq!(spellings("d/a%20b%C3%BC.jpg"), ["d/a%20b%C3%BC.jpg", "d/a bü.jpg"]);
        assert_eq!(spellings("100%.jpg"), ["100%.jpg"]);
        assert_eq!(spellings("%ff.jpg"), ["%ff.jpg"]);
        assert_eq!(spellings("what?.jpg"), ["what?.jpg"]);
        let url = "https://h/x%20y.jpg?size=2#top";
        assert_eq!(spellings(url), [url, "https://h/x%20y.jpg", "https://h/x y.jpg"]);
    }
}
