//! What instructions work on: the block, and one warp at one instruction, with its operands and its faults.

use std::collections::{BTreeMap, HashSet};

use super::barriers::{Barrier, Mbarrier};
use crate::env::{Env, OnFault};
use crate::error::{Fault, FaultKind};
use crate::ir::{Guard, Inst, Src, Sreg};
use crate::report::Counts;
use crate::shared::Shared;
use crate::warp::{Lanes, Warp, Wide, each};

/// The block cannot continue; its fault has been recorded.
pub(crate) struct Stop;
pub(crate) type Run<T = ()> = Result<T, Stop>;

/// What the warps of a block share.
#[derive(Default)]
pub(crate) struct Core {
    pub shared: Shared,
    pub counts: Counts,
    pub faults: Vec<Fault>,
    /// A read of unwritten shared memory that may yet turn out to be a race: its writer may just not have run.
    pub suspect: Option<Fault>,
    pub ctaid: [u32; 3],
    pub barriers: [Barrier; 16],
    /// The mbarriers in shared memory by address.
    pub mbarriers: BTreeMap<u32, Mbarrier>,
    /// Changes of mbarriers so far: without any, waiting is in vain.
    pub events: u64,
    /// Sectors of global memory that loads have read, where cycles are followed.
    pub sectors: HashSet<u64>,
    /// Clock of each warp's last proxy fence.
    pub proxy_fences: [u32; 32],
}

/// One warp at one instruction.
pub(crate) struct Cx<'a> {
    pub env: &'a Env<'a>,
    pub core: &'a mut Core,
    pub w: &'a mut Warp,
    pub inst: &'a Inst,
    /// Lanes that execute the instruction.
    pub mask: u32,
}

impl Cx<'_> {
    /// Active lanes in order.
    pub fn lanes(&self) -> impl Iterator<Item = usize> + use<> {
        let mut mask = self.mask;
        std::iter::from_fn(move || {
            let lane = mask.trailing_zeros() as usize;
            mask &= mask.wrapping_sub(1);
            (lane < 32).then_some(lane)
        })
    }

    pub fn guard(&self, g: Guard) -> u32 {
        let p = self.w.pred(g.pred);
        if g.negated { !p } else { p }
    }

    /// A source as 32-bit lanes.
    #[inline]
    pub fn fetch(&self, s: &Src) -> Lanes {
        match s {
            Src::Reg(r) => *self.w.reg(r.slot),
            Src::Imm(v) => [*v as u32; 32],
            Src::Special(s) => {
                let v = self.special(*s);
                each(|l| v[l] as u32)
            }
            other => [self.address_of(other) as u32; 32],
        }
    }

    /// A source as 64-bit lanes; 32-bit registers are zero-extended.
    #[inline]
    pub fn fetch_wide(&self, s: &Src) -> Wide {
        match s {
            Src::Reg(r) if r.size == 8 => {
                let (low, high) = (self.w.reg(r.slot), self.w.reg(r.slot + 1));
                each(|l| u64::from(low[l]) | u64::from(high[l]) << 32)
            }
            Src::Reg(r) => {
                let r = self.w.reg(r.slot);
                each(|l| u64::from(r[l]))
            }
            Src::Imm(v) => [*v; 32],
            Src::Special(s) => self.special(*s),
            other => [self.address_of(other); 32],
        }
    }

    fn address_of(&self, s: &Src) -> u64 {
        match s {
            Src::Sym(id, offset) => {
                self.env.symbols.get(*id as usize).copied().unwrap_or(0).wrapping_add(*offset as u64)
            }
            Src::Local(offset) => u64::from(self.w.frame.local.wrapping_add(*offset)),
            _ => 0,
        }
    }

    fn special(&self, s: Sreg) -> Wide {
        let axis = |v: [u32; 3], a: u8| [u64::from(v[a as usize % 3]); 32];
        let lane = |f: fn(u64) -> u64| each(|l| f(l as u64));
        match s {
            Sreg::Tid(a) => {
                let t = &self.w.tid[a as usize % 3];
                each(|l| u64::from(t[l]))
            }
            Sreg::Ntid(a) => axis(self.env.block, a),
            Sreg::Ctaid(a) => axis(self.core.ctaid, a),
            Sreg::Nctaid(a) => axis(self.env.grid, a),
            Sreg::LaneId => lane(|l| l),
            Sreg::WarpId => [u64::from(self.w.index); 32],
            Sreg::NWarpId => [u64::from(self.env.block.iter().product::<u32>().div_ceil(32)); 32],
            Sreg::SmId | Sreg::GridId | Sreg::Zero => [0; 32],
            Sreg::NSmId | Sreg::One => [1; 32],
            Sreg::Clock | Sreg::Clock64 | Sreg::GlobalTimer => [self.w.executed; 32],
            Sreg::LaneMask(0) => lane(|l| 1 << l),
            Sreg::LaneMask(1) => lane(|l| (1 << l) - 1),
            Sreg::LaneMask(2) => lane(|l| (2 << l) - 1),
            Sreg::LaneMask(3) => lane(|l| 0xffff_ffff & !((2 << l) - 1)),
            Sreg::LaneMask(_) => lane(|l| 0xffff_ffff & !((1 << l) - 1)),
            Sreg::DynamicSmem => [u64::from(self.env.dynamic_shared); 32],
            Sreg::TotalSmem => [u64::from(self.env.shared_bytes); 32],
        }
    }

    /// Records a fault; goes on where the options say so.
    #[cold]
    pub fn fault(&mut self, kind: FaultKind, lane: u32, detail: String) -> Run {
        let limit = match self.env.options.on_fault {
            OnFault::Abort => 1,
            OnFault::Collect(n) => n,
        };
        if self.core.faults.len() < limit {
            let fault = describe(self.env, self.core.ctaid, self.w, self.inst.line, kind, lane, detail);
            self.core.faults.push(fault);
        }
        if self.core.faults.len() >= limit { Err(Stop) } else { Ok(()) }
    }

    /// Records a fault after which the block cannot go on.
    #[cold]
    pub fn fatal(&mut self, kind: FaultKind, lane: u32, detail: String) -> Stop {
        // Stop either way.
        let _ = self.fault(kind, lane, detail);
        Stop
    }
}

/// The fault at a line, for one lane of a warp.
pub(crate) fn describe(
    env: &Env<'_>,
    block: [u32; 3],
    w: &Warp,
    line: u32,
    kind: FaultKind,
    lane: u32,
    detail: String,
) -> Fault {
    let lane = lane.min(31) as usize;
    Fault {
        kind,
        kernel: env.kernel.name().to_string(),
        line,
        instruction: env.kernel.module.line(line).to_string(),
        block,
        thread: w.tid.map(|t| t[lane]),
        detail,
    }
}
