//! Barriers in shared memory that count arrivals (and bytes of asynchronous copies) in phases.
//!
//! A phase hands the clocks of all that arrived to every thread that sees it complete. The eight bytes in shared memory
//! are opaque: the state lives beside them, the bytes only carry the race check of initialisation against use.

use super::address::resolve;
use super::barriers::Mbarrier;
use super::context::{Core, Cx, Run, Stop, describe};
use crate::env::Env;
use crate::error::FaultKind;
use crate::ir::{Addr, MbarOp, Reg, Space, Src};
use crate::shared::Touch;
use crate::warp::Warp;

/// Largest count of arrivals, and of bytes in flight.
const MOST: u32 = (1 << 20) - 1;

/// At the end of a block every bulk copy must have been waited for by somebody.
pub(crate) fn unseen(env: &Env<'_>, core: &mut Core, warps: &[Warp]) -> Run {
    let left = core.mbarriers.iter().find_map(|(at, b)| {
        let n = b.landing.len() + b.landed.len();
        (n > 0).then_some((*at, n))
    });
    let (Some((at, n)), Some(w)) = (left, warps.first()) else { return Ok(()) };
    let text = format!(
        "{} bytes of bulk copies counted at the mbarrier at {at:#x}, which nobody waited for",
        16 * n
    );
    core.faults.push(describe(env, core.ctaid, w, 0, FaultKind::AsyncLeaked, 0, text));
    Err(Stop)
}

/// Every warp that could go on waits for an mbarrier, and none changes.
pub(crate) fn stuck(env: &Env<'_>, core: &mut Core, warps: &[Warp]) -> Run {
    // One that some arrived at tells more than those that wait for it in turn.
    let state = |at: u32| core.mbarriers.get(&at).cloned().unwrap_or_default();
    let waiting = warps.iter().filter_map(|w| w.polled.map(|at| (w, at, state(at))));
    let Some((w, at, b)) = waiting.min_by_key(|(_, _, b)| b.missing == b.count && b.bytes == 0) else {
        return Ok(());
    };
    let text = format!(
        "warp {} waits for the mbarrier at {at:#x} in phase {}: {} of {} arrivals and {} bytes are missing",
        w.index, b.phase, b.missing, b.count, b.bytes
    );
    let f = &env.kernel.module.functions[w.frame.function as usize];
    let pc = w.paths.last().map_or(0, |p| p.pc.saturating_sub(1)) as usize;
    let line = f.code.get(pc).map_or(0, |i| i.line);
    let lane = w.live.trailing_zeros();
    core.faults.push(describe(env, core.ctaid, w, line, FaultKind::Mbarrier, lane, text));
    Err(Stop)
}

impl Cx<'_> {
    pub(super) fn mbarrier(
        &mut self,
        op: MbarOp,
        d: Option<Reg>,
        p: Option<u16>,
        addr: &Addr,
        a: Option<&Src>,
    ) -> Run {
        let (addrs, values) = (self.addresses(addr), a.map_or([1; 32], |a| self.fetch_wide(a)));
        let (mut states, mut done) = ([0u64; 32], 0u32);
        for lane in self.lanes() {
            let (_, at) = resolve(Space::Generic, addrs[lane]);
            let touch = if op == MbarOp::Init { Touch::Write } else { Touch::Atomic };
            let known = u32::try_from(at).is_ok_and(|at| self.core.mbarriers.contains_key(&at));
            if op != MbarOp::Init && !known {
                self.misuse(lane, format!("no mbarrier was initialised at {at:#x}"))?;
                continue;
            }
            if !self.aligned(at, 8, lane)? || !self.shared_access(at, 8, lane, touch)? {
                continue;
            }
            let (at, value) = (at as u32, values[lane]);
            match op {
                MbarOp::Init => self.mbarrier_init(at, value as u32, lane)?,
                MbarOp::Inval => {
                    self.core.mbarriers.remove(&at);
                }
                MbarOp::WaitState | MbarOp::WaitParity => {
                    done |= u32::from(self.mbarrier_done(at, value, op == MbarOp::WaitParity)) << lane;
                }
                _ => states[lane] = self.mbarrier_arrive(op, at, value as u32, lane)?,
            }
        }
        if let Some(d) = d {
            self.w.put_wide(d, self.mask, &states);
        }
        if let Some(p) = p {
            self.w.set_pred(p, self.mask, done);
            if done & self.mask != self.mask {
                self.w.polled = addrs.get(self.mask.trailing_zeros() as usize).map(|a| *a as u32);
            }
        }
        if matches!(op, MbarOp::Arrive | MbarOp::ArriveTx) {
            // What comes after the arrival is not covered by it.
            self.w.clocks[self.w.index as usize & 31] += 1;
        }
        Ok(())
    }

    pub(super) fn misuse(&mut self, lane: usize, text: String) -> Run {
        self.fault(FaultKind::Mbarrier, lane as u32, text)
    }

    fn mbarrier_init(&mut self, at: u32, count: u32, lane: usize) -> Run {
        if count == 0 || count > MOST {
            return self.misuse(lane, format!("an mbarrier for {count} arrivals; 1 to {MOST} are possible"));
        }
        if self.core.mbarriers.contains_key(&at) {
            return self.misuse(
                lane,
                format!("the mbarrier at {at:#x} is initialised twice, with no inval between"),
            );
        }
        let b = Mbarrier { count, missing: count, ..Mbarrier::default() };
        self.core.mbarriers.insert(at, b);
        Ok(())
    }

    /// Gives the phase in which the thread arrived.
    fn mbarrier_arrive(&mut self, op: MbarOp, at: u32, value: u32, lane: usize) -> Run<u64> {
        let clocks = self.w.clocks;
        let Some(b) = self.core.mbarriers.get_mut(&at) else { return Ok(0) };
        let phase = b.phase;
        if op != MbarOp::Arrive {
            b.bytes += i64::from(value);
            if b.bytes > i64::from(MOST) {
                let text =
                    format!("{} bytes are expected at the mbarrier at {at:#x}, {MOST} are possible", b.bytes);
                self.misuse(lane, text)?;
                return Ok(phase);
            }
        }
        let arrivals = match op {
            MbarOp::Arrive => value,
            MbarOp::ArriveTx => 1,
            _ => 0,
        };
        if arrivals > b.missing || arrivals == 0 && op == MbarOp::Arrive {
            let text = format!(
                "{arrivals} arrivals at the mbarrier at {at:#x}, which takes {} more in this phase",
                b.missing
            );
            self.misuse(lane, text)?;
            return Ok(phase);
        }
        b.missing -= arrivals;
        b.latest = b.latest.max(self.w.time.now);
        for (joined, mine) in b.arriving.iter_mut().zip(clocks) {
            *joined = (*joined).max(mine);
        }
        b.complete();
        self.core.events += 1;
        Ok(phase)
    }

    /// True if the phase is complete; then the thread has seen what all that arrived had seen.
    fn mbarrier_done(&mut self, at: u32, value: u64, parity: bool) -> bool {
        let Some(b) = self.core.mbarriers.get_mut(&at) else { return false };
        let done = if parity { b.phase & 1 != value & 1 } else { b.phase != value };
        if done {
            self.w.time.wait(b.complete_at);
            for at in b.landed.drain(..) {
                self.core.shared.landed(at);
            }
            for (mine, seen) in self.w.clocks.iter_mut().zip(b.arrived) {
                *mine = (*mine).max(seen);
            }
        }
        done
    }

    /// Bytes of a bulk copy have arrived, in pieces of 16.
    pub(super) fn mbarrier_landed(&mut self, at: u32, pieces: Vec<u32>) {
        let me = self.w.index as usize & 31;
        let now = self.w.clocks[me];
        let arrives = self.w.time.now + self.env.options.latencies.map_or(0, |l| l.global);
        if let Some(b) = self.core.mbarriers.get_mut(&at) {
            b.latest = b.latest.max(arrives);
            b.bytes -= 16 * pieces.len() as i64;
            b.landing.extend(pieces);
            // Who sees the phase complete sees the copy; it does not see what this warp does after it.
            b.arriving[me] = b.arriving[me].max(now);
            b.complete();
            self.core.events += 1;
        }
        self.w.clocks[me] += 1;
    }

    pub(super) fn proxy_fence(&mut self) {
        let me = self.w.index as usize & 31;
        self.core.proxy_fences[me] = self.w.clocks[me];
        // Stores from here on are not covered.
        self.w.clocks[me] += 1;
    }
}
