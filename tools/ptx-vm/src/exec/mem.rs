//! Loads, stores, atomics and asynchronous copies, with their checks and traffic counts.

use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;

use super::float::narrow;
use super::{Cx, LOCAL_WINDOW, PARAM_WINDOW, Run, SHARED_WINDOW};
use crate::error::FaultKind;
use crate::ir::{Addr, AtomOp, FMod, FRAME_BASE, FloatOp, Op, Reg, Space, Src, Ty};
use crate::memory::Alloc;
use crate::shared::{Clash, Touch, Who};
use crate::warp::{Flight, Group, Lanes, Wide};

/// Serialises the read-modify-write operations that span two words.
static WIDE_ATOMIC: Mutex<()> = Mutex::new(());

/// The space a generic address lies in, and the address there.
pub(super) fn resolve(space: Space, addr: u64) -> (Space, u64) {
    match (space, addr >> 32) {
        (Space::Generic, 1) => (Space::Shared, addr - SHARED_WINDOW),
        (Space::Generic, 2) => (Space::Local, addr - LOCAL_WINDOW),
        (Space::Generic, 3) => (Space::Param, addr - PARAM_WINDOW),
        (Space::Generic, _) => (Space::Global, addr),
        (other, _) => (other, addr),
    }
}

fn space_name(space: Space) -> &'static str {
    match space {
        Space::Shared => "shared",
        Space::Local => "local",
        Space::Const => "constant",
        Space::Param => "parameter",
        _ => "global",
    }
}

impl<'a> Cx<'a> {
    pub(super) fn addresses(&self, addr: &Addr) -> Wide {
        self.fetch_wide(&addr.base).map(|b| b.wrapping_add(addr.offset as u64))
    }

    pub(super) fn load(&mut self, space: Space, ty: Ty, d: &[Option<Reg>], addr: &Addr) -> Run {
        let addrs = self.addresses(addr);
        let size = ty.size();
        let bytes = size * d.len() as u32;
        let mut words = [[0u32; 32]; 4];
        for lane in self.lanes() {
            let mut out = [0; 4];
            let (space, at) = resolve(space, addrs[lane]);
            self.read(space, at, bytes, lane, &mut out)?;
            for (w, o) in words.iter_mut().zip(out) {
                w[lane] = o;
            }
        }
        self.count(space, &addrs, bytes, false);
        for (i, d) in d.iter().enumerate() {
            let Some(d) = d else { continue };
            match size {
                8 => {
                    let v: Wide = std::array::from_fn(|l| {
                        u64::from(words[2 * i][l]) | u64::from(words[2 * i + 1][l]) << 32
                    });
                    self.w.put_wide(*d, self.mask, &v);
                }
                4 => self.w.put(*d, self.mask, &words[i], ty.signed()),
                _ => {
                    let bit = size * 8 * i as u32;
                    let up = 32 - size * 8;
                    let v: Lanes = words[bit as usize / 32].map(|w| w >> (bit % 32) << up);
                    let v = if ty.signed() { v.map(|x| (x as i32 >> up) as u32) } else { v.map(|x| x >> up) };
                    self.w.put(*d, self.mask, &v, ty.signed());
                }
            }
        }
        Ok(())
    }

    pub(super) fn store(&mut self, space: Space, ty: Ty, s: &[Src], addr: &Addr) -> Run {
        let addrs = self.addresses(addr);
        let size = ty.size();
        let bytes = size * s.len() as u32;
        let mut words = [[0u32; 32]; 4];
        for (i, s) in s.iter().enumerate() {
            if size == 8 {
                let v = self.fetch_wide(s);
                (words[2 * i], words[2 * i + 1]) = (v.map(|v| v as u32), v.map(|v| (v >> 32) as u32));
                continue;
            }
            let (v, bit) = (self.fetch(s), size * 8 * i as u32);
            let field = if size == 4 { u32::MAX } else { (1 << (size * 8)) - 1 };
            for (w, v) in words[bit as usize / 32].iter_mut().zip(v) {
                *w |= (v & field) << (bit % 32);
            }
        }
        for lane in self.lanes() {
            let value = std::array::from_fn(|i| words[i][lane]);
            let (space, at) = resolve(space, addrs[lane]);
            self.write(space, at, bytes, lane, &value)?;
        }
        self.count(space, &addrs, bytes, true);
        Ok(())
    }

    /// True if the address is a multiple of the access size; else a fault.
    pub(super) fn aligned(&mut self, at: u64, bytes: u32, lane: usize) -> Run<bool> {
        if at % u64::from(bytes) == 0 {
            return Ok(true);
        }
        self.fault(FaultKind::Misaligned, lane as u32, format!("{bytes}-byte access at {at:#x}"))?;
        Ok(false)
    }

    fn outside(&mut self, space: Space, at: u64, bytes: u32, lane: usize, place: String) -> Run {
        let text = format!("{bytes} bytes of {} memory at {at:#x}, {place}", space_name(space));
        self.fault(FaultKind::OutOfBounds, lane as u32, text)
    }

    fn unwritten(&mut self, space: Space, at: u64, bytes: u32, lane: usize) -> Run {
        if !self.env.options.check_uninitialised {
            return Ok(());
        }
        let text = format!("{bytes} bytes of {} memory at {at:#x}", space_name(space));
        self.fault(FaultKind::UninitialisedMemory, lane as u32, text)
    }

    /// The allocation around an access; None after a fault.
    fn global(
        &mut self,
        space: Space,
        at: u64,
        bytes: u32,
        lane: usize,
        write: bool,
    ) -> Run<Option<&'a Alloc>> {
        let memory = self.env.memory;
        let hinted = memory.alloc(self.w.hint).filter(|a| a.contains(at, u64::from(bytes)));
        let found = match hinted {
            Some(a) => Some(a),
            None => memory.find(at, u64::from(bytes)).and_then(|i| {
                self.w.hint = i;
                memory.alloc(i)
            }),
        };
        match found {
            Some(a) if write && a.constant => {
                self.fault(
                    FaultKind::ReadOnly,
                    lane as u32,
                    format!("{bytes} bytes at {at:#x} are constant"),
                )?;
                Ok(None)
            }
            Some(a) if space == Space::Const && !a.constant => {
                self.outside(space, at, bytes, lane, "not a constant variable".into())?;
                Ok(None)
            }
            Some(a) => Ok(Some(a)),
            None => {
                self.outside(space, at, bytes, lane, memory.describe(at))?;
                Ok(None)
            }
        }
    }

    fn read(&mut self, space: Space, at: u64, bytes: u32, lane: usize, out: &mut [u32; 4]) -> Run {
        if !self.aligned(at, bytes, lane)? {
            return Ok(());
        }
        match space {
            Space::Shared => {
                if self.shared_access(at, bytes, lane, Touch::Read)? {
                    self.core.shared.read(at as u32, bytes, out);
                }
            }
            Space::Local => return self.local(at, bytes, lane, out, false),
            Space::Param => return self.param(at, bytes, lane, out, false),
            _ => {
                if let Some(a) = self.global(space, at, bytes, lane, false)?
                    && !a.read(at - a.base, bytes, out)
                {
                    return self.unwritten(space, at, bytes, lane);
                }
            }
        }
        Ok(())
    }

    fn write(&mut self, space: Space, at: u64, bytes: u32, lane: usize, value: &[u32; 4]) -> Run {
        if !self.aligned(at, bytes, lane)? {
            return Ok(());
        }
        match space {
            Space::Shared => {
                if self.shared_access(at, bytes, lane, Touch::Write)? {
                    self.core.shared.write(at as u32, bytes, value);
                }
            }
            Space::Local => return self.local(at, bytes, lane, &mut value.clone(), true),
            Space::Param => return self.param(at, bytes, lane, &mut value.clone(), true),
            _ => {
                if let Some(a) = self.global(space, at, bytes, lane, true)? {
                    a.write(at - a.base, bytes, value);
                }
            }
        }
        Ok(())
    }

    /// Bounds and races of a shared access; false if it must not happen.
    pub(super) fn shared_access(&mut self, at: u64, bytes: u32, lane: usize, what: Touch) -> Run<bool> {
        let size = self.core.shared.size;
        if at + u64::from(bytes) > u64::from(size) || at > u64::from(size) {
            self.outside(Space::Shared, at, bytes, lane, format!("the block has {size}"))?;
            return Ok(false);
        }
        let strict = self.env.options.strict_warp;
        let who = Who { warp: self.w.index as u8, lane: lane as u8, clocks: &self.w.clocks, strict };
        if let Some(clash) = self.core.shared.touch(at as u32, bytes, &who, what) {
            self.clash(clash, at, bytes, lane, what)?;
        }
        Ok(true)
    }

    #[cold]
    fn clash(&mut self, clash: Clash, at: u64, bytes: u32, lane: usize, what: Touch) -> Run {
        let thread = |w: u8, l: u8| format!("thread {} of the block", u32::from(w) * 32 + u32::from(l));
        match clash {
            Clash::Unwritten => self.unwritten(Space::Shared, at, bytes, lane),
            Clash::InFlight { warp, lane: l } => {
                let text = format!(
                    "{bytes} bytes of shared memory at {at:#x}: the copy of {} is in flight",
                    thread(warp, l)
                );
                self.fault(FaultKind::AsyncNotWaited, lane as u32, text)
            }
            Clash::Race { .. } if !self.env.options.check_races => Ok(()),
            Clash::Race { warp, lane: l, write } => {
                let other = l.map_or(format!("a thread of warp {warp}"), |l| thread(warp, l));
                let (mine, theirs) = (
                    if what == Touch::Read { "reads" } else { "writes" },
                    if write { "wrote" } else { "read" },
                );
                let me = thread(self.w.index as u8, lane as u8);
                let text = format!(
                    "{me} {mine} {bytes} bytes at {at:#x} that {other} {theirs} with no barrier between"
                );
                self.fault(FaultKind::SharedRace, lane as u32, text)
            }
        }
    }

    fn local(&mut self, at: u64, bytes: u32, lane: usize, value: &mut [u32; 4], write: bool) -> Run {
        // Four bytes a word, 32 lanes.
        let size = self.w.local.len() as u64 / 8;
        if at.saturating_add(u64::from(bytes)) > size {
            return self.outside(Space::Local, at, bytes, lane, format!("the thread has {size}"));
        }
        let first = (at / 4) as usize * 32 + lane;
        if bytes < 4 {
            let shift = 8 * (at % 4) as u32;
            let field = ((1u32 << (8 * bytes)) - 1) << shift;
            let known = (((1u32 << bytes) - 1) << (at % 4)) as u8;
            if write {
                self.w.local[first] = self.w.local[first] & !field | value[0] << shift & field;
                self.w.local_init[first] |= known;
            } else {
                value[0] = (self.w.local[first] & field) >> shift;
                if self.w.local_init[first] & known != known {
                    return self.unwritten(Space::Local, at, bytes, lane);
                }
            }
            return Ok(());
        }
        let mut all = 15;
        for i in 0..(bytes / 4) as usize {
            let word = first + i * 32;
            if write {
                self.w.local[word] = value[i];
                self.w.local_init[word] = 15;
            } else {
                value[i] = self.w.local[word];
                all &= self.w.local_init[word];
            }
        }
        if all == 15 { Ok(()) } else { self.unwritten(Space::Local, at, bytes, lane) }
    }

    fn param(&mut self, at: u64, bytes: u32, lane: usize, value: &mut [u32; 4], write: bool) -> Run {
        let params = self.env.params;
        let frame = (self.w.frame.param as u64).wrapping_add(at.wrapping_sub(FRAME_BASE));
        for b in 0..u64::from(bytes) {
            let (word, shift) = (b as usize / 4, 8 * (b as u32 % 4));
            let outside = |cx: &mut Self| {
                cx.outside(Space::Param, at, bytes, lane, format!("the kernel has {}", params.len()))
            };
            if at < FRAME_BASE {
                match (params.get((at + b) as usize), write) {
                    (Some(p), false) => value[word] = value[word] & !(0xff << shift) | u32::from(*p) << shift,
                    (Some(_), true) => {
                        return self.fault(FaultKind::ReadOnly, lane as u32, "a kernel parameter".into());
                    }
                    (None, _) => return outside(self),
                }
                continue;
            }
            let index = frame.wrapping_add(b).saturating_mul(32).saturating_add(lane as u64);
            match self.w.param.get_mut(usize::try_from(index).unwrap_or(usize::MAX)) {
                Some(p) if write => *p = (value[word] >> shift) as u8,
                Some(p) => value[word] = value[word] & !(0xff << shift) | u32::from(*p) << shift,
                None => return outside(self),
            }
        }
        Ok(())
    }

    /// Traffic and shape of a warp's request. A generic request counts where its first lane goes.
    fn count(&mut self, space: Space, addrs: &Wide, bytes: u32, write: bool) {
        let lanes = u64::from(self.mask.count_ones());
        let first = self.mask.trailing_zeros().min(31) as usize;
        let (space, _) = resolve(space, addrs[first]);
        let total = lanes * u64::from(bytes);
        let c = &mut self.core.counts;
        let traffic = match space {
            Space::Global | Space::Const => &mut c.global,
            Space::Shared => &mut c.shared,
            Space::Local => &mut c.local,
            _ => return,
        };
        if write {
            traffic.stored += total;
        } else {
            traffic.loaded += total;
        }
        match space {
            Space::Global => {
                let mut sectors: Vec<u64> = Vec::new();
                // Stack storage: a lane touches one sector, accesses are aligned and at most 16 bytes.
                let mut list = [0u64; 32];
                let mut n = 0;
                let mut sorted = true;
                for lane in self.lanes() {
                    let s = addrs[lane] / 32;
                    if n > 0 && list[n - 1] == s {
                        continue;
                    }
                    sorted &= n == 0 || list[n - 1] < s;
                    list[n] = s;
                    n += 1;
                }
                if !sorted {
                    sectors.extend(&list[..n]);
                    sectors.sort_unstable();
                    sectors.dedup();
                    n = sectors.len();
                }
                let c = &mut self.core.counts;
                c.global_sectors += n as u64;
                c.global_sectors_ideal += (n as u64).min(total.div_ceil(32));
            }
            Space::Shared => {
                let mut rows = [0u32; 32];
                let mut n = 0;
                for lane in self.lanes() {
                    rows[n] = addrs[lane] as u32;
                    n += 1;
                }
                self.count_banks(&rows[..n], bytes);
            }
            _ => {}
        }
    }

    /// Passes through the 32 banks: lanes are served 128 bytes at a time, equal words together.
    pub(super) fn count_banks(&mut self, addrs: &[u32], bytes: u32) {
        let group = (128 / bytes.max(4)) as usize;
        for phase in addrs.chunks(group.max(1)) {
            let mut seen = [[u32::MAX; 32]; 32];
            let mut depth = [0u8; 32];
            let mut most = 0;
            for at in phase {
                for word in at / 4..(at + bytes).div_ceil(4) {
                    let bank = (word % 32) as usize;
                    let n = depth[bank] as usize;
                    if n < 32 && !seen[bank][..n].contains(&word) {
                        seen[bank][n] = word;
                        depth[bank] += 1;
                        most = most.max(depth[bank]);
                    }
                }
            }
            self.core.counts.shared_wavefronts += u64::from(most);
            self.core.counts.shared_wavefronts_ideal += 1;
        }
    }

    pub(super) fn atomic(
        &mut self,
        space: Space,
        op: AtomOp,
        ty: Ty,
        d: Option<Reg>,
        addr: &Addr,
        s: &[Src; 2],
    ) -> Run {
        let addrs = self.addresses(addr);
        let (b, c) = (self.fetch_wide(&s[0]), self.fetch_wide(&s[1]));
        let bytes = ty.size();
        let mut old: Wide = [0; 32];
        for lane in self.lanes() {
            let (space, at) = resolve(space, addrs[lane]);
            if !self.aligned(at, bytes, lane)? {
                continue;
            }
            let update = |v: u64| rmw(op, ty, v, b[lane], c[lane]);
            match space {
                Space::Shared => {
                    if self.shared_access(at, bytes, lane, Touch::Atomic)? {
                        let mut v = [0; 4];
                        self.core.shared.read(at as u32, bytes, &mut v);
                        old[lane] = u64::from(v[0]) | u64::from(v[1]) << 32;
                        let new = update(old[lane]);
                        self.core.shared.write(at as u32, bytes, &[new as u32, (new >> 32) as u32, 0, 0]);
                    }
                }
                Space::Global => {
                    let Some(a) = self.global(space, at, bytes, lane, true)? else { continue };
                    let mut v = [0; 4];
                    if !a.read(at - a.base, bytes, &mut v) {
                        self.unwritten(space, at, bytes, lane)?;
                    }
                    old[lane] = global_rmw(a, at - a.base, bytes, update);
                }
                other => {
                    self.outside(other, at, bytes, lane, "atomics need global or shared memory".into())?
                }
            }
        }
        self.count(space, &addrs, bytes, true);
        if let Some(d) = d {
            self.w.put_wide(d, self.mask, &old);
        }
        Ok(())
    }

    pub(super) fn cp_async(&mut self) -> Run {
        let Op::CpAsync { bytes, dst, src, src_size, ignore } = &self.inst.op else { return Ok(()) };
        let bytes = u32::from(*bytes);
        let (to, from) = (self.addresses(dst), self.addresses(src));
        let sizes = src_size.as_ref().map_or([bytes; 32], |s| self.fetch(s));
        let skip = ignore.map_or(0, |g| self.guard(g));
        for lane in self.lanes() {
            let (_, at) = resolve(Space::Generic, to[lane]);
            if !self.aligned(at, bytes, lane)? || !self.aligned(from[lane], bytes, lane)? {
                continue;
            }
            let size = if skip >> lane & 1 == 1 { 0 } else { sizes[lane] };
            if size > bytes {
                self.fault(
                    FaultKind::BadOperand,
                    lane as u32,
                    format!("{size} source bytes for a copy of {bytes}"),
                )?;
                continue;
            }
            let mut value = [0; 4];
            self.partial_read(from[lane], size, lane, &mut value)?;
            if self.shared_access(at, bytes, lane, Touch::Async)? {
                self.core.shared.write(at as u32, bytes, &value);
                self.w.open.push(Flight { at: at as u32, bytes, lane: lane as u8, line: self.inst.line });
            }
        }
        self.count(Space::Global, &from, bytes, false);
        let shared = to.map(|t| resolve(Space::Generic, t).1);
        self.count(Space::Shared, &shared, bytes, true);
        Ok(())
    }

    /// Reads `size` bytes (any number up to 16) from global memory, the rest stays zero.
    fn partial_read(&mut self, at: u64, size: u32, lane: usize, value: &mut [u32; 4]) -> Run {
        if matches!(size, 4 | 8 | 16) {
            return self.read(Space::Global, at, size, lane, value);
        }
        for b in 0..size {
            let mut byte = [0; 4];
            self.read(Space::Global, at + u64::from(b), 1, lane, &mut byte)?;
            value[b as usize / 4] |= byte[0] << (8 * (b % 4));
        }
        Ok(())
    }

    pub(super) fn cp_commit(&mut self) {
        let mask = self.mask;
        let mine = |f: &Flight| mask >> f.lane & 1 == 1;
        let flights = self.w.open.iter().copied().filter(mine).collect();
        self.w.open.retain(|f| !mine(f));
        self.w.groups.push(Group { lanes: mask, flights });
    }

    /// Lands the copies of all groups but the `pending` newest of each lane.
    pub(super) fn cp_wait(&mut self, pending: u32, all: bool) {
        let mask = self.mask;
        let now = self.w.clocks[self.w.index as usize & 31];
        let shared = &mut self.core.shared;
        let mut newer = [0u32; 32];
        for group in self.w.groups.iter_mut().rev() {
            let done = |lane: u8| mask >> lane & 1 == 1 && newer[lane as usize] >= pending;
            group.flights.retain(|f| {
                let landed = done(f.lane);
                if landed {
                    shared.land(f.at, f.bytes, now);
                }
                !landed
            });
            for (lane, n) in newer.iter_mut().enumerate().filter(|(l, _)| group.lanes >> l & 1 == 1) {
                *n += u32::from(mask >> lane & 1);
            }
        }
        if all {
            self.w.open.retain(|f| {
                let landed = mask >> f.lane & 1 == 1;
                if landed {
                    shared.land(f.at, f.bytes, now);
                }
                !landed
            });
        }
        // Old groups with nothing in flight no longer matter: waits count from the newest.
        let keep = self.w.groups.iter().position(|g| !g.flights.is_empty()).unwrap_or(self.w.groups.len());
        self.w.groups.drain(..keep);
    }

    /// Exiting lanes must not leave copies behind.
    pub(super) fn leaked(&mut self, gone: u32) -> Run {
        let flights = self.w.groups.iter().flat_map(|g| &g.flights).chain(&self.w.open);
        let Some(f) = flights.copied().find(|f| gone >> f.lane & 1 == 1) else { return Ok(()) };
        let text =
            format!("the copy of {} bytes to shared {:#x} issued at PTX line {}", f.bytes, f.at, f.line);
        self.fault(FaultKind::AsyncLeaked, u32::from(f.lane), text)
    }
}

fn global_rmw(a: &Alloc, offset: u64, bytes: u32, update: impl Fn(u64) -> u64) -> u64 {
    if bytes == 8 {
        let _guard = WIDE_ATOMIC.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let (low, high) = (a.word(offset), a.word(offset + 4));
        let old = u64::from(low.load(Relaxed)) | u64::from(high.load(Relaxed)) << 32;
        let new = update(old);
        a.write(offset, 8, &[new as u32, (new >> 32) as u32, 0, 0]);
        return old;
    }
    let shift = 8 * (offset % 4) as u32;
    let field = if bytes == 4 { u32::MAX } else { 0xffff << shift };
    let word = a.word(offset);
    let mut old = word.load(Relaxed);
    loop {
        let value = u64::from((old & field) >> shift);
        let new = old & !field | (update(value) as u32) << shift & field;
        match word.compare_exchange_weak(old, new, Relaxed, Relaxed) {
            Ok(_) => return value,
            Err(now) => old = now,
        }
    }
}

fn rmw(op: AtomOp, ty: Ty, old: u64, b: u64, c: u64) -> u64 {
    let bits = ty.bits();
    let m = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
    let (old, b, c) = (old & m, b & m, c & m);
    let up = 64 - bits;
    let less = if ty.signed() { ((b << up) as i64) < (old << up) as i64 } else { b < old };
    match op {
        AtomOp::Add if ty == Ty::F64 => (f64::from_bits(old) + f64::from_bits(b)).to_bits(),
        AtomOp::Add | AtomOp::Min | AtomOp::Max if ty.float() => {
            let f = match op {
                AtomOp::Add => FloatOp::Add,
                AtomOp::Min => FloatOp::Min,
                _ => FloatOp::Max,
            };
            let one = |shift: u32| {
                narrow(f, ty, FMod::default(), old >> shift & 0xffff, b >> shift & 0xffff, 0) << shift
            };
            if matches!(ty, Ty::F16x2 | Ty::Bf16x2) {
                one(0) | one(16)
            } else {
                narrow(f, ty, FMod::default(), old, b, 0)
            }
        }
        AtomOp::Add => old.wrapping_add(b) & m,
        AtomOp::Min => {
            if less {
                b
            } else {
                old
            }
        }
        AtomOp::Max => {
            if less {
                old
            } else {
                b
            }
        }
        AtomOp::Exch => b,
        AtomOp::Cas => {
            if old == b {
                c
            } else {
                old
            }
        }
        AtomOp::And => old & b,
        AtomOp::Or => old | b,
        AtomOp::Xor => old ^ b,
        AtomOp::Inc => {
            if old >= b {
                0
            } else {
                old + 1
            }
        }
        AtomOp::Dec => {
            if old == 0 || old > b {
                b
            } else {
                old - 1
            }
        }
    }
}
