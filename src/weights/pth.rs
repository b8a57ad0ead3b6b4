//! PyTorch's files: a stored zip with the pickle `data.pkl` and one file of raw elements per storage.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

use super::pickle::{self, Pickle, TensorRef, Value};
use super::tensor::{StateDict, Tensor, buffer, byte_len};
use crate::error::{Error, Result};

/// The pickle names tensors and holds no values; that of a large checkpoint has a megabyte.
const MAX_PICKLE: u64 = 16 << 20;
/// Tensors may share a storage or repeat its elements; all of them together are at most this many times the file.
const MAX_EXPANSION: u64 = 4;
/// Entries under which training codes keep weights, the one to prefer first: an average of the weights before the weights.
const ENTRIES: [&str; 9] =
    ["teacher", "state_dict_ema", "model_ema", "ema", "state_dict", "model", "student", "module", "net"];
/// Nested entries, such as `model.state_dict`.
const MAX_DEPTH: usize = 4;

/// Reads the weights under `entry`, or under the best known entry.
pub(super) fn read(path: &Path, file: File, entry: Option<&str>) -> Result<StateDict> {
    let length = file.metadata().map_err(|e| Error::io(path, "read", e))?.len();
    let mut archive = Archive::open(path, file, length)?;
    let (pickle, top) = pickle::read(&archive.pickle()?).map_err(|m| Error::file(path, m))?;
    let chosen = choose(&pickle, &top, entry).map_err(|m| Error::file(path, m))?;
    let mut plan: BTreeMap<&str, Vec<(usize, &TensorRef)>> = BTreeMap::new();
    let mut budget = length.saturating_mul(MAX_EXPANSION);
    for (i, (name, t)) in chosen.tensors.iter().enumerate() {
        let bytes = check(t).map_err(|message| Error::file(path, format!("tensor `{name}`: {message}")))?;
        budget = budget.checked_sub(bytes as u64).ok_or_else(|| {
            let message = format!("tensor `{name}`: the tensors are together more than {MAX_EXPANSION} times the file, which repeats elements: save contiguous copies");
            Error::file(path, message)
        })?;
        plan.entry(&t.storage.key).or_default().push((i, t));
    }
    let mut tensors: Vec<Option<Tensor>> = vec![None; chosen.tensors.len()];
    for (key, users) in plan {
        let first = chosen.tensors[users[0].0].0;
        let about = |message: String| Error::file(path, format!("tensor `{first}`: {message}"));
        let storage = &users[0].1.storage;
        if let Some((i, _)) = users.iter().find(|(_, t)| t.storage != *storage) {
            let other = chosen.tensors[*i].0;
            return Err(about(format!(
                "shares the storage `{key}` with `{other}`, which sees it differently"
            )));
        }
        let raw = archive.storage(key)?;
        let expected = storage.len.checked_mul(storage.element.bytes() as u64);
        if expected != Some(raw.len() as u64) {
            let message = format!(
                "its storage `{key}` has {} bytes, {} elements of {} were expected",
                raw.len(),
                storage.len,
                storage.element
            );
            return Err(about(message));
        }
        for (i, t) in users {
            tensors[i] = Some(gather(path, t, &raw)?);
        }
    }
    let mut state = StateDict::of(path);
    state.entry = chosen.entry;
    state.other_entries = chosen.others;
    for ((name, _), tensor) in chosen.tensors.iter().zip(tensors) {
        let tensor =
            tensor.ok_or_else(|| Error::invariant("reading weights", format!("`{name}` was not read")))?;
        state.insert(*name, tensor)?;
    }
    Ok(state)
}

struct Archive<'a> {
    path: &'a Path,
    zip: ZipArchive<BufReader<File>>,
    length: u64,
    /// The folder in the archive, with its slash.
    folder: String,
}

impl<'a> Archive<'a> {
    fn open(path: &'a Path, file: File, length: u64) -> Result<Self> {
        let zip = ZipArchive::new(BufReader::new(file)).map_err(|e| broken(path, &e))?;
        let mut folders = zip.file_names().flatten().filter_map(|n| {
            let folder = n.strip_suffix("data.pkl")?;
            (folder.ends_with('/') && folder.matches('/').count() == 1).then(|| folder.to_owned())
        });
        let folder = folders.next().ok_or_else(|| {
            Error::file(path, "is a zip archive without `data.pkl`, not a file of torch.save")
        })?;
        drop(folders);
        let mut archive = Archive { path, zip, length, folder };
        if archive.position("constants.pkl").is_some() {
            return Err(Error::file(
                path,
                "is a TorchScript program: save its `state_dict()` with torch.save instead",
            ));
        }
        if archive.position("byteorder").is_some() && archive.entry("byteorder", 16)? != b"little" {
            return Err(Error::file(path, "was written on a big-endian machine: save it again on another"));
        }
        Ok(archive)
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.zip.index_for_name(&format!("{}{name}", self.folder))
    }

    /// A whole file of the archive.
    fn entry(&mut self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let path = self.path;
        let bad = |message: String| Error::file(path, format!("its part `{name}` {message}"));
        let index = self.position(name).ok_or_else(|| bad("is missing".into()))?;
        // The raw view tells sizes and method even of what is not read.
        let raw = self.zip.by_index_raw(index).map_err(|e| broken(path, &e))?;
        if raw.compression() != CompressionMethod::Stored || raw.encrypted() {
            return Err(bad("is compressed or encrypted, which torch.save never does: save it again".into()));
        }
        let size = raw.size();
        if size > limit || size > self.length || size != raw.compressed_size() {
            let most = limit.min(self.length);
            return Err(bad(format!("has {size} bytes, at most {most} are possible")));
        }
        drop(raw);
        let file = self.zip.by_index(index).map_err(|e| broken(path, &e))?;
        let mut bytes = buffer(path, size as usize)?;
        file.take(size + 1).read_to_end(&mut bytes).map_err(|e| {
            bad(format!("cannot be read ({e}): was the copy or download cut off or damaged?"))
        })?;
        match bytes.len() as u64 == size {
            true => Ok(bytes),
            false => Err(bad(format!("has {} bytes, {size} are listed", bytes.len()))),
        }
    }

    fn pickle(&mut self) -> Result<Vec<u8>> {
        self.entry("data.pkl", MAX_PICKLE)
    }

    fn storage(&mut self, key: &str) -> Result<Vec<u8>> {
        self.entry(&format!("data/{key}"), u64::MAX)
    }
}

fn broken(path: &Path, e: &ZipError) -> Error {
    Error::file(path, format!("is no intact zip archive ({e}): was the copy or download cut off?"))
}

struct Chosen<'a> {
    entry: String,
    others: Vec<String>,
    tensors: Vec<(&'a str, &'a TensorRef)>,
}

/// The dictionary of tensors that is meant.
fn choose<'a>(pickle: &'a Pickle, top: &Value, wanted: Option<&str>) -> Result<Chosen<'a>, String> {
    let mut value = top;
    let (mut entry, mut others): (Vec<&str>, Vec<String>) = (Vec::new(), Vec::new());
    let mut wanted = wanted;
    for _ in 0..MAX_DEPTH {
        let Value::Dict(i) = value else {
            return Err("holds no dictionary of tensors: save `model.state_dict()` with torch.save".into());
        };
        let items = &pickle.dicts[*i];
        // A later assignment of a key replaces the earlier one, as in Python; a state dict has each once.
        let find = |key: &str| items.iter().rev().find(|(k, _)| &**k == key);
        let tensors: Vec<(&str, &TensorRef)> = items
            .iter()
            .filter_map(|(k, v)| if let Value::Tensor(t) = v { Some((&**k, &**t)) } else { None })
            .collect();
        let next = match wanted.take() {
            Some(key) => Some(find(key).ok_or_else(|| {
                format!("has no entry `{key}`; it has {}", listed(items.iter().map(|(k, _)| &**k)))
            })?),
            None if tensors.is_empty() => {
                ENTRIES.iter().find_map(|key| find(key).filter(|(_, v)| matches!(v, Value::Dict(_))))
            }
            None => None,
        };
        match next {
            Some((key, inner)) => {
                others.extend(items.iter().filter(|(k, _)| k != key).map(|(k, _)| k.to_string()));
                entry.push(key);
                value = inner;
            }
            None if tensors.is_empty() => {
                let keys = listed(items.iter().map(|(k, _)| &**k));
                return Err(format!(
                    "holds no tensors by name; its entries are {keys}: name the one to read"
                ));
            }
            None => return Ok(Chosen { entry: entry.join("."), others, tensors }),
        }
    }
    Err(format!("nests its weights more than {MAX_DEPTH} deep: save `model.state_dict()` alone"))
}

fn listed<'a>(keys: impl ExactSizeIterator<Item = &'a str>) -> String {
    const SHOWN: usize = 12;
    let more = keys.len().saturating_sub(SHOWN);
    let mut text = keys.take(SHOWN).map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ");
    if more > 0 {
        text += &format!(" and {more} more");
    }
    if text.is_empty() { "none".into() } else { text }
}

/// Bytes of a dense copy. Every element lies in the storage.
fn check(t: &TensorRef) -> Result<usize, String> {
    let (element, len) = (t.storage.element, t.storage.len);
    let bytes = byte_len(element, &t.shape).ok_or_else(|| format!("shape {:?} is too large", t.shape))?;
    if bytes == 0 {
        return Ok(0);
    }
    let last = t
        .shape
        .iter()
        .zip(&t.strides)
        .try_fold(t.offset, |at, (n, stride)| at.checked_add((*n as u64 - 1).checked_mul(*stride)?));
    match last {
        Some(last) if last < len => Ok(bytes),
        _ => Err(format!(
            "shape {:?} with strides {:?} at {} leaves its storage of {len} elements",
            t.shape, t.strides, t.offset
        )),
    }
}

/// A dense copy of a tensor that was [`check`]ed.
fn gather(path: &Path, t: &TensorRef, raw: &[u8]) -> Result<Tensor> {
    let size = t.storage.element.bytes();
    let len = byte_len(t.storage.element, &t.shape).unwrap_or(0);
    let mut bytes = buffer(path, len)?;
    // The innermost dimensions that are dense are copied at once.
    let mut run = size;
    let mut outer = t.shape.len();
    while outer > 0 && (t.shape[outer - 1] == 1 || t.strides[outer - 1] as usize * size == run) {
        run *= t.shape[outer - 1];
        outer -= 1;
    }
    let mut index = vec![0usize; outer];
    while bytes.len() < len {
        let at: u64 = t.offset + index.iter().zip(&t.strides).map(|(i, s)| *i as u64 * s).sum::<u64>();
        let from = at as usize * size;
        let part = raw.get(from..from + run);
        bytes.extend_from_slice(part.ok_or_else(|| Error::file(path, "a tensor leaves its storage"))?);
        for d in (0..outer).rev() {
            index[d] += 1;
            if index[d] < t.shape[d] {
                break;
            }
            index[d] = 0;
        }
    }
    Tensor::new(t.storage.element, t.shape.as_slice().into(), bytes)
        .ok_or_else(|| Error::file(path, "a tensor is not as long as its shape says"))
}
