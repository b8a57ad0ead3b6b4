//! The folder that is written: all or nothing, and never over somebody's files.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::options::{PrepareOptions, Skip};
use crate::error::{Error, Result};
use crate::files::atomic::{self, Unfinished};
use crate::files::disk::{self, Growing};

const IMAGES: &str = "images";
const MANIFEST: &str = "manifest.jsonl";
const SKIPPED: &str = "skipped.csv";
/// Says that the folder is ours, and how it was made.
const MARKER: &str = "prepare.json";
/// Holds everything until the run is through; an interrupted run leaves it, the next one removes it.
const PARTIAL: &str = ".prepare-partial";
/// In there, the crops of an earlier run, on their way out.
const OLD: &str = "old";
const TOOL: &str = "saip-engine prepare";

/// One line of `manifest.jsonl`.
#[derive(Debug, Serialize)]
pub struct Entry<'a> {
    /// Relative to the folder.
    pub file: String,
    /// `file_name` of the picture.
    pub source: &'a str,
    pub image_id: &'a str,
    pub annotation_id: &'a str,
    /// The box clipped to the picture, `[x, y, width, height]`.
    pub bbox: [f64; 4],
    /// The pixels cut out, `[x, y, width, height]`.
    pub crop: [u32; 4],
    /// Size of the written crop.
    pub width: u32,
    pub height: u32,
    pub keypoints: u32,
}

/// An output folder being written.
pub struct OutputFolder {
    out: PathBuf,
    partial: PathBuf,
    manifest: BufWriter<Growing>,
    skipped: csv::Writer<Growing>,
    /// Created by this run, so removed again if nothing comes of it.
    created: bool,
    finished: bool,
    /// What a signal removes.
    _unfinished: Vec<Unfinished>,
    _lock: Option<File>,
}

impl OutputFolder {
    /// Makes ready to write `out`, which must be absent, empty or the work of an earlier run without other files.
    pub fn begin(out: &Path) -> Result<Self> {
        let created = match fs::read_dir(out) {
            Ok(entries) => {
                check_owned(out, entries)?;
                false
            }
            Err(e) if e.kind() == ErrorKind::NotFound => true,
            Err(e) if e.kind() == ErrorKind::NotADirectory => {
                return Err(Error::file(out, "is a file; --out takes a folder"));
            }
            Err(e) => return Err(Error::io(out, "read the folder", e)),
        };
        let partial = out.join(PARTIAL);
        let mut unfinished = vec![Unfinished::whole(&partial)];
        unfinished.extend(created.then(|| Unfinished::folder(out)));
        disk::create_dir_all(out).map_err(|e| Error::io(out, "create the folder", e))?;
        let lock = atomic::lock_folder(out)?;
        remove_tree(&partial)?;
        let images = partial.join(IMAGES);
        disk::create_dir_all(&images).map_err(|e| Error::io(&images, "create the folder", e))?;
        let manifest = create(&partial.join(MANIFEST))?;
        let mut skipped = csv::Writer::from_writer(create(&partial.join(SKIPPED))?);
        skipped
            .write_record(["annotation_id", "image_id", "reason", "detail"])
            .map_err(|e| csv_error(&partial.join(SKIPPED), e))?;
        Ok(OutputFolder {
            out: out.to_owned(),
            partial,
            manifest: BufWriter::new(manifest),
            skipped,
            created,
            finished: false,
            _unfinished: unfinished,
            _lock: lock,
        })
    }

    /// Whether an earlier run left crops here, which this one would replace.
    pub fn holds_crops(&self) -> bool {
        fs::metadata(self.out.join(MANIFEST)).is_ok_and(|manifest| manifest.len() > 0)
    }

    pub fn write_crop(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.partial.join(IMAGES).join(name);
        disk::write(&path, bytes).map_err(|e| Error::io(&path, "write", e))
    }

    pub fn list(&mut self, entry: &Entry) -> Result<()> {
        let path = self.partial.join(MANIFEST);
        let line = serde_json::to_string(entry).map_err(|e| Error::io(&path, "write", e.into()))?;
        writeln!(self.manifest, "{line}").map_err(|e| Error::io(&path, "write", e))
    }

    pub fn skip(&mut self, annotation_id: &str, image_id: &str, skip: Skip, detail: &str) -> Result<()> {
        self.skipped
            .write_record([annotation_id, image_id, skip.reason(), detail])
            .map_err(|e| csv_error(&self.partial.join(SKIPPED), e))
    }

    /// Lists an entry of `images` that no annotation can refer to.
    pub fn skip_image(&mut self, place: &str, why: &str) -> Result<()> {
        self.skipped
            .write_record(["", "", "image entry unusable", &format!("{place} {why}")])
            .map_err(|e| csv_error(&self.partial.join(SKIPPED), e))
    }

    /// Replaces what an earlier run left by what this one wrote.
    pub fn finish(mut self, options: &PrepareOptions) -> Result<()> {
        self.manifest.flush().map_err(|e| Error::io(self.partial.join(MANIFEST), "write", e))?;
        self.skipped.flush().map_err(|e| Error::io(self.partial.join(SKIPPED), "write", e))?;
        let marker = Marker { tool: TOOL.to_owned(), version: env!("CARGO_PKG_VERSION").to_owned(), options };
        let path = self.partial.join(MARKER);
        let text = serde_json::to_string_pretty(&marker).map_err(|e| Error::io(&path, "write", e.into()))?;
        disk::write(&path, (text + "\n").as_bytes()).map_err(|e| Error::io(&path, "write", e))?;

        // The marker goes in first: an interruption from here on leaves a folder that the next run takes for ours.
        let held = atomic::hold();
        let old = self.out.join(IMAGES);
        match disk::rename(&old, self.partial.join(OLD)) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::io(&old, "replace", e)),
            _ => {}
        }
        for name in [MARKER, MANIFEST, SKIPPED, IMAGES] {
            let to = self.out.join(name);
            disk::rename(self.partial.join(name), &to).map_err(|e| Error::io(&to, "write", e))?;
        }
        drop(held);
        remove_tree(&self.partial)?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for OutputFolder {
    fn drop(&mut self) {
        if !self.finished {
            // A failure here must not hide the error that led here; the next run cleans up.
            let _ = disk::remove_dir_all(&self.partial);
            if self.created {
                let _ = disk::remove_dir(&self.out);
            }
        }
    }
}

#[derive(Serialize)]
struct Marker<'a> {
    tool: String,
    version: String,
    options: &'a PrepareOptions,
}

fn create(path: &Path) -> Result<Growing> {
    Growing::create_new(path).map_err(|e| Error::io(path, "create", e))
}

fn csv_error(path: &Path, error: csv::Error) -> Error {
    Error::io(path, "write", error.into())
}

fn remove_tree(path: &Path) -> Result<()> {
    match disk::remove_dir_all(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(path, "remove", e)),
        _ => Ok(()),
    }
}

/// Refuses a folder with anything that an earlier run did not put there.
fn check_owned(out: &Path, entries: fs::ReadDir) -> Result<()> {
    let ours = is_marker(&out.join(MARKER));
    for entry in entries {
        let name = entry.map_err(|e| Error::io(out, "read the folder", e))?.file_name();
        let known = match name.to_str() {
            Some(PARTIAL) => true,
            Some(MARKER | IMAGES | MANIFEST | SKIPPED) => ours,
            _ => false,
        };
        if !known {
            let name = name.to_string_lossy();
            return Err(Error::file(
                out,
                format!(
                    "holds {name}, which `{TOOL}` did not write; choose another --out or empty the folder"
                ),
            ));
        }
    }
    check_images(out)
}

fn is_marker(path: &Path) -> bool {
    #[derive(Deserialize)]
    struct Tool {
        tool: String,
    }
    fs::read(path).ok().and_then(|b| serde_json::from_slice::<Tool>(&b).ok()).is_some_and(|t| t.tool == TOOL)
}

/// The old crops are about to be replaced: a file among them that the old manifest does not list is somebody else's.
fn check_images(out: &Path) -> Result<()> {
    let folder = out.join(IMAGES);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io(&folder, "read the folder", e)),
    };
    let path = out.join(MANIFEST);
    let file = File::open(&path).map_err(|e| Error::io(&path, "read", e))?;
    #[derive(Deserialize)]
    struct Listed {
        file: String,
    }
    let mut listed = HashSet::new();
    for line in BufReader::new(file).lines() {
        let line = line.map_err(|e| Error::io(&path, "read", e))?;
        if let Ok(entry) = serde_json::from_str::<Listed>(&line) {
            listed.insert(entry.file);
        }
    }
    for entry in entries {
        let name = entry.map_err(|e| Error::io(&folder, "read the folder", e))?.file_name();
        let name = name.to_string_lossy();
        if !listed.contains(&format!("{IMAGES}/{name}")) {
            return Err(Error::file(
                &folder,
                format!("holds {name}, which {MANIFEST} does not list; move it away or choose another --out"),
            ));
        }
    }
    Ok(())
}

/// Longest stem in bytes: file systems allow 255 for a name.
const MAX_STEM: usize = 120;

/// `<image stem>_<annotation id>.jpg`, made safe as a file name and distinct from all `taken` ones, which it joins.
pub fn crop_name(file_name: &str, annotation_id: &str, taken: &mut HashSet<String>) -> String {
    let base = file_name.rsplit('/').next().unwrap_or_default();
    let stem = base.rsplit_once('.').map_or(base, |(stem, _)| stem);
    let name = format!("{}_{}", safe(stem), safe(annotation_id));
    let mut candidate = format!("{name}.jpg");
    let mut copy = 1;
    // Lower case: some file systems take names that differ in case only for the same.
    while !taken.insert(candidate.to_lowercase()) {
        copy += 1;
        candidate = format!("{name}.{copy}.jpg");
    }
    candidate
}

fn safe(part: &str) -> String {
    let allowed = |c: char| if c.is_alphanumeric() || "-_.,+@()".contains(c) { c } else { '_' };
    let mut text: String = part.trim_start_matches('.').chars().map(allowed).collect();
    while text.len() > MAX_STEM {
        text.pop();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crop_names_are_safe_and_distinct() {
        let mut taken = HashSet::new();
        let mut name = |file: &str, id: &str| crop_name(file, id, &mut taken);
        assert_eq!(name("val2017/000000000785.jpg", "442619"), "000000000785_442619.jpg");
        assert_eq!(name("train2017/000000000785.png", "442619"), "000000000785_442619.2.jpg");
        assert_eq!(name("273271,1017c.JPG", "7"), "273271,1017c_7.jpg");
        assert_eq!(name("a:b\n*.jpg", "../../x"), "a_b____.._x.jpg");
        assert_eq!(name("A.jpg", "1"), "A_1.jpg");
        assert_eq!(name("a.jpg", "1"), "a_1.2.jpg");
        assert!(name(&"ü".repeat(500), &"9".repeat(500)).len() < 255);
    }
}
