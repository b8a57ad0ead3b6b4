//! Weights that are several files: those that an index lists, and folders such as timm's.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::options::{MEAN_KEY, ReadOptions, SIZE_KEY, STD_KEY};
use super::single::single;
use super::tensor::StateDict;
use crate::error::{Error, Result};
use crate::models::HEADS_KEY;

/// The file in a folder of ours for timm with the norm of a ViT's tapped block, which timm's model does not have.
pub(crate) const TAP_NORM: &str = "tap_norm.safetensors";
/// What the files of weights in a folder are called, the one to prefer first.
const NAMES: [&str; 4] = [
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
];
/// An index names each tensor once.
const MAX_JSON: u64 = 64 << 20;

/// The index that the Hugging Face libraries write beside the files.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The file of weights in a folder.
pub(crate) fn weights_in(folder: &Path) -> Option<PathBuf> {
    NAMES.iter().map(|name| folder.join(name)).find(|path| path.is_file())
}

/// The weights in a folder, with what its `config.json` says of them.
pub(super) fn read(folder: &Path, options: &ReadOptions) -> Result<StateDict> {
    let path = weights_in(folder).ok_or_else(|| {
        Error::file(folder, format!("is a folder without {}: name the file of weights", NAMES.join(", ")))
    })?;
    let mut state = file(&path, options)?;
    let norm = folder.join(TAP_NORM);
    if norm.is_file() {
        for (name, tensor) in file(&norm, &ReadOptions::default())?.iter() {
            state.insert(name, tensor.clone())?;
        }
    }
    let config = folder.join("config.json");
    if config.is_file() {
        told(&mut state, &json(&config, "timm's description of an encoder")?);
    }
    Ok(state)
}

/// The tensors of the files that `path` lists, those of an entry if one is asked for.
pub(super) fn read_index(path: &Path, options: &ReadOptions) -> Result<StateDict> {
    let index: Index = json(path, "an index of files of weights (`weight_map`)")?;
    let mut state = StateDict::of(path);
    let files: BTreeSet<&str> = index.weight_map.values().map(String::as_str).collect();
    for name in files {
        let plain = matches!(Path::new(name).components().collect::<Vec<_>>()[..], [Component::Normal(_)]);
        if !plain {
            return Err(Error::file(path, format!("lists `{name}`, which is no file beside it")));
        }
        let part = path.with_file_name(name);
        if !part.is_file() {
            return Err(Error::file(
                path,
                format!("lists `{name}`, which is not beside it: fetch that file, too"),
            ));
        }
        let nested = || Error::file(path, format!("lists `{name}`, which is another index"));
        let tensors = single(&part, &ReadOptions::default())?.ok_or_else(nested)?;
        let listed = |tensor: &str| index.weight_map.get(tensor).is_some_and(|file| file == name);
        for (tensor, values) in tensors.iter().filter(|(tensor, _)| listed(tensor)) {
            state.insert(tensor, values.clone())?;
        }
        state.metadata.extend(tensors.metadata.clone());
    }
    if let Some((tensor, name)) = index.weight_map.iter().find(|(tensor, _)| state.get(tensor).is_none()) {
        return Err(Error::file(
            path,
            format!("lists the tensor `{tensor}` in `{name}`, which has none of that name"),
        ));
    }
    match &options.entry {
        Some(entry) => state.entry(entry),
        None => Ok(state),
    }
}

fn json<T: serde::de::DeserializeOwned>(path: &Path, what: &str) -> Result<T> {
    let io_error = |e| Error::io(path, "read", e);
    let length = fs::metadata(path).map_err(io_error)?.len();
    if length > MAX_JSON {
        return Err(Error::file(path, format!("{length} bytes are too many for a JSON file of this kind")));
    }
    let text = fs::read(path).map_err(io_error)?;
    serde_json::from_slice(&text).map_err(|e| Error::file(path, format!("is not {what}: {e}")))
}

/// What timm's `config.json` says, where the file of weights says nothing.
fn told(state: &mut StateDict, config: &Value) {
    let numbers = |key: &str| -> Option<Vec<String>> {
        config["pretrained_cfg"][key].as_array()?.iter().map(|n| Some(n.as_f64()?.to_string())).collect()
    };
    let mut tell = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            state.metadata.entry(key.to_owned()).or_insert(value);
        }
    };
    tell(MEAN_KEY, numbers("mean").map(|n| n.join(",")));
    tell(STD_KEY, numbers("std").map(|n| n.join(",")));
    let size = numbers("input_size").filter(|n| n.len() == 3);
    tell(SIZE_KEY, size.map(|n| n[1..].join("x")));
    tell(HEADS_KEY, config["model_args"]["num_heads"].as_u64().map(|n| n.to_string()));
}

/// The weights of a file, or of the files that it lists.
pub(super) fn file(path: &Path, options: &ReadOptions) -> Result<StateDict> {
    match single(path, options)? {
        Some(state) => Ok(state),
        None => read_index(path, options),
    }
}
