//! Where pictures come from: any folder, a list file, or whatever implements [`ImageSource`]; and what happens to
//! pictures that cannot be used.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use image::RgbImage;
use rayon::prelude::*;

use crate::data::decode::{ACCEPTED, load_file, not_read};
use crate::data::left_out::{self, Kind, LeftOut};
use crate::data::listing::{self, Listing, starts_like_image};
use crate::data::sample::Labels;
use crate::error::{Error, Result};
use crate::units::{shown, without_bom};

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
    /// What was found beside the pictures and is not among them.
    fn left_out(&self) -> &[LeftOut] {
        &[]
    }
    /// What is known of picture `i`.
    fn labels(&self, _i: usize) -> Labels {
        Labels::default()
    }
}

/// Picture files below a folder, in a fixed order; no labels, no naming scheme needed.
#[derive(Debug)]
pub struct FileSource {
    root: PathBuf,
    files: Vec<Box<Path>>,
    left_out: Vec<LeftOut>,
}

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
        Ok(FileSource { root: root.to_owned(), files, left_out })
    }

    /// The pictures named in a text file: one path a line, absolute or relative to the text file's folder; empty lines
    /// and lines that begin with `#` are ignored. Checks that the files exist. Missing ones are left out and reported in
    /// [`ImageSource::left_out`]; when nothing remains, that is an error.
    pub fn list(list: impl AsRef<Path>) -> Result<Self> {
        let list = list.as_ref();
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
        Ok(FileSource { root, files, left_out })
    }
}

impl FileSource {
    /// What [`FileSource::files`] are relative to.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The files in their order.
    pub fn files(&self) -> &[Box<Path>] {
        &self.files
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

/// Whether a file that a list names is worth loading, else why not.
fn usable(path: &Path) -> std::result::Result<(), String> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_file() => listing::judge_content(path).map(drop).map_err(|(_, why)| why),
        Ok(meta) if meta.is_dir() => Err("a folder; a list names images".to_owned()),
        Ok(_) => Err("no regular file".to_owned()),
        Err(e) => Err(left_out::reason(not_read(path, e))),
    }
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
    /// By index; ordered, so that reports do not depend on threads.
    bad: BTreeMap<usize, LeftOut>,
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
                Ok(_) => self.add(source, candidate, Error::usage("the picture has no pixels")),
                Err(e) => self.add(source, candidate, e),
            }
        }
        let seen = self.seen();
        let first = seen.bad.values().next().map(|l| format!("; the first, {}: {}", l.name, l.reason));
        let first = first.unwrap_or_default();
        Err(Error::usage(format!(
            "none of the {n} images can be used{first}. Accepted: {ACCEPTED}, at least 8 pixels a side"
        )))
    }

    fn add(&self, source: &dyn ImageSource, i: usize, why: Error) {
        self.seen().bad.insert(i, LeftOut::picture(source.name(i), why));
    }

    /// All unusable pictures met so far, by index.
    pub fn skipped(&self) -> Vec<LeftOut> {
        self.seen().bad.values().cloned().collect()
    }

    /// Decodes up to `limit` pictures spread evenly over the source, in parallel, so that a bad folder is known at the
    /// start. Returns how many were tried; the unusable ones are then in [`Self::skipped`].
    pub fn scan(&self, source: &dyn ImageSource, limit: usize) -> usize {
        let n = source.len();
        let tried = limit.min(n);
        (0..tried).into_par_iter().for_each(|k| {
            let i = (k as u128 * n as u128 / tried as u128) as usize;
            if let Err(e) = source.load(i) {
                self.add(source, i, e);
            }
        });
        tried
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
        let lost: Vec<&str> = source.left_out().iter().map(|l| l.name.as_str()).collect();
        assert_eq!(lost, ["broken.jpg", "linked/loop", "real/loop"]);
        assert!(source.left_out()[0].reason.contains("nowhere"), "{:?}", source.left_out());
        assert!(source.left_out()[1].reason.contains("loop"), "{:?}", source.left_out());
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
        let [missing] = source.left_out() else { panic!("{:?}", source.left_out()) };
        assert!(missing.name == "img/missing.jpg" && missing.reason.starts_with("line 5: "), "{missing:?}");

        fs::write(&list, "a.jpg\nb.jpg\n").unwrap();
        assert!(open_source(&list).err().unwrap().to_string().contains("2 of 2 listed images are left out"));
        fs::write(&list, "# nothing\n").unwrap();
        assert!(open_source(&list).err().unwrap().to_string().contains("names no images"));
        fs::write(&list, b"\xff\xfea\0.\0").unwrap();
        assert!(open_source(&list).err().unwrap().to_string().contains("UTF-16"));
        fs::write(&list, b"a\0b").unwrap();
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
        for (got, (name, why)) in skipped.iter().zip(expected) {
            assert!(got.name.starts_with(name) && got.reason.contains(why), "{got:?}");
        }
        let scanned = Quarantine::new();
        assert_eq!(scanned.scan(&source, 100), 6);
        assert_eq!(scanned.skipped(), skipped);
    }
}
