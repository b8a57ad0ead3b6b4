//! Barriers, and exchanges between the lanes of a warp.

use super::barriers::Barrier;
use super::context::{Core, Cx, Run, Stop, describe};
use crate::env::Env;
use crate::error::FaultKind;
use crate::ir::{BarKind, Guard, Op, Redux, Shfl, Src, Ty, Vote};
use crate::warp::{Lanes, State, Warp};

/// The barrier is complete: joins the clocks and wakes the waiting warps.
pub(crate) fn release(env: &Env<'_>, core: &mut Core, warps: &mut [Warp]) -> Run {
    for id in 0..core.barriers.len() {
        let b = &core.barriers[id];
        if b.expected == 0 || b.threads < b.expected {
            continue;
        }
        let b = *b;
        core.barriers[id] = Barrier::default();
        for w in warps.iter_mut().filter(|w| b.waiting >> w.index & 1 == 1) {
            if b.threads > b.expected {
                let text =
                    format!("{} threads arrived at barrier {id}, which takes {}", b.threads, b.expected);
                return Err(fail(env, core, w, text));
            }
            w.state = State::Ready;
            if let Some(l) = &env.options.latencies {
                w.time.wait(b.latest + l.barrier);
            }
            w.clocks = b.clocks;
            w.clocks[w.index as usize & 31] = b.newest + 1;
            if let Some((op, d)) = w.reduction.take() {
                let mask = w.live;
                match (op, d) {
                    (Redux::Popc, Src::Reg(d)) => w.put(d, mask, &[b.count; 32], false),
                    (Redux::And, Src::Pred(p)) => {
                        w.set_pred(p, mask, if b.none_false { u32::MAX } else { 0 })
                    }
                    (_, Src::Pred(p)) => w.set_pred(p, mask, if b.any { u32::MAX } else { 0 }),
                    _ => {}
                }
            }
        }
    }
    Ok(())
}

fn fail(env: &Env<'_>, core: &mut Core, w: &Warp, text: String) -> Stop {
    let f = &env.kernel.module.functions[w.frame.function as usize];
    let pc = w.paths.last().map_or(0, |p| p.pc.saturating_sub(1)) as usize;
    let line = f.code.get(pc).map_or(0, |i| i.line);
    let lane = w.live.trailing_zeros();
    let fault = describe(env, core.ctaid, w, line, FaultKind::BarrierDivergence, lane, text);
    core.faults.push(fault);
    Stop
}

/// Every warp waits or has ended, and no barrier is complete.
pub(crate) fn deadlock(env: &Env<'_>, core: &mut Core, warps: &mut [Warp], at: usize) -> Run {
    let State::Barrier(id) = warps[at].state else { return Ok(()) };
    let b = core.barriers[id as usize & 15];
    let list = |f: &dyn Fn(&Warp) -> bool| -> String {
        let found: Vec<String> = warps.iter().filter(|w| f(w)).map(|w| w.index.to_string()).collect();
        if found.is_empty() { "none".into() } else { found.join(", ") }
    };
    let text = format!(
        "barrier {id} waits for {} threads, {} arrived (warps waiting here: {}; at other barriers: {}; exited: {})",
        b.expected,
        b.threads,
        list(&|w| w.state == State::Barrier(id)),
        list(&|w| matches!(w.state, State::Barrier(other) if other != id)),
        list(&|w| w.state == State::Done)
    );
    Err(fail(env, core, &warps[at], text))
}

impl Cx<'_> {
    pub(super) fn barrier(&mut self, kind: BarKind, id: &Src, count: Option<&Src>) -> Run {
        let lane = self.mask.trailing_zeros();
        let id = self.fetch(id)[lane as usize & 31];
        if id > 15 {
            return Err(self.fatal(FaultKind::BadOperand, lane, format!("barrier {id} of 16")));
        }
        if self.mask != self.w.present {
            let absent = self.w.present & !self.mask;
            let exited = absent & !self.w.live;
            let text = format!(
                "lanes {absent:#010x} of the warp are not at barrier {id}{}",
                if exited != 0 { format!(" (exited: {exited:#010x})") } else { String::new() }
            );
            return Err(self.fatal(FaultKind::BarrierDivergence, lane, text));
        }
        let warps = self.env.block.iter().product::<u32>().div_ceil(32);
        let expected = count.map_or(warps * 32, |c| self.fetch(c)[lane as usize & 31]);
        if expected == 0 || !expected.is_multiple_of(32) || expected > warps * 32 {
            let text = format!("barrier {id} for {expected} threads in a block of {warps} warps");
            return Err(self.fatal(FaultKind::BadOperand, lane, text));
        }
        let me = self.w.index;
        let b = &mut self.core.barriers[id as usize];
        if b.expected != 0 && b.expected != expected {
            let text =
                format!("barrier {id} is in use for {} threads, this warp expects {expected}", b.expected);
            return Err(self.fatal(FaultKind::BarrierDivergence, lane, text));
        }
        if b.expected == 0 {
            (b.expected, b.none_false) = (expected, true);
        }
        b.threads += 32;
        b.latest = b.latest.max(self.w.time.now);
        b.warps |= 1 << me;
        for (joined, mine) in b.clocks.iter_mut().zip(self.w.clocks) {
            *joined = (*joined).max(mine);
            b.newest = b.newest.max(mine);
        }
        match kind {
            BarKind::Arrive => {
                self.w.clocks[me as usize & 31] += 1;
                return Ok(());
            }
            BarKind::Red { op, d, p } => {
                let votes = self.guard(p) & self.mask;
                let b = &mut self.core.barriers[id as usize];
                b.count += votes.count_ones();
                b.any |= votes != 0;
                b.none_false &= votes == self.mask;
                self.w.reduction = Some((op, d));
            }
            BarKind::Sync => {}
        }
        self.core.barriers[id as usize].waiting |= 1 << me;
        self.w.state = State::Barrier(id as u8);
        Ok(())
    }

    pub(super) fn warp_sync(&mut self, mask: &Src) -> Run {
        let masks = self.fetch(mask);
        self.converged(&masks)
    }

    /// Every lane's mask must name the lane itself and only lanes that execute this instruction (or have exited).
    fn converged(&mut self, masks: &Lanes) -> Run {
        for lane in self.lanes() {
            let named = masks[lane];
            let missing = named & !self.mask & self.w.live;
            if missing != 0 || named >> lane & 1 == 0 {
                let text = match missing {
                    0 => format!("mask {named:#010x} does not name the lane itself"),
                    _ => format!("mask {named:#010x} names lanes {missing:#010x} that are not here"),
                };
                self.fault(FaultKind::WarpDivergence, lane as u32, text)?;
                break;
            }
        }
        // In strict mode this is what orders the lanes of a warp.
        if self.env.options.strict_warp {
            self.w.clocks[self.w.index as usize & 31] += 1;
        }
        Ok(())
    }

    pub(super) fn exchange(&mut self) -> Run {
        let inst = self.inst;
        match &inst.op {
            Op::Shfl { .. } => self.shuffle(),
            Op::Vote { op, d, p, a, mask } => {
                let masks = self.fetch(mask);
                self.converged(&masks)?;
                self.vote(*op, (*d, *p), *a, &masks);
                Ok(())
            }
            Op::Match { all, ty, d, p, a, mask } => {
                let (masks, a) = (self.fetch(mask), self.fetch_wide(a));
                self.converged(&masks)?;
                let cut = |v: u64| if *ty == Ty::B32 { v & 0xffff_ffff } else { v };
                let mut v = [0; 32];
                let mut equal = 0;
                for lane in self.lanes() {
                    let group = masks[lane] & self.mask;
                    let same = (0..32).filter(|l| group >> l & 1 == 1 && cut(a[*l]) == cut(a[lane]));
                    let same = same.fold(0, |m, l| m | 1 << l);
                    v[lane] = if !all || same == group { same } else { 0 };
                    equal |= u32::from(same == group) << lane;
                }
                self.w.put(*d, self.mask, &v, false);
                if let Some(p) = p {
                    self.w.set_pred(*p, self.mask, equal);
                }
                Ok(())
            }
            Op::Redux { op, ty, d, a, mask } => {
                let (masks, a) = (self.fetch(mask), self.fetch(a));
                self.converged(&masks)?;
                let mut v = [0; 32];
                for lane in self.lanes() {
                    let group = masks[lane] & self.mask;
                    let values = (0..32).filter(|l| group >> l & 1 == 1).map(|l| a[l]);
                    v[lane] = values.reduce(|x, y| reduce(*op, ty.signed(), x, y)).unwrap_or(0);
                }
                self.w.put(*d, self.mask, &v, false);
                Ok(())
            }
            Op::Elect { d, p, mask } => {
                let masks = self.fetch(mask);
                self.converged(&masks)?;
                let leader = masks.map(|m| m.trailing_zeros().min(31));
                if let Some(d) = d {
                    self.w.put(*d, self.mask, &leader, false);
                }
                let chosen = (0..32).filter(|l| leader[*l as usize] == *l).fold(0, |m, l| m | 1 << l);
                self.w.set_pred(*p, self.mask, chosen);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn vote(&mut self, op: Vote, out: (Option<crate::ir::Reg>, Option<u16>), a: Guard, masks: &Lanes) {
        let votes = self.guard(a) & self.mask;
        let (mut ballot, mut yes) = ([0; 32], 0);
        for lane in self.lanes() {
            let group = masks[lane] & self.mask;
            let v = votes & group;
            ballot[lane] = v;
            let holds = match op {
                Vote::All => v == group,
                Vote::Any => v != 0,
                _ => v == 0 || v == group,
            };
            yes |= u32::from(holds) << lane;
        }
        if let Some(d) = out.0 {
            self.w.put(d, self.mask, &ballot, false);
        }
        if let Some(p) = out.1 {
            self.w.set_pred(p, self.mask, yes);
        }
    }

    fn shuffle(&mut self) -> Run {
        let Op::Shfl { mode, d, p, a, b, c, mask } = &self.inst.op else { return Ok(()) };
        let (a, b, c, masks) = (self.fetch(a), self.fetch(b), self.fetch(c), self.fetch(mask));
        self.converged(&masks)?;
        let (mut v, mut inside) = (a, 0u32);
        for lane in self.lanes() {
            let (l, by, clamp, segment) =
                (lane as i32, (b[lane] & 31) as i32, (c[lane] & 31) as i32, (c[lane] >> 8 & 31) as i32);
            let last = l & segment | clamp & !segment;
            let first = l & segment;
            let (from, ok) = match mode {
                Shfl::Up => (l - by, l - by >= last),
                Shfl::Down => (l + by, l + by <= last),
                Shfl::Bfly => (l ^ by, l ^ by <= last),
                Shfl::Idx => (first | by & !segment, (first | by & !segment) <= last),
            };
            let from = if ok { from as usize & 31 } else { lane };
            inside |= u32::from(ok) << lane;
            if self.mask >> from & 1 == 0 || masks[lane] >> from & 1 == 0 {
                let text = format!("lane {lane} reads from lane {from}, which does not take part");
                self.fault(FaultKind::WarpDivergence, lane as u32, text)?;
                continue;
            }
            v[lane] = a[from];
        }
        if let Some(d) = d {
            self.w.put(*d, self.mask, &v, false);
        }
        if let Some(p) = p {
            self.w.set_pred(*p, self.mask, inside);
        }
        Ok(())
    }
}

fn reduce(op: Redux, signed: bool, x: u32, y: u32) -> u32 {
    match op {
        Redux::Add | Redux::Popc => x.wrapping_add(y),
        Redux::Min if signed => (x as i32).min(y as i32) as u32,
        Redux::Max if signed => (x as i32).max(y as i32) as u32,
        Redux::Min => x.min(y),
        Redux::Max => x.max(y),
        Redux::And => x & y,
        Redux::Or => x | y,
        Redux::Xor => x ^ y,
    }
}
