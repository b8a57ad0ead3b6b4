//! The plan: steps in order, every operand at its place, memory sizes.

use super::arena::{self, Interval};
use super::schedule;
use super::target::{OperandType, Target};

use crate::error::{Error, Result};
use crate::ir::{Binding, Graph, Node, Op, Region, Rules, ValueId};
use crate::tensor::{DType, Shape};
use std::collections::BTreeMap;

/// Where an operand lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    Region(Region),
    Arena,
    /// An output that nothing reads and the op need not store.
    Unused,
}

/// An operand of a step; `offset` in bytes from the start of its space.
#[derive(Clone, Debug, PartialEq)]
pub struct Slot {
    pub space: Space,
    pub offset: usize,
    pub shape: Shape,
    pub dtype: DType,
}

/// One op with its operands in place.
#[derive(Clone, Debug)]
pub struct Step {
    pub op: Op,
    pub path: String,
    pub inputs: Vec<Slot>,
    pub outputs: Vec<Slot>,
    /// Scratch `(offset in the arena, bytes)`; 0 bytes when none is needed.
    pub workspace: (usize, usize),
}

/// A stretch of the arena and when it is live, for pictures and tests. Steps are inclusive.
#[derive(Clone, Debug, PartialEq)]
pub struct Buffer {
    pub label: String,
    pub start: usize,
    pub end: usize,
    pub offset: usize,
    pub bytes: usize,
}

/// Size of a region in elements of `dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionSize {
    pub region: Region,
    pub dtype: DType,
    pub elements: usize,
}

impl RegionSize {
    pub fn bytes(&self) -> usize {
        self.elements * self.dtype.bytes()
    }
}

/// A graph laid out in memory and time, ready to be compiled by the backend it was planned for.
#[derive(Clone, Debug)]
pub struct Plan {
    pub steps: Vec<Step>,
    pub regions: Vec<RegionSize>,
    pub buffers: Vec<Buffer>,
    pub arena_bytes: usize,
    /// The largest sum of live bytes at any step: no placement needs less.
    pub lower_bound_bytes: usize,
}

/// Schedules `graph` and gives every value its place, on the terms of `target` (workspaces, in-place pairs).
///
/// # Errors
/// [`Error::Invariant`] when the graph binds overlapping types or the schedule is broken.
pub fn plan(graph: &Graph, target: &dyn Target) -> Result<Plan> {
    let regions = region_sizes(graph)?;
    let mut best: Option<Plan> = None;
    for order in schedule::candidates(graph) {
        let candidate = lay_out(graph, &order, target, &regions)?;
        if best.as_ref().is_none_or(|b| candidate.arena_bytes < b.arena_bytes) {
            best = Some(candidate);
        }
    }
    best.ok_or_else(|| Error::invariant("plan", "no schedule"))
}

fn region_sizes(graph: &Graph) -> Result<Vec<RegionSize>> {
    let mut sizes: BTreeMap<Region, RegionSize> = BTreeMap::new();
    for v in &graph.values {
        let Some(Binding { region, offset }) = v.binding else { continue };
        let end = offset + v.shape.count();
        let size = sizes.entry(region).or_insert(RegionSize { region, dtype: v.dtype, elements: 0 });
        if size.dtype != v.dtype {
            return Err(Error::invariant(
                "plan",
                format!("region {} holds {}, `{}` is {}", region.name(), size.dtype, v.name, v.dtype),
            ));
        }
        size.elements = size.elements.max(end);
    }
    Ok(sizes.into_values().collect())
}

/// Buffers under construction: several values may share one when an op works in place.
struct Liveness {
    intervals: Vec<Interval>,
    labels: Vec<String>,
    /// Buffer of each arena value.
    of_value: Vec<Option<usize>>,
}

fn lay_out(graph: &Graph, order: &[usize], target: &dyn Target, regions: &[RegionSize]) -> Result<Plan> {
    let (live, workspaces) = liveness(graph, order, target);
    let mut intervals = live.intervals.clone();
    let first_workspace = intervals.len();
    for (step, bytes) in workspaces.iter().enumerate().filter(|w| *w.1 > 0) {
        intervals.push(Interval { start: step, end: step, bytes: *bytes });
    }
    let (offsets, arena_bytes) = arena::place(&intervals);
    let slot = |id: &ValueId, dropped: bool| -> Result<Slot> {
        let v = graph.value(*id);
        let (space, offset) = match (v.binding, live.of_value[id.index()]) {
            (Some(b), _) => (Space::Region(b.region), b.offset * v.dtype.bytes()),
            (None, Some(buffer)) => (Space::Arena, offsets[buffer]),
            (None, None) if dropped => (Space::Unused, 0),
            (None, None) => return Err(Error::invariant("plan", format!("`{}` has no place", v.name))),
        };
        let shape = if space == Space::Unused { Shape::from([0]) } else { v.shape.clone() };
        Ok(Slot { space, offset, shape, dtype: v.dtype })
    };
    let mut next_workspace = first_workspace;
    let mut steps = Vec::with_capacity(order.len());
    for (step, &n) in order.iter().enumerate() {
        let node = &graph.nodes[n];
        let inputs = node.inputs.iter().map(|i| slot(i, false)).collect::<Result<_>>()?;
        let outputs = node
            .outputs
            .iter()
            .enumerate()
            .map(|(s, o)| slot(o, node.op.facts().droppable.contains(&s)))
            .collect::<Result<_>>()?;
        let workspace = match workspaces[step] {
            0 => (0, 0),
            bytes => {
                next_workspace += 1;
                (offsets[next_workspace - 1], bytes)
            }
        };
        steps.push(Step { op: node.op.clone(), path: node.path.clone(), inputs, outputs, workspace });
    }
    let buffers = intervals
        .iter()
        .zip(&offsets)
        .enumerate()
        .map(|(i, (b, &offset))| Buffer {
            label: live
                .labels
                .get(i)
                .cloned()
                .unwrap_or_else(|| format!("workspace of {}", steps[b.start].path)),
            start: b.start,
            end: b.end,
            offset,
            bytes: b.bytes,
        })
        .collect();
    let lower_bound_bytes = arena::lower_bound(&intervals);
    Ok(Plan { steps, regions: regions.to_vec(), buffers, arena_bytes, lower_bound_bytes })
}

/// Lifetimes of all arena buffers, and the workspace of every step.
fn liveness(graph: &Graph, order: &[usize], target: &dyn Target) -> (Liveness, Vec<usize>) {
    let mut last_use: Vec<Option<usize>> = vec![None; graph.values.len()];
    for (step, &n) in order.iter().enumerate() {
        for v in &graph.nodes[n].inputs {
            last_use[v.index()] = Some(step);
        }
    }
    let mut live =
        Liveness { intervals: Vec::new(), labels: Vec::new(), of_value: vec![None; graph.values.len()] };
    let mut workspaces = Vec::with_capacity(order.len());
    for (step, &n) in order.iter().enumerate() {
        let node = &graph.nodes[n];
        workspaces.push(workspace(graph, node, target));
        for (slot, id) in node.outputs.iter().enumerate() {
            let v = graph.value(*id);
            let end = last_use[id.index()];
            if v.binding.is_some() || (end.is_none() && node.op.facts().droppable.contains(&slot)) {
                continue;
            }
            let end = end.unwrap_or(step);
            let donor =
                if slot == 0 { in_place_donor(graph, node, step, target, &last_use, &live) } else { None };
            let buffer = match donor {
                Some(buffer) => {
                    live.intervals[buffer].end = live.intervals[buffer].end.max(end);
                    buffer
                }
                None => {
                    live.intervals.push(Interval {
                        start: step,
                        end,
                        bytes: v.shape.count() * v.dtype.bytes(),
                    });
                    live.labels.push(v.name.clone());
                    live.intervals.len() - 1
                }
            };
            live.of_value[id.index()] = Some(buffer);
        }
    }
    (live, workspaces)
}

/// The buffer of an input that dies here and may hold the first output: same size, read by no other operand of this node,
/// and no later reader of any value in it.
fn in_place_donor(
    graph: &Graph,
    node: &Node,
    step: usize,
    target: &dyn Target,
    last_use: &[Option<usize>],
    live: &Liveness,
) -> Option<usize> {
    let out = graph.value(node.outputs[0]);
    target.in_place(&node.op).iter().find_map(|&i| {
        let id = *node.inputs.get(i)?;
        let v = graph.value(id);
        let buffer = live.of_value[id.index()]?;
        let same = v.shape.count() * v.dtype.bytes() == out.shape.count() * out.dtype.bytes();
        let alone = node.inputs.iter().filter(|w| live.of_value[w.index()] == Some(buffer)).count() == 1;
        let dies = last_use[id.index()] == Some(step) && live.intervals[buffer].end == step;
        (same && alone && dies).then_some(buffer)
    })
}

fn workspace(graph: &Graph, node: &Node, target: &dyn Target) -> usize {
    let types = |ids: &[ValueId]| -> Vec<OperandType<'_>> {
        ids.iter()
            .map(|id| graph.value(*id))
            .map(|v| OperandType { shape: &v.shape, dtype: v.dtype })
            .collect()
    };
    target.workspace(&node.op, &types(&node.inputs), &types(&node.outputs))
}
