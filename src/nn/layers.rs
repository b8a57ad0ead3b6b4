//! Layers over the graph: each takes the path of its parameters and the value it reads.

use std::collections::HashMap;

use super::params::ParamRegistry;
use crate::error::{Error, Result};
use crate::ir::{AttentionLayout, Binding, Epilogue, Graph, Op, Region, RowRun, Segments, ValueId, ops};
use crate::tensor::{DType, Shape};

/// Epsilon of every layer normalisation.
const NORM_EPS: f64 = 1e-6;

/// Epsilon of every batch normalisation.
const BATCH_NORM_EPS: f64 = 1e-5;
/// Share of the newest batch in running statistics.
const BATCH_NORM_MOMENTUM: f64 = 0.1;

/// What batch normalisation normalises by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The statistics of the batch; the running ones follow them.
    Training,
    /// The running statistics.
    Evaluation,
}

/// The parameters of a registry as values of a graph, made when first asked for.
#[derive(Debug)]
pub struct Weights<'r> {
    registry: &'r ParamRegistry,
    region: Region,
    compute: DType,
    values: HashMap<String, ValueId>,
    buffers: Option<&'r ParamRegistry>,
    mode: Mode,
}

impl<'r> Weights<'r> {
    /// `region` is [`Region::Params`] or [`Region::Expert`]. Where `compute` is narrower than its accumulator, matrices
    /// are read from the region's copy in that type.
    pub fn new(registry: &'r ParamRegistry, region: Region, compute: DType) -> Self {
        let (values, mode) = (HashMap::new(), Mode::Evaluation);
        Weights { registry, region, compute, values, buffers: None, mode }
    }

    /// With running statistics, found in the region of buffers beside that of the parameters.
    pub fn with_buffers(self, buffers: &'r ParamRegistry, mode: Mode) -> Self {
        Weights { buffers: Some(buffers), mode, ..self }
    }

    /// What batch normalisation normalises by.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The running statistics `name` and their place.
    fn buffer(&mut self, graph: &mut Graph, name: &str) -> Result<(ValueId, Binding)> {
        let spec = self.buffers.and_then(|b| b.get(name)).ok_or_else(|| {
            Error::invariant("model building", format!("the statistics `{name}` are not registered"))
        })?;
        let at = Binding { region: self.region.buffers(), offset: spec.offset };
        let (label, dtype) = (self.label(), self.compute.accumulator());
        let id = graph.source(format!("{label}{name}"), Shape::new(spec.shape.clone()), dtype, at);
        Ok((id, at))
    }

    /// The parameter `name`.
    ///
    /// # Errors
    /// [`Error::Invariant`] when the registry has no such parameter.
    pub fn value(&mut self, graph: &mut Graph, name: &str) -> Result<ValueId> {
        if let Some(&id) = self.values.get(name) {
            return Ok(id);
        }
        let spec = self.registry.get(name).ok_or_else(|| {
            Error::invariant("model building", format!("the parameter `{name}` is not registered"))
        })?;
        let (dtype, region) = match spec.matrix {
            true if self.compute != self.compute.accumulator() => {
                (self.compute, self.region.in_compute_type())
            }
            _ => (self.compute.accumulator(), self.region),
        };
        let id = graph.source(
            format!("{}{name}", self.label()),
            Shape::new(spec.shape.clone()),
            dtype,
            Binding { region, offset: spec.offset },
        );
        self.values.insert(name.to_owned(), id);
        Ok(id)
    }

    /// The parameter `name` if the graph reads it.
    pub fn used(&self, name: &str) -> Option<ValueId> {
        self.values.get(name).copied()
    }

    /// The type that the layers compute in.
    pub fn compute(&self) -> DType {
        self.compute
    }

    /// What node paths and value names start with.
    fn label(&self) -> &'static str {
        if self.region == Region::Expert { "expert." } else { "" }
    }
}

/// A graph under construction together with the parameters that its layers read.
#[derive(Debug)]
pub struct Net<'a, 'r> {
    pub graph: &'a mut Graph,
    pub weights: &'a mut Weights<'r>,
}

impl<'r> Net<'_, 'r> {
    /// The layers built inside `body` form one block for recomputation.
    pub fn block<R>(&mut self, body: impl FnOnce(&mut Net<'_, 'r>) -> Result<R>) -> Result<R> {
        let weights = &mut *self.weights;
        self.graph.in_block(|graph| body(&mut Net { graph, weights }))
    }

    /// The parameter `name` as a value.
    pub fn param(&mut self, name: &str) -> Result<ValueId> {
        self.weights.value(self.graph, name)
    }

    /// First output of `op`.
    pub fn push(&mut self, path: &str, op: impl Into<Op>, inputs: &[ValueId]) -> Result<ValueId> {
        self.graph.push1(format!("{}{path}", self.weights.label()), op, inputs)
    }

    /// All outputs of `op`.
    pub fn push_all(&mut self, path: &str, op: impl Into<Op>, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        self.graph.push(format!("{}{path}", self.weights.label()), op, inputs)
    }

    /// `x: [M, K]` -> `[M, N]` with `{path}.weight: [N, K..]` and `{path}.bias: [N]`.
    pub fn linear(&mut self, path: &str, x: ValueId) -> Result<ValueId> {
        let (w, b) = (self.param(&format!("{path}.weight"))?, self.param(&format!("{path}.bias"))?);
        self.push(path, ops::Linear { epilogue: Epilogue::None }, &[x, w, b])
    }

    /// `x: [M, D]` -> `[M, D]`, each row normalised.
    pub fn layer_norm(&mut self, path: &str, x: ValueId) -> Result<ValueId> {
        self.layer_norm_with(path, x, NORM_EPS)
    }

    /// [`Net::layer_norm`] with another epsilon.
    pub fn layer_norm_with(&mut self, path: &str, x: ValueId, eps: f64) -> Result<ValueId> {
        let (w, b) = (self.param(&format!("{path}.weight"))?, self.param(&format!("{path}.bias"))?);
        self.push(path, ops::LayerNorm { eps }, &[x, w, b])
    }

    /// `x: [M, C]` -> `[M, C]`, each channel normalised: in training by its statistics over the rows of its group, which
    /// the running statistics then follow, else by these.
    pub fn batch_norm(&mut self, path: &str, x: ValueId, groups: Vec<usize>) -> Result<ValueId> {
        let (w, b) = (self.param(&format!("{path}.weight"))?, self.param(&format!("{path}.bias"))?);
        let (mean, mean_at) = self.weights.buffer(self.graph, &format!("{path}.running_mean"))?;
        let (var, var_at) = self.weights.buffer(self.graph, &format!("{path}.running_var"))?;
        let eps = BATCH_NORM_EPS;
        if self.weights.mode() == Mode::Evaluation {
            return self.push(path, ops::BatchNormInference { eps }, &[x, w, b, mean, var]);
        }
        let out =
            self.push_all(path, ops::BatchNorm { eps, groups: groups.clone(), then: None }, &[x, w, b])?;
        let follow = ops::RunningStatistics { momentum: BATCH_NORM_MOMENTUM, groups };
        let new = self.push_all(&format!("{path}.running"), follow, &[mean, var, out[1], out[2]])?;
        self.graph.bind(new[0], mean_at);
        self.graph.bind(new[1], var_at);
        Ok(out[0])
    }

    /// `x` in the type that layers compute in.
    pub fn in_compute_type(&mut self, path: &str, x: ValueId) -> Result<ValueId> {
        let dtype = self.weights.compute();
        match self.graph.value(x).dtype == dtype {
            true => Ok(x),
            false => self.push(path, ops::Cast { dtype }, &[x]),
        }
    }

    pub fn gelu(&mut self, path: &str, x: ValueId) -> Result<ValueId> {
        self.push(path, ops::Gelu, &[x])
    }

    /// `{path}.fc2(gelu({path}.fc1(x)))`.
    pub fn mlp(&mut self, path: &str, x: ValueId) -> Result<ValueId> {
        let h = self.linear(&format!("{path}.fc1"), x)?;
        let h = self.gelu(&format!("{path}.act"), h)?;
        self.linear(&format!("{path}.fc2"), h)
    }

    /// `x + y`, the stream first.
    pub fn residual(&mut self, path: &str, x: ValueId, y: ValueId) -> Result<ValueId> {
        self.push(path, ops::Add, &[x, y])
    }

    /// The rows of `runs`.
    pub fn select(&mut self, path: &str, x: ValueId, runs: Vec<RowRun>) -> Result<ValueId> {
        self.push(path, ops::SelectRows { runs }, &[x])
    }

    /// Attention of the queries `x` (already normalised) over `ctx`, with the projections `q`, `kv` and `proj` of
    /// `path`.
    pub fn attention(
        &mut self,
        path: &str,
        x: ValueId,
        ctx: ValueId,
        heads: usize,
        segments: Segments,
    ) -> Result<ValueId> {
        let q = self.linear(&format!("{path}.q"), x)?;
        let kv = self.linear(&format!("{path}.kv"), ctx)?;
        let op = ops::Attention { heads, layout: AttentionLayout::Separate, segments };
        let o = self.push(path, op, &[q, kv])?;
        self.linear(&format!("{path}.proj"), o)
    }
}

/// Rows `start .. start + len`.
pub(crate) fn range(start: usize, len: usize) -> RowRun {
    RowRun { start, len, stride: len, count: 1 }
}

/// The first row of every segment of a stream whose segments are `lengths` (`(count, rows)`).
pub(crate) fn first_rows(lengths: impl IntoIterator<Item = (usize, usize)>) -> Vec<RowRun> {
    let mut start = 0;
    lengths
        .into_iter()
        .map(|(count, len)| {
            let run = RowRun { start, len: 1, stride: len, count };
            start += count * len;
            run
        })
        .collect()
}

/// Parameters of an [`Net::attention`].
pub(crate) fn register_attention(reg: &mut ParamRegistry, path: &str, dim: usize) -> Result<()> {
    reg.linear(&format!("{path}.q"), dim, dim)?;
    reg.linear(&format!("{path}.kv"), 2 * dim, dim)?;
    reg.linear(&format!("{path}.proj"), dim, dim)
}

/// Parameters of an [`Net::mlp`] of ratio 4.
pub(crate) fn register_mlp(reg: &mut ParamRegistry, path: &str, dim: usize) -> Result<()> {
    reg.linear(&format!("{path}.fc1"), 4 * dim, dim)?;
    reg.linear(&format!("{path}.fc2"), dim, 4 * dim)
}
