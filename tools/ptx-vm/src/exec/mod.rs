//! Runs blocks: schedules warps between barriers, steps instructions, follows divergence.

mod address;
mod async_copy;
mod atomic;
mod barriers;
mod bulk;
mod context;
mod cvt;
mod float;
mod int;
mod logic;
mod matrix;
mod mbarrier;
mod mem;
mod round;
mod sync;
mod timing;
mod traffic;
mod wgmma;

use context::{Core, Cx, Run};

use crate::env::Env;
use crate::error::{Fault, FaultKind};
use crate::ir::{Function, NO_PC, Op, Src};
use crate::report::Counts;
use crate::warp::{ALL, Frame, Lanes, Path, State, Warp, each};

/// Instructions a warp runs before another gets its turn: keeps warps that spin on each other alive.
const SLICE: u32 = 1 << 14;
/// Turns in which warps do nothing but poll incomplete mbarriers, until that counts as a deadlock.
const IDLE_ROUNDS: u32 = 1000;
/// Deepest nesting of device function calls.
const MAX_FRAMES: usize = 64;

/// A block and what is reused from one block to the next.
#[derive(Default)]
pub(crate) struct Block {
    core: Core,
    warps: Vec<Warp>,
    pub counts: Counts,
    pub faults: Vec<Fault>,
}

impl Block {
    /// Runs one block; counts and faults are those of this block.
    pub fn run(&mut self, env: &Env<'_>, index: u64) {
        let [gx, gy, _] = env.grid.map(u64::from);
        self.core.ctaid = [(index % gx) as u32, (index / gx % gy) as u32, (index / gx / gy) as u32];
        self.core.shared.reset(env.shared_bytes);
        self.core.counts = Counts::default();
        self.core.faults.clear();
        self.core.suspect = None;
        self.core.barriers = Default::default();
        self.core.mbarriers.clear();
        self.core.sectors.clear();
        self.core.proxy_fences = [0; 32];
        let mut spare = std::mem::take(&mut self.warps);
        let threads: u32 = env.block.iter().product();
        let (f, id) = (env.kernel.f(), env.kernel.function);
        for warp in 0..threads.div_ceil(32) {
            let count = (threads - warp * 32).min(32);
            let present = if count == 32 { ALL } else { (1 << count) - 1 };
            let lin: Lanes = each(|l| warp * 32 + l as u32);
            let [bx, by, _] = env.block;
            let tid = [lin.map(|t| t % bx), lin.map(|t| t / bx % by), lin.map(|t| t / bx / by)];
            self.warps.push(Warp::new(warp, present, tid, f, id, spare.pop()));
        }
        // A stop has recorded its fault, there is nothing else to hand on.
        let _ = self.schedule(env);
        self.counts = std::mem::take(&mut self.core.counts);
        self.counts.cycles = self.warps.iter_mut().map(|w| w.time.end()).max().unwrap_or(0);
        self.faults = std::mem::take(&mut self.core.faults);
        let raced = self.faults.iter().any(|f| f.kind == FaultKind::SharedRace);
        if let Some(first) = self.core.suspect.take().filter(|_| !raced) {
            // What followed may be a consequence of the value that was missing.
            self.faults.insert(0, first);
        }
    }

    fn schedule(&mut self, env: &Env<'_>) -> Run {
        let mut idle = 0;
        loop {
            let (mut ran, mut moved, events) = (false, false, self.core.events);
            for at in 0..self.warps.len() {
                if self.warps[at].state == State::Ready {
                    ran = true;
                    run_slice(env, &mut self.core, &mut self.warps[at])?;
                    moved |= self.warps[at].polled.is_none();
                    sync::release(env, &mut self.core, &mut self.warps)?;
                }
            }
            idle = if moved || events != self.core.events { 0 } else { idle + 1 };
            if ran && idle > IDLE_ROUNDS {
                return mbarrier::stuck(env, &mut self.core, &self.warps);
            }
            if !ran {
                let waiting = self.warps.iter().position(|w| matches!(w.state, State::Barrier(_)));
                return match waiting {
                    Some(at) => sync::deadlock(env, &mut self.core, &mut self.warps, at),
                    None => mbarrier::unseen(env, &mut self.core, &self.warps),
                };
            }
        }
    }
}

/// Runs one warp until it waits, ends or has used its slice.
fn run_slice(env: &Env<'_>, core: &mut Core, w: &mut Warp) -> Run {
    for _ in 0..SLICE {
        let Some((f, pc, mask)) = next(env, w) else {
            w.state = State::Done;
            return Ok(());
        };
        let inst = &f.code[pc as usize];
        w.polled = None;
        let mut cx = Cx { env, core, w, inst, mask };
        cx.step(f, pc)?;
        if w.state != State::Ready || w.polled.is_some() {
            return Ok(());
        }
    }
    Ok(())
}

/// The next instruction of the warp, after merging paths that met and leaving functions that ended.
fn next<'a>(env: &Env<'a>, w: &mut Warp) -> Option<(&'a Function, u32, u32)> {
    loop {
        let path = *w.paths.last()?;
        if path.mask != 0 && path.pc != path.meet {
            let f = env.kernel.module.functions.get(w.frame.function as usize)?;
            return Some((f, path.pc, path.mask));
        }
        w.paths.pop();
        while w.paths.len() == w.frame.paths
            && let Some(caller) = w.frames.pop()
        {
            w.frame = caller;
        }
    }
}

impl Cx<'_> {
    fn step(&mut self, f: &Function, pc: u32) -> Run {
        self.w.executed += 1;
        if self.w.executed > self.env.options.instruction_limit {
            let lane = self.mask.trailing_zeros();
            let text = format!("a warp executed {} instructions", self.env.options.instruction_limit);
            return Err(self.fatal(FaultKind::Runaway, lane, text));
        }
        let all = self.mask;
        if let Some(g) = self.inst.guard {
            self.check_preds(all, &[g.pred])?;
            self.mask &= self.guard(g);
        }
        let counts = &mut self.core.counts;
        counts.instructions[self.inst.class as usize] += 1;
        counts.lane_instructions += u64::from(self.mask.count_ones());
        // The top path exists: `next` took its pc.
        if let Some(top) = self.w.paths.last_mut() {
            top.pc = pc + 1;
        }
        if let Op::Bra { target } = self.inst.op {
            if self.env.options.latencies.is_some() {
                self.begin(pc);
            }
            self.branch(all, pc, target, f.reconverge[pc as usize]);
            return Ok(());
        }
        if self.mask == 0 {
            return Ok(());
        }
        self.check_reads()?;
        match &self.env.options.latencies {
            Some(latencies) => {
                self.begin(pc);
                self.execute(f, pc)?;
                self.follow(latencies);
            }
            None => self.execute(f, pc)?,
        }
        self.mark_written();
        if self.w.product_fences > 0 {
            self.note_writes()?;
        }
        for &p in &self.inst.pred_writes {
            self.w.pred_init[self.w.frame.preds + p as usize] |= self.mask;
        }
        Ok(())
    }

    fn check_preds(&mut self, mask: u32, preds: &[u16]) -> Run {
        if !self.env.options.check_registers {
            return Ok(());
        }
        for &p in preds {
            let missing = mask & !self.w.pred_init[self.w.frame.preds + p as usize];
            if missing != 0 {
                self.w.pred_init[self.w.frame.preds + p as usize] |= missing;
                let lane = missing.trailing_zeros();
                self.fault(
                    FaultKind::UninitialisedRegister,
                    lane,
                    "a predicate operand was never written".into(),
                )?;
            }
        }
        Ok(())
    }

    /// Copies and selections pass the missing value on: compilers emit them for values that turn out to be unused.
    fn check_reads(&mut self) -> Run {
        self.check_preds(self.mask, &self.inst.pred_reads)?;
        if !self.env.options.check_registers || matches!(self.inst.op, Op::Mov { .. } | Op::Selp { .. }) {
            return Ok(());
        }
        for &slot in &self.inst.reads {
            let missing = self.mask & !self.w.init[self.w.frame.regs + slot as usize];
            if missing != 0 {
                self.w.init[self.w.frame.regs + slot as usize] |= missing;
                let lane = missing.trailing_zeros();
                if self.w.in_flight(self.w.frame.regs + slot as usize).is_some() {
                    let text = "a sum of wgmma.mma_async, used before wgmma.wait_group".to_string();
                    self.fault(FaultKind::AsyncNotWaited, lane, text)?;
                    continue;
                }
                self.fault(
                    FaultKind::UninitialisedRegister,
                    lane,
                    "a register operand was never written".into(),
                )?;
            }
        }
        Ok(())
    }

    fn mark_written(&mut self) {
        let (mask, base) = (self.mask, self.w.frame.regs);
        let known = |w: &Warp, s: &Src| match s {
            Src::Reg(r) => w.init[base + r.slot as usize],
            _ => ALL,
        };
        match &self.inst.op {
            Op::Mov { d, a } => {
                let v = known(self.w, a);
                let i = &mut self.w.init[base + d.slot as usize];
                *i = *i & !mask | v & mask;
                // A copy of a sum in flight arrives with it.
                if v != ALL
                    && let Src::Reg(a) = a
                    && let Some(group) = self.w.in_flight(base + a.slot as usize)
                {
                    group.sums.push(base + d.slot as usize);
                }
            }
            Op::Selp { d, a, b, p, .. } => {
                let p = self.guard(*p);
                let v = known(self.w, a) & p | known(self.w, b) & !p;
                let i = &mut self.w.init[base + d.slot as usize];
                *i = *i & !mask | v & mask;
            }
            _ => {
                for &slot in &self.inst.writes {
                    self.w.init[base + slot as usize] |= mask;
                }
            }
        }
    }

    /// Sends `self.mask` to `target` and the rest of `all` to the next instruction.
    fn branch(&mut self, all: u32, pc: u32, target: u32, meet: u32) {
        let (taken, other) = (self.mask, all & !self.mask);
        let Some(top) = self.w.paths.last_mut() else { return };
        if other == 0 {
            top.pc = target;
        } else if taken != 0 {
            self.core.counts.divergent_branches += 1;
            self.diverge(meet, &[(pc + 1, other), (target, taken)]);
        }
    }

    /// Splits the current path; the last side runs first.
    fn diverge(&mut self, meet: u32, sides: &[(u32, u32)]) {
        let Some(top) = self.w.paths.last_mut() else { return };
        if meet == NO_PC || top.meet == meet {
            // Nobody waits on this level: without this, divergent loops would pile up a path per turn.
            let outer = top.meet;
            self.w.paths.pop();
            for &(pc, mask) in sides.iter().filter(|(pc, _)| *pc != outer) {
                self.w.paths.push(Path { pc, meet: outer, mask });
            }
            return;
        }
        top.pc = meet;
        for &(pc, mask) in sides.iter().filter(|(pc, _)| *pc != meet) {
            self.w.paths.push(Path { pc, meet, mask });
        }
    }

    fn execute(&mut self, f: &Function, pc: u32) -> Run {
        let inst = self.inst;
        match &inst.op {
            Op::Nop => Ok(()),
            Op::Int { op, ty, d, s } => self.int(*op, *ty, *d, s),
            Op::Float { op, ty, m, d, s } => self.float(*op, *ty, *m, *d, s),
            Op::Ld { space, ty, d, addr } => self.load(*space, *ty, d, addr),
            Op::St { space, ty, s, addr } => self.store(*space, *ty, s, addr),
            Op::Cvt { .. } | Op::CvtPack { .. } => {
                self.convert();
                Ok(())
            }
            Op::Atom { space, op, ty, d, addr, s } => self.atomic(*space, *op, *ty, *d, addr, s),
            Op::Shfl { .. } | Op::Vote { .. } | Op::Match { .. } | Op::Redux { .. } | Op::Elect { .. } => {
                self.exchange()
            }
            Op::WarpSync { mask } => self.warp_sync(mask),
            Op::Bar { kind, id, count } => self.barrier(*kind, id, count.as_ref()),
            Op::Ldmatrix { n, trans, d, addr } => self.ldmatrix(*n, *trans, d, addr),
            Op::Stmatrix { n, trans, s, addr } => self.stmatrix(*n, *trans, s, addr),
            Op::Movmatrix { d, a } => self.movmatrix(*d, a),
            Op::Mma { kind, d, a, b, c } => self.mma(*kind, d, a, b, c),
            Op::CpAsync { .. } => self.cp_async(),
            Op::CpCommit => {
                self.cp_commit();
                Ok(())
            }
            Op::CpWait { pending, all } => {
                self.cp_wait(*pending, *all);
                Ok(())
            }
            Op::Mbarrier { op, d, p, addr, a } => self.mbarrier(*op, *d, *p, addr, a.as_ref()),
            Op::BulkLoad { to, from, barrier } => self.bulk_load(to, from, barrier),
            Op::BulkStore { from, to } => self.bulk_store(from, to),
            Op::BulkCommit => {
                self.bulk_commit();
                Ok(())
            }
            Op::BulkWait { pending } => {
                self.bulk_wait(*pending);
                Ok(())
            }
            Op::ProxyFence => {
                self.proxy_fence();
                Ok(())
            }
            Op::Wgmma(operands) => self.wgmma(operands),
            Op::WgmmaFence | Op::WgmmaCommit | Op::WgmmaWait { .. } => self.wgmma_groups(),
            Op::Bra { .. } => Ok(()),
            Op::Brx { index, targets } => self.indexed_branch(index, targets, f.reconverge[pc as usize]),
            Op::Call { func, args, rets, name } => self.call(*func, args, rets, name),
            Op::Ret if !self.w.frames.is_empty() => {
                let base = self.w.frame.paths;
                let gone = self.mask;
                self.w.paths[base..].iter_mut().for_each(|p| p.mask &= !gone);
                self.leave(f)
            }
            Op::Ret | Op::Exit => self.exit(),
            Op::Trap => {
                Err(self.fatal(FaultKind::Trap, self.mask.trailing_zeros(), "the kernel trapped".into()))
            }
            _ => {
                self.logic();
                Ok(())
            }
        }
    }

    fn indexed_branch(&mut self, index: &Src, targets: &[u32], meet: u32) -> Run {
        let index = self.fetch(index);
        let mut sides: Vec<(u32, u32)> = Vec::new();
        for lane in self.lanes() {
            let Some(&pc) = targets.get(index[lane] as usize) else {
                let text = format!("branch index {} of {} targets", index[lane], targets.len());
                return Err(self.fatal(FaultKind::BadOperand, lane as u32, text));
            };
            match sides.iter_mut().find(|s| s.0 == pc) {
                Some(side) => side.1 |= 1 << lane,
                None => sides.push((pc, 1 << lane)),
            }
        }
        let rest = self.w.paths.last().map_or(0, |p| p.mask & !self.mask);
        if rest != 0 {
            let next = self.w.paths.last().map_or(0, |p| p.pc);
            sides.push((next, rest));
        }
        match (sides.as_slice(), self.w.paths.last_mut()) {
            ([(pc, _)], Some(top)) => top.pc = *pc,
            _ => {
                self.core.counts.divergent_branches += 1;
                self.diverge(meet, &sides);
            }
        }
        Ok(())
    }

    fn call(&mut self, func: u32, args: &[(u32, u32)], rets: &[(u32, u32)], name: &str) -> Run {
        let env = self.env;
        let lane = self.mask.trailing_zeros();
        let Some(callee) = env.kernel.module.functions.get(func as usize) else { return Ok(()) };
        if callee.declared_only {
            // `vprintf` prints nothing here, `__assertfail` is the end.
            return match name {
                "vprintf" => Ok(()),
                _ => Err(self.fatal(FaultKind::Trap, lane, format!("the kernel called `{name}`"))),
            };
        }
        if self.w.frames.len() >= MAX_FRAMES {
            return Err(self.fatal(FaultKind::StackOverflow, lane, format!("{MAX_FRAMES} nested calls")));
        }
        let Some(caller) = env.kernel.module.functions.get(self.w.frame.function as usize) else {
            return Ok(());
        };
        let old = self.w.frame;
        self.w.frames.push(old);
        self.w.frame = Frame {
            function: func,
            regs: old.regs + caller.slots as usize,
            preds: old.preds + caller.preds as usize,
            param: old.param + caller.frame_bytes as usize,
            local: old.local + caller.local_bytes.next_multiple_of(16),
            paths: self.w.paths.len(),
        };
        self.w.reserve(callee);
        for (&(from, size), p) in args.iter().zip(&callee.params) {
            let from = (old.param + from as usize) * 32;
            let to = (self.w.frame.param + p.offset as usize) * 32;
            self.w.param.copy_within(from..from + size as usize * 32, to);
        }
        debug_assert_eq!(rets.len(), callee.rets.len());
        self.w.paths.push(Path { pc: 0, meet: NO_PC, mask: self.mask });
        Ok(())
    }

    /// Copies the results of returning lanes into the caller's parameter space.
    fn leave(&mut self, f: &Function) -> Run {
        let Some(caller) = self.w.frames.last().copied() else { return Ok(()) };
        let env = self.env;
        let code = env.kernel.module.functions.get(caller.function as usize).map(|c| &c.code);
        let Some(below) = self.w.frame.paths.checked_sub(1) else { return Ok(()) };
        let at = self.w.paths[below].pc.saturating_sub(1) as usize;
        if let Some(Op::Call { rets, .. }) = code.and_then(|c| c.get(at)).map(|i| &i.op) {
            for (&(to, size), p) in rets.iter().zip(&f.rets) {
                for b in 0..size as usize {
                    let from = (self.w.frame.param + p.offset as usize + b) * 32;
                    let to = (caller.param + to as usize + b) * 32;
                    for lane in 0..32 {
                        if self.mask >> lane & 1 == 1 {
                            self.w.param[to + lane] = self.w.param[from + lane];
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn exit(&mut self) -> Run {
        let gone = self.mask;
        self.w.live &= !gone;
        self.w.paths.iter_mut().for_each(|p| p.mask &= !gone);
        self.leaked_products()?;
        self.leaked(gone)
    }
}
