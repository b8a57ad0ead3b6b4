//! Where pictures come from: any folder, a list file, or whatever implements [`ImageSource`]; and what happens to
//! pictures that cannot be used.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use image::RgbImage;
use rayon::prelude::*;

use crate::data::decode::{ACCEPTED, load_file, sniff};
use crate::error::{Error, Result};

/// A random-access collection of pictures. Loading the same index twice must give the same picture.
pub trait ImageSource: Send + Sync {
    /// Number of pictures, usable or not.
    fn len(&self) -> usize;
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// What messages call picture `i` (a path, usually).
    fn name(&self, i: usize) -> String;
    /// Decodes picture `i`. An error makes the picture count as unusable, see [`Quarantine`].
    fn load(&self, i: usize) -> Result<RgbImage>;
    /// What the user should know about how the source was read, one line each.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Files that are never pictures; not worth opening, common beside pictures.
const NOT_IMAGES: &[&str] = &[
    "txt",
    "json",
    "jsonl",
    "csv",
    "tsv",
    "md",
    "xml",
    "yaml",
    "yml",
    "toml",
    "ini",
    "html",
    "mat",
    "pkl",
    "npy",
    "npz",
    "pt",
    "pth",
    "safetensors",
    "onnx",
    "py",
    "sh",
    "odgt",
    "zip",
    "tar",
    "gz",
    "7z",
    "rar",
    "mdb",
    "db",
    "lock",
    "log",
    "mp4",
    "avi",
    "mov",
    "mkv",
    "pdf",
];
/// Files that are taken without opening them: a folder may hold millions. Their content is judged when it is loaded.
const IMAGES: &[&str] = &["jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff"];

/// Picture files below a folder, in a fixed order; no labels, no naming scheme needed.
#[derive(Debug)]
pub struct FileSource {
    root: PathBuf,
    files: Vec<Box<Path>>,
    notes: Vec<String>,
}

impl FileSource {
    /// Every picture in a folder and its subfolders, sorted by path. Links are followed, link loops are not; hidden files
    /// and folders are ignored. A file with an unknown extension counts when its content starts like a picture. Fails
    /// when nothing is found.
    pub fn folder(root: impl AsRef<Path>) -> Result<Self> {
        let root = root.as_ref();
        let listing = std::fs::metadata(root).map_err(|e| Error::io(root, "open the image folder", e))?;
        if !listing.is_dir() {
            return Err(Error::file(root, "not a folder; give a folder of images or a .txt list of paths"));
        }
        let (mut files, mut notes) = (Vec::new(), Vec::new());
        let hidden = |e: &walkdir::DirEntry| {
            e.depth() > 0 && e.file_name().to_str().is_some_and(|name| name.starts_with('.'))
        };
        for entry in walkdir::WalkDir::new(root).follow_links(true).into_iter().filter_entry(|e| !hidden(e)) {
            match entry {
                Ok(entry) if entry.file_type().is_file() && looks_like_image(entry.path()) => {
                    let relative = entry.path().strip_prefix(root).unwrap_or(entry.path());
                    files.push(relative.into());
                }
                Ok(_) => {}
                Err(e) => notes.push(format!("skipped while listing: {e}")),
            }
        }
        // Component-wise order is the same on every platform and does not depend on the directory's own order.
        files.sort_unstable();
        if files.is_empty() {
            let trouble = notes.first().map(|n| format!(" ({n})")).unwrap_or_default();
            let message =
                format!("no images in this folder or its subfolders{trouble}; accepted formats: {ACCEPTED}");
            return Err(Error::file(root, message));
        }
        Ok(FileSource { root: root.to_owned(), files, notes })
    }

    /// The pictures named in a text file: one path a line, absolute or relative to the text file's folder; empty lines
    /// and lines that begin with `#` are ignored. Checks that the files exist. Missing ones are left out and reported in
    /// [`ImageSource::notes`]; when nothing remains, that is an error.
    pub fn list(list: impl AsRef<Path>) -> Result<Self> {
        let list = list.as_ref();
        let text = std::fs::read(list).map_err(|e| Error::io(list, "read the image list", e))?;
        let text = String::from_utf8(text).map_err(|e| {
            let at = e.utf8_error().valid_up_to();
            Error::file(
                list,
                format!("not a text file (invalid UTF-8 at byte {at}); expected one image path a line"),
            )
        })?;
        let root = list.parent().unwrap_or(Path::new("")).to_owned();
        let (mut files, mut missing) = (Vec::<Box<Path>>::new(), Vec::new());
        for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if root.join(line).is_file() {
                files.push(Path::new(line).into());
            } else {
                missing.push(format!("line {}: {line}", number + 1));
            }
        }
        if files.is_empty() {
            let message = match missing.first() {
                Some(first) => format!("none of the {} listed images exists (first: {first})", missing.len()),
                None => "the list names no images; expected one image path a line".to_owned(),
            };
            return Err(Error::file(list, message));
        }
        let mut notes = Vec::new();
        if !missing.is_empty() {
            let shown = missing.iter().take(10).map(String::as_str).collect::<Vec<_>>().join("; ");
            let more = if missing.len() > 10 { "; ..." } else { "" };
            notes.push(format!(
                "{}: {} listed images do not exist: {shown}{more}",
                list.display(),
                missing.len()
            ));
        }
        Ok(FileSource { root, files, notes })
    }
}

impl ImageSource for FileSource {
    fn len(&self) -> usize {
        self.files.len()
    }
    fn name(&self, i: usize) -> String {
        self.files[i].display().to_string()
    }
    fn load(&self, i: usize) -> Result<RgbImage> {
        load_file(&self.root.join(&self.files[i]))
    }
    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }
}

fn looks_like_image(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
    if IMAGES.contains(&extension.as_str()) {
        return true;
    }
    if NOT_IMAGES.contains(&extension.as_str()) {
        return false;
    }
    starts_like_image(path)
}

fn starts_like_image(path: &Path) -> bool {
    let mut head = [0u8; 32];
    let read = std::fs::File::open(path).and_then(|mut f| f.read(&mut head));
    read.is_ok_and(|n| sniff(&head[..n]).is_some())
}

/// A folder becomes a [`FileSource::folder`], a file a [`FileSource::list`].
pub fn open_source(path: impl AsRef<Path>) -> Result<Box<dyn ImageSource>> {
    let path = path.as_ref();
    let found = std::fs::metadata(path).map_err(|e| Error::io(path, "open the image folder or list", e))?;
    if found.is_dir() {
        return Ok(Box::new(FileSource::folder(path)?));
    }
    if starts_like_image(path) {
        return Err(Error::file(
            path,
            "this is an image; give a folder of images or a text file with a path a line",
        ));
    }
    Ok(Box::new(FileSource::list(path)?))
}

/// Keeps unusable pictures from stopping a run: picture `i` is replaced by the next usable one (`i + 1`, `i + 2`, ...
/// modulo the length), which depends on the files alone and not on which thread met the bad one first.
#[derive(Debug, Default)]
pub struct Quarantine {
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Index to (name, reason); ordered, so that reports do not depend on threads.
    bad: BTreeMap<usize, (String, String)>,
    unreported: Vec<usize>,
}

impl Quarantine {
    pub fn new() -> Self {
        Self::default()
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        // Each critical section is one insertion or a copy: a panic elsewhere leaves the map consistent.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Picture `i`, or the next usable one after it: its index and pixels. Fails only when no picture is usable.
    pub fn load(&self, source: &dyn ImageSource, i: usize) -> Result<(usize, RgbImage)> {
        let n = source.len();
        for candidate in (0..n).map(|step| (i + step) % n) {
            if self.seen().bad.contains_key(&candidate) {
                continue;
            }
            match source.load(candidate) {
                Ok(picture) if picture.width() > 0 && picture.height() > 0 => {
                    return Ok((candidate, picture));
                }
                Ok(_) => self.add(source, candidate, "the picture has no pixels".to_owned()),
                Err(e) => self.add(source, candidate, reason(e)),
            }
        }
        let first =
            self.seen().bad.first_key_value().map(|(_, (name, why))| format!("; the first, {name}: {why}"));
        let first = first.unwrap_or_default();
        Err(Error::usage(format!(
            "none of the {n} images can be used{first}. Accepted: {ACCEPTED}, at least 8 pixels a side"
        )))
    }

    fn add(&self, source: &dyn ImageSource, i: usize, why: String) {
        let mut seen = self.seen();
        if seen.bad.insert(i, (source.name(i), why)).is_none() {
            seen.unreported.push(i);
        }
    }

    /// All unusable pictures met so far, by index: (name, reason).
    pub fn skipped(&self) -> Vec<(String, String)> {
        self.seen().bad.values().cloned().collect()
    }

    /// The unusable pictures met since the last call: each is handed out once, for the log.
    pub fn take_new(&self) -> Vec<(String, String)> {
        let mut seen = self.seen();
        let mut fresh = std::mem::take(&mut seen.unreported);
        fresh.sort_unstable();
        fresh.iter().filter_map(|i| seen.bad.get(i).cloned()).collect()
    }

    /// Decodes up to `limit` pictures spread evenly over the source, in parallel, so that a bad folder is known at the
    /// start. Returns how many were tried; the unusable ones are then in [`Self::skipped`].
    pub fn scan(&self, source: &dyn ImageSource, limit: usize) -> usize {
        let n = source.len();
        let tried = limit.min(n);
        (0..tried).into_par_iter().for_each(|k| {
            let i = (k as u128 * n as u128 / tried as u128) as usize;
            if let Err(e) = source.load(i) {
                self.add(source, i, reason(e));
            }
        });
        tried
    }
}

/// The message without the path, which is listed beside it.
fn reason(e: Error) -> String {
    match e {
        Error::File { message, .. } => message,
        Error::Io { action, source, .. } => format!("cannot {action}: {source}"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use image::ImageFormat;
    use tempfile::TempDir;

    use super::*;
    use crate::data::decode::tests::{encode, sample};

    fn picture(format: ImageFormat) -> Vec<u8> {
        encode(sample(16, 32), format)
    }

    fn folder(files: &[(&str, Vec<u8>)]) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        dir
    }

    fn names(source: &dyn ImageSource) -> Vec<String> {
        (0..source.len()).map(|i| source.name(i)).collect()
    }

    #[test]
    fn any_folder_is_listed_by_content_in_order() {
        let dir = folder(&[
            ("b/2.jpg", picture(ImageFormat::Jpeg)),
            ("a.png", picture(ImageFormat::Jpeg)), // wrong extension: content counts
            ("b/deep/er/0001", picture(ImageFormat::Png)), // no extension
            ("b/10.dat", picture(ImageFormat::WebP)),
            ("labels.txt", picture(ImageFormat::Png)), // obviously no image, never opened
            ("data.bin", b"something else entirely, long enough".to_vec()),
            (".hidden.jpg", picture(ImageFormat::Jpeg)),
            (".git/x.jpg", picture(ImageFormat::Jpeg)),
        ]);
        let source = open_source(dir.path()).unwrap();
        assert_eq!(names(&*source), ["a.png", "b/10.dat", "b/2.jpg", "b/deep/er/0001"]);
        for i in 0..source.len() {
            assert_eq!(source.load(i).unwrap().dimensions(), (16, 32));
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_loops_are_not() {
        let dir = folder(&[("real/x.jpg", picture(ImageFormat::Jpeg))]);
        std::os::unix::fs::symlink(dir.path().join("real"), dir.path().join("linked")).unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("real/loop")).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("broken.jpg")).unwrap();
        let source = FileSource::folder(dir.path()).unwrap();
        assert_eq!(names(&source), ["linked/x.jpg", "real/x.jpg"]);
        assert!(source.notes().iter().any(|n| n.contains("loop")), "{:?}", source.notes());
        assert!(source.notes().iter().any(|n| n.contains("broken.jpg")));
    }

    #[test]
    fn an_empty_folder_is_named_with_the_accepted_formats() {
        let dir = folder(&[("notes.md", b"nothing here".to_vec())]);
        let message = open_source(dir.path()).err().unwrap().to_string();
        assert!(
            message.contains(&dir.path().display().to_string()) && message.contains("JPEG, PNG"),
            "{message}"
        );
        let gone = dir.path().join("gone");
        assert!(open_source(&gone).err().unwrap().to_string().contains("gone"));
    }

    #[test]
    fn lists_take_relative_and_absolute_paths() {
        let dir =
            folder(&[("img/1.jpg", picture(ImageFormat::Jpeg)), ("img/2.png", picture(ImageFormat::Png))]);
        let absolute = dir.path().join("img/2.png").display().to_string();
        let list = dir.path().join("train.txt");
        fs::write(&list, format!("\u{feff}# persons\r\nimg/1.jpg\r\n\r\n  {absolute}\nimg/missing.jpg\n"))
            .unwrap();
        let source = open_source(&list).unwrap();
        assert_eq!(names(&*source), ["img/1.jpg".to_owned(), absolute]);
        assert!(source.load(0).is_ok() && source.load(1).is_ok());
        let notes = source.notes().join("\n");
        assert!(
            notes.contains("1 listed images do not exist") && notes.contains("line 5: img/missing.jpg"),
            "{notes}"
        );

        fs::write(&list, "a.jpg\nb.jpg\n").unwrap();
        assert!(open_source(&list).err().unwrap().to_string().contains("none of the 2 listed images exists"));
        fs::write(&list, "# nothing\n").unwrap();
        assert!(open_source(&list).err().unwrap().to_string().contains("names no images"));
        fs::write(&list, b"\xff\xfe\x00").unwrap();
        assert!(open_source(&list).err().unwrap().to_string().contains("not a text file"));
        let message = open_source(dir.path().join("img/1.jpg")).err().unwrap().to_string();
        assert!(message.contains("this is an image"), "{message}");
    }

    #[test]
    fn bad_files_are_skipped_with_reasons() {
        let jpeg = picture(ImageFormat::Jpeg);
        let dir = folder(&[
            ("0-good.jpg", jpeg.clone()),
            ("1-empty.jpg", Vec::new()),
            ("2-cut.jpg", jpeg[..jpeg.len() - 30].to_vec()),
            ("3-text.jpg", b"<html>404 not found</html>".to_vec()),
            ("4-dot.png", encode(sample(1, 1), ImageFormat::Png)),
            ("5-good.png", picture(ImageFormat::Png)),
        ]);
        let source = FileSource::folder(dir.path()).unwrap();
        assert_eq!(source.len(), 6);
        let quarantine = Quarantine::new();
        assert_eq!(quarantine.load(&source, 1).unwrap().0, 5);
        assert_eq!(quarantine.load(&source, 0).unwrap().0, 0);
        let skipped = quarantine.skipped();
        let expected = [
            ("1-empty", "empty"),
            ("2-cut", "truncated"),
            ("3-text", "not an image"),
            ("4-dot", "too small"),
        ];
        assert_eq!(skipped.len(), expected.len());
        for ((name, why), (n, w)) in skipped.iter().zip(expected) {
            assert!(name.starts_with(n) && why.contains(w), "{name}: {why}");
        }
        let scanned = Quarantine::new();
        assert_eq!(scanned.scan(&source, 100), 6);
        assert_eq!(scanned.skipped(), skipped);
        assert_eq!(scanned.take_new(), skipped);
        assert!(scanned.take_new().is_empty());
    }
}
