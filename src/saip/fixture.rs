//! Fixtures of the reference: one step with its inputs, parameters, losses, gradients and the state after it, in a
//! safetensors file. Turns one into what is written to the regions before a step, and compares what is read after it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

use super::config::StepConfig;
use super::io::IoSlot;
use super::scalars::{StepPoint, scalar_block};
use super::step::StepGraph;
use super::views::{grid, patch_counts};
use crate::error::{Error, Result};
use crate::ir::Region;
use crate::nn::ParamRegistry;

/// The share of its group's norm below which a tensor's own norm does not serve as the measure: gradients that are zero
/// but for rounding have no relative error.
const FLOOR: f64 = 1e-2;

/// A reference step.
#[derive(Clone, Debug)]
pub struct Fixture {
    pub config: StepConfig,
    path: PathBuf,
    floats: BTreeMap<String, (Vec<usize>, Vec<f64>)>,
    keep: Vec<i32>,
}

/// Something to be written into a region; `offset` in elements.
#[derive(Clone, Debug, PartialEq)]
pub struct RegionWrite {
    pub region: Region,
    pub offset: usize,
    pub data: WriteData,
}

/// Elements of a [`RegionWrite`].
#[derive(Clone, Debug, PartialEq)]
pub enum WriteData {
    Float(Vec<f64>),
    Index(Vec<i32>),
}

/// How far a tensor is from the reference.
#[derive(Clone, Debug, PartialEq)]
pub struct Deviation {
    /// `loss.*`, `grad.*`, `after.student.*`, `after.expert.*` or `after.state.*`.
    pub name: String,
    /// `|a - b| / max(|b|, 1e-2 |all tensors of the group|)`; losses are measured by their own size. NaN never passes.
    pub error: f64,
}

impl Fixture {
    /// # Errors
    /// [`Error::Io`] when the file cannot be read, [`Error::File`] when it is no fixture.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
        Self::parse(&bytes, path)
    }

    /// The fixture in `bytes`; `path` is named in errors.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        let bad = |message: String| Error::file(path, message);
        let tensors =
            SafeTensors::deserialize(bytes).map_err(|e| bad(format!("no safetensors file: {e}")))?;
        let (_, header) =
            SafeTensors::read_metadata(bytes).map_err(|e| bad(format!("no safetensors file: {e}")))?;
        let config = header.metadata().as_ref().and_then(|m| m.get("config"));
        let config = config.ok_or_else(|| bad("no `config` in the metadata: not a fixture".into()))?;
        let config: StepConfig =
            serde_json::from_str(config).map_err(|e| bad(format!("`config` in the metadata: {e}")))?;
        let (mut floats, mut keep) = (BTreeMap::new(), Vec::new());
        for (name, tensor) in tensors.iter() {
            let data = tensor.data();
            match tensor.dtype() {
                Dtype::F32 => {
                    let values = data.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b)));
                    floats.insert(name.to_owned(), (tensor.shape().to_vec(), values.collect()));
                }
                Dtype::F64 => {
                    let values = data.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b));
                    floats.insert(name.to_owned(), (tensor.shape().to_vec(), values.collect()));
                }
                Dtype::I64 if name == "view.keep" => {
                    let values =
                        data.as_chunks::<8>().0.iter().map(|b| i32::try_from(i64::from_le_bytes(*b)));
                    keep = values
                        .collect::<Result<_, _>>()
                        .map_err(|_| bad("`view.keep` holds a position that does not fit 32 bits".into()))?;
                }
                other => return Err(bad(format!("`{name}` has the unexpected type {other:?}"))),
            }
        }
        Ok(Fixture { config, path: path.to_owned(), floats, keep })
    }

    /// Everything that must be in the regions before the step: parameters of both sides, state, views, the scalar block.
    ///
    /// # Errors
    /// [`Error::File`] naming a tensor that is missing or has another shape than the step's.
    pub fn writes(&self, step: &StepGraph) -> Result<Vec<RegionWrite>> {
        let mut writes = Vec::new();
        let float = |region, offset, data: &[f64]| RegionWrite {
            region,
            offset,
            data: WriteData::Float(data.to_vec()),
        };
        for (prefix, region, registry) in self.sides(step) {
            for p in registry {
                writes.push(float(region, p.offset, self.tensor(&format!("{prefix}.{}", p.name), &p.shape)?));
            }
        }
        if let Some(slot) = step.state.iter().find(|s| s.name == "center") {
            writes.push(float(slot.region, slot.offset, self.tensor("state.center", slot.shape.dims())?));
        }
        let at = StepPoint::constant(&self.config, 1);
        for slot in &step.inputs {
            let data = match slot.name.as_str() {
                "scalars" => WriteData::Float(scalar_block(&self.config, &at).to_vec()),
                "keep" => WriteData::Index(self.positions(slot)?.0),
                "hidden" => WriteData::Index(self.positions(slot)?.1),
                name => WriteData::Float(self.tensor(&format!("view.{name}"), slot.shape.dims())?.to_vec()),
            };
            writes.push(RegionWrite { region: slot.region, offset: slot.offset, data });
        }
        Ok(writes)
    }

    /// Compares every loss, gradient and updated tensor that the step has with the reference, the worst first. `read`
    /// gives `len` elements of a region from `offset` on, after the step.
    ///
    /// # Errors
    /// Those of `read`, and [`Error::File`] naming a tensor that is missing or has another shape than the step's.
    pub fn deviations(
        &self,
        step: &StepGraph,
        mut read: impl FnMut(Region, usize, usize) -> Result<Vec<f64>>,
    ) -> Result<Vec<Deviation>> {
        let health = step.output("health").map(|s| read(s.region, s.offset, 3)).transpose()?;
        // The reference's gradients are clipped in place, ours as they are applied.
        let clip = health.and_then(|h| h.get(1).copied()).unwrap_or(1.0);
        let grad_floor = self.floor("grad.");
        let mut rows = Vec::new();
        for name in ["csm", "csr", "css", "total"] {
            let Some(slot) = step.output(name) else { continue };
            let have = read(slot.region, slot.offset, 1)?;
            rows.push(self.deviation(format!("loss.{name}"), &[], &have, 0.0)?);
        }
        for p in &step.student {
            let mut have = read(Region::Grads, p.offset, p.len)?;
            have.iter_mut().for_each(|g| *g *= clip);
            rows.push(self.deviation(format!("grad.{}", p.name), &p.shape, &have, grad_floor)?);
        }
        for (side, region, registry) in self.sides(step) {
            let group = format!("after.{side}.");
            let floor = self.floor(&group);
            for p in registry {
                let have = read(region, p.offset, p.len)?;
                rows.push(self.deviation(format!("{group}{}", p.name), &p.shape, &have, floor)?);
            }
        }
        if let Some(slot) = step.state.iter().find(|s| s.name == "center") {
            let have = read(slot.region, slot.offset, slot.shape.count())?;
            let name = "after.state.center".to_owned();
            rows.push(self.deviation(name, slot.shape.dims(), &have, self.floor("after.state."))?);
        }
        rows.sort_by(|a, b| b.error.total_cmp(&a.error).then_with(|| a.name.cmp(&b.name)));
        Ok(rows)
    }

    fn sides<'s>(&self, step: &'s StepGraph) -> [(&'static str, Region, &'s ParamRegistry); 2] {
        [("student", Region::Params, &step.student), ("expert", Region::Expert, &step.expert)]
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<&[f64]> {
        match self.floats.get(name) {
            Some((have, data)) if have == shape => Ok(data),
            Some((have, _)) => {
                Err(Error::file(&self.path, format!("`{name}` has shape {have:?}, the step needs {shape:?}")))
            }
            None => Err(Error::file(&self.path, format!("the tensor `{name}` is missing"))),
        }
    }

    /// The smallest measure for a tensor of the group whose names start with `prefix`.
    fn floor(&self, prefix: &str) -> f64 {
        let group = self.floats.iter().filter(|(n, _)| n.starts_with(prefix));
        FLOOR * group.map(|(_, (_, data))| norm(data).powi(2)).sum::<f64>().sqrt()
    }

    fn deviation(&self, name: String, shape: &[usize], have: &[f64], floor: f64) -> Result<Deviation> {
        let wanted = self.tensor(&name, shape)?;
        let apart: Vec<f64> = have.iter().zip(wanted).map(|(a, b)| a - b).collect();
        let error = norm(&apart) / norm(wanted).max(floor).max(f64::MIN_POSITIVE);
        Ok(Deviation { name, error: if error.is_nan() { f64::INFINITY } else { error } })
    }

    /// Visible and hidden positions of every image.
    fn positions(&self, slot: &IoSlot) -> Result<(Vec<i32>, Vec<i32>)> {
        let tokens: usize = grid(self.config.masked_size).iter().product();
        let (visible, _) = patch_counts(&self.config);
        let bad = |message: String| Error::file(&self.path, format!("`view.keep`: {message}"));
        if self.keep.len() != self.config.batch * visible {
            return Err(bad(format!(
                "{} positions, {} needs {visible} an image",
                self.keep.len(),
                slot.name
            )));
        }
        let mut hidden = Vec::new();
        for kept in self.keep.chunks(visible) {
            let ascending = kept.windows(2).all(|w| w[0] < w[1]);
            if !ascending || kept.iter().any(|&k| usize::try_from(k).map_or(true, |k| k >= tokens)) {
                return Err(bad(format!("positions must ascend below {tokens}, got {kept:?}")));
            }
            hidden.extend((0..tokens as i32).filter(|i| kept.binary_search(i).is_err()));
        }
        Ok((self.keep.clone(), hidden))
    }
}

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|v| v * v).sum::<f64>().sqrt()
}
