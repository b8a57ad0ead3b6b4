//! Which encoder a file holds, told by the names and shapes of its tensors.

use std::collections::HashMap;

use super::names::{encoder, unknown};
use super::tensor::StateDict;
use super::timm::timm_parameters;
use crate::error::Result;
use crate::models::{Architecture, Kind, Tensors, listed};

impl Tensors for StateDict {
    fn dims(&self, name: &str) -> Option<&[usize]> {
        self.get(name).map(|t| t.shape().dims())
    }
}

/// Tells the encoder of a file, under any prefix and in any known naming.
///
/// # Errors
/// [`Error::File`](crate::Error::File) that says which tensors the file has when it holds no encoder known here, and which
/// are missing, of another shape or not known when it almost does.
pub fn recognise(state: &StateDict) -> Result<Architecture> {
    of_timm(&encoder(state)?.state)
}

/// [`recognise`] of tensors in timm's names.
pub(super) fn of_timm(state: &StateDict) -> Result<Architecture> {
    let (kind, architecture) = Architecture::told_by(state).ok_or_else(|| {
        unknown(state, &format!("has an encoder with tensors that no {} has", listed(|kind| kind.label)))
    })?;
    compare(state, kind, &architecture)?;
    Ok(architecture)
}

/// The body must be that architecture and nothing else: a block with one more tensor computes something else.
fn compare(state: &StateDict, kind: &Kind, architecture: &Architecture) -> Result<()> {
    const SHOWN: usize = 5;
    let expected: HashMap<_, _> = timm_parameters(architecture).into_iter().collect();
    let mut wrong = Vec::new();
    for (name, shape) in timm_parameters(architecture) {
        match state.get(&name) {
            Some(t) if *t.shape() != shape => {
                wrong.push(format!("`{name}` has shape {}, expected {shape}", t.shape()));
            }
            // Files from before PyTorch 0.4.1 have no counters; they say nothing about the weights.
            None if !name.ends_with("num_batches_tracked") => {
                wrong.push(format!("`{name}` {shape} is missing"));
            }
            _ => {}
        }
    }
    let body = |name: &str| kind.body.iter().any(|b| name.starts_with(b));
    for (name, t) in state.iter() {
        if !expected.contains_key(name) && body(name) {
            wrong.push(format!("`{name}` {} is unknown", t.shape()));
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    let more = match wrong.len().saturating_sub(SHOWN) {
        0 => String::new(),
        n => format!("; and {n} more"),
    };
    wrong.truncate(SHOWN);
    Err(state.error(format!("looks like {architecture}, but {}{more}", wrong.join("; "))))
}
