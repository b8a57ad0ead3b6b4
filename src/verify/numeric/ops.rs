//! Single ops: those of the step, at its own shapes, on random operands.

use super::compare::{Backends, Check, Subject, bound, compare, norm, normal, numbers};
use crate::backend::{Backend, HostSlice, HostSliceMut, ProgramId};
use crate::data::batch::Batch;
use crate::error::{Error, Result};
use crate::ir::{self, Binding, Graph, Node, OpKind, Region, ValueId, ops};
use crate::objectives::Objective;
use crate::plan::plan;
use crate::step::{OWN_SCALARS, SCALARS, Step, StepOptions, TOTAL};
use crate::tensor::DType;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Places in a region start at multiples of this many elements.
const ALIGNMENT: usize = 64;

/// The ops of a step that have a gradient in it, by name.
///
/// # Errors
/// Those of building the step.
pub fn op_names(objective: &Arc<dyn Objective>) -> Result<BTreeSet<&'static str>> {
    let step = objective.step(0, &StepOptions { dtype: DType::F64, ..StepOptions::default() })?;
    Ok(differentiated(&step)?.into_iter().map(|(n, _)| step.graph.nodes[n].op.name()).collect())
}

/// Every differentiated op once for each of its shapes, or those named `only`.
///
/// # Errors
/// When there is none of that name; those of building the step and of the devices.
pub fn check(
    objective: &Arc<dyn Objective>,
    only: Option<&str>,
    backends: Backends<'_>,
) -> Result<Vec<Check>> {
    let batch = objective.random_batch(0, 0);
    let dtype = (backends.device)()?.dtype();
    let [wide, own] =
        [DType::F64, dtype].map(|dtype| objective.step(0, &StepOptions { dtype, ..StepOptions::default() }));
    let (wide, own) = (wide?, own?);
    let found = differentiated(&wide)?;
    if let Some(name) =
        only.filter(|name| !found.iter().any(|(n, _)| wide.graph.nodes[*n].op.name() == *name))
    {
        return Err(no_such_op(name, &op_names(objective)?));
    }
    let (mut checks, mut seen) = (Vec::new(), BTreeSet::new());
    for (n, wrt) in found {
        let node = &wide.graph.nodes[n];
        let shapes: Vec<String> = node.inputs.iter().map(|i| wide.graph.shape(*i).to_string()).collect();
        let wanted = only.is_none_or(|name| node.op.name() == name);
        if !wanted || !seen.insert(format!("{:?} {shapes:?}", node.op)) {
            continue;
        }
        let Some(twin) = own.graph.nodes.get(n).filter(|twin| twin.op.kind() == node.op.kind()) else {
            return Err(Error::invariant("building the step", "it has other ops in another precision"));
        };
        let of = format!("{} {}", node.op.name(), shapes.join(" "));
        let operands: Vec<Operand> = (0..node.inputs.len())
            .map(|i| operand(objective, &wide, &batch, node, i))
            .collect::<Result<_>>()?;
        checks.extend(check_op(&of, [(&wide.graph, node), (&own.graph, twin)], &operands, &wrt, backends)?);
    }
    Ok(checks)
}

fn no_such_op(name: &str, there: &BTreeSet<&'static str>) -> Error {
    let known = OpKind::ALL.iter().any(|kind| kind.name() == name);
    let what = if known { "is not differentiated in this step" } else { "is no op" };
    let list: Vec<&str> = there.iter().copied().collect();
    Error::usage(format!("--op {name} {what}: choose one of {}, or another --preset", list.join(", ")))
}

/// The nodes between the parameters and the loss, each with the operands that depend on parameters.
fn differentiated(step: &Step) -> Result<Vec<(usize, Vec<usize>)>> {
    let graph = &step.graph;
    let total = step.output(TOTAL).map(|slot| slot.binding());
    let loss =
        graph.values.iter().find(|v| v.producer.is_some() && v.binding.is_some() && v.binding == total);
    let Some((last, _)) = loss.and_then(|v| v.producer) else {
        return Err(Error::invariant("the step", "it has no total loss"));
    };
    let of_parameters =
        |v: &ir::Value| v.producer.is_none() && v.binding.is_some_and(|b| b.region == Region::Params);
    let mut active: Vec<bool> = graph.values.iter().map(of_parameters).collect();
    let mut needed = vec![false; graph.values.len()];
    let nodes = &graph.nodes[..=last.index()];
    nodes[last.index()].outputs.iter().for_each(|o| needed[o.index()] = true);
    for node in nodes.iter().rev().filter(|n| n.op.kind() != OpKind::AdamW) {
        if node.outputs.iter().any(|o| needed[o.index()]) {
            node.inputs.iter().for_each(|i| needed[i.index()] = true);
        }
    }
    let mut found = Vec::new();
    for (n, node) in nodes.iter().enumerate() {
        let wrt: Vec<usize> = (0..node.inputs.len()).filter(|&i| active[node.inputs[i].index()]).collect();
        if wrt.is_empty() {
            continue;
        }
        node.outputs.iter().for_each(|o| active[o.index()] = true);
        // What only further outputs lead on to is none of the loss's.
        if needed[node.outputs[0].index()] {
            found.push((n, wrt));
        }
    }
    Ok(found)
}

/// What an op is given.
enum Operand {
    Float(Vec<f64>),
    Index(Vec<i32>),
}

/// Operand `i` of a node: what the host gives is as in a step, everything else is random.
fn operand(
    objective: &Arc<dyn Objective>,
    step: &Step,
    batch: &Batch,
    node: &Node,
    i: usize,
) -> Result<Operand> {
    let value = step.graph.value(node.inputs[i]);
    let mut rng = numbers(&format!("{}/{i}", node.path));
    let slot =
        step.inputs.iter().find(|slot| value.producer.is_none() && Some(slot.binding()) == value.binding);
    if let Some(slot) = slot {
        let given = |data: HostSlice<'_>| match data {
            HostSlice::I32(v) => Operand::Index(v.to_vec()),
            HostSlice::F32(v) => Operand::Float(v.iter().map(|x| f64::from(*x)).collect()),
            HostSlice::F64(v) => Operand::Float(v.to_vec()),
        };
        return Ok(match slot.name.as_str() {
            SCALARS => Operand::Float(objective.point(1).block().to_vec()),
            OWN_SCALARS => Operand::Float(objective.point(1).own),
            // A view may be read image by image.
            name => given(batch.tensor(name)?.1.host()),
        });
    }
    let mut values = normal(&mut rng, value.shape.count());
    // Rows of prototypes stay about that long where their lengths are learned.
    let of_length_one = |kind| matches!(kind, OpKind::L2Normalize | OpKind::ScaleRows);
    let unit = value.producer.is_some_and(|(n, _)| of_length_one(step.graph.node(n).op.kind()));
    if unit {
        let width = value.shape.as_matrix().1.max(1);
        for row in values.chunks_mut(width) {
            let length = norm(row).max(f64::MIN_POSITIVE);
            row.iter_mut().for_each(|x| *x = f64::from((*x / length) as f32));
        }
    }
    Ok(Operand::Float(values))
}

/// An op, a scalar behind it and, where asked for, its gradients: compiled.
struct Compiled {
    backend: Box<dyn Backend>,
    program: ProgramId,
    operands: Vec<Binding>,
    loss: Binding,
    /// Place and size of each gradient.
    gradients: Vec<(Binding, usize)>,
}

impl Compiled {
    fn new(
        (from, node): (&Graph, &Node),
        operands: &[Operand],
        wrt: &[usize],
        mut backend: Box<dyn Backend>,
    ) -> Result<Self> {
        let mut graph = Graph::new();
        let mut ends: Vec<(Region, usize)> = Vec::new();
        let mut place = |region: Region, elements: usize| {
            let at = ends.iter().position(|e| e.0 == region).unwrap_or_else(|| {
                ends.push((region, 0));
                ends.len() - 1
            });
            let offset = ends[at].1;
            ends[at].1 = (offset + elements).next_multiple_of(ALIGNMENT);
            Binding { region, offset }
        };
        let (mut sources, mut places) = (Vec::new(), Vec::new());
        for (i, id) in node.inputs.iter().enumerate() {
            let v = from.value(*id);
            let region = if v.dtype == DType::I32 { Region::Indices } else { Region::Inputs };
            let at = place(region, v.shape.count());
            places.push(at);
            sources.push(graph.source(format!("operand {i}"), v.shape.clone(), v.dtype, at));
        }
        let y = graph.push(node.path.clone(), node.op.clone(), &sources)?[0];
        let (loss, weights) = functional(&mut graph, y, &mut place)?;
        let ids: Vec<ValueId> = wrt.iter().map(|&i| sources[i]).collect();
        let found = if ids.is_empty() { vec![] } else { ir::differentiate(&mut graph, loss, &ids)? };
        let mut gradients = Vec::new();
        for gradient in found {
            let lost =
                || Error::invariant("differentiation", format!("`{}` has no gradient", node.op.name()));
            let gradient = gradient.ok_or_else(lost)?;
            // A copy: two operands may have one gradient, which can lie in one place only.
            let copy = graph.push1("copy", ops::Scale { factor: 1.0 }, &[gradient])?;
            let count = graph.shape(copy).count();
            let at = place(Region::Outputs, count);
            graph.bind(copy, at);
            gradients.push((at, count));
        }
        let at = place(Region::Outputs, 1);
        graph.bind(loss, at);
        ir::verify(&graph, "cutting out an op")?;
        let program = backend.compile(plan(&graph, &*backend)?)?;
        let mut compiled = Compiled { backend, program, operands: places, loss: at, gradients };
        for (i, operand) in operands.iter().enumerate() {
            compiled.write(i, operand)?;
        }
        if let Some((at, values)) = weights {
            compiled.backend.write(at.region, at.offset, HostSlice::F64(&values))?;
        }
        Ok(compiled)
    }

    fn write(&mut self, i: usize, operand: &Operand) -> Result<()> {
        let Binding { region, offset } = self.operands[i];
        match operand {
            Operand::Float(values) => self.backend.write(region, offset, HostSlice::F64(values)),
            Operand::Index(values) => self.backend.write(region, offset, HostSlice::I32(values)),
        }
    }

    fn read(&self, at: Binding, count: usize) -> Result<Vec<f64>> {
        let mut values = vec![0.0; count];
        self.backend.read(at.region, at.offset, HostSliceMut::F64(&mut values))?;
        Ok(values)
    }

    fn loss(&mut self) -> Result<f64> {
        self.backend.run(self.program)?;
        Ok(self.read(self.loss, 1)?[0])
    }
}

/// Values to be written to a place.
type Written = (Binding, Vec<f64>);

/// A random linear functional of `y`, and the weights to be written for it: every row against one of its own (a dynamic
/// convolution over one token), summed.
fn functional(
    graph: &mut Graph,
    y: ValueId,
    place: &mut impl FnMut(Region, usize) -> Binding,
) -> Result<(ValueId, Option<Written>)> {
    if graph.shape(y).count() == 1 {
        return Ok((graph.push1("functional", ops::WeightedSum { weights: vec![0.75] }, &[y])?, None));
    }
    let (rows, columns) = graph.shape(y).as_matrix();
    let at = place(Region::Inputs, rows * columns);
    let kernel = graph.source("weights", [rows, columns], graph.value(y).dtype, at);
    let products = graph.push1("functional", ops::DynamicConv { tokens: 1 }, &[kernel, y])?;
    let loss = graph.push1("functional", ops::SumImages { tokens: 1 }, &[products])?;
    Ok((loss, Some((at, normal(&mut numbers("functional"), rows * columns)))))
}

/// One op; `of` is the node in f64 and in the device's precision.
fn check_op(
    of: &str,
    [wide, own]: [(&Graph, &Node); 2],
    operands: &[Operand],
    wrt: &[usize],
    backends: Backends<'_>,
) -> Result<Vec<Check>> {
    let mut device = Compiled::new(own, operands, wrt, (backends.device)()?)?;
    device.loss()?;
    let gradients: Vec<Vec<f64>> =
        device.gradients.iter().map(|(at, n)| device.read(*at, *n)).collect::<Result<_>>()?;
    let all = norm(&gradients.iter().map(|g| norm(g)).collect::<Vec<_>>());
    let mut alone = Graph::new();
    let sources: Vec<ValueId> = (own.1.inputs.iter())
        .map(|id| {
            let v = own.0.value(*id);
            alone.source("operand", v.shape.clone(), v.dtype, Binding { region: Region::Inputs, offset: 0 })
        })
        .collect();
    alone.push("op", own.1.op.clone(), &sources)?;
    let bound = bound(&alone, device.backend.dtype());
    let mut forward = Compiled::new(wide, operands, &[], (backends.reference)()?)?;
    let mut checks = Vec::new();
    for (&i, gradient) in wrt.iter().zip(&gradients) {
        let Operand::Float(at) = &operands[i] else { continue };
        let name = format!("operand {i}");
        let subject = Subject { of, with_respect_to: &name, all, bound };
        checks.extend(compare(&subject, at, gradient, |x| {
            forward.write(i, &Operand::Float(x.to_vec()))?;
            forward.loss()
        })?);
        forward.write(i, &operands[i])?;
    }
    Ok(checks)
}
