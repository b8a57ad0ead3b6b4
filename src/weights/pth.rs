//! PyTorch's files: a stored zip with the pickle `data.pkl` and one file of raw elements per storage.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use super::archive::Archive;
use super::asks::{Asks, Hint};
use super::names::has_anchor;
use super::pickle::{self, Pickle, TensorRef, Value};
use super::tensor::{StateDict, Tensor, buffer, byte_len};
use crate::error::{Error, Result};

/// The pickle names tensors and holds no values; that of a large checkpoint has a megabyte.
const MAX_PICKLE: u64 = 16 << 20;
/// Tensors may share a storage or repeat its elements; all of them together are at most this many times the file.
const MAX_EXPANSION: u64 = 4;
/// Entries under which training codes keep weights, the one to prefer first: an average of the weights before the weights,
/// and what the code's own users evaluate (of I-JEPA the target, of BYOL the online network) before the other.
const ENTRIES: [&str; 24] = [
    "teacher",
    "state_dict_ema",
    "model_ema",
    "ema_model",
    "ema",
    "params_ema",
    "online_network_state_dict",
    "online_network",
    "online_encoder",
    "target_encoder",
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "student",
    "module",
    "net",
    "network",
    "backbone",
    "encoder",
    "base_encoder",
    "weights",
    "params",
    "online",
];
/// The attribute of a state dict in which a file that was written here says what shapes do not tell.
pub(super) const ATTRIBUTE: &str = "saip_engine";
/// Nested entries, such as `model.state_dict`.
const MAX_DEPTH: usize = 4;

/// Reads the weights under `entry`, or under the best known entry; `asks` says how another can be named.
pub(super) fn read(path: &Path, file: File, entry: Option<&str>, asks: Asks) -> Result<StateDict> {
    let length = file.metadata().map_err(|e| Error::io(path, "read", e))?.len();
    let mut archive = Archive::open(path, file, length)?;
    let (pickle, top) =
        pickle::read(&archive.read("data.pkl", MAX_PICKLE)?).map_err(|m| Error::file(path, m))?;
    let chosen = choose(&pickle, &top, entry, asks).map_err(|m| Error::file(path, m))?;
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
        let raw = archive.read(&format!("data/{key}"), u64::MAX)?;
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
    state.metadata = pickle.attribute(chosen.dict, ATTRIBUTE);
    for ((name, _), tensor) in chosen.tensors.iter().zip(tensors) {
        let tensor =
            tensor.ok_or_else(|| Error::invariant("reading weights", format!("`{name}` was not read")))?;
        state.insert(*name, tensor)?;
    }
    Ok(state)
}

struct Chosen<'a> {
    entry: String,
    others: Vec<String>,
    tensors: Vec<(&'a str, &'a TensorRef)>,
    /// Their dictionary.
    dict: usize,
}

/// The dictionary of tensors that is meant.
fn choose<'a>(
    pickle: &'a Pickle,
    top: &'a Value,
    wanted: Option<&'a str>,
    asks: Asks,
) -> Result<Chosen<'a>, String> {
    let mut value = top;
    let (mut entry, mut others): (Vec<&str>, Vec<String>) = (Vec::new(), Vec::new());
    let mut wanted = wanted.map(|w| w.trim_end_matches('.')).filter(|w| !w.is_empty());
    for _ in 0..MAX_DEPTH {
        let Value::Dict(i) = value else {
            return Err("holds no dictionary of tensors: save `model.state_dict()` with torch.save".into());
        };
        let items = &pickle.dicts[*i];
        let tensors = tensors(items);
        let next = match wanted {
            Some(name) => match step_into(items, name) {
                Some((key, inner, rest)) => {
                    wanted = rest;
                    Some((key, inner))
                }
                None => {
                    entry.push(name);
                    let tensors = below(&tensors, name).ok_or_else(|| {
                        format!("has no entry `{name}`; it has {}", listed(items.iter().map(|(k, _)| &**k)))
                    })?;
                    return Ok(Chosen { entry: entry.join("."), others, tensors, dict: *i });
                }
            },
            // Beside an entry with the weights, numbers of the training may be tensors, too.
            None if !tensors.iter().any(|(name, _)| has_anchor(name)) => best(pickle, items),
            None => None,
        };
        match next {
            Some((key, inner)) => {
                others.extend(items.iter().filter(|(k, _)| &**k != key).map(|(k, _)| k.to_string()));
                entry.push(key);
                value = inner;
            }
            None if tensors.is_empty() => {
                return Err(no_tensors(pickle, top, &entry, items, asks));
            }
            None => return Ok(Chosen { entry: entry.join("."), others, tensors, dict: *i }),
        }
    }
    Err(format!("nests its weights more than {MAX_DEPTH} deep: save `model.state_dict()` alone"))
}

/// Why there is nothing to read under `entry`, whose contents are `items`: another one is only to be named where there is one.
fn no_tensors(pickle: &Pickle, top: &Value, entry: &[&str], items: &Items, asks: Asks) -> String {
    let place = match entry.join(".") {
        name if name.is_empty() => String::new(),
        name => format!("below `{name}` "),
    };
    let full = |v: &Value| if let Value::Dict(i) = v { !pickle.dicts[*i].is_empty() } else { false };
    let inner = items.iter().filter(|(_, v)| full(v)).map(|(k, _)| [entry, &[&**k]].concat().join("."));
    let mut others: Vec<String> = inner.collect();
    if let (Value::Dict(i), true) = (top, others.is_empty()) {
        let beside = pickle.dicts[*i].iter().filter(|(k, v)| full(v) && entry.first() != Some(&&**k));
        others.extend(beside.map(|(k, _)| k.to_string()));
    }
    if others.is_empty() {
        return format!("holds no tensors {place}by name: save `model.state_dict()` with torch.save");
    }
    let (others, name) = (others.iter().map(String::as_str), asks.name(Hint::Entry));
    format!(
        "holds no tensors {place}by name, but entries {}: name the one to read with {name}",
        listed(others)
    )
}

type Items = [(std::rc::Rc<str>, Value)];

/// A later assignment of a key replaces the earlier one, as in Python; a state dict has each once.
fn find<'a>(items: &'a Items, key: &str) -> Option<(&'a str, &'a Value)> {
    items.iter().rev().find(|(k, v)| &**k == key && matches!(v, Value::Dict(_))).map(|(k, v)| (&**k, v))
}

fn tensors(items: &Items) -> Vec<(&str, &TensorRef)> {
    items
        .iter()
        .filter_map(|(k, v)| if let Value::Tensor(t) = v { Some((&**k, &**t)) } else { None })
        .collect()
}

/// The entry that `name` begins with, and what of the name is left: keys may have dots themselves.
fn step_into<'a, 'n>(items: &'a Items, name: &'n str) -> Option<(&'a str, &'a Value, Option<&'n str>)> {
    let ends = std::iter::once(name.len()).chain(name.rmatch_indices('.').map(|(at, _)| at));
    ends.filter_map(|end| {
        let (key, inner) = find(items, &name[..end])?;
        Some((key, inner, name.get(end + 1..).filter(|rest| !rest.is_empty())))
    })
    .next()
}

/// The tensors whose names begin with `name` and a dot, without it.
fn below<'a>(tensors: &[(&'a str, &'a TensorRef)], name: &str) -> Option<Vec<(&'a str, &'a TensorRef)>> {
    let rest = |t: &'a str| t.strip_prefix(name)?.strip_prefix('.');
    let found: Vec<_> = tensors.iter().filter_map(|(n, t)| Some((rest(n)?, *t))).collect();
    (!found.is_empty()).then_some(found)
}

/// The best known entry, or the only one that holds an encoder whatever it is called.
fn best<'a>(pickle: &'a Pickle, items: &'a Items) -> Option<(&'a str, &'a Value)> {
    ENTRIES.iter().find_map(|key| find(items, key)).or_else(|| {
        let encoders = items.iter().filter(|(_, v)| match v {
            Value::Dict(i) => tensors(&pickle.dicts[*i]).iter().any(|(name, _)| has_anchor(name)),
            _ => false,
        });
        let mut encoders = encoders.map(|(k, v)| (&**k, v));
        encoders.next().filter(|_| encoders.next().is_none())
    })
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
