//! Compiled kernels on disk: each under a name that its text, options and compiler make, and a list of what was built
//! ahead for machines without a compiler.

use crate::error::{Error, Result};
use crate::files::atomic::Temporary;
use crate::files::disk;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Where compiled kernels and measurements are kept: `SAIP_ENGINE_CACHE`, else `saip-engine` in the user's cache folder; None when there
/// is neither.
pub fn cache_folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("SAIP_ENGINE_CACHE").or_else(|| {
        let user = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
        user.map(|user| user.join("saip-engine"))
    })
}

/// The folder of compiled kernels in a cache folder.
pub fn kernels_folder(cache: &Path) -> PathBuf {
    cache.join("kernels")
}

/// The list of what was built ahead.
const LIST: &str = "kernels.json";
/// Largest list and image that are read, bytes.
const MOST_LISTED: u64 = 1 << 20;
const MOST_IMAGE: u64 = 256 << 20;
/// Bytes of the checksum in front of a kept image.
const CHECKSUM: usize = 32;

/// Kernels that were compiled ahead: by which compiler, for what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    /// Version of NVRTC.
    pub nvrtc: (i32, i32),
    /// Such as `sm_90a`, or `compute_80` for the interpreter.
    pub target: String,
    pub presets: Vec<String>,
}

/// A folder of compiled kernels.
#[derive(Clone, Debug)]
pub struct KernelCache {
    folder: PathBuf,
    builds: Vec<Build>,
    /// Whether there is a list that could be read.
    listed: bool,
}

impl KernelCache {
    /// The cache in `folder`, which need not exist. A list that cannot be read counts as none.
    pub fn open(folder: PathBuf) -> Self {
        let text = read(&folder.join(LIST), MOST_LISTED);
        let builds: Option<Vec<Build>> = text.and_then(|text| serde_json::from_slice(&text).ok());
        KernelCache { folder, listed: builds.is_some(), builds: builds.unwrap_or_default() }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What was built ahead for `target`.
    pub fn builds<'a>(&'a self, target: &'a str) -> impl Iterator<Item = &'a Build> {
        self.builds.iter().filter(move |b| b.target == target)
    }

    /// Adds to the list of what was built ahead.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be written; [`Error::File`] when something else has its name.
    pub fn list(&mut self, build: Build) -> Result<()> {
        let same = |b: &&mut Build| (b.nvrtc, &b.target) == (build.nvrtc, &build.target);
        match self.builds.iter_mut().find(same) {
            Some(have) => {
                have.presets.extend(build.presets);
                have.presets.sort();
                have.presets.dedup();
            }
            None => self.builds.push(build),
        }
        let text = serde_json::to_string_pretty(&self.builds)
            .map_err(|e| Error::invariant("building kernels", e.to_string()))?;
        let at = self.folder.join(LIST);
        if std::fs::exists(&at).unwrap_or(true) && !self.listed {
            return Err(Error::file(at, "is no list of kernels: move it away or choose another --out"));
        }
        self.listed = true;
        self.replace(&at, &[text.as_bytes(), b"\n"])
    }

    /// The image of a name, if it is there and whole.
    pub fn kept(&self, name: &str) -> Option<Vec<u8>> {
        let bytes = read(&self.folder.join(name), MOST_IMAGE)?;
        let (checksum, image) = bytes.split_at_checked(CHECKSUM)?;
        (!image.is_empty() && Sha256::digest(image)[..] == *checksum).then(|| image.to_vec())
    }

    /// Whether there is a file for the name.
    pub fn has(&self, name: &str) -> bool {
        self.folder.join(name).is_file()
    }

    /// Keeps an image under a name.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be written.
    pub fn keep(&self, name: &str, image: &[u8]) -> Result<()> {
        self.replace(&self.folder.join(name), &[&Sha256::digest(image), image])
    }

    /// Written beside and renamed: another process never reads half of it.
    fn replace(&self, at: &Path, parts: &[&[u8]]) -> Result<()> {
        disk::create_dir_all(&self.folder).map_err(|e| Error::io(&self.folder, "create the folder", e))?;
        let write = || {
            let mut file = Temporary::new_in(&self.folder)?;
            parts.iter().try_for_each(|part| file.write_all(part))?;
            file.complete()?;
            file.put(at)
        };
        write().map_err(|e| Error::io(at, "write", e))
    }
}

/// A file of at most `most` bytes; None when there is none or it is larger.
fn read(at: &Path, most: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(at).ok()?.take(most + 1).read_to_end(&mut bytes).ok()?;
    (bytes.len() as u64 <= most).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spoilt_image_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let cache = KernelCache::open(folder.path().join("kernels"));
        cache.keep("x.kernel", b"image").unwrap();
        assert_eq!(cache.kept("x.kernel").as_deref(), Some(&b"image"[..]));
        let at = cache.folder().join("x.kernel");
        let mut bytes = std::fs::read(&at).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        for spoilt in [&bytes[..], &bytes[..10], &[]] {
            std::fs::write(&at, spoilt).unwrap();
            assert_eq!(cache.kept("x.kernel"), None);
        }
    }

    #[test]
    fn builds_are_listed_once() {
        let folder = tempfile::tempdir().unwrap();
        let build = |target: &str, preset: &str| Build {
            nvrtc: (13, 0),
            target: target.into(),
            presets: vec![preset.into()],
        };
        let mut cache = KernelCache::open(folder.path().to_owned());
        for (target, preset) in [("sm_90a", "b"), ("sm_90a", "a"), ("compute_80", "a"), ("sm_90a", "a")] {
            cache.list(build(target, preset)).unwrap();
        }
        let again = KernelCache::open(folder.path().to_owned());
        let presets: Vec<_> = again.builds("sm_90a").map(|b| b.presets.clone()).collect();
        assert_eq!(presets, [["a", "b"]]);
        assert_eq!(again.builds("compute_80").count(), 1);
        std::fs::write(folder.path().join(LIST), "{").unwrap();
        let mut spoilt = KernelCache::open(folder.path().to_owned());
        assert_eq!(spoilt.builds("sm_90a").count(), 0);
        // Whatever it is, this program did not write it.
        let e = spoilt.list(build("sm_90a", "a")).unwrap_err().to_string();
        assert!(e.contains(LIST) && e.contains("--out"), "{e}");
        assert_eq!(std::fs::read(folder.path().join(LIST)).unwrap(), b"{");
    }
}
