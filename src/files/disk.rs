//! Every change to the file system, as `std::fs` makes it, with a place where a test makes it fail.

use std::cell::Cell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

thread_local! {
    /// Changes that this thread has made, and the one that fails.
    static MADE: Cell<u64> = const { Cell::new(0) };
    static FAILS: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Makes change number `at` of this thread, counted from the next one as 0, fail as on a full disk; None makes none fail. For
/// tests of what is left then.
pub fn fail(at: Option<u64>) {
    MADE.set(0);
    FAILS.set(at);
}

/// Changes that this thread has made since [`fail`] was called.
pub fn made() -> u64 {
    MADE.get()
}

/// Counts a change that is about to be made.
///
/// # Errors
/// When it is the one that a test wants to fail. Everything after it fails, too: a disk that is full stays full.
pub(super) fn change() -> io::Result<()> {
    let made = MADE.get();
    MADE.set(made + 1);
    match FAILS.get() {
        Some(at) if made >= at => {
            Err(io::Error::new(io::ErrorKind::StorageFull, "no space left (on purpose)"))
        }
        _ => Ok(()),
    }
}

/// As [`fs::create_dir`].
///
/// # Errors
/// Those of the system.
pub fn create_dir(path: impl AsRef<Path>) -> io::Result<()> {
    change().and_then(|()| fs::create_dir(path))
}

/// As [`fs::create_dir_all`].
///
/// # Errors
/// Those of the system.
pub fn create_dir_all(path: impl AsRef<Path>) -> io::Result<()> {
    // A folder that is there is no change.
    if path.as_ref().is_dir() { Ok(()) } else { change().and_then(|()| fs::create_dir_all(path)) }
}

/// As [`fs::rename`].
///
/// # Errors
/// Those of the system.
pub fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
    change().and_then(|()| fs::rename(from, to))
}

/// As [`fs::remove_file`]: what takes no room never fails for lack of it.
///
/// # Errors
/// Those of the system.
pub fn remove_file(path: impl AsRef<Path>) -> io::Result<()> {
    fs::remove_file(path)
}

/// As [`fs::remove_dir`].
///
/// # Errors
/// Those of the system.
pub fn remove_dir(path: impl AsRef<Path>) -> io::Result<()> {
    fs::remove_dir(path)
}

/// As [`fs::remove_dir_all`].
///
/// # Errors
/// Those of the system.
pub fn remove_dir_all(path: impl AsRef<Path>) -> io::Result<()> {
    fs::remove_dir_all(path)
}

/// A file that is written to as it grows: what is there when the process dies stays. Whole files are [`super::atomic`]'s.
#[derive(Debug)]
pub struct Growing(File);

impl Growing {
    /// A new file; there must be none of that name.
    ///
    /// # Errors
    /// Those of the system.
    pub fn create_new(path: &Path) -> io::Result<Self> {
        change().and_then(|()| File::create_new(path)).map(Growing)
    }

    /// The end of a file, which is made if need be.
    ///
    /// # Errors
    /// Those of the system.
    pub fn append(path: &Path) -> io::Result<Self> {
        change().and_then(|()| OpenOptions::new().create(true).append(true).open(path)).map(Growing)
    }

    /// A file that may be there already, with its contents, to read and to write.
    ///
    /// # Errors
    /// Those of the system.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        change().and_then(|()| options.open(path)).map(Growing)
    }

    /// Makes what was written survive a power failure.
    ///
    /// # Errors
    /// Those of the system.
    pub fn sync(&self) -> io::Result<()> {
        change().and_then(|()| self.0.sync_all())
    }

    /// For locks and lengths.
    pub fn file(&mut self) -> &mut File {
        &mut self.0
    }
}

impl Write for Growing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        change().and_then(|()| self.0.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Writes a new file in one go: for folders that get their name when they are whole.
///
/// # Errors
/// Those of the system.
pub fn write(path: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
    change().and_then(|()| fs::write(path, bytes))
}
