//! Folders that commands write: what a command replaces or removes there is what it wrote itself.
//!
//! A hidden file in the folder lists what was written, by name and by what it held. A file that is not listed, or that has
//! changed since, is somebody's: it is never touched, and a command that would need its name refuses.

use super::disk;
use crate::error::{Error, Result};
use crate::files::atomic::{self, Temporary, Unfinished};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The list of what was written.
const MARKER: &str = ".saip-engine.json";
/// Largest list that is read, bytes.
const MOST_LISTED: u64 = 1 << 20;
/// A file's contents are told apart by so many blocks of so many bytes, spread over it: large arrays are not read again.
const BLOCKS: u64 = 64;
const BLOCK: u64 = 64 << 10;

/// What the hidden file holds.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Written {
    command: String,
    /// Contents by name.
    files: BTreeMap<String, String>,
}

/// A folder that is being written. Nothing in it changes before [`OutputFolder::commit`].
pub struct OutputFolder {
    path: PathBuf,
    command: &'static str,
    /// What an earlier call wrote.
    before: Written,
    ready: Vec<(String, Temporary)>,
    /// Created by this call: removed again if nothing comes of it.
    created: Option<Unfinished>,
    _lock: Option<File>,
}

impl OutputFolder {
    /// Takes the folder `path` for `command`, creating it if need be; no other process may write into it meanwhile.
    ///
    /// # Errors
    /// [`Error::Usage`] when it is a file, in use, or written by another command; [`Error::Io`].
    pub fn open(path: &Path, command: &'static str) -> Result<Self> {
        let created = match fs::metadata(path) {
            Ok(found) if found.is_dir() => None,
            Ok(_) => {
                return Err(Error::usage(format!("{}: is a file: name a folder with --out", path.display())));
            }
            Err(_) => {
                disk::create_dir_all(path).map_err(|e| Error::io(path, "create the folder", e))?;
                Some(Unfinished::folder(path))
            }
        };
        let mut folder = OutputFolder {
            path: path.to_owned(),
            command,
            before: Written::default(),
            ready: Vec::new(),
            created,
            _lock: atomic::lock_folder(path)?,
        };
        folder.before = folder.written_before()?;
        Ok(folder)
    }

    /// The folder's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether nothing lies in it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.names()?.is_empty())
    }

    /// Refuses a folder in which a file that would be replaced or removed is not what the command wrote: one of `names`, or
    /// one that it wrote earlier and that was changed since.
    ///
    /// # Errors
    /// [`Error::Usage`] that names the file; [`Error::Io`].
    pub fn refuse_changed(&self, names: &[&str]) -> Result<()> {
        let listed = self.before.files.keys().map(String::as_str);
        match listed.chain(names.iter().copied()).find_map(|name| self.foreign(name).transpose()) {
            Some(name) => Err(self.somebodys(&name?)),
            None => Ok(()),
        }
    }

    /// Refuses a folder that holds anything that the command did not write, or that was changed since.
    ///
    /// # Errors
    /// [`Error::Usage`] that names it; [`Error::Io`].
    pub fn refuse_foreign(&self) -> Result<()> {
        for name in self.names()? {
            if name != MARKER && self.foreign(&name)?.is_some() {
                return Err(self.somebodys(&name));
            }
        }
        Ok(())
    }

    /// A file to fill and to [`add`](Self::add).
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn temporary(&self) -> Result<Temporary> {
        Temporary::new_in(&self.path)
            .map_err(|e| Error::io(&self.path, "create a temporary file in the folder", e))
    }

    /// Adds a file that will be called `name`.
    ///
    /// # Errors
    /// [`Error::Io`], such as for a full disk.
    pub fn add(&mut self, name: &str, mut file: Temporary) -> Result<()> {
        file.complete().map_err(|e| Error::io(self.path.join(name), "write", e))?;
        self.ready.push((name.to_owned(), file));
        Ok(())
    }

    /// Adds a file with `bytes`.
    ///
    /// # Errors
    /// Those of [`Self::add`].
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut file = self.temporary()?;
        file.write_all(bytes).map_err(|e| Error::io(self.path.join(name), "write", e))?;
        self.add(name, file)
    }

    /// Puts what was added in place of everything that an earlier call wrote; gives the paths.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn commit(mut self) -> Result<Vec<PathBuf>> {
        let mut files = BTreeMap::new();
        for (name, file) in &self.ready {
            let held = contents(file.path()).map_err(|e| Error::io(self.path.join(name), "read back", e))?;
            files.insert(name.clone(), held);
        }
        let written = Written { command: self.command.to_owned(), files };
        let marker = self.path.join(MARKER);
        let text = serde_json::to_vec_pretty(&written).map_err(|e| Error::file(&marker, e.to_string()))?;
        let mut list = self.temporary()?;
        list.write_all(&text).and_then(|()| list.complete()).map_err(|e| Error::io(&marker, "write", e))?;

        // In this order, whenever the process dies everything in the folder is listed as it is.
        let mut held = atomic::hold();
        for name in self.before.files.keys() {
            let old = self.path.join(name);
            match disk::remove_file(&old) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::io(old, "remove", e)),
                _ => {}
            }
        }
        list.put_in(&mut held, &marker).map_err(|e| Error::io(&marker, "write", e))?;
        let mut paths = Vec::new();
        for (name, file) in self.ready.drain(..) {
            let to = self.path.join(name);
            file.put_in(&mut held, &to).map_err(|e| Error::io(&to, "write", e))?;
            paths.push(to);
        }
        drop(held);
        atomic::sync_dir(&self.path).map_err(|e| Error::io(&self.path, "flush the folder", e))?;
        Ok(paths)
    }

    fn written_before(&self) -> Result<Written> {
        let path = self.path.join(MARKER);
        let mut text = Vec::new();
        match File::open(&path) {
            Ok(file) => {
                file.take(MOST_LISTED).read_to_end(&mut text).map_err(|e| Error::io(&path, "read", e))?
            }
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Written::default()),
            Err(e) => return Err(Error::io(&path, "read", e)),
        };
        let written: Option<Written> = serde_json::from_slice(&text).ok();
        // A name that leads elsewhere is not one that was written.
        let is_name = |name: &String| Path::new(name).file_name().is_some_and(|n| n == name.as_str());
        match written.filter(|w| w.files.keys().all(is_name)) {
            Some(written) if written.command == self.command => Ok(written),
            Some(written) => Err(Error::usage(format!(
                "{}: holds what `{}` wrote: choose another --out",
                self.path.display(),
                written.command
            ))),
            None => Err(Error::file(path, "is no list of what was written here: choose another --out")),
        }
    }

    /// `name` if there is something of that name that the command did not write.
    fn foreign(&self, name: &str) -> Result<Option<String>> {
        let path = self.path.join(name);
        let found = match fs::symlink_metadata(&path) {
            Ok(found) => found,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(path, "look up", e)),
        };
        let ours = found.is_file()
            && match self.before.files.get(name) {
                Some(wrote) => contents(&path).map_err(|e| Error::io(path, "read", e))? == *wrote,
                None => false,
            };
        Ok((!ours).then(|| name.to_owned()))
    }

    fn somebodys(&self, name: &str) -> Error {
        let what = if self.before.files.contains_key(name) {
            format!("which was changed since `{}` wrote it", self.command)
        } else {
            format!("which `{}` did not write", self.command)
        };
        Error::usage(format!(
            "{}: holds {name}, {what}: move it away or choose another --out",
            self.path.display()
        ))
    }

    fn names(&self) -> Result<Vec<String>> {
        let list = || -> io::Result<Vec<String>> {
            fs::read_dir(&self.path)?.map(|e| Ok(e?.file_name().to_string_lossy().into_owned())).collect()
        };
        let mut names = list().map_err(|e| Error::io(&self.path, "list the folder", e))?;
        names.retain(|name| !name.starts_with(atomic::TEMPORARY));
        names.sort();
        Ok(names)
    }
}

impl Drop for OutputFolder {
    fn drop(&mut self) {
        self.ready.clear();
        if self.created.take().is_some() {
            // Fails when something lies in it, which is meant.
            let _ = disk::remove_dir(&self.path);
        }
    }
}

/// What tells a file's contents from others': its length, and a hash over blocks spread over it.
fn contents(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut hash = Sha256::new();
    let blocks = length.div_ceil(BLOCK).min(BLOCKS);
    let mut bytes = Vec::new();
    for block in 0..blocks {
        // The first and the last block touch the ends.
        let at = u128::from(length.saturating_sub(BLOCK)) * u128::from(block)
            / u128::from(blocks.saturating_sub(1).max(1));
        file.seek(SeekFrom::Start(at as u64))?;
        bytes.clear();
        (&mut file).take(BLOCK).read_to_end(&mut bytes)?;
        hash.update(&bytes);
    }
    let hex: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    Ok(format!("{length}:{hex}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrote(out: &Path, files: &[(&str, &str)]) {
        let mut folder = OutputFolder::open(out, "embed").unwrap();
        let names: Vec<&str> = files.iter().map(|f| f.0).collect();
        folder.refuse_changed(&names).unwrap();
        files.iter().for_each(|(name, text)| folder.write(name, text.as_bytes()).unwrap());
        assert_eq!(folder.commit().unwrap().len(), files.len());
    }

    fn names(out: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(out).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_was_written_goes_and_what_was_not_stays() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("a/f");
        wrote(&out, &[("x", "1"), ("y", "2")]);
        fs::write(out.join("notes.txt"), "mine").unwrap();
        wrote(&out, &[("x", "3")]);
        assert_eq!(names(&out), [MARKER, "notes.txt", "x"]);
        assert_eq!(fs::read(out.join("x")).unwrap(), b"3");
        let folder = OutputFolder::open(&out, "embed").unwrap();
        assert!(folder.refuse_foreign().unwrap_err().to_string().contains("notes.txt"));
        let e = folder.refuse_changed(&["notes.txt"]).unwrap_err().to_string();
        assert!(e.contains("did not write") && e.contains("--out"), "{e}");
        drop(folder);
        assert!(OutputFolder::open(&out, "export").is_err());
    }

    #[test]
    fn what_was_changed_since_is_somebodys() {
        let dir = tempfile::tempdir().unwrap();
        wrote(dir.path(), &[("x", "1"), ("y", "2")]);
        // Of the same length
        fs::write(dir.path().join("y"), "3").unwrap();
        let folder = OutputFolder::open(dir.path(), "embed").unwrap();
        for refused in [folder.refuse_changed(&["x"]), folder.refuse_foreign()] {
            let e = refused.unwrap_err().to_string();
            assert!(e.contains("holds y") && e.contains("changed"), "{e}");
        }
        drop(folder);
        fs::remove_file(dir.path().join("y")).unwrap();
        OutputFolder::open(dir.path(), "embed").unwrap().refuse_foreign().unwrap();
        // A list that names files elsewhere
        fs::write(dir.path().join(MARKER), r#"{"command":"embed","files":{"../x":""}}"#).unwrap();
        assert!(OutputFolder::open(dir.path(), "embed").is_err());
    }

    #[test]
    fn nothing_comes_of_a_folder_that_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("f");
        let mut folder = OutputFolder::open(&out, "embed").unwrap();
        assert!(folder.is_empty().unwrap());
        folder.write("x", b"1").unwrap();
        drop(folder);
        assert!(!out.exists());
    }

    #[test]
    fn large_files_are_told_apart_by_their_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let mut bytes = vec![0u8; (BLOCKS * BLOCK + 1) as usize];
        fs::write(&path, &bytes).unwrap();
        let before = contents(&path).unwrap();
        *bytes.last_mut().unwrap() = 1;
        fs::write(&path, &bytes).unwrap();
        assert_ne!(contents(&path).unwrap(), before);
    }
}
