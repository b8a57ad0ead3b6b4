//! The table of sources: the one place where their kinds stand side by side.

use std::path::Path;

use super::files::FileSource;
use super::image_source::ImageSource;
use super::synth::SynthSource;
use super::table;
use crate::error::{Error, Result};

/// A kind of source.
struct Kind {
    /// What stands before the colon.
    scheme: &'static str,
    /// What follows it, for messages.
    takes: &'static str,
    /// Whether what lies at a path is one; none of those that lie nowhere.
    lies: Option<fn(&Path) -> bool>,
    /// Opens what follows the colon, or what lies at a path.
    open: Open,
}

type Open = fn(&Path) -> Result<Box<dyn ImageSource>>;

/// Every kind of source. Of those that lie at a path, the first that it may be is opened.
const SOURCES: &[Kind] = &[
    Kind {
        scheme: "folder",
        takes: "DIR",
        lies: Some(Path::is_dir),
        open: |path| Ok(Box::new(FileSource::folder(path)?)),
    },
    Kind {
        scheme: "table",
        takes: "FILE (columns file,label)",
        lies: Some(table::is_table),
        open: |path| Ok(Box::new(FileSource::table(path)?)),
    },
    Kind {
        scheme: "list",
        takes: "FILE (a path a line)",
        // A pipe may be one too.
        lies: Some(|_| true),
        open: |path| Ok(Box::new(FileSource::list(path)?)),
    },
    Kind {
        scheme: "synth",
        takes: "identities=N,images=N,cameras=N,seed=N (any of them)",
        lies: None,
        open: |text| Ok(Box::new(SynthSource::told(text)?)),
    },
];

/// What a help text says of sources; a test holds it against the table.
pub const KINDS_TOLD: &str = "folder, list of files or table file,label; also folder:, table:, list:, synth:";

/// Opens what lies at `path`: a folder, a list of files, a table of files and labels. Where nothing does, `path` may be a scheme
/// and what it opens: `folder:DIR`, `list:FILE`, `table:FILE`, `synth:identities=64`.
///
/// # Errors
/// When nothing is there, for a scheme that there is not, and those of the source.
pub fn open_source(path: impl AsRef<Path>) -> Result<Box<dyn ImageSource>> {
    let path = path.as_ref();
    let missing = match std::fs::metadata(path) {
        Ok(_) => {
            let kind = SOURCES.iter().find(|kind| kind.lies.is_some_and(|lies| lies(path)));
            return match kind {
                Some(kind) => (kind.open)(path),
                None => Err(Error::file(path, format!("is no source of images: give one of {}", schemes()))),
            };
        }
        Err(e) => e,
    };
    let Some((scheme, rest)) = scheme_of(path) else {
        return Err(Error::io(path, "open the image folder or list", missing));
    };
    let Some(kind) = SOURCES.iter().find(|kind| kind.scheme == scheme) else {
        let message = format!(
            "nothing of this name is there, and `{scheme}:` opens no source of images: there are {}",
            schemes()
        );
        return Err(Error::file(path, message));
    };
    if kind.lies.is_some() && rest.is_empty() {
        return Err(Error::file(path, format!("names nothing: write {}:{}", kind.scheme, kind.takes)));
    }
    (kind.open)(Path::new(rest))
}

/// `scheme:rest`, where a path may be read so.
fn scheme_of(path: &Path) -> Option<(&str, &str)> {
    let (scheme, rest) = path.to_str()?.split_once(':')?;
    // A single letter is a drive.
    let named = scheme.len() > 1 && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    (named && scheme.starts_with(|c: char| c.is_ascii_alphabetic())).then_some((scheme, rest))
}

fn schemes() -> String {
    SOURCES.iter().map(|kind| format!("{}:{}", kind.scheme, kind.takes)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::super::tests::{folder, names, picture};
    use super::*;
    use std::fs;

    fn refused(path: impl AsRef<Path>) -> String {
        open_source(path).err().unwrap().to_string()
    }

    #[test]
    fn a_source_is_opened_by_what_lies_at_its_path() {
        let jpeg = picture(image::ImageFormat::Jpeg);
        let dir = folder(&[
            ("i/b.jpg", jpeg.clone()),
            ("i/a.jpg", jpeg.clone()),
            ("list.txt", b"i/b.jpg\n".to_vec()),
            ("list.csv", b"i/b.jpg\n".to_vec()),
            ("table.txt", b"\xEF\xBB\xBFlabel , file\nx,i/b.jpg\n".to_vec()),
        ]);
        let of = |path: &str| names(&*open_source(dir.path().join(path)).unwrap());
        assert_eq!(of("i"), ["a.jpg", "b.jpg"]);
        for one in ["list.txt", "list.csv", "table.txt"] {
            assert_eq!(of(one), ["i/b.jpg"], "{one}");
        }
        let classes = |path: &str| open_source(dir.path().join(path)).unwrap().class(0);
        assert_eq!((classes("table.txt").as_deref(), classes("list.csv")), (Some("x"), None));
        assert!(refused(dir.path().join("i/a.jpg")).contains("this is an image"));
    }

    #[test]
    fn a_scheme_says_what_is_opened() {
        let dir = folder(&[
            ("i/1.jpg", picture(image::ImageFormat::Jpeg)),
            ("list", b"i/1.jpg\n".to_vec()),
            ("table", b"file,label\ni/1.jpg,x\n".to_vec()),
        ]);
        let of = |scheme: &str, path: &str| {
            open_source(format!("{scheme}:{}", dir.path().join(path).display())).map(|s| names(&*s))
        };
        assert_eq!(of("folder", "i").unwrap(), ["1.jpg"]);
        assert_eq!(of("list", "list").unwrap(), ["i/1.jpg"]);
        assert_eq!(of("table", "table").unwrap(), ["i/1.jpg"]);
        assert!(of("folder", "list").unwrap_err().to_string().contains("not a folder"));
        assert!(of("table", "list").unwrap_err().to_string().contains("no column `file`"));
        let drawn = open_source("synth:identities=2,images=3").unwrap();
        assert_eq!(
            (drawn.len(), drawn.class(0) == drawn.class(2), drawn.class(0) == drawn.class(3)),
            (6, true, false)
        );
        assert_eq!(open_source("synth:").unwrap().len(), 500 * 24);
    }

    #[test]
    fn a_path_with_a_colon_is_a_path_where_it_is_there() {
        let dir = folder(&[("synth:identities=2/1.jpg", picture(image::ImageFormat::Jpeg))]);
        let at = dir.path().join("synth:identities=2");
        assert_eq!(names(&*open_source(&at).unwrap()), ["1.jpg"]);
        fs::rename(&at, dir.path().join("2024:crops")).unwrap();
        assert_eq!(names(&*open_source(dir.path().join("2024:crops")).unwrap()), ["1.jpg"]);
        // What is not there is missing, unless it reads as a scheme.
        for gone in ["2024:crop", "C:\\crops", "a/b:c"] {
            assert!(refused(gone).contains("open the image folder"), "{}", refused(gone));
        }
        let e = refused("lmdb:crops");
        assert!(
            ["`lmdb:`", "lmdb:crops", "folder:DIR", "list:FILE", "table:FILE", "synth:"]
                .iter()
                .all(|p| e.contains(p)),
            "{e}"
        );
        assert!(refused("folder:").contains("write folder:DIR"));
        assert!(refused("folder:/nowhere/crops").contains("/nowhere/crops"));
    }

    #[test]
    fn all_kinds_are_told() {
        for kind in SOURCES {
            assert!(KINDS_TOLD.contains(&format!("{}:", kind.scheme)), "{} is not told", kind.scheme);
        }
        assert_eq!(KINDS_TOLD.matches(':').count(), SOURCES.len());
    }
}
