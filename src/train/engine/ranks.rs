//! What the ranks of a run do together: gradients are summed, losses and running statistics gathered, states compared.

use super::Losses;
use crate::backend::{Backend, Collective, HostSlice, HostSliceMut, Phase};
use crate::error::{Error, Result};
use crate::ir::{Op, Region};
use crate::plan::{Plan, Space};
use crate::tensor::DType;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// The link between the ranks of a run, for all who need it.
#[derive(Clone)]
pub struct Ranks {
    link: Arc<Mutex<Box<dyn Collective>>>,
    rank: usize,
    world: usize,
}

impl Ranks {
    pub fn new(link: Box<dyn Collective>) -> Self {
        let (rank, world) = (link.rank(), link.world());
        Ranks { link: Arc::new(Mutex::new(link)), rank, world }
    }

    /// This process, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many there are.
    pub fn world(&self) -> usize {
        self.world
    }

    pub(super) fn link(&self) -> MutexGuard<'_, Box<dyn Collective>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes of every rank, by rank.
    ///
    /// # Errors
    /// Those of [`Collective`].
    pub fn all_gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.link().all_gather(own)
    }

    /// What rank 0 has, on all ranks.
    ///
    /// # Errors
    /// Those of [`Collective`].
    pub fn from_first(&self, mut own: Vec<u8>) -> Result<Vec<u8>> {
        self.link().broadcast(0, &mut own)?;
        Ok(own)
    }

    /// Tells the others what this rank does from here on.
    pub fn enter(&self, phase: Phase) {
        self.link().enter(phase);
    }

    /// Ends this rank's part; `error` is why, where it ends early.
    pub fn leave(&self, error: Option<&str>) {
        self.link().leave(error);
    }
}

/// How gradients are summed over ranks. The pieces are part of the numbers: sums of other pieces round otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summing {
    /// The least number of elements that are summed in one go.
    pub stretch: usize,
    /// In which they travel.
    pub wire: DType,
}

/// A rank's engine among those of the others.
pub(super) struct Shared {
    pub ranks: Ranks,
    pub wire: DType,
    /// Whether the device sums itself.
    pub device: bool,
    /// What is summed before an update.
    pub summed: Vec<(Region, usize, usize)>,
    /// When this rank had computed what is summed, and the seconds that the sum then took.
    summing: Option<(Instant, f64)>,
    /// Running statistics as all ranks have them; None where the regions were written since.
    running: Option<Vec<Vec<f64>>>,
}

/// The regions of running statistics.
const RUNNING: [Region; 2] = [Region::Buffers, Region::ExpertBuffers];

/// Which part of each element of [`RUNNING`] a micro step leaves in place.
pub(super) type Kept = [Vec<f64>; 2];

impl Shared {
    pub fn new(ranks: Ranks, wire: DType, device: bool, summed: Vec<(Region, usize, usize)>) -> Self {
        Shared { ranks, wire, device, summed, summing: None, running: None }
    }

    /// The regions were written.
    pub fn forget(&mut self) {
        self.running = None;
    }

    /// Sums over all ranks what the host has to.
    pub fn sum(&mut self, backend: &mut dyn Backend) -> Result<()> {
        let began = Instant::now();
        let mut link = self.ranks.link();
        for &(region, offset, len) in &self.summed {
            match backend.dtype() {
                DType::F64 => {
                    let mut values = vec![0.0f64; len];
                    backend.read(region, offset, HostSliceMut::F64(&mut values))?;
                    link.all_reduce(HostSliceMut::F64(&mut values), DType::F64)?;
                    backend.write(region, offset, HostSlice::F64(&values))?;
                }
                _ => {
                    let mut values = vec![0.0f32; len];
                    backend.read(region, offset, HostSliceMut::F32(&mut values))?;
                    link.all_reduce(HostSliceMut::F32(&mut values), self.wire)?;
                    backend.write(region, offset, HostSlice::F32(&values))?;
                }
            }
        }
        drop(link);
        self.summing = Some((began, began.elapsed().as_secs_f64()));
        Ok(())
    }

    /// Notes the running statistics that a micro step begins with; `kept` is its.
    pub fn before(&mut self, backend: &dyn Backend, kept: &Kept) -> Result<()> {
        if self.running.is_none() {
            let read = |i: usize| read_all(backend, RUNNING[i], kept[i].len());
            self.running = Some(vec![read(0)?, read(1)?]);
        }
        Ok(())
    }

    /// Gathers what all ranks say of a micro step, which `own` is this rank's part of; running statistics follow as if the micro
    /// steps of all ranks had come one after the other.
    pub fn gather(&mut self, backend: &mut dyn Backend, kept: &Kept, own: &Own<'_>) -> Result<Round> {
        let losses = own.losses;
        let (computed, exposed) = self.summing.take().unwrap_or((Instant::now(), 0.0));
        let busy = computed.saturating_duration_since(own.began).as_secs_f64();
        let mut own = vec![f64::from(u8::from(own.stop)), busy, losses.total];
        let first = own.len();
        own.extend(losses.parts.iter().map(|p| p.1));
        own.extend(&losses.statistics);
        let told = own.len();
        for (region, kept) in RUNNING.into_iter().zip(kept) {
            own.extend(read_all(backend, region, kept.len())?);
        }
        let bytes: Vec<u8> = own.iter().flat_map(|x| x.to_le_bytes()).collect();
        let all = self.ranks.all_gather(&bytes)?;
        let all: Vec<Vec<f64>> = all.iter().map(|bytes| numbers(bytes, own.len())).collect::<Result<_>>()?;
        if let Some(running) = &mut self.running {
            let mut at = told;
            for ((region, kept), before) in RUNNING.into_iter().zip(kept).zip(running) {
                let steps: Vec<&[f64]> = all.iter().map(|v| &v[at..at + kept.len()]).collect();
                follow(before, kept, &steps);
                at += kept.len();
                if !kept.is_empty() {
                    backend.write(region, 0, HostSlice::F64(before))?;
                }
            }
        }
        let of = |values: &Vec<f64>| {
            let parts = losses.parts.iter().zip(&values[first..]).map(|(p, x)| (p.0.clone(), *x)).collect();
            let statistics = values[first + losses.parts.len()..told].to_vec();
            Losses { total: values[2], parts, statistics }
        };
        Ok(Round {
            losses: all.iter().map(of).collect(),
            stop: all.iter().any(|values| values[0] != 0.0),
            busy: all.iter().map(|values| values[1]).collect(),
            exposed,
        })
    }
}

/// What this rank has to say of a micro step.
pub(super) struct Own<'a> {
    pub losses: &'a Losses,
    /// Whether it is asked to stop.
    pub stop: bool,
    /// When it began with what it counts as its work.
    pub began: Instant,
}

/// What all ranks say of a micro step, by rank.
pub struct Round {
    pub losses: Vec<Losses>,
    /// Whether one of them is asked to stop.
    pub stop: bool,
    /// Seconds from the beginning until each had computed its part.
    pub busy: Vec<f64>,
    /// Seconds that this rank then spent on sums which nothing hid.
    pub exposed: f64,
}

fn read_all(backend: &dyn Backend, region: Region, len: usize) -> Result<Vec<f64>> {
    let mut values = vec![0.0; len];
    if len > 0 {
        backend.read(region, 0, HostSliceMut::F64(&mut values))?;
    }
    Ok(values)
}

fn numbers(bytes: &[u8], count: usize) -> Result<Vec<f64>> {
    let (values, rest) = bytes.as_chunks::<8>();
    if values.len() != count || !rest.is_empty() {
        let message = format!("a rank sent {} bytes for {count} numbers", bytes.len());
        return Err(Error::invariant("gathering losses", message));
    }
    Ok(values.iter().map(|x| f64::from_le_bytes(*x)).collect())
}

/// `running` after one micro step of each rank, which all began with it: each makes `x` of it as `kept x + new`, of which the
/// new part is taken.
fn follow(running: &mut [f64], kept: &[f64], steps: &[&[f64]]) {
    for (i, (x, kept)) in running.iter_mut().zip(kept).enumerate() {
        let before = *x;
        for after in steps {
            *x = kept * *x + (after[i] - kept * before);
        }
    }
}

/// Which part of the running statistics a micro step of `plan` leaves in place; `lengths` are those of their regions.
pub(super) fn kept(plan: &Plan, lengths: [usize; 2]) -> Kept {
    let mut kept = lengths.map(|n| vec![1.0; n]);
    for step in &plan.steps {
        let Op::RunningStatistics(op) = &step.op else { continue };
        let part = (1.0 - op.momentum).powi(op.groups.len() as i32);
        for slot in &step.outputs {
            let which = RUNNING.iter().position(|region| slot.space == Space::Region(*region));
            let start = slot.offset / slot.dtype.bytes();
            let range = start..start + slot.shape.count();
            for x in which.and_then(|i| kept[i].get_mut(range)).into_iter().flatten() {
                *x *= part;
            }
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_statistics_follow_one_micro_step_after_the_other() {
        // Two groups with momentum 0.1 each: as a single process would go through them, rank by rank.
        let (momentum, start) = (0.1, 3.0);
        let groups = [[1.0, 5.0], [-2.0, 0.5], [7.0, 7.0]];
        let step = |x: f64, new: f64| (1.0 - momentum) * x + momentum * new;
        let alone = groups.map(|g| vec![g.into_iter().fold(start, step)]);
        let want = groups.into_iter().flatten().fold(start, step);
        let mut running = vec![start];
        let kept = vec![(1.0f64 - momentum).powi(2)];
        follow(&mut running, &kept, &alone.iter().map(Vec::as_slice).collect::<Vec<_>>());
        assert!((running[0] - want).abs() < 1e-14, "{} {want}", running[0]);
        assert_ne!(alone[2][0], want);
        // What a micro step does not write stays as it is.
        let mut untouched = vec![start];
        follow(&mut untouched, &[1.0], &[&[start], &[start]]);
        assert_eq!(untouched, [start]);
    }

    #[test]
    fn numbers_of_another_length_are_refused() {
        assert_eq!(numbers(&2.5f64.to_le_bytes(), 1).unwrap(), [2.5]);
        assert!(numbers(&[0; 9], 1).is_err() && numbers(&[0; 8], 2).is_err());
    }
}
