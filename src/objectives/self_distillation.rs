//! What objectives share that learn from an expert's distributions over prototypes: the center of its logits, the
//! temperatures, the loss over pairs of views, and the statistics that tell a collapse.

use super::collapse::{CollapseAlarm, CollapseStats, Thresholds};
use super::objective::Monitor;
use crate::error::{Error, Result};
use crate::ir::ops::{self, Temperature};
use crate::ir::{Binding, Graph, Region, ValueId};
use crate::nn::Net;
use crate::step::{Builder, Carried, StepPoint};
use crate::tensor::{DType, Shape};

/// State: the mean of the expert's logits, `[1, K]`.
pub const CENTER: &str = "center";

/// The objective's own scalars, by [`Temperature`].
pub fn temperatures(student: f64, teacher: f64, center_momentum: f64) -> Vec<f64> {
    let mut own = vec![0.0; Temperature::COUNT];
    own[Temperature::Student as usize] = student;
    own[Temperature::Teacher as usize] = teacher;
    own[Temperature::CenterMomentum as usize] = center_momentum;
    own
}

/// The center becomes the mean of the expert's logits on the first batch. Freshly drawn weights give all images almost
/// the same features. Around a center of 0 all images would choose the same few prototypes, and the student would learn
/// that first; the running mean needs tens of steps to take the common part away.
pub fn first_center(first: &StepPoint) -> Option<(&'static str, StepPoint)> {
    let mut own = first.own.clone();
    *own.get_mut(Temperature::CenterMomentum as usize)? = 0.0;
    Some((CENTER, StepPoint { micro_step: 0, micro_steps: 1, own, ..first.clone() }))
}

/// Unit vectors `[rows, bottleneck]` and prototypes `[K, bottleneck]` of one side.
pub type Projection = (ValueId, ValueId);

/// The center of a step in the making.
pub struct Center {
    at: Binding,
    shape: Shape,
    temperatures: ValueId,
}

impl Center {
    /// Declares it as state; `temperatures` is the objective's block of scalars.
    ///
    /// # Errors
    /// When there is no such block.
    pub fn declare(builder: &mut Builder, prototypes: usize, temperatures: Option<ValueId>) -> Result<Self> {
        let temperatures = temperatures
            .ok_or_else(|| Error::invariant("model building", "there is no block of temperatures"))?;
        let shape = Shape::from([1, prototypes]);
        let at = builder.state.add(CENTER, Region::State, shape.clone());
        Ok(Center { at, shape, temperatures })
    }

    /// How it moves with every update. The center of the effective batch is linear in the expert's unit vectors, so that
    /// these are averaged over micro steps; `again` makes the prototypes in a graph of the update alone.
    pub fn carried<'a>(
        self,
        (zt, wt): Projection,
        again: &'a dyn Fn(&mut Graph) -> Result<Vec<ValueId>>,
    ) -> Carried<'a> {
        Carried {
            name: CENTER,
            at: self.at,
            shape: self.shape,
            rows: zt,
            operands: vec![wt],
            again,
            op: ops::CenterUpdate.into(),
        }
    }

    /// The loss `[1]` of the student's views (of which the first two are the expert's) against the expert, each for `batch`
    /// images, and the statistics `[3]` of the expert's targets and of its `features: [2B, D]`.
    ///
    /// # Errors
    /// When operands do not fit.
    pub fn matching(
        &self,
        net: &mut Net<'_, '_>,
        path: &str,
        batch: usize,
        (z, w): Projection,
        (zt, wt): Projection,
        features: ValueId,
    ) -> Result<(ValueId, ValueId)> {
        let wide = net.graph.value(self.temperatures).dtype;
        let center = self.source(net.graph, wide);
        let op = ops::PrototypeCrossEntropy { batch };
        let out = net.push_all(&format!("{path}.loss"), op, &[z, w, zt, wt, center, self.temperatures])?;
        let operands = [zt, wt, center, self.temperatures, out[2], features];
        let statistics = net.push(&format!("{path}.statistics"), ops::ExpertStatistics, &operands)?;
        Ok((out[0], statistics))
    }

    fn source(&self, graph: &mut Graph, dtype: DType) -> ValueId {
        graph.source(CENTER, self.shape.clone(), dtype, self.at)
    }
}

/// Reads the statistics of [`Center::matching`].
#[derive(Clone, Copy, Debug)]
pub struct Targets {
    pub prototypes: usize,
    /// The expert's views in a batch.
    pub rows: usize,
}

impl Targets {
    fn collapse(self, statistics: &[f64]) -> Option<CollapseStats> {
        let measured: [f64; 3] = statistics.try_into().ok()?;
        Some(CollapseStats::new(measured, self.prototypes, self.rows))
    }

    /// What the statistics say, each under the name with which it is logged.
    pub fn health(self, statistics: &[f64]) -> Vec<(&'static str, f64)> {
        self.collapse(statistics).map_or_else(Vec::new, |s| {
            vec![("sample_entropy", s.sample_entropy), ("mean_entropy", s.mean_entropy), ("spread", s.spread)]
        })
    }

    /// Watches them.
    pub fn monitor(self, thresholds: Thresholds) -> Box<dyn Monitor> {
        Box::new(Watch { alarm: CollapseAlarm::new(thresholds), targets: self })
    }
}

/// The collapse alarm.
struct Watch {
    alarm: CollapseAlarm,
    targets: Targets,
}

impl Monitor for Watch {
    fn observe(&mut self, step: u64, statistics: &[f64]) -> Vec<String> {
        let Some(stats) = self.targets.collapse(statistics) else { return Vec::new() };
        self.alarm.observe(step, 1, &stats).into_iter().map(|(_, message)| message).collect()
    }
}
