//! Files that are either wholly there or not at all, whenever the process dies.
//!
//! What is being written has a hidden name beside its place and is renamed at the end. Those names are known to the process,
//! so that a signal that ends it removes them; what a killed process leaves, [`sweep`] removes.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::NamedTempFile;

use super::disk;
use crate::error::{Error, Result};

/// What the names of unfinished files begin with.
pub const TEMPORARY: &str = ".saip-engine-";

/// What would be left if the process ended now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// A file, or a folder with all that it holds.
    Whole,
    /// A folder that was created for what is written; removed unless it holds something.
    Folder,
}

static UNFINISHED: Mutex<BTreeMap<PathBuf, Left>> = Mutex::new(BTreeMap::new());

/// While it lives, no signal ends the process: for several changes that belong together. Only for moments.
pub struct Hold(MutexGuard<'static, BTreeMap<PathBuf, Left>>);

/// Keeps signals from ending the process until the value is dropped.
pub fn hold() -> Hold {
    Hold(UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Removes everything unfinished and then ends the process by `end`; nothing new begins in between, and whoever finishes
/// something waits for ever.
pub fn remove_unfinished(end: impl FnOnce()) {
    let held = hold();
    let (whole, folders): (Vec<_>, Vec<_>) = held.0.iter().partition(|(_, left)| **left == Left::Whole);
    for (path, _) in whole {
        remove_whole(path);
    }
    // The innermost first.
    for (path, _) in folders.into_iter().rev() {
        let _ = disk::remove_dir(path);
    }
    end();
}

/// Threads may still be writing into a folder: under another name it is out of their reach.
fn remove_whole(path: &Path) {
    if fs::symlink_metadata(path).is_ok_and(|m| m.is_dir()) {
        let aside = path.with_file_name(format!("{TEMPORARY}removed-{}", std::process::id()));
        let _ = match fs::rename(path, &aside) {
            Ok(()) => fs::remove_dir_all(&aside),
            Err(_) => fs::remove_dir_all(path),
        };
    } else {
        let _ = fs::remove_file(path);
    }
}

/// Says that something is unfinished until the value is dropped.
#[derive(Debug)]
pub struct Unfinished(PathBuf);

impl Unfinished {
    /// A folder that is being filled and that a signal removes with all that it holds.
    pub fn whole(path: &Path) -> Self {
        Self::note(path, Left::Whole)
    }

    /// A folder that a signal removes if it is empty.
    pub fn folder(path: &Path) -> Self {
        Self::note(path, Left::Folder)
    }

    fn note(path: &Path, left: Left) -> Self {
        hold().0.insert(path.to_owned(), left);
        Unfinished(path.to_owned())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        hold().0.remove(&self.0);
    }
}

/// A file on its way to its place; it vanishes when it does not get there.
#[derive(Debug)]
pub struct Temporary {
    file: Option<BufWriter<NamedTempFile>>,
    path: PathBuf,
}

impl Temporary {
    /// An empty file in `folder`.
    ///
    /// # Errors
    /// Those of the system.
    pub fn new_in(folder: &Path) -> io::Result<Self> {
        disk::change()?;
        let mut held = hold();
        let file = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(folder)?;
        let path = file.path().to_owned();
        held.0.insert(path.clone(), Left::Whole);
        drop(held);
        Ok(Temporary { file: Some(BufWriter::new(file)), path })
    }

    /// Where the file is until it gets its name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Brings everything to the disk, readable by everyone that the folder is for; what remains is a rename.
    ///
    /// # Errors
    /// Those of the system, such as a full disk.
    pub fn complete(&mut self) -> io::Result<()> {
        disk::change()?;
        self.readable()?.sync_all()
    }

    /// The same without waiting for the disk: for what is made again after a power failure.
    fn readable(&mut self) -> io::Result<&File> {
        let writer = self.writer();
        writer.flush()?;
        let file = writer.get_ref().as_file();
        readable_by_default(file)?;
        Ok(file)
    }

    /// Gives a complete file its name, in place of whatever has it.
    ///
    /// # Errors
    /// Those of the system.
    pub fn put(self, path: &Path) -> io::Result<()> {
        self.put_in(&mut hold(), path)
    }

    /// The same among other changes.
    ///
    /// # Errors
    /// Those of the system.
    pub fn put_in(self, held: &mut Hold, path: &Path) -> io::Result<()> {
        self.named(held, |file| file.persist(path).map(drop).map_err(|e| e.error))
    }

    /// The same unless something has that name already; then that stays.
    ///
    /// # Errors
    /// Those of the system.
    pub fn put_new(self, path: &Path) -> io::Result<()> {
        let put = self.named(&mut hold(), |file| file.persist_noclobber(path).map(drop).map_err(|e| e.error));
        put.or_else(|e| if e.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(e) })
    }

    fn named(
        mut self,
        held: &mut Hold,
        name: impl FnOnce(NamedTempFile) -> io::Result<()>,
    ) -> io::Result<()> {
        held.0.remove(&self.path);
        let Some(writer) = self.file.take() else { return Ok(()) };
        disk::change()?;
        // Everything was written by `complete`: what fails here leaves nothing in the buffer to lose.
        writer.into_inner().map_err(io::IntoInnerError::into_error).and_then(name)
    }

    fn writer(&mut self) -> &mut BufWriter<NamedTempFile> {
        // Taken by `named` only, which consumes the value.
        self.file.as_mut().unwrap_or_else(|| unreachable!())
    }
}

impl Write for Temporary {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        disk::change()?;
        self.writer().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer().flush()
    }
}

impl io::Seek for Temporary {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        self.writer().seek(to)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(writer) = self.file.take() {
            let mut held = hold();
            // Without what is still in the buffer.
            drop(writer.into_parts());
            held.0.remove(&self.path);
        }
    }
}

/// Replaces the file at `path` by `bytes`: written beside it, flushed to the disk, then renamed.
///
/// # Errors
/// [`Error::Io`]; the file at `path` is then what it was.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if is_special(path) {
        return disk::write(path, bytes).map_err(|e| Error::io(path, "write", e));
    }
    let parent = parent_of(path);
    let mut temporary = filled(path, bytes)?;
    temporary.complete().map_err(|e| Error::io(path, "write", e))?;
    temporary.put(path).map_err(|e| Error::io(path, "replace", e))?;
    sync_dir(parent).map_err(|e| Error::io(parent, "flush the folder", e))
}

/// Writes a file whole or not at all, short of a power failure; one that is already there is left as it is.
///
/// # Errors
/// [`Error::Io`].
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    if exists(path)? {
        return Ok(());
    }
    let mut temporary = filled(path, bytes)?;
    let put = temporary.readable().map(drop).and_then(|()| temporary.put_new(path));
    put.map_err(|e| Error::io(path, "write", e))
}

/// Refuses to write a file that the user named and that is there already, unless told to by `--force`.
///
/// # Errors
/// [`Error::Usage`] when it is there; [`Error::Io`].
pub fn refuse_to_replace(path: &Path, force: bool) -> Result<()> {
    if path.is_dir() {
        return Err(Error::usage(format!("{}: is a folder: name a file", path.display())));
    }
    if !force && !is_special(path) && is_taken(path)? {
        return Err(Error::usage(format!("{}: is there already: replace it with --force", path.display())));
    }
    Ok(())
}

/// Whether something has the name `path`, be it a link that leads nowhere: to write would replace it.
pub fn is_taken(path: &Path) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::io(path, "look up", e)),
    }
}

/// Whether it is no file that can be replaced but something that takes bytes, such as `/dev/stdout`.
fn is_special(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir())
}

/// A file with `bytes` beside `path`.
fn filled(path: &Path, bytes: &[u8]) -> Result<Temporary> {
    let mut temporary = Temporary::new_in(parent_of(path))
        .map_err(|e| Error::io(path, "create a temporary file beside", e))?;
    temporary.write_all(bytes).map_err(|e| Error::io(path, "write", e))?;
    Ok(temporary)
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

/// The folder `path` for this process alone, until the value is dropped or the process ends; None where the file system has no
/// locks. What a killed process left unfinished in it is removed.
///
/// # Errors
/// [`Error::Usage`] when another process writes into it; [`Error::Io`].
pub fn lock_folder(path: &Path) -> Result<Option<File>> {
    let Ok(folder) = File::open(path) else { return Ok(None) };
    match folder.try_lock() {
        Ok(()) => sweep(path).map(|()| Some(folder)),
        Err(TryLockError::WouldBlock) => Err(Error::usage(format!(
            "{}: another process writes into it: wait for that to end, or choose another --out",
            path.display()
        ))),
        Err(TryLockError::Error(_)) => Ok(None),
    }
}

/// Removes what a killed process left unfinished in `dir`, which the caller has locked.
///
/// # Errors
/// [`Error::Io`] when the folder cannot be listed.
pub fn sweep(dir: &Path) -> Result<()> {
    let list = fs::read_dir(dir).map_err(|e| Error::io(dir, "list the folder", e))?;
    for entry in list.flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(TEMPORARY);
        if ours && !hold().0.contains_key(&entry.path()) {
            remove_whole(&entry.path());
        }
    }
    Ok(())
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
        write_new(&path, b"three").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_full_disk_leaves_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        write(&path, b"one").unwrap();
        disk::fail(None);
        write(&path, b"one").unwrap();
        let all = disk::made();
        assert!(all >= 4, "created, written, flushed, renamed: {all}");
        for at in 0..all {
            disk::fail(Some(at));
            let e = write(&path, b"two").unwrap_err().to_string();
            assert!(e.contains("a.toml") && e.contains("on purpose"), "{e}");
            assert_eq!(fs::read(&path).unwrap(), b"one", "change {at}");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "change {at}");
        }
        disk::fail(None);
    }

    #[test]
    fn a_failure_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("missing/a.toml");
        let e = write(&path, b"one").unwrap_err().to_string();
        assert!(e.contains("missing/a.toml") && e.contains("cannot create"), "{e}");
    }

    #[test]
    fn leftovers_are_removed_and_what_is_being_written_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let names = || fs::read_dir(dir.path()).unwrap().count();
        fs::write(dir.path().join(format!("{TEMPORARY}x1")), "half").unwrap();
        fs::write(dir.path().join(".tmp-mine"), "mine").unwrap();
        let mut written = Temporary::new_in(dir.path()).unwrap();
        written.write_all(b"x").unwrap();
        let lock = lock_folder(dir.path()).unwrap();
        assert!(lock.is_some() && written.path().exists());
        assert_eq!(names(), 2);
        assert!(lock_folder(dir.path()).unwrap_err().to_string().contains("another process"));
        drop(written);
        assert_eq!(names(), 1);
    }
}
