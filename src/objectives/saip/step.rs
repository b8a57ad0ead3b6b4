//! The graph of one training step.

use super::config::StepConfig;
use super::io::{IoSlot, Slots, Types};
use super::model::{Model, PatchTokens, present, reconstruct, search};
use super::views::{ViewSlots, ViewValues};
use crate::error::{Error, Result};
use crate::ir::{Binding, Graph, Region, RowRun, Scalar, ValueId, differentiate, ops};
use crate::models::{DropPath, Tokens};
use crate::nn::{Mode, Net, ParamRegistry, Weights};
use crate::tensor::DType;

/// How a step is built.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepOptions {
    /// Type of inputs and activations; parameters, gradients, moments and state have its accumulator's type.
    pub dtype: DType,
    /// Micro steps whose gradients are averaged into one step; the configuration's batch is that of a micro step.
    pub micro_steps: usize,
    /// Rate of stochastic depth in the student's last block; 0 switches it off.
    pub drop_path: f64,
}

impl Default for StepOptions {
    fn default() -> Self {
        StepOptions { dtype: DType::F32, micro_steps: 1, drop_path: 0.0 }
    }
}

/// One step.
///
/// Without accumulation `graph` is the whole step. With it, `graph` is one micro step, which adds its gradients (and its
/// share of the center) to the step's, and `update` is what follows the last one; `MicroStep` in the scalar block tells
/// micro steps apart.
#[derive(Clone, Debug)]
pub struct StepGraph {
    pub graph: Graph,
    pub update: Option<Graph>,
    pub student: ParamRegistry,
    pub expert: ParamRegistry,
    /// Running statistics; without entries where an encoder has none.
    pub student_buffers: ParamRegistry,
    pub expert_buffers: ParamRegistry,
    /// The block of the student's encoder that each row of `drop_path` belongs to.
    pub branch_blocks: Vec<usize>,
    /// `global`, `local`, `rescaled`, `scene`, `boxes`, `masked`, `keep`, `hidden` as in the reference (`hidden` are the
    /// positions that `keep` lacks, ascending), `drop_path: [branches, images of the student's stream]`, `scalars`.
    /// What no objective reads is absent.
    pub inputs: Vec<IoSlot>,
    /// `csm`, `csr`, `css`, `total`: `[1]`; `statistics: [3]`; `health: [3]`.
    pub outputs: Vec<IoSlot>,
    /// What is carried from step to step besides parameters and moments: `center: [1, K]`; with accumulation also
    /// `center_rows`, the expert's unit vectors averaged over micro steps, which need not be saved.
    pub state: Vec<IoSlot>,
}

impl StepGraph {
    pub fn input(&self, name: &str) -> Option<&IoSlot> {
        self.inputs.iter().find(|s| s.name == name)
    }

    pub fn output(&self, name: &str) -> Option<&IoSlot> {
        self.outputs.iter().find(|s| s.name == name)
    }
}

/// Builds the step of `cfg`: forward pass, gradients, optimizer, moving average, center.
///
/// # Errors
/// [`Error::Config`] naming a key that is out of range, [`Error::Usage`] for impossible options.
pub fn build_step(cfg: &StepConfig, opts: &StepOptions) -> Result<StepGraph> {
    check_options(opts)?;
    let model = Model::new(cfg)?;
    let builder = StepBuilder {
        cfg,
        opts,
        types: Types::of(opts.dtype),
        student: model.student_registry()?,
        expert: model.expert_registry()?,
        student_buffers: model.student_buffers()?,
        expert_buffers: model.expert_buffers()?,
        model,
        inputs: Slots::default(),
        outputs: Slots::default(),
        state: Slots::default(),
    };
    builder.build()
}

fn check_options(opts: &StepOptions) -> Result<()> {
    if !opts.dtype.is_float() {
        return Err(Error::usage(format!(
            "a step cannot be computed in {}; choose bf16, f32 or f64",
            opts.dtype
        )));
    }
    if opts.micro_steps == 0 {
        return Err(Error::usage("a step needs at least one micro step"));
    }
    if !(0.0..1.0).contains(&opts.drop_path) {
        return Err(Error::usage(format!(
            "drop_path must be at least 0 and below 1, got {}",
            opts.drop_path
        )));
    }
    Ok(())
}

struct StepBuilder<'a> {
    cfg: &'a StepConfig,
    opts: &'a StepOptions,
    types: Types,
    model: Model,
    student: ParamRegistry,
    expert: ParamRegistry,
    student_buffers: ParamRegistry,
    expert_buffers: ParamRegistry,
    inputs: Slots,
    outputs: Slots,
    state: Slots,
}

/// What the forward pass leaves for the rest of the step.
struct Forward {
    total: ValueId,
    /// The expert's unit vectors `[2B, bottleneck]` and prototypes `[K, bottleneck]`.
    expert: Option<(ValueId, ValueId)>,
}

impl StepBuilder<'_> {
    fn build(mut self) -> Result<StepGraph> {
        let mut graph = Graph::new();
        let slots = ViewSlots::declare(self.cfg, self.model.parts(), &mut self.inputs);
        let at = self.inputs.add("scalars", Region::Scalars, [Scalar::COUNT]);
        let scalars = self.scalars(&mut graph, at);
        let center = self
            .model
            .csm
            .is_some()
            .then(|| self.state.add("center", Region::State, [1, self.cfg.csm.prototypes]));

        // A model that is built in part leaves some statistics alone; their regions are whole all the same.
        for (region, registry) in
            [(Region::Buffers, &self.student_buffers), (Region::ExpertBuffers, &self.expert_buffers)]
        {
            if !registry.is_empty() {
                self.region(&mut graph, region);
            }
        }
        let (registry, buffers) = (self.student.clone(), self.student_buffers.clone());
        let mut weights = Weights::new(&registry, Region::Params, self.types.compute)
            .with_buffers(&buffers, Mode::Training);
        let forward = self.forward(&mut graph, &mut weights, &slots, scalars, center)?;
        self.gradients(&mut graph, &weights, forward.total)?;

        let update = if self.opts.micro_steps == 1 {
            let rows = center.zip(forward.expert);
            self.update(&mut graph, forward.total, scalars, rows)?;
            None
        } else {
            Some(self.accumulated(&mut graph, &forward, scalars, at, center)?)
        };
        Ok(StepGraph {
            graph,
            update,
            student: self.student,
            expert: self.expert,
            student_buffers: self.student_buffers,
            expert_buffers: self.expert_buffers,
            branch_blocks: self.model.student.branch_blocks(),
            inputs: self.inputs.list,
            outputs: self.outputs.list,
            state: self.state.list,
        })
    }

    fn scalars(&self, graph: &mut Graph, at: Binding) -> ValueId {
        graph.source("scalars", [Scalar::COUNT], self.types.master, at)
    }

    fn forward(
        &mut self,
        graph: &mut Graph,
        weights: &mut Weights<'_>,
        slots: &ViewSlots,
        scalars: ValueId,
        center: Option<Binding>,
    ) -> Result<Forward> {
        let (cfg, model) = (self.cfg, self.model.clone());
        let views = ViewValues::read(graph, cfg, model.parts(), slots, self.types, model.csm.is_some());
        let drop_path = self.drop_path(&views);
        let (registry, buffers) = (self.expert.clone(), self.expert_buffers.clone());
        let mut expert_weights = Weights::new(&registry, Region::Expert, self.types.compute)
            .with_buffers(&buffers, model.expert_mode());
        let mut expert_net = Net { graph: &mut *graph, weights: &mut expert_weights };
        let expert = model.expert.build(&mut expert_net, &views.expert, &views.expert_taps, None)?;
        let targets = match (&model.csm, expert.image) {
            (Some(csm), Some(image)) => {
                Some((csm.embed(&mut expert_net, image)?, csm.prototypes(&mut expert_net)?))
            }
            _ => None,
        };

        let mut net = Net { graph, weights };
        let student = model.student.build(&mut net, &views.student, &views.student_taps, drop_path)?;
        let patches = PatchTokens::new(&views, &student, &expert);
        let mut losses: Vec<(f64, ValueId)> = Vec::new();
        if let (Some(targets), Some(center)) = (targets, center) {
            let loss = self.csm(&mut net, &student, &expert, targets, center, scalars)?;
            losses.push((cfg.loss_weights[0], loss));
        }
        if let Some(masked) = &views.masked {
            let pred = reconstruct(&mut net, cfg, &model, masked, &patches)?;
            let loss = net.push("csr.loss", ops::MaskedMse, &[pred, masked.image, masked.hidden])?;
            self.outputs.output(net.graph, "csr", loss)?;
            losses.push((cfg.loss_weights[1], loss));
        }
        if let Some(boxes) = views.boxes {
            let logits = search(&mut net, cfg, &model, &patches)?;
            let loss = net.push("css.loss", ops::BceWithLogits { groups: 2 }, &[logits, boxes])?;
            self.outputs.output(net.graph, "css", loss)?;
            losses.push((cfg.loss_weights[2], loss));
        }
        let (weights, values): (Vec<f64>, Vec<ValueId>) = losses.into_iter().unzip();
        let total = net.push("total", ops::WeightedSum { weights }, &values)?;
        self.outputs.output(net.graph, "total", total)?;
        Ok(Forward { total, expert: targets })
    }

    /// The input of stochastic depth, if it is on.
    fn drop_path(&mut self, views: &ViewValues) -> Option<DropPath> {
        if self.opts.drop_path == 0.0 {
            return None;
        }
        let segments = views.student.iter().map(|v| v.count).sum();
        let shape = [self.model.student.branch_blocks().len(), segments];
        let at = self.inputs.add("drop_path", Region::Inputs, shape);
        Some(DropPath { region: at.region, offset: at.offset, segments, dtype: self.types.master })
    }

    /// CSM's loss, and the statistics of the expert's targets.
    fn csm(
        &mut self,
        net: &mut Net<'_, '_>,
        student: &Tokens,
        expert: &Tokens,
        (zt, wt): (ValueId, ValueId),
        center: Binding,
        scalars: ValueId,
    ) -> Result<ValueId> {
        let model = &self.model;
        let csm = present(model.csm.as_ref(), "csm")?;
        let (z, w) = model.student_projection(net, csm, present(student.image, "csm: image tokens")?)?;
        let center = self.center(net.graph, center);
        let op = ops::PrototypeCrossEntropy { batch: self.cfg.batch };
        let out = net.push_all("csm.loss", op, &[z, w, zt, wt, center, scalars])?;
        let features = present(expert.image, "csm: the expert's image tokens")?;
        let operands = [zt, wt, center, scalars, out[2], features];
        let statistics = net.push("csm.statistics", ops::ExpertStatistics, &operands)?;
        self.outputs.output(net.graph, "csm", out[0])?;
        self.outputs.output(net.graph, "statistics", statistics)?;
        Ok(out[0])
    }

    fn center(&self, graph: &mut Graph, at: Binding) -> ValueId {
        graph.source("center", [1, self.cfg.csm.prototypes], self.types.master, at)
    }

    /// Derivatives of `total`, each written to its parameter's place.
    fn gradients(&self, graph: &mut Graph, weights: &Weights<'_>, total: ValueId) -> Result<()> {
        let region = if self.opts.micro_steps == 1 { Region::Grads } else { Region::MicroGrads };
        let read: Vec<_> = self.student.iter().filter_map(|p| Some((p, weights.used(&p.name)?))).collect();
        let wrt: Vec<ValueId> = read.iter().map(|r| r.1).collect();
        let mut gradients: Vec<Option<ValueId>> = differentiate(graph, total, &wrt)?;
        gradients.reverse();
        for p in &self.student {
            let value = if weights.used(&p.name).is_some() { gradients.pop().flatten() } else { None };
            let path = format!("grad.{}", p.name);
            let value = match value {
                // A value lives in one place: one that has a place already, or is given from outside, is copied.
                Some(id) if graph.value(id).binding.is_some() || graph.value(id).producer.is_none() => {
                    let len = graph.shape(id).as_matrix().0;
                    let runs = vec![RowRun { start: 0, len, stride: len, count: 1 }];
                    graph.push1(path, ops::SelectRows { runs }, &[id])?
                }
                Some(id) => id,
                None => {
                    let fill = ops::Fill { shape: p.shape.clone(), value: 0.0, dtype: self.types.master };
                    graph.push1(path, fill, &[])?
                }
            };
            if graph.shape(value).count() != p.len {
                return Err(Error::invariant(
                    "differentiation",
                    format!("the gradient of `{}` has shape {}", p.name, graph.shape(value)),
                ));
            }
            graph.bind(value, Binding { region, offset: p.offset });
        }
        Ok(())
    }

    /// `value` in another type, itself if it has it already.
    fn cast(&self, graph: &mut Graph, path: &str, value: ValueId, dtype: DType) -> Result<ValueId> {
        match graph.value(value).dtype == dtype {
            true => Ok(value),
            false => graph.push1(path, ops::Cast { dtype }, &[value]),
        }
    }

    /// A whole region as one vector.
    fn region(&self, graph: &mut Graph, region: Region) -> ValueId {
        let (len, dtype) = match region {
            Region::Expert => (self.expert.len(), self.types.master),
            Region::ExpertWeights => (self.expert.len(), self.types.compute),
            Region::Weights => (self.student.len(), self.types.compute),
            Region::Buffers => (self.student_buffers.len(), self.types.master),
            Region::ExpertBuffers => (self.expert_buffers.len(), self.types.master),
            _ => (self.student.len(), self.types.master),
        };
        graph.source(region.name(), [len], dtype, Binding { region, offset: 0 })
    }

    /// Gradient health, AdamW with the expert's moving average, and the center from `(place, (zt, wt))`.
    fn update(
        &mut self,
        graph: &mut Graph,
        loss: ValueId,
        scalars: ValueId,
        center: Option<(Binding, (ValueId, ValueId))>,
    ) -> Result<()> {
        let grads = self.region(graph, Region::Grads);
        let health = graph.push1("health", ops::GradHealth, &[grads, loss, scalars])?;
        self.outputs.output(graph, "health", health)?;
        let regions = [Region::Params, Region::Moment1, Region::Moment2, Region::Expert];
        let [params, m, v, expert] = regions.map(|r| self.region(graph, r));
        let segments = self.model.segments(&self.student, &self.expert);
        let mut operands = vec![params, grads, m, v, expert, scalars, health];
        let copies = self.types.compute != self.types.master;
        let copied = [Region::Params, Region::Expert].map(Region::in_compute_type);
        if copies {
            operands.extend(copied.map(|r| self.region(graph, r)));
        }
        let out = graph.push("adamw", ops::AdamW { segments, copies }, &operands)?;
        for (id, region) in out.into_iter().zip(regions.into_iter().chain(copied)) {
            graph.bind(id, Binding { region, offset: 0 });
        }
        if let Some((at, (zt, wt))) = center {
            let center = self.center(graph, at);
            let new = graph.push1("center", ops::CenterUpdate, &[center, zt, wt, scalars, health])?;
            graph.bind(new, at);
        }
        Ok(())
    }

    /// Ends `micro` with the accumulation and gives the graph of the update. The center of the effective batch is linear
    /// in the expert's unit vectors, so it is enough to average those over the micro steps, row by row.
    fn accumulated(
        &mut self,
        micro: &mut Graph,
        forward: &Forward,
        scalars: ValueId,
        scalars_at: Binding,
        center: Option<Binding>,
    ) -> Result<Graph> {
        let grads = self.region(micro, Region::Grads);
        let fresh = self.region(micro, Region::MicroGrads);
        let sum = micro.push1("accumulate", ops::AccumulateGrads, &[grads, fresh, scalars])?;
        micro.bind(sum, Binding { region: Region::Grads, offset: 0 });

        let mut update = Graph::new();
        let update_scalars = self.scalars(&mut update, scalars_at);
        let mut rows = None;
        if let (Some(center), Some((zt, _)), Some(csm)) = (center, forward.expert, self.model.csm.clone()) {
            let shape = micro.shape(zt).clone();
            let at = self.state.add("center_rows", Region::State, shape.clone());
            let old = micro.source("center_rows", shape.clone(), self.types.master, at);
            let wide = self.cast(micro, "center_rows.wide", zt, self.types.master)?;
            let new = micro.push1("center_rows", ops::AccumulateGrads, &[old, wide, scalars])?;
            micro.bind(new, at);
            let registry = self.expert.clone();
            let mut weights = Weights::new(&registry, Region::Expert, self.types.compute);
            let wt = csm.prototypes(&mut Net { graph: &mut update, weights: &mut weights })?;
            let mean = update.source("center_rows", shape, self.types.master, at);
            let mean = self.cast(&mut update, "center_rows.narrow", mean, self.types.compute)?;
            rows = Some((center, (mean, wt)));
        }
        let at = self.outputs.list.iter().find(|s| s.name == "total").map(IoSlot::binding);
        let at = present(at, "the loss")?;
        let loss = update.source("total", [1], self.types.master, at);
        self.update(&mut update, loss, update_scalars, rows)?;
        Ok(update)
    }
}
