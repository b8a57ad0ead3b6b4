//! Follows the cycles of a warp's instructions.

use super::address::resolve;
use super::context::Cx;
use crate::env::Latencies;
use crate::ir::{Inst, Op, Space};
use crate::report::Class;
use crate::warp::Wide;

/// Multiply-adds that the tensor cores of a multiprocessor make in a cycle, for one row of a warpgroup's product: a product of
/// 64 by n over 16 takes n / 2 cycles (NVIDIA H100 Tensor Core GPU Architecture, 2022: 4,096 operations a cycle in bf16).
const CYCLES_OF_TWO_COLUMNS: u64 = 1;

impl Cx<'_> {
    /// Before the instruction at `pc` runs.
    pub(super) fn begin(&mut self, pc: u32) {
        let (registers, predicates) = (self.w.frame.regs, self.w.frame.preds);
        let time = &mut self.w.time;
        let at =
            |list: &[u64], first: usize, slot: u16| list.get(first + slot as usize).copied().unwrap_or(0);
        let values = self.inst.reads.iter().map(|s| at(&time.registers, registers, *s));
        let conditions = self.inst.pred_reads.iter().map(|p| at(&time.predicates, predicates, *p));
        let ready = values.chain(conditions).max().unwrap_or(0);
        let slots = u64::from(self.inst.takes_a_slot());
        self.core.counts.issued += slots;
        let orders = match self.inst.op {
            Op::Bra { target } => time.branches(target <= pc),
            _ => matches!(self.inst.class, Class::Control | Class::Sync),
        };
        time.start(ready, orders, slots);
    }

    /// After the instruction ran.
    pub(super) fn follow(&mut self, l: &Latencies) {
        let now = self.w.time.now;
        match &self.inst.op {
            Op::CpAsync { .. } => self.w.time.copies.add(now + l.global),
            Op::CpCommit => self.w.time.copies.commit(),
            Op::CpWait { pending, all } => {
                let copies = &mut self.w.time.copies;
                let end = if *all { copies.all() } else { copies.wait(*pending) };
                self.w.time.wait(end);
            }
            Op::Wgmma(x) => self.w.time.products.queue(now, x.d.len() as u64 * CYCLES_OF_TWO_COLUMNS),
            Op::WgmmaCommit => self.w.time.products.commit(),
            Op::WgmmaWait { pending } => {
                let end = self.w.time.products.wait(*pending);
                self.w.time.wait(end + l.product);
            }
            _ => {}
        }
        let there = now + latency(self.inst, self.w.time.near, l);
        let (registers, predicates) = (self.w.frame.regs, self.w.frame.preds);
        let (all, conditions) = (self.w.regs.len(), self.w.preds.len());
        let time = &mut self.w.time;
        time.registers.resize(all, 0);
        time.predicates.resize(conditions, 0);
        for slot in &self.inst.writes {
            time.registers[registers + *slot as usize] = there;
        }
        for p in &self.inst.pred_writes {
            time.predicates[predicates + *p as usize] = there;
        }
    }
}

impl Cx<'_> {
    /// Notes which sectors a load reads, and whether the block has read all of them before: then they are near.
    pub(super) fn look_near(&mut self, space: Space, addrs: &Wide) {
        let first = self.mask.trailing_zeros().min(31) as usize;
        if resolve(space, addrs[first]).0 != Space::Global {
            self.w.time.near = false;
            return;
        }
        // An access is aligned and at most 16 bytes: a lane reads of one sector.
        let mut sectors: Vec<u64> = self.lanes().map(|lane| addrs[lane] / 32).collect();
        sectors.sort_unstable();
        sectors.dedup();
        let known = sectors.iter().filter(|s| !self.core.sectors.insert(**s)).count();
        self.core.counts.near_sectors += known as u64;
        self.w.time.near = known == sectors.len();
    }
}

/// Cycles to the first use of what an instruction writes.
fn latency(inst: &Inst, near: bool, l: &Latencies) -> u64 {
    match (&inst.op, inst.class) {
        (Op::Mov { .. } | Op::Cvta { .. }, _) => 0,
        (Op::Ld { space: Space::Param | Space::Const, .. }, _) => l.arithmetic,
        (Op::Ld { space: Space::Shared | Space::Local, .. } | Op::Ldmatrix { .. }, _) => l.shared,
        (Op::Ld { .. }, _) if near => l.shared,
        (Op::Ld { .. } | Op::Atom { .. }, _) => l.global,
        // In the order of their groups; who waits for them, waits there.
        (Op::Wgmma(_), _) => 0,
        (Op::Mma { .. }, _) => l.product,
        (_, Class::Special) => l.special,
        (_, Class::Warp) => l.exchange,
        _ => l.arithmetic,
    }
}
