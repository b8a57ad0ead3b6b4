//! What a folder holds: pictures that can be read, and what looks like one but is left out. Every command lists by it.

use std::ffi::OsStr;
use std::io::Read;
use std::path::Path;

use walkdir::WalkDir;

use crate::data::formats::{Format, of_extension, sniff, sniff_unread, unread};
use crate::data::left_out::{Kind, LeftOut};
use crate::units::shown;

/// Files that are never pictures; not worth opening, common beside pictures.
#[rustfmt::skip]
const NOT_IMAGES: &[&str] = &[
    "txt", "json", "jsonl", "csv", "tsv", "md", "xml", "yaml", "yml", "toml", "ini", "html", "mat", "pkl", "npy", "npz",
    "pt", "pth", "safetensors", "onnx", "py", "sh", "odgt", "zip", "tar", "gz", "7z", "rar", "mdb", "db", "lock", "log",
    "mp4", "avi", "mov", "mkv", "pdf",
];
/// Folders that systems make beside the user's pictures and fill with thumbnails or deleted files.
const SYSTEM_FOLDERS: &[(&str, &str)] = &[
    ("@eaDir", "thumbnails of a Synology NAS"),
    ("#recycle", "deleted files of a Synology NAS"),
    ("#snapshot", "snapshots of a Synology NAS"),
    ("@Recycle", "deleted files of a QNAP NAS"),
    ("@Recently-Snapshot", "snapshots of a QNAP NAS"),
    (".@__thumb", "thumbnails of a QNAP NAS"),
    (".AppleDouble", "resource forks of macOS"),
    ("__MACOSX", "resource forks of macOS"),
    (".thumbnails", "thumbnails of the desktop"),
    ("$RECYCLE.BIN", "deleted files of Windows"),
    ("System Volume Information", "a system folder of Windows"),
    ("lost+found", "a folder of the file system"),
];

/// The pictures below a folder.
#[derive(Debug, Default)]
pub struct Listing {
    /// Relative to the folder, in a fixed order.
    pub files: Vec<Box<Path>>,
    /// Names relative to the folder, in a fixed order.
    pub left_out: Vec<LeftOut>,
}

/// Lists the pictures in `root` and `depth - 1` levels of subfolders. Links are followed, link loops are not. Folders that
/// `enter` refuses are not looked into.
pub fn list(root: &Path, depth: usize, enter: &dyn Fn(&Path) -> bool) -> Listing {
    let mut listing = Listing::default();
    let mut walk = WalkDir::new(root).follow_links(true).min_depth(1).max_depth(depth).into_iter();
    while let Some(entry) = walk.next() {
        match entry {
            Ok(entry) if entry.file_type().is_dir() => {
                // At the last level folders are not looked into anyway.
                let system = if entry.depth() < depth { system_folder(entry.file_name()) } else { None };
                if let Some(why) = system {
                    listing.left_out.push(LeftOut::new(Kind::System, relative(root, entry.path()), why));
                }
                if entry.depth() < depth && (system.is_some() || !enter(entry.path())) {
                    walk.skip_current_dir();
                }
            }
            Ok(entry) => match judge(entry.path(), entry.file_type().is_file()) {
                Ok(true) => {
                    listing.files.push(entry.path().strip_prefix(root).unwrap_or(entry.path()).into())
                }
                Ok(false) => {}
                Err((kind, why)) => {
                    listing.left_out.push(LeftOut::new(kind, relative(root, entry.path()), why));
                }
            },
            Err(e) => listing.left_out.extend(not_walked(root, &e)),
        }
    }
    // Component-wise order is the same on every platform and does not depend on the directory's own order.
    listing.files.sort_unstable();
    listing.left_out.sort_by(|a, b| a.name.cmp(&b.name));
    listing
}

fn relative(root: &Path, path: &Path) -> String {
    let inside = path.strip_prefix(root).unwrap_or(path);
    shown(if inside.as_os_str().is_empty() { path } else { inside })
}

fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

fn system_folder(name: &OsStr) -> Option<&'static str> {
    let known = SYSTEM_FOLDERS.iter().find(|(folder, _)| name == *folder).map(|(_, why)| *why);
    known.or_else(|| is_hidden(name).then_some("a hidden folder"))
}

/// What the extension says of a file.
enum Named {
    /// Taken without opening it: a folder may hold millions. Its content is judged when it is loaded.
    Image,
    NoImage,
    /// A picture that no decoder here reads, unless its content is of an accepted format after all.
    Unread(&'static str),
    Unknown,
}

fn named(path: &Path) -> Named {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("");
    match of_extension(extension) {
        Some(Format { read: Some(_), .. }) => Named::Image,
        Some(format) => Named::Unread(format.name),
        None if NOT_IMAGES.contains(&extension.to_ascii_lowercase().as_str()) => Named::NoImage,
        None => Named::Unknown,
    }
}

/// Whether a file found in a folder is a picture, or why it is left out although it may be one.
fn judge(path: &Path, is_file: bool) -> Result<bool, (Kind, String)> {
    let name = path.file_name().unwrap_or_default();
    if is_hidden(name) {
        // Other hidden files, such as .DS_Store, do not even pretend to be pictures.
        if !matches!(named(path), Named::Image | Named::Unread(_)) {
            return Ok(false);
        }
        let fork = name.as_encoded_bytes().starts_with(b"._");
        let why = if fork { "a resource fork of macOS, no picture" } else { "a hidden file" };
        return Err((Kind::System, why.to_owned()));
    }
    if !is_file {
        // A pipe or device; opening one may block for ever.
        let picture = matches!(named(path), Named::Image | Named::Unread(_));
        return if picture { Err((Kind::Picture, "no regular file".to_owned())) } else { Ok(false) };
    }
    judge_content(path)
}

/// As [`judge`], for a regular file whatever its name begins with.
pub fn judge_content(path: &Path) -> Result<bool, (Kind, String)> {
    match named(path) {
        Named::Image => Ok(true),
        Named::NoImage => Ok(false),
        Named::Unread(format) => match head(path) {
            Ok(head) if sniff(&head).is_some() => Ok(true),
            _ => Err((Kind::Picture, unread(format))),
        },
        Named::Unknown => match head(path) {
            Ok(head) if sniff(&head).is_some() => Ok(true),
            Ok(head) => match sniff_unread(&head) {
                Some(format) => Err((Kind::Picture, unread(format))),
                None => Ok(false),
            },
            Err(e) => Err((Kind::Unopened, format!("cannot be opened: {e}"))),
        },
    }
}

/// The first bytes of a file.
fn head(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(32);
    std::fs::File::open(path)?.take(32).read_to_end(&mut head)?;
    Ok(head)
}

/// Whether the content of a file begins like a picture of an accepted format.
pub fn starts_like_image(path: &Path) -> bool {
    head(path).is_ok_and(|head| sniff(&head).is_some())
}

/// What is lost by an error of the walk.
fn not_walked(root: &Path, e: &walkdir::Error) -> Option<LeftOut> {
    let path = e.path().unwrap_or(root);
    let lost = |kind, why: String| Some(LeftOut::new(kind, relative(root, path), why));
    if e.loop_ancestor().is_some() {
        return lost(Kind::Unopened, "a link loop: it leads back to a folder above it".to_owned());
    }
    let dangling = std::fs::read_link(path).ok().filter(|_| !path.exists());
    let Some(target) = dangling else {
        let why = e.io_error().map_or_else(|| e.to_string(), |e| e.to_string());
        return lost(Kind::Unopened, format!("cannot be opened: {why}"));
    };
    let why = format!("a link to {}, which is not there", shown(&target));
    let hidden = path.file_name().is_some_and(is_hidden);
    match named(path) {
        Named::NoImage => None,
        _ if hidden => None,
        Named::Image | Named::Unread(_) => lost(Kind::Picture, why),
        Named::Unknown => lost(Kind::Unopened, why),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use image::ImageFormat;

    use super::*;
    use crate::data::decode::tests::{encode, sample};

    fn all(root: &Path, depth: usize) -> (Vec<String>, Vec<(Kind, String)>) {
        let listing = list(root, depth, &|_| true);
        let left_out = listing.left_out.into_iter().map(|l| (l.kind, l.name));
        (listing.files.iter().map(|f| shown(f)).collect(), left_out.collect())
    }

    #[test]
    fn what_is_no_readable_picture_is_left_out_by_kind() {
        let dir = tempfile::tempdir().unwrap();
        let jpeg = encode(sample(16, 16), ImageFormat::Jpeg);
        let heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic".as_slice();
        for (name, bytes) in [
            ("a.jpg", jpeg.as_slice()),
            ("b.HEIC", heic),
            ("c.heic", &jpeg), // the content counts
            ("d", heic),
            ("e.ppm", b"P6\n8 8\n255\n"),
            ("f/g.jpg", &jpeg),
            ("f/@eaDir/g.jpg/SYNOPHOTO_THUMB_M.jpg", &jpeg),
            (".git/h.jpg", &jpeg),
            ("._a.jpg", b"\0\x05\x16\x07"),
            (".DS_Store", b"\0\0\0\x01Bud1"),
            ("Thumbs.db", b"\xd0\xcf\x11\xe0"),
            ("weights.bin", b"nothing to see here, long enough"),
        ] {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        use Kind::{Picture, System};
        let (files, left_out) = all(dir.path(), usize::MAX);
        assert_eq!(files, ["a.jpg", "c.heic", "f/g.jpg"]);
        let want = [
            (System, "._a.jpg"),
            (System, ".git"),
            (Picture, "b.HEIC"),
            (Picture, "d"),
            (Picture, "e.ppm"),
            (System, "f/@eaDir"),
        ];
        assert_eq!(left_out, want.map(|(kind, name)| (kind, name.to_owned())));
        // A level of its own: the folders below are somebody else's business.
        assert_eq!(all(dir.path(), 1).0, ["a.jpg", "c.heic"]);
        assert_eq!(all(dir.path(), 1).1.len(), 4);
        let entered = list(dir.path(), usize::MAX, &|folder| !folder.ends_with("f"));
        assert_eq!((entered.files.len(), entered.left_out.len()), (2, 5));
    }

    #[cfg(unix)]
    #[test]
    fn links_to_nothing_pipes_and_strange_names_are_all_told() {
        use std::os::unix::ffi::OsStrExt;
        let dir = tempfile::tempdir().unwrap();
        let jpeg = encode(sample(16, 16), ImageFormat::Jpeg);
        for name in [b"m\xfcller.jpg".as_slice(), b"m\xf6ller.jpg", b".\xff.jpg"] {
            fs::write(dir.path().join(OsStr::from_bytes(name)), &jpeg).unwrap();
        }
        for name in ["gone.jpg", "gone.txt", "gone", ".gone.jpg"] {
            std::os::unix::fs::symlink("../annex/1", dir.path().join(name)).unwrap();
        }
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("s.png")).unwrap();
        let (files, left_out) = all(dir.path(), usize::MAX);
        assert_eq!(files, [r"m\xF6ller.jpg", r"m\xFCller.jpg"]);
        use Kind::{Picture, System, Unopened};
        let want = [(System, r".\xFF.jpg"), (Unopened, "gone"), (Picture, "gone.jpg"), (Picture, "s.png")];
        assert_eq!(left_out, want.map(|(kind, name)| (kind, name.to_owned())));
    }
}
