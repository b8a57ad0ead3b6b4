//! A backend whose device sums with those of other ranks.

use super::driver::{Driver, Launch, Sum, Work};
use super::kernel::Call;
use super::launch::prepare;
use super::nccl::{Hello, NcclChoice, meet, nccl};
use super::pointwise::cast;
use super::program::CudaBackend;
use super::stretch::{Joined, Stretch, described};
use crate::backend::{Collective, ProgramId};
use crate::error::{Error, Result};
use crate::ir::Region;
use crate::plan::Plan;
use crate::tensor::DType;

impl<D: Driver> CudaBackend<D> {
    /// Joins the device to those of `group`, if all ranks have what it takes.
    pub(super) fn join_group(
        &mut self,
        group: &mut dyn Collective,
        stretches: &[(Region, usize, usize)],
        wire: DType,
    ) -> Result<bool> {
        if self.joined.is_some() || !self.programs.is_empty() {
            return Err(Error::invariant("joining devices", "a device joins once, before it compiles"));
        }
        if !matches!(wire, DType::F32 | DType::Bf16) {
            return Err(Error::device("cuda", format!("sums over all ranks in f32 or bf16, not in {wire}")));
        }
        let stretches = Stretch::all(stretches)?;
        let choice = self.nccl.clone().unwrap_or_else(|| nccl().clone());
        let named = matches!(choice, NcclChoice::Named(_) | NcclChoice::Missing { named: true, .. });
        let own = Hello::new(&choice, self.driver.connects(named), described(&stretches, wire));
        let Some(seat) = meet(group, &choice, &own)? else { return Ok(false) };
        self.driver.connect(&seat, stretches.len())?;
        let most = stretches.iter().map(|s| s.elements).max().filter(|_| wire != DType::F32);
        let copy = most.map(|most| self.driver.allocate(most * wire.bytes())).transpose();
        // One that failed leaves the group: whoever is here is told who.
        let joined = copy.and_then(|copy| group.barrier().map(|()| Joined { stretches, copy }));
        self.joined = Some(joined.inspect_err(|_| self.driver.disconnect())?);
        Ok(true)
    }

    /// The step of `plan` after which it is done with each stretch, as [`Stretch::last_use`] tells.
    pub(super) fn last_uses(&self, plan: &Plan) -> Vec<Option<usize>> {
        self.joined.iter().flat_map(|j| &j.stretches).map(|s| s.last_use(plan)).collect()
    }

    /// What ends the work of step `step`: signals for the stretches that the program is then done with.
    pub(super) fn signals(&self, last_uses: &[Option<usize>], step: usize) -> Result<Vec<Work>> {
        let stretches = self.joined.iter().flat_map(|j| &j.stretches).enumerate();
        let done = stretches.filter(|(signal, _)| last_uses.get(*signal) == Some(&Some(step)));
        done.map(|(signal, s)| Ok(Work::Signal { signal, at: self.stretch_address(s)?, bytes: s.bytes() }))
            .collect()
    }

    fn stretch_address(&self, s: &Stretch) -> Result<u64> {
        match self.range(s.region, s.first, s.elements)? {
            (at, DType::F32) => Ok(at),
            (_, dtype) => {
                let message = format!("region {} holds {dtype}; only f32 is summed", s.region.name());
                Err(Error::device("cuda", message))
            }
        }
    }

    /// The sums that follow a program, in the order in which the stretches were given; None while a stretch has no memory.
    /// Constant tables of the launches are added to `tables`.
    pub(super) fn sums(
        &mut self,
        last_uses: &[Option<usize>],
        tables: &mut Vec<u64>,
    ) -> Result<Option<Vec<Sum>>> {
        let Some(Joined { stretches, copy }) = &self.joined else { return Ok(None) };
        if stretches.iter().any(|s| !self.has(s.region, s.first + s.elements)) {
            return Ok(None);
        }
        let (stretches, copy) = (stretches.clone(), *copy);
        let mut sums = Vec::with_capacity(stretches.len());
        for (signal, s) in stretches.iter().enumerate() {
            let own = self.stretch_address(s)?;
            let after = last_uses.get(signal).copied().flatten().map(|_| signal);
            let sum = Sum { after, at: own, elements: s.elements, dtype: DType::F32, carried: None };
            sums.push(match copy {
                None => sum,
                Some(at) => {
                    let count = s.elements as u64;
                    let before = self.cast(cast(at, own, count, DType::F32, DType::Bf16), tables)?;
                    let behind = self.cast(cast(own, at, count, DType::Bf16, DType::F32), tables)?;
                    Sum { at, dtype: DType::Bf16, carried: Some([before, behind]), ..sum }
                }
            });
        }
        Ok(Some(sums))
    }

    fn cast(&mut self, mut call: Call, tables: &mut Vec<u64>) -> Result<Launch> {
        // Whatever the backend computes in: the other type of the kernel is f32 anyway.
        call.bf16 = true;
        match prepare(&mut self.driver, &self.compiler, call, tables)? {
            Work::Kernel(launch) => Ok(launch),
            other => Err(Error::invariant("summing", format!("{other:?} is no cast"))),
        }
    }

    /// Starts the sums that follow `program`, which runs.
    pub(super) fn hand_over(&mut self, program: ProgramId) -> Result<()> {
        let sums = self.programs.get(program.0).and_then(|p| p.sums.as_ref());
        let lost = || Error::device("cuda", "no program uses what is to be summed over all ranks");
        self.driver.sum(sums.ok_or_else(lost)?)
    }
}
