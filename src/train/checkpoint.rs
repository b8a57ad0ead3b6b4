//! Checkpoints: one folder each, there as a whole or not at all, and checked in full before it is trusted.
//!
//! `step-00000100/` holds `model.safetensors` (all tensors, f32), `run.json` (where the run stood) and `manifest.json`
//! (length and CRC-32C of the two). A folder is written under a temporary name, flushed, and then renamed. Such folders
//! under names that begin with a dot are leftovers of a killed process and are removed when the store is opened. What else
//! lies in a checkpoint's folder is somebody's and is kept.

mod format;
mod read;
mod write;

use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use self::format::{FORMAT, MANIFEST, MODEL, Manifest, RUN};
pub use self::format::{RunState, TensorView};
pub use self::read::Loaded;
use self::write::Create;
use crate::error::{Error, Result};
use crate::files::atomic::{self, Unfinished};
use crate::files::disk;

const WRITING: &str = ".tmp-";
const REPLACED: &str = ".old-";
const DELETED: &str = ".trash-";
/// Before the names of checkpoints that a run has left for an earlier one: kept, but never read.
const SUPERSEDED: &str = "superseded-";

/// A complete save. `warnings` tell of older checkpoints that could not be removed.
#[derive(Debug)]
pub struct Saved {
    pub path: PathBuf,
    pub warnings: Vec<String>,
}

/// The checkpoints of one run. At most one process may hold a store for writing: see
/// [`RunFolder`](super::folder::RunFolder), which locks.
#[derive(Debug)]
pub struct Checkpoints {
    dir: PathBuf,
    keep: usize,
    create: Create,
}

impl Checkpoints {
    /// Opens the store at `dir`, which is created if need be, and clears what a killed process left behind. `keep`
    /// newest checkpoints are kept, at least one.
    ///
    /// # Errors
    /// [`Error::Io`] when the folder cannot be created or read.
    pub fn open(dir: impl Into<PathBuf>, keep: usize) -> Result<Self> {
        let dir = dir.into();
        disk::create_dir_all(&dir).map_err(|e| Error::io(&dir, "create the folder", e))?;
        let store = Checkpoints { dir, keep: keep.max(1), create: write::create_file };
        store.recover()?;
        Ok(store)
    }

    /// The store at `dir` for reading: nothing is created or cleared, so that a run may be writing to it.
    pub fn for_reading(dir: impl Into<PathBuf>) -> Self {
        Checkpoints { dir: dir.into(), keep: usize::MAX, create: write::create_file }
    }

    /// The folder that holds the checkpoints.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Steps that have a checkpoint, ascending. Whether one is intact shows when it is loaded.
    pub fn steps(&self) -> Result<Vec<u64>> {
        let mut steps: Vec<_> = self.names()?.iter().filter_map(|name| step_of(name)).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// Writes a checkpoint and then removes the oldest ones beyond the number to keep.
    ///
    /// # Errors
    /// [`Error::Io`] when the disk is full or refuses, [`Error::File`] for tensors that do not fit their shape or share
    /// a name. What was written is then removed, and earlier checkpoints are as they were.
    pub fn save(&self, state: &RunState, tensors: &[TensorView<'_>]) -> Result<Saved> {
        let target = self.path_of(state.step);
        let temporary = self.hidden(WRITING, state.step);
        let unfinished = Unfinished::whole(&temporary);
        let written =
            self.write_folder(&temporary, state, tensors).and_then(|()| self.put(&temporary, &target));
        if let Err(error) = written {
            // The error that matters is the first; opening the store clears what cannot be removed now.
            let _ = disk::remove_dir_all(&temporary);
            return Err(error);
        }
        drop(unfinished);
        Ok(Saved { path: target, warnings: self.prune(state.step) })
    }

    /// The newest intact checkpoint, every file of it read and checked; nothing when there is none at all.
    /// [`Loaded::warnings`] tells which newer ones were damaged.
    ///
    /// # Errors
    /// [`Error::File`] when there are checkpoints but all are damaged; names each with its damage.
    pub fn latest(&self) -> Result<Option<Loaded>> {
        let mut damaged = Vec::new();
        for step in self.steps()?.into_iter().rev() {
            match Loaded::open(&self.path_of(step), step) {
                Ok(mut loaded) => {
                    loaded.warnings =
                        damaged.iter().map(|d| format!("damaged checkpoint left out: {d}")).collect();
                    return Ok(Some(loaded));
                }
                Err(error) => damaged.push(error.to_string()),
            }
        }
        if damaged.is_empty() {
            return Ok(None);
        }
        Err(Error::file(
            &self.dir,
            format!(
                "no checkpoint is intact: {}; restore one from a copy, or start a new run with another --out",
                damaged.join("; ")
            ),
        ))
    }

    /// Where the newest checkpoint that tells stood; its tensors are not looked at.
    pub fn newest_state(&self) -> Option<RunState> {
        let steps = self.steps().ok()?;
        steps.into_iter().rev().find_map(|step| read::read_json(&self.path_of(step).join(RUN)).ok())
    }

    /// Makes the checkpoint of `step` the newest: later ones get another name, under which nothing reads them.
    ///
    /// # Errors
    /// [`Error::Io`] when one cannot be renamed.
    pub fn go_back_to(&self, step: u64) -> Result<()> {
        for later in self.steps()?.into_iter().filter(|s| *s > step) {
            let (path, name) = (self.path_of(later), folder_name(later));
            let aside = self.dir.join(format!("{SUPERSEDED}{name}"));
            remove_if_there(&aside)?;
            disk::rename(&path, &aside).map_err(|e| Error::io(&path, "set aside", e))?;
        }
        Ok(())
    }

    /// The checkpoint of `step`, every file of it read and checked.
    ///
    /// # Errors
    /// [`Error::File`] when it is damaged or there is none, with the steps that there are.
    pub fn at(&self, step: u64) -> Result<Loaded> {
        let path = self.path_of(step);
        if atomic::exists(&path)? {
            return Loaded::open(&path, step);
        }
        let steps: Vec<_> = self.steps()?.iter().map(u64::to_string).collect();
        Err(Error::file(
            &self.dir,
            match steps.is_empty() {
                true => format!("holds no checkpoint, step {step} was asked for"),
                false => format!("has no checkpoint of step {step}, but of {}", steps.join(", ")),
            },
        ))
    }

    fn write_folder(&self, folder: &Path, state: &RunState, tensors: &[TensorView<'_>]) -> Result<()> {
        remove_if_there(folder)?;
        disk::create_dir(folder).map_err(|e| Error::io(folder, "create the folder", e))?;
        let mut files = BTreeMap::new();
        let model = folder.join(MODEL);
        files.insert(MODEL.into(), write::model(self.create, &model, tensors)?);
        let run = to_json(&folder.join(RUN), state)?;
        files.insert(RUN.into(), write::bytes(self.create, &folder.join(RUN), &run)?);
        let manifest = to_json(&folder.join(MANIFEST), &Manifest { format: FORMAT, files })?;
        write::bytes(self.create, &folder.join(MANIFEST), &manifest)?;
        atomic::sync_dir(folder).map_err(|e| Error::io(folder, "flush the folder", e))
    }

    /// Gives the complete folder its name. One that has the name already steps aside first; `recover` brings it back
    /// should the process die in between.
    fn put(&self, temporary: &Path, target: &Path) -> Result<()> {
        let rename =
            |from: &Path, to: &Path| disk::rename(from, to).map_err(|e| Error::io(to, "put in place", e));
        let sync = || atomic::sync_dir(&self.dir).map_err(|e| Error::io(&self.dir, "flush the folder", e));
        if !atomic::exists(target)? {
            rename(temporary, target)?;
            return sync();
        }
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let aside = self.dir.join(format!("{REPLACED}{name}"));
        remove_if_there(&aside)?;
        rename(target, &aside)?;
        if let Err(error) = rename(temporary, target) {
            let _ = disk::rename(&aside, target);
            return Err(error);
        }
        keep_others(&aside, target)?;
        sync()?;
        remove_if_there(&aside)
    }

    /// Removes the oldest checkpoints up to `newest`. Later ones are damaged ones that the run was resumed before: they
    /// do not count, and are replaced when the run gets there.
    fn prune(&self, newest: u64) -> Vec<String> {
        let steps = match self.steps() {
            Ok(steps) => steps,
            Err(error) => return vec![format!("older checkpoints stay: {error}")],
        };
        let ours: Vec<_> = steps.into_iter().filter(|step| *step <= newest).collect();
        let surplus = ours.len().saturating_sub(self.keep);
        let mut warnings = Vec::new();
        for step in &ours[..surplus] {
            let path = self.path_of(*step);
            if let Some(name) = others(&path).unwrap_or_default().first() {
                let why = format!("stays: it holds {name}, which the run did not write");
                warnings.push(Error::file(path, why).to_string());
                continue;
            }
            // Renamed first: a deletion that is cut short must not look like a damaged checkpoint.
            let trash = self.hidden(DELETED, *step);
            let removed =
                disk::rename(self.path_of(*step), &trash).and_then(|()| disk::remove_dir_all(&trash));
            if let Err(error) = removed {
                warnings.push(Error::io(self.path_of(*step), "remove the old checkpoint", error).to_string());
            }
        }
        warnings
    }

    /// Clears what a killed process left behind.
    fn recover(&self) -> Result<()> {
        for name in self.names()? {
            let of_step = |p: &&str| name.strip_prefix(*p).is_some_and(|n| step_of(n).is_some());
            let Some(prefix) = [WRITING, REPLACED, DELETED].into_iter().find(of_step) else { continue };
            let (path, original) = (self.dir.join(&name), self.dir.join(&name[prefix.len()..]));
            match prefix {
                REPLACED if !atomic::exists(&original)? => {
                    disk::rename(&path, &original).map_err(|e| Error::io(&path, "restore", e))?;
                }
                REPLACED => {
                    keep_others(&path, &original)?;
                    remove_if_there(&path)?;
                }
                _ => remove_if_there(&path)?,
            }
        }
        Ok(())
    }

    fn names(&self) -> Result<Vec<String>> {
        let list = || -> std::io::Result<Vec<String>> {
            fs::read_dir(&self.dir)?
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect()
        };
        list().map_err(|e| Error::io(&self.dir, "list the folder", e))
    }

    fn path_of(&self, step: u64) -> PathBuf {
        self.dir.join(folder_name(step))
    }

    fn hidden(&self, prefix: &str, step: u64) -> PathBuf {
        self.dir.join(format!("{prefix}{}", folder_name(step)))
    }
}

fn folder_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// The step of a checkpoint's folder; nothing for any other name.
pub fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (folder_name(step) == name).then_some(step)
}

/// What lies in a checkpoint's folder and was not written with it.
fn others(folder: &Path) -> std::io::Result<Vec<String>> {
    let mut names = fs::read_dir(folder)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<std::io::Result<Vec<_>>>()?;
    names.retain(|name| ![MODEL, RUN, MANIFEST].contains(&name.as_str()));
    Ok(names)
}

/// Moves what was not written with the checkpoint `from` to the one that replaces it.
fn keep_others(from: &Path, to: &Path) -> Result<()> {
    for name in others(from).map_err(|e| Error::io(from, "list the folder", e))? {
        disk::rename(from.join(&name), to.join(&name)).map_err(|e| Error::io(from.join(&name), "keep", e))?;
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => disk::remove_dir_all(path),
        Ok(_) => disk::remove_file(path),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
    .map_err(|e| Error::io(path, "remove the leftover", e))
}

fn to_json(path: &Path, value: &impl Serialize) -> Result<Vec<u8>> {
    let mut bytes =
        serde_json::to_vec_pretty(value).map_err(|e| Error::file(path, format!("cannot be written: {e}")))?;
    bytes.push(b'\n');
    Ok(bytes)
}

#[cfg(test)]
mod tests;
