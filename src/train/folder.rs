//! The folder of one run, held by one process at a time.

use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use super::config::TrainConfig;
use crate::data::left_out::Teller;
use crate::error::{Error, Result};
use crate::files::atomic;
use crate::files::disk::{self, Growing};
use serde::{Deserialize, Serialize};

const LOCK: &str = ".lock";
/// How the lock's file begins.
const HOLDER: &str = "process ";
/// See [`RunFolder::checkpoints`].
pub const CHECKPOINTS: &str = "checkpoints";
/// See [`RunFolder::write_outcome`].
pub(super) const OUTCOME: &str = "outcome.json";

/// How a run ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Completed updates, those of earlier sessions of the run included.
    pub steps: u64,
    /// True when a signal ended it before all was done.
    pub interrupted: bool,
    /// Seconds of training in this process, probes and checkpoints left out.
    pub seconds: f64,
    pub images_per_second: f64,
    /// The device in words.
    pub device: String,
    pub skipped_steps: u64,
    pub warnings: Vec<String>,
}

/// `config.toml`, `metrics.jsonl`, `skipped_steps.jsonl`, `checkpoints/`, `outcome.json` and `report.html` in one folder. The folder is
/// locked until this value is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Kept open: the operating system holds the lock as long as the file is.
    _lock: Growing,
    /// What the user should know, such as a file system without locks.
    pub warnings: Vec<String>,
    /// Until a new run has begun, whether its folder was made for it.
    unbegun: Option<bool>,
}

impl RunFolder {
    /// A new run: the folder must not exist or be empty. Writes `config.toml`. Unless the run [begins](Self::begin), dropping
    /// the value undoes this.
    ///
    /// # Errors
    /// [`Error::Usage`] for a folder with contents or one that another process holds; [`Error::Io`].
    pub fn create(path: impl Into<PathBuf>, config: &TrainConfig) -> Result<Self> {
        let path = path.into();
        refuse_contents(&path)?;
        let made = !atomic::exists(&path)?;
        disk::create_dir_all(&path).map_err(|e| Error::io(&path, "create the folder", e))?;
        let mut folder = Self::lock(path)?;
        // Again under the lock: another process may have begun a run in between.
        refuse_contents(&folder.path)?;
        folder.unbegun = Some(made);
        let checkpoints = folder.checkpoints();
        disk::create_dir_all(&checkpoints).map_err(|e| Error::io(&checkpoints, "create the folder", e))?;
        // Last, because it is what makes the folder a run.
        folder.write_config(config)?;
        Ok(folder)
    }

    /// Keeps a new run: from here on it can be resumed.
    pub fn begin(&mut self) {
        self.unbegun = None;
    }

    /// A run to be resumed.
    ///
    /// # Errors
    /// [`Error::Usage`] when there is no run, or another process holds it; [`Error::Io`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        Self::require(&path)?;
        Self::lock(path)
    }

    /// Refuses a folder that holds no run.
    ///
    /// # Errors
    /// [`Error::Usage`] when there is none; [`Error::Io`].
    pub fn require(path: &Path) -> Result<()> {
        if atomic::exists(&path.join("config.toml"))? {
            return Ok(());
        }
        Err(Error::usage(format!(
            "{}: there is no run to resume (no config.toml): leave out --resume to start one",
            path.display()
        )))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The resolved configuration.
    pub fn config(&self) -> PathBuf {
        self.path.join("config.toml")
    }

    /// One JSON object a line: see [`metrics`](super::metrics).
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// The images of steps that were skipped: see [`guard`](super::guard).
    pub fn skipped_steps(&self) -> PathBuf {
        self.path.join("skipped_steps.jsonl")
    }

    /// Lists of what is left out of the training images, and of the probe's.
    pub fn skipped_images(&self) -> [Teller; 2] {
        [
            Teller::new("training images", self.path.join("skipped.csv")),
            Teller::new("probe images", self.path.join("skipped_probe.csv")),
        ]
    }

    /// See [`checkpoint`](super::checkpoint).
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join(CHECKPOINTS)
    }

    /// How the run ended, for a report that is written again.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write_outcome(&self, outcome: &Outcome) -> Result<()> {
        let path = self.path.join(OUTCOME);
        let text = serde_json::to_vec_pretty(outcome).map_err(|e| Error::file(&path, e.to_string()))?;
        atomic::write(&path, &text)
    }

    pub fn report(&self) -> PathBuf {
        self.path.join("report.html")
    }

    /// Replaces `config.toml`.
    pub fn write_config(&self, config: &TrainConfig) -> Result<()> {
        atomic::write(&self.config(), config.to_toml()?.as_bytes())
    }

    fn lock(path: PathBuf) -> Result<Self> {
        let file = path.join(LOCK);
        let mut lock = Growing::open(&file).map_err(|e| Error::io(&file, "open the lock file", e))?;
        let mut warnings = Vec::new();
        refuse_others_lock(&file)?;
        match lock.file().try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // On systems where a locked file cannot be read the holder stays unnamed.
                let _ = lock.file().take(256).read_to_string(&mut holder);
                let holder = if holder.is_empty() { "another process" } else { holder.trim() };
                return Err(Error::usage(format!(
                    "{}: in use by {holder}: wait for that run to end, or choose another --out",
                    path.display()
                )));
            }
            Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => warnings.push(format!(
                "{}: this file system has no locks: take care that no second run uses the folder",
                path.display()
            )),
            Err(TryLockError::Error(e)) => return Err(Error::io(&file, "lock", e)),
        }
        let host = hostname::get().map(|h| h.to_string_lossy().into_owned()).unwrap_or_default();
        lock.file()
            .set_len(0)
            .and_then(|()| writeln!(lock, "{HOLDER}{} on {host}", std::process::id()))
            .map_err(|e| Error::io(&file, "write", e))?;
        if warnings.is_empty() {
            atomic::sweep(&path)?;
        }
        Ok(RunFolder { path, _lock: lock, warnings, unbegun: None })
    }
}

impl Drop for RunFolder {
    /// What could not begin (the device has too little memory) must not stand in the way of the next try.
    fn drop(&mut self) {
        let Some(made) = self.unbegun else { return };
        let _ = disk::remove_file(self.config());
        // Folders go only if nothing lies in them.
        let _ = disk::remove_dir(self.checkpoints());
        let _ = disk::remove_file(self.path.join(LOCK));
        if made {
            let _ = disk::remove_dir(&self.path);
        }
    }
}

/// A file of the lock's name that holds something else than a lock does is somebody's.
fn refuse_others_lock(path: &Path) -> Result<()> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(256).read_to_string(&mut text));
    let others = match read {
        // Where a locked file cannot be read there is a lock.
        Err(e) => e.kind() == ErrorKind::InvalidData,
        Ok(_) => !text.is_empty() && !text.starts_with(HOLDER),
    };
    if others {
        return Err(Error::usage(format!(
            "{}: is not the lock of a run: move it away or choose another --out",
            path.display()
        )));
    }
    Ok(())
}

/// A folder that a run may begin in: absent, empty, or left by a run that died before it began.
fn refuse_contents(path: &Path) -> Result<()> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) if e.kind() == ErrorKind::NotADirectory => {
            let file = path.ancestors().find(|p| p.is_file()).unwrap_or(path);
            return Err(Error::usage(format!("{}: is a file: --out takes a folder", file.display())));
        }
        Err(e) => return Err(Error::io(path, "list the folder", e)),
    };
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(path, "list the folder", e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_ours = name == LOCK
            || name.starts_with(atomic::TEMPORARY)
            || (name == "checkpoints" && is_empty(&entry.path()));
        if !is_ours {
            let advice = if atomic::exists(&path.join("config.toml"))? {
                "pass --resume to continue the run in it, or choose another --out"
            } else {
                "it is no run's, so choose another --out"
            };
            return Err(Error::usage(format!(
                "{}: is not empty (it holds {name}): {advice}",
                path.display()
            )));
        }
    }
    Ok(())
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demo() -> TrainConfig {
        TrainConfig::resolve(None, None, &[]).unwrap()
    }

    #[test]
    fn creates_refuses_and_resumes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("runs/a");
        assert!(RunFolder::open(&path).unwrap_err().to_string().contains("leave out --resume"));
        // One that did not begin leaves nothing, and no other's folder goes with it.
        drop(RunFolder::create(&path, &demo()).unwrap());
        assert!(!path.exists());
        fs::create_dir(&path).unwrap();
        drop(RunFolder::create(&path, &demo()).unwrap());
        assert!(is_empty(&path));
        let mut run = RunFolder::create(&path, &demo()).unwrap();
        assert!(run.warnings.is_empty());
        assert_eq!(TrainConfig::load(&run.config()).unwrap(), demo());
        assert!(run.checkpoints().is_dir());
        run.begin();
        drop(run);
        let before = fs::read(path.join("config.toml")).unwrap();
        let e = RunFolder::create(&path, &demo()).unwrap_err().to_string();
        assert!(e.contains("not empty") && e.contains("--resume"), "{e}");
        assert_eq!(fs::read(path.join("config.toml")).unwrap(), before);
        RunFolder::open(&path).unwrap();
    }

    #[test]
    fn a_second_holder_is_refused_and_a_dead_one_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let mut first = RunFolder::create(&path, &demo()).unwrap();
        first.begin();
        let e = RunFolder::open(&path).unwrap_err().to_string();
        assert!(e.contains(&format!("in use by process {}", std::process::id())), "{e}");
        drop(first);
        // What a killed process leaves: the file with its number, but no lock.
        fs::write(path.join(LOCK), "process 1 on nowhere\n").unwrap();
        RunFolder::open(&path).unwrap();
    }

    #[test]
    fn what_is_no_run_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.txt"), "x").unwrap();
        let e = RunFolder::create(dir.path(), &demo()).unwrap_err().to_string();
        assert!(e.contains("thesis.txt") && e.contains("another --out") && !e.contains("--resume"), "{e}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing was added");
        let e = RunFolder::create(dir.path().join("thesis.txt"), &demo()).unwrap_err().to_string();
        assert!(e.contains("is a file"), "{e}");
        // A file that has the lock's name by chance
        let locked = dir.path().join("locked");
        fs::create_dir(&locked).unwrap();
        for text in [&b"my own lock"[..], b"\xff\xfe"] {
            fs::write(locked.join(LOCK), text).unwrap();
            let e = RunFolder::create(&locked, &demo()).unwrap_err().to_string();
            assert!(e.contains(LOCK) && e.contains("--out"), "{e}");
            assert_eq!(fs::read(locked.join(LOCK)).unwrap(), text);
        }
        // A run that died before its configuration was written
        let path = dir.path().join("early");
        fs::create_dir_all(path.join("checkpoints")).unwrap();
        fs::write(path.join(LOCK), "process 1 on nowhere\n").unwrap();
        RunFolder::create(&path, &demo()).unwrap();
    }
}
