//! Files that are either wholly there or not at all, whenever the process dies.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use crate::error::{Error, Result};

/// Replaces the file at `path` by `bytes`: written beside it, flushed to the disk, then renamed.
///
/// # Errors
/// [`Error::Io`]; the file at `path` is then what it was.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let parent = parent_of(path);
    let mut temporary = tempfile::Builder::new()
        .prefix(".tmp-")
        .tempfile_in(parent)
        .map_err(|e| Error::io(path, "create a temporary file beside", e))?;
    let file = temporary.as_file_mut();
    file.write_all(bytes)
        .and_then(|()| readable_by_default(file))
        .and_then(|()| file.sync_all())
        .map_err(|e| Error::io(path, "write", e))?;
    temporary.persist(path).map_err(|e| Error::io(path, "replace", e.error))?;
    sync_dir(parent).map_err(|e| Error::io(parent, "flush the folder", e))
}

/// Makes renames and deletions in `dir` survive a power failure.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    // Other systems cannot open a folder; they order renames themselves.
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}

/// Whether `path` names something, an unreadable folder above it counting as an error rather than as a no.
pub fn exists(path: &Path) -> Result<bool> {
    fs::exists(path).map_err(|e| Error::io(path, "look up", e))
}

fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Temporary files are private to their owner; results in a run folder are for everyone that the folder is for.
#[cfg(unix)]
fn readable_by_default(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn readable_by_default(_: &File) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failure_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("missing/a.toml");
        let e = write(&path, b"one").unwrap_err().to_string();
        assert!(e.contains("missing/a.toml") && e.contains("cannot create"), "{e}");
    }
}
