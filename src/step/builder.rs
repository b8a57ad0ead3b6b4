//! What every step has around its losses: gradients, their health, the optimizer with the expert's moving average,
//! accumulation over micro steps, and state that moves once per update.

use super::graph::{DROP_PATH, HEALTH, OWN_SCALARS, ROWS, Registries, SCALARS, Step, TOTAL};
use super::io::{Slots, Types};
use super::options::StepOptions;
use crate::error::{Error, Result};
use crate::ir::{Binding, Graph, Op, ParamSegment, Region, RowRun, Scalar, ValueId, differentiate, ops};
use crate::nn::{ParamSpec, Weights};
use crate::tensor::{DType, Shape};

/// A step in the making. An objective declares inputs and state, builds its losses in `graph`, and has the rest built by
/// [`Builder::finish`].
pub struct Builder {
    pub graph: Graph,
    pub types: Types,
    pub registries: Registries,
    pub inputs: Slots,
    pub outputs: Slots,
    pub state: Slots,
    opts: StepOptions,
    branch_blocks: Vec<usize>,
    losses: Vec<String>,
    scalars: Option<Block>,
    own: Option<Block>,
    clip_tensors: bool,
}

/// Scalars that are written like an input.
#[derive(Clone, Copy)]
struct Block {
    name: &'static str,
    len: usize,
    at: Binding,
    value: ValueId,
}

/// State that moves once per update.
pub struct Carried<'a> {
    pub name: &'static str,
    pub at: Binding,
    pub shape: Shape,
    /// What moves it, averaged over the micro steps element by element: the update must be linear in it.
    pub rows: ValueId,
    /// Further operands, as the micro step has them.
    pub operands: Vec<ValueId>,
    /// The same in a graph of the update alone.
    pub again: &'a dyn Fn(&mut Graph) -> Result<Vec<ValueId>>,
    /// From the old state, the rows, the further operands, the objective's scalars and the health to the new state.
    pub op: Op,
}

impl Builder {
    /// # Errors
    /// [`Error::Usage`] for impossible options.
    pub fn new(opts: &StepOptions, registries: Registries) -> Result<Self> {
        opts.check()?;
        Ok(Builder {
            graph: Graph::new(),
            types: Types::of(opts.dtype),
            registries,
            inputs: Slots::default(),
            outputs: Slots::default(),
            state: Slots::default(),
            opts: *opts,
            branch_blocks: Vec::new(),
            losses: Vec::new(),
            scalars: None,
            own: None,
            clip_tensors: false,
        })
    }

    /// Declares the scalar blocks, the objective's of `own` numbers, and the running statistics: a model that is built in
    /// part leaves some of those alone; their regions are whole all the same. Gives the objective's block.
    pub fn begin(&mut self, own: usize) -> Option<ValueId> {
        self.scalars = Some(self.block(SCALARS, Scalar::COUNT));
        self.own = (own > 0).then(|| self.block(OWN_SCALARS, own));
        let regions = [
            (Region::Buffers, &self.registries.student_buffers),
            (Region::ExpertBuffers, &self.registries.expert_buffers),
        ];
        for region in regions.into_iter().filter(|r| !r.1.is_empty()).map(|r| r.0).collect::<Vec<_>>() {
            region_of(&mut self.graph, region, &self.registries, self.types);
        }
        self.own.map(|own| own.value)
    }

    fn block(&mut self, name: &'static str, len: usize) -> Block {
        let at = self.inputs.add(name, Region::Scalars, [len]);
        Block { name, len, at, value: self.graph.source(name, [len], self.types.master, at) }
    }

    /// Where the factors of stochastic depth for `segments` images lie, if it is on; `blocks` names the block of every
    /// branch.
    pub fn drop_path(&mut self, blocks: Vec<usize>, segments: usize) -> Option<Binding> {
        self.branch_blocks = blocks;
        let shape = [self.branch_blocks.len(), segments];
        (self.opts.drop_path > 0.0).then(|| self.inputs.add(DROP_PATH, Region::Inputs, shape))
    }

    /// Has the gradient of every parameter clipped by its own norm, at
    /// [`StepPoint::tensor_clip_norm`](super::StepPoint).
    pub fn clip_tensors(&mut self) {
        self.clip_tensors = true;
    }

    /// The sum of losses, each `(name, weight, value)` reported under its name.
    ///
    /// # Errors
    /// When a loss is no scalar.
    pub fn total(&mut self, losses: &[(&str, f64, ValueId)]) -> Result<ValueId> {
        for (name, _, value) in losses {
            self.outputs.output(&mut self.graph, name, *value)?;
            self.losses.push((*name).to_owned());
        }
        let weights = losses.iter().map(|l| l.1).collect();
        let values: Vec<ValueId> = losses.iter().map(|l| l.2).collect();
        let total = self.graph.push1(TOTAL, ops::WeightedSum { weights }, &values)?;
        self.outputs.output(&mut self.graph, TOTAL, total)?;
        Ok(total)
    }

    /// The step that lowers `total` by the parameters which `weights` read. `segments` is how the optimizer sees the
    /// parameters; `carried` moves with every update.
    ///
    /// # Errors
    /// When a gradient cannot be taken.
    pub fn finish(
        mut self,
        weights: &Weights<'_>,
        total: ValueId,
        segments: Vec<ParamSegment>,
        carried: Vec<Carried<'_>>,
    ) -> Result<Step> {
        self.gradients(weights, total)?;
        let late = |p: &&ParamSpec| segments.iter().any(|s| s.late && s.start == p.offset);
        let late = self.registries.student.iter().filter(late).map(|p| p.name.clone()).collect();
        let mut graph = std::mem::take(&mut self.graph);
        let scalars = self.scalars.ok_or_else(|| Error::invariant("building a step", "it was not begun"))?;
        let update = if !self.opts.is_split() {
            let moved = carried.iter().map(|c| (c, c.rows, c.operands.clone())).collect();
            self.update(&mut graph, total, segments, [Some(scalars), self.own], moved)?;
            None
        } else {
            Some(self.accumulated(&mut graph, total, segments, scalars, &carried)?)
        };
        let summed = self.summed();
        Ok(Step {
            graph,
            update,
            registries: self.registries,
            branch_blocks: self.branch_blocks,
            inputs: self.inputs.list,
            outputs: self.outputs.list,
            losses: self.losses,
            late,
            state: self.state.list,
            summed,
        })
    }

    /// Derivatives of `total`, each written to its parameter's place.
    fn gradients(&mut self, weights: &Weights<'_>, total: ValueId) -> Result<()> {
        let region = if self.opts.is_split() { Region::MicroGrads } else { Region::Grads };
        let (graph, student) = (&mut self.graph, &self.registries.student);
        let wrt: Vec<ValueId> = student.iter().filter_map(|p| weights.used(&p.name)).collect();
        let mut gradients: Vec<Option<ValueId>> = differentiate(graph, total, &wrt)?;
        gradients.reverse();
        for p in student {
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

    /// A whole region as one vector.
    fn region(&self, graph: &mut Graph, region: Region) -> ValueId {
        region_of(graph, region, &self.registries, self.types)
    }

    /// Gradient health, clipping tensor by tensor where asked for, AdamW with the expert's moving average, and the carried state from its rows and operands.
    fn update(
        &mut self,
        graph: &mut Graph,
        loss: ValueId,
        segments: Vec<ParamSegment>,
        blocks: [Option<Block>; 2],
        carried: Vec<(&Carried<'_>, ValueId, Vec<ValueId>)>,
    ) -> Result<()> {
        let [scalars, own] = blocks.map(|b| b.map(|b| b.value));
        let scalars = scalars.ok_or_else(|| Error::invariant("building a step", "it was not begun"))?;
        let grads = self.region(graph, Region::Grads);
        let health = graph.push1(HEALTH, ops::GradHealth, &[grads, loss, scalars])?;
        self.outputs.output(graph, HEALTH, health)?;
        let grads = if self.clip_tensors { self.clipped(graph, grads, scalars)? } else { grads };
        let regions = [Region::Params, Region::Moment1, Region::Moment2, Region::Expert];
        let [params, m, v, expert] = regions.map(|r| self.region(graph, r));
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
        for (c, rows, operands) in carried {
            let old = graph.source(c.name, c.shape.clone(), self.types.master, c.at);
            let mut all = vec![old, rows];
            all.extend(operands);
            all.extend(own);
            all.push(health);
            let new = graph.push1(c.name, c.op.clone(), &all)?;
            graph.bind(new, c.at);
        }
        Ok(())
    }

    /// The gradient of every parameter, clipped by its own norm.
    fn clipped(&self, graph: &mut Graph, grads: ValueId, scalars: ValueId) -> Result<ValueId> {
        let tensors = self.registries.student.iter().map(|p| (p.offset, p.len)).collect();
        let clipped = graph.push1("clip", ops::ClipTensors { tensors }, &[grads, scalars])?;
        graph.bind(clipped, Binding { region: Region::Grads, offset: 0 });
        Ok(clipped)
    }

    /// Ends `micro` with the accumulation and gives the graph of the update. Carried state is linear in its rows, so it is
    /// enough to average those over the micro steps; so it is with the loss, of which the update asks whether it is finite.
    fn accumulated(
        &mut self,
        micro: &mut Graph,
        total: ValueId,
        segments: Vec<ParamSegment>,
        scalars: Block,
        carried: &[Carried<'_>],
    ) -> Result<Graph> {
        for (region, offset, len) in self.stretches() {
            let mut part = |region: Region| {
                let at = Binding { region, offset };
                micro.source(region.name(), [len], self.types.master, at)
            };
            let (sum, fresh) = (part(region), part(Region::MicroGrads));
            let sum = micro.push1("accumulate", ops::AccumulateGrads, &[sum, fresh, scalars.value])?;
            micro.bind(sum, Binding { region, offset });
        }
        let mut update = Graph::new();
        let mut again =
            |b: Block| Block { value: update.source(b.name, [b.len], self.types.master, b.at), ..b };
        let blocks = [Some(again(scalars)), self.own.map(again)];
        let mut moved = Vec::new();
        for c in carried {
            let mean = self.averaged([&mut *micro, &mut update], c.name, c.rows, scalars)?;
            let operands = (c.again)(&mut update)?;
            let mean = cast(&mut update, &format!("{}{ROWS}.narrow", c.name), mean, self.types.compute)?;
            moved.push((c, mean, operands));
        }
        let loss = self.averaged([micro, &mut update], TOTAL, total, scalars)?;
        self.update(&mut update, loss, segments, blocks, moved)?;
        Ok(update)
    }

    /// The mean of `value` over the micro steps, as the update reads it.
    fn averaged(
        &mut self,
        [micro, update]: [&mut Graph; 2],
        name: &str,
        value: ValueId,
        scalars: Block,
    ) -> Result<ValueId> {
        let name = format!("{name}{ROWS}");
        let shape = micro.shape(value).clone();
        let at = self.state.add(&name, Region::State, shape.clone());
        let old = micro.source(name.clone(), shape.clone(), self.types.master, at);
        let wide = cast(micro, &format!("{name}.wide"), value, self.types.master)?;
        let new = micro.push1(name.clone(), ops::AccumulateGrads, &[old, wide, scalars.value])?;
        micro.bind(new, at);
        Ok(update.source(name, shape, self.types.master, at))
    }

    /// The gradients in the pieces that ranks sum in one go: whole parameters, the last ones first, because backward begins with
    /// them; one piece where there is one rank.
    fn stretches(&self) -> Vec<(Region, usize, usize)> {
        let registry = &self.registries.student;
        let Some(least) = self.opts.stretch else { return vec![(Region::Grads, 0, registry.len())] };
        let (mut all, mut end) = (Vec::new(), registry.len());
        let starts: Vec<usize> = registry.iter().map(|p| p.offset).collect();
        for start in starts.into_iter().rev() {
            if end - start >= least.max(1) || start == 0 {
                all.push((Region::Grads, start, end - start));
                end = start;
            }
        }
        all
    }

    /// What ranks sum before the update.
    fn summed(&self) -> Vec<(Region, usize, usize)> {
        if self.opts.stretch.is_none() {
            return Vec::new();
        }
        let rows = self.state.list.iter().filter(|s| s.name.ends_with(ROWS));
        self.stretches().into_iter().chain(rows.map(|s| (s.region, s.offset, s.shape.count()))).collect()
    }
}

/// `value` in another type, itself if it has it already.
fn cast(graph: &mut Graph, path: &str, value: ValueId, dtype: DType) -> Result<ValueId> {
    match graph.value(value).dtype == dtype {
        true => Ok(value),
        false => graph.push1(path, ops::Cast { dtype }, &[value]),
    }
}

/// A whole region as one vector.
fn region_of(graph: &mut Graph, region: Region, registries: &Registries, types: Types) -> ValueId {
    let r = registries;
    let (len, dtype) = match region {
        Region::Expert => (r.expert.len(), types.master),
        Region::ExpertWeights => (r.expert.len(), types.compute),
        Region::Weights => (r.student.len(), types.compute),
        Region::Buffers => (r.student_buffers.len(), types.master),
        Region::ExpertBuffers => (r.expert_buffers.len(), types.master),
        _ => (r.student.len(), types.master),
    };
    graph.source(region.name(), [len], dtype, Binding { region, offset: 0 })
}
