//! One step against recorded numbers: the fixtures of the reference implementation.
//!
//! A fixture is a safetensors file with the configuration in its metadata, inputs under `view.*`, the state before the step
//! under `student.*`, `expert.*` and `state.*`, and what the step must give under `loss.*`, `grad.*` and `after.*`. `target.*` is what an
//! objective derives beside these.

use crate::backend::Backend;
use crate::data::batch::{Batch, Values};
use crate::error::{Error, Result};
use crate::ir::{Op, Region};
use crate::objectives::{self, Objective};
use crate::step::StepOptions;
use crate::tensor::DType;
use crate::train::engine::{Engine, EngineOptions};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Fixtures are megabytes; nothing larger is read into memory.
const MAX_BYTES: u64 = 1 << 30;

/// With a smaller epsilon the first AdamW step is the sign of the gradient, which rounding to f32 can flip.
const SMALLEST_COMPARABLE_EPS: f64 = 1e-6;

/// A fixture in memory.
pub struct Fixture {
    path: PathBuf,
    bytes: Vec<u8>,
    pub objective: Arc<dyn Objective>,
}

/// How far one tensor is from the fixture's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Deviation {
    pub name: String,
    /// `||a - b|| / max(||b||, 1e-2 ||all tensors of its group||)`; the floor is for gradients that are zero but for
    /// rounding, and does not apply to losses and targets; these are rounded to f32, in which they are recorded, so that
    /// 0 means equal. Infinite when a value is not finite.
    pub error: f64,
}

/// The outcome of one fixture.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    pub fixture: String,
    pub device: String,
    pub tolerance: f64,
    pub passed: bool,
    /// Worst first.
    pub deviations: Vec<Deviation>,
    /// Tensors that cannot be compared in this precision, and why.
    pub left_out: Vec<(String, String)>,
}

/// What a step gave, under the fixture's names.
pub type Results = BTreeMap<String, (Vec<usize>, Vec<f64>)>;

impl Fixture {
    /// Reads and checks a fixture.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::File`], naming the file, the tensor, and what was expected.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let meta = std::fs::metadata(&path).map_err(|e| Error::io(&path, "read", e))?;
        if meta.len() > MAX_BYTES {
            return Err(Error::file(&path, format!("{} bytes are too many for a fixture", meta.len())));
        }
        let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, "read", e))?;
        let broken = |e| Error::file(&path, format!("is no intact safetensors file: {e}"));
        SafeTensors::deserialize(&bytes).map_err(broken)?;
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(broken)?;
        let config = metadata.metadata().as_ref().and_then(|m| m.get("config")).ok_or_else(|| {
            Error::file(
                &path,
                "carries no `config` in its metadata: write it with the reference's `write` command",
            )
        })?;
        let objective = objectives::of_reference(config)
            .map_err(|e| Error::file(&path, format!("the `config` in its metadata cannot be used: {e}")))?;
        Ok(Fixture { path, bytes, objective })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn tensors(&self) -> Result<SafeTensors<'_>> {
        SafeTensors::deserialize(&self.bytes).map_err(|e| Error::file(&self.path, e.to_string()))
    }

    fn tensor<'a>(
        &self,
        all: &SafeTensors<'a>,
        name: &str,
        shape: &[usize],
        dtype: Dtype,
    ) -> Result<TensorView<'a>> {
        let found = all.tensor(name).map_err(|_| {
            Error::file(&self.path, format!("tensor `{name}` is missing, expected {dtype:?} {shape:?}"))
        })?;
        if found.shape() != shape || found.dtype() != dtype {
            return Err(Error::file(
                &self.path,
                format!(
                    "tensor `{name}` is {:?} {:?}, its configuration needs {dtype:?} {shape:?}",
                    found.dtype(),
                    found.shape()
                ),
            ));
        }
        Ok(found)
    }

    fn f32s(&self, all: &SafeTensors<'_>, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let t = self.tensor(all, name, shape, Dtype::F32)?;
        Ok(t.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }

    /// The recorded views: what the objective reads. What a recipe derives from others is derived.
    fn batch(&self) -> Result<Batch> {
        let all = self.tensors()?;
        let images = self.objective.batch();
        let specs = self.objective.recipe()?.tensors(0, images);
        let tensors =
            specs.into_iter().map(|spec| (Values::room(&spec, None), spec)).map(|(v, s)| (s, v)).collect();
        let mut batch = Batch { bucket: 0, tensors, names: vec![self.path.display().to_string(); images] };
        for (spec, values) in &mut batch.tensors {
            let name = format!("view.{}", spec.name);
            let shape = spec.shape.dims();
            match values {
                Values::F32(values) => *values = self.f32s(&all, &name, shape)?,
                Values::I32(values) if all.tensor(&name).is_ok() => {
                    *values = self.i32s(&all, &name, shape)?
                }
                // Derived from others.
                Values::I32(_) => {}
            }
        }
        self.objective.complete(&mut batch).map_err(|e| Error::file(&self.path, e.to_string()))?;
        Ok(batch)
    }

    /// Positions, which the fixtures hold in 64 bits.
    fn i32s(&self, all: &SafeTensors<'_>, name: &str, shape: &[usize]) -> Result<Vec<i32>> {
        let t = self.tensor(all, name, shape, Dtype::I64)?;
        let all = t.data().as_chunks::<8>().0.iter().map(|b| i32::try_from(i64::from_le_bytes(*b)).ok());
        all.collect::<Option<_>>()
            .ok_or_else(|| Error::file(&self.path, format!("`{name}` holds numbers that are no positions")))
    }

    /// Runs the recorded step on `backend`.
    pub fn run(&self, backend: Box<dyn Backend>) -> Result<Results> {
        let options = EngineOptions { micro_steps: 1, drop_path: 0.0, recompute: false, seed: 0 };
        let mut engine = Engine::new(backend, Arc::clone(&self.objective), options)?;
        let (all, batch) = (self.tensors()?, self.batch()?);
        let shapes: BTreeMap<String, Vec<usize>> = engine.expected_state().into_iter().collect();
        engine.load(|name, out| {
            if name.starts_with("moment") {
                out.fill(0.0);
                return Ok(());
            }
            let shape = shapes.get(name).map_or(&[][..], Vec::as_slice);
            out.copy_from_slice(&self.f32s(&all, name, shape)?);
            Ok(())
        })?;
        let point = self.objective.point(1);
        let losses = engine.micro_step(0, &batch, &point)?;
        let health = engine.update(0)?;
        let mut results = Results::new();
        results.insert("loss.total".into(), (vec![], vec![losses.total]));
        for (name, value) in losses.parts {
            results.insert(format!("loss.{name}"), (vec![], vec![value]));
        }
        for (name, shape, mut values) in engine.read_gradients(&point)? {
            // The recorded gradients are clipped; the engine clips the whole of them inside the optimizer.
            values.iter_mut().for_each(|v| *v *= health.clip_factor);
            results.insert(format!("grad.{name}"), (shape, values));
        }
        for (prefix, region) in [
            ("after.student.", Region::Params),
            ("after.student.", Region::Buffers),
            ("after.expert.", Region::Expert),
            ("after.expert.", Region::ExpertBuffers),
        ] {
            for (name, shape, values) in engine.read_region(region)? {
                results.insert(format!("{prefix}{name}"), (shape, values));
            }
        }
        for (name, shape, values) in engine.read_state()? {
            results.insert(format!("after.state.{name}"), (shape, values));
        }
        for (name, shape, values) in engine.read_targets(0)? {
            results.insert(name, (shape, values));
        }
        for (name, shape, values) in self.objective.targets() {
            results.insert(format!("target.{name}"), (shape, values));
        }
        Ok(results)
    }

    /// Compares `results` with what the fixture recorded, worst first.
    ///
    /// # Errors
    /// [`Error::File`] naming a tensor that only one of the two has, or that is recorded in another shape or type.
    pub fn compare(&self, results: &Results, device: &str, dtype: DType, tolerance: f64) -> Result<Verdict> {
        let mut reference = self.recorded(results)?;
        let mut left_out = self.incomparable(dtype);
        reference.retain(|name, _| !left_out.iter().any(|(p, _)| name.starts_with(p.trim_end_matches('*'))));
        left_out.extend(self.targets_of_others(results)?);
        let mut groups: BTreeMap<String, f64> = BTreeMap::new();
        for (name, values) in &reference {
            *groups.entry(group(name)).or_default() += norm(values.iter().copied()).powi(2);
        }
        let mut deviations: Vec<Deviation> = reference
            .iter()
            .map(|(name, b)| {
                let floor = match group(name).as_str() {
                    "loss" | "target" => 0.0,
                    g => 1e-2 * groups[g].sqrt(),
                };
                // Nothing but zeros, matched by zeros, is no error.
                let scale = norm(b.iter().copied()).max(floor).max(f64::MIN_POSITIVE);
                let recorded_in_f32 =
                    |v: f64| if name.starts_with("target.") { f64::from(v as f32) } else { v };
                let difference = results[name].1.iter().zip(b).map(|(a, b)| recorded_in_f32(*a) - b);
                let error = norm(difference) / scale;
                let error = if error.is_finite() { error } else { f64::INFINITY };
                Deviation { name: name.clone(), error }
            })
            .collect();
        deviations.sort_by(|a, b| b.error.total_cmp(&a.error).then_with(|| a.name.cmp(&b.name)));
        let passed = !deviations.is_empty() && deviations.iter().all(|d| d.error <= tolerance);
        let fixture = self.path.display().to_string();
        Ok(Verdict { fixture, device: device.to_owned(), tolerance, passed, deviations, left_out })
    }

    /// How far a correct step in bf16 may be from the recorded one. Every value that is stored in bf16 is off by at most
    /// 2^-9 of itself, independently of the others: after `n` of them in a row the expected deviation is about
    /// `sqrt(n) 2^-9`, and `n` is the longest chain of such values in the step. Twice that passes. Batch normalisation
    /// enlarges roundings where a channel varies little around its mean, and its gradient is a difference of larger terms:
    /// eight times as much passes with it. PyTorch's own step under autocast is 0.14 (StarNet) and 0.59 (TinyViT) from the
    /// fixtures.
    ///
    /// # Errors
    /// Those of building the step.
    pub fn bf16_tolerance(&self) -> Result<f64> {
        let opts = StepOptions { dtype: DType::Bf16, ..StepOptions::default() };
        let graph = self.objective.step(0, &opts)?.graph;
        let mut rounded = vec![0u32; graph.values.len()];
        for node in &graph.nodes {
            let longest = node.inputs.iter().map(|i| rounded[i.index()]).max().unwrap_or(0);
            for o in &node.outputs {
                rounded[o.index()] = longest + u32::from(graph.value(*o).dtype == DType::Bf16);
            }
        }
        let longest = rounded.into_iter().max().unwrap_or(0);
        let normalised = graph.nodes.iter().any(|n| matches!(n.op, Op::BatchNorm(_)));
        let enlarged = if normalised { 8.0 } else { 1.0 };
        Ok(f64::from(longest).sqrt() * enlarged * 2.0 / 512.0)
    }

    /// The recorded counterpart of every result; there is nothing else that a step must give.
    fn recorded(&self, results: &Results) -> Result<BTreeMap<String, Vec<f64>>> {
        let all = self.tensors()?;
        // Whole numbers count batches: no step of ours keeps them, and the reference does not compare them either.
        let given = |name: &String, t: &TensorView<'_>| {
            t.dtype() != Dtype::I64 && ["loss.", "grad.", "after."].iter().any(|p| name.starts_with(p))
        };
        let names = all.iter().map(|(name, t)| (name.to_owned(), t)).filter(|(name, t)| given(name, t));
        if let Some((name, _)) = names.into_iter().find(|(name, _)| !results.contains_key(name)) {
            let message = format!("tensor `{name}` is none that a step of its configuration gives");
            return Err(Error::file(&self.path, message));
        }
        let values = |name: &String, shape: &[usize]| {
            Ok((name.clone(), self.f32s(&all, name, shape)?.into_iter().map(f64::from).collect()))
        };
        results.iter().map(|(name, (shape, _))| values(name, shape)).collect()
    }

    /// Recorded targets that the objective derives nothing for, and why. A reference records all schedules of a run, those of
    /// other objectives too.
    fn targets_of_others(&self, results: &Results) -> Result<Vec<(String, String)>> {
        let names = self.tensors()?.names().into_iter().map(str::to_owned).collect::<Vec<_>>();
        let others = names.into_iter().filter(|n| n.starts_with("target.") && !results.contains_key(n));
        let why = "the fixture's objective derives no such target: it is another one's";
        Ok(others.map(|name| (name, why.to_owned())).collect())
    }

    /// Tensors, as prefixes ending in `*`, that say nothing when computed in `dtype`, and why.
    fn incomparable(&self, dtype: DType) -> Vec<(String, String)> {
        if dtype == DType::F64 || self.objective.point(1).adam_eps >= SMALLEST_COMPARABLE_EPS {
            return Vec::new();
        }
        let why = format!(
            "AdamW's epsilon is {:e}: its first step is the sign of the gradient, which rounding to {dtype} can flip",
            self.objective.point(1).adam_eps
        );
        ["after.student.*", "after.expert.*"].map(|p| (p.to_owned(), why.clone())).to_vec()
    }
}

/// A tensor of a file that is being made.
pub(super) struct Entry {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Little-endian.
    pub data: Vec<u8>,
}

impl Entry {
    pub fn f32(name: &str, shape: &[usize], values: &[f32]) -> Self {
        let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Entry { name: name.to_owned(), dtype: Dtype::F32, shape: shape.to_vec(), data }
    }
}

/// The bytes of a safetensors file of these tensors.
///
/// # Errors
/// [`Error::Invariant`] for a shape that is not that of its values.
pub(super) fn laid_out(entries: Vec<Entry>, metadata: Option<HashMap<String, String>>) -> Result<Vec<u8>> {
    let views = entries
        .iter()
        .map(|e| Ok((e.name.as_str(), TensorView::new(e.dtype, e.shape.clone(), &e.data)?)))
        .collect::<std::result::Result<Vec<_>, safetensors::SafeTensorError>>();
    views
        .and_then(|views| safetensors::serialize(views, metadata))
        .map_err(|e| Error::invariant("laying out tensors", e.to_string()))
}

/// Writes `results` as a safetensors file in f32, which the reference's `compare` command reads.
pub fn dump(results: &Results, path: &Path) -> Result<()> {
    let entry = |(name, (shape, values)): (&String, &(Vec<usize>, Vec<f64>))| {
        let values: Vec<f32> = values.iter().map(|v| *v as f32).collect();
        Entry::f32(name, shape, &values)
    };
    crate::files::atomic::write(path, &laid_out(results.iter().map(entry).collect(), None)?)
}

/// Tensors whose norms are added up for the floor.
fn group(name: &str) -> String {
    let parts = if name.starts_with("after.") { 2 } else { 1 };
    name.split('.').take(parts).collect::<Vec<_>>().join(".")
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}
