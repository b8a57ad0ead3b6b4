//! Loads and stores, with their checks.

use super::address::resolve;
use super::context::{Cx, Run, describe};
use crate::env::OnFault;
use crate::error::FaultKind;
use crate::ir::{Addr, FRAME_BASE, Reg, Space, Src, Ty};
use crate::memory::Alloc;
use crate::shared::{Clash, Touch, Who};
use crate::warp::{ALL, Lanes, Wide, each};

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
        let base = self.fetch_wide(&addr.base);
        each(|l| base[l].wrapping_add(addr.offset as u64))
    }

    pub(super) fn load(&mut self, space: Space, ty: Ty, d: &[Option<Reg>], addr: &Addr) -> Run {
        let addrs = self.addresses(addr);
        let size = ty.size();
        let bytes = size * d.len() as u32;
        let mut words = [[0u32; 32]; 4];
        if !self.load_at_once(space, &addrs, bytes, &mut words) {
            for lane in self.lanes() {
                let mut out = [0; 4];
                let (space, at) = resolve(space, addrs[lane]);
                self.read(space, at, bytes, lane, &mut out)?;
                for (w, o) in words.iter_mut().zip(out) {
                    w[lane] = o;
                }
            }
        }
        self.count(space, &addrs, bytes, false);
        if self.env.options.latencies.is_some() {
            self.look_near(space, &addrs);
        }
        for (i, d) in d.iter().enumerate() {
            let Some(d) = d else { continue };
            match size {
                8 => {
                    let v: Wide = each(|l| u64::from(words[2 * i][l]) | u64::from(words[2 * i + 1][l]) << 32);
                    self.w.put_wide(*d, self.mask, &v);
                }
                4 => self.w.put(*d, self.mask, &words[i], ty.signed()),
                _ => {
                    let bit = size * 8 * i as u32;
                    let up = 32 - size * 8;
                    let v: Lanes = each(|l| words[bit as usize / 32][l] >> (bit % 32) << up);
                    let v =
                        if ty.signed() { each(|l| (v[l] as i32 >> up) as u32) } else { each(|l| v[l] >> up) };
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
        if !self.store_at_once(space, &addrs, bytes, &words) {
            for lane in self.lanes() {
                let value = std::array::from_fn(|i| words[i][lane]);
                let (space, at) = resolve(space, addrs[lane]);
                self.write(space, at, bytes, lane, &value)?;
            }
        }
        self.count(space, &addrs, bytes, true);
        Ok(())
    }

    /// Space and bounds of a whole warp's access, if all of it is aligned and in one space.
    fn extent(&self, space: Space, addrs: &Wide, bytes: u32) -> Option<(Space, u64, u64)> {
        let (mut low, mut high, mut bits) = (u64::MAX, 0, 0);
        if self.mask == ALL {
            for a in addrs {
                (low, high, bits) = (low.min(*a), high.max(*a), bits | a);
            }
        } else {
            for lane in self.lanes() {
                let a = addrs[lane];
                (low, high, bits) = (low.min(a), high.max(a), bits | a);
            }
        }
        let (first, from) = resolve(space, low);
        let (last, to) = resolve(space, high);
        (first == last && bits & u64::from(bytes - 1) == 0).then_some((
            first,
            from,
            to.checked_add(bytes.into())?,
        ))
    }

    /// A load without any doubt about it, checked once for the whole warp; false: nothing was done, lane by lane now.
    fn load_at_once(&mut self, space: Space, addrs: &Wide, bytes: u32, words: &mut [Lanes; 4]) -> bool {
        let Some((to, low, end)) = self.extent(space, addrs, bytes) else { return false };
        match to {
            Space::Shared => {
                if end > u64::from(self.core.shared.size) {
                    return false;
                }
                let clocks = &self.w.clocks;
                let (warp, strict) = (self.w.index as u8, self.env.options.strict_warp);
                let mut before: Option<usize> = None;
                for lane in self.lanes() {
                    // Lanes that read the same place follow each other; one look serves them.
                    if let Some(b) = before.filter(|b| addrs[*b] == addrs[lane] && !strict) {
                        words.iter_mut().for_each(|w| w[lane] = w[b]);
                        continue;
                    }
                    before = Some(lane);
                    let who = Who { warp, lane: lane as u8, clocks, strict };
                    let at = addrs[lane] as u32;
                    // Shared addresses have 32 bits in either form: the windows are multiples of 2^32.
                    if !self.core.shared.quiet_read(at, bytes, &who) {
                        return false;
                    }
                    let mut out = [0; 4];
                    self.core.shared.read(at, bytes, &mut out);
                    words.iter_mut().zip(out).for_each(|(w, o)| w[lane] = o);
                }
                true
            }
            Space::Param if low + u64::from(bytes) == end && low < FRAME_BASE => {
                let (Ok(from), Ok(end)) = (usize::try_from(low), usize::try_from(end)) else { return false };
                let Some(source) = self.env.params.get(from..end) else { return false };
                let mut value = [0u8; 16];
                value[..source.len()].copy_from_slice(source);
                for (w, b) in words.iter_mut().zip(value.chunks_exact(4)) {
                    *w = [u32::from_le_bytes([b[0], b[1], b[2], b[3]]); 32];
                }
                true
            }
            Space::Global => {
                let Some(a) = self.whole(low, end) else { return false };
                let mut known = true;
                for lane in self.lanes() {
                    let mut out = [0; 4];
                    known &= a.read(addrs[lane] - a.base, bytes, &mut out);
                    words.iter_mut().zip(out).for_each(|(w, o)| w[lane] = o);
                }
                known
            }
            _ => false,
        }
    }

    /// The same for stores.
    fn store_at_once(&mut self, space: Space, addrs: &Wide, bytes: u32, words: &[Lanes; 4]) -> bool {
        let Some((Space::Global, low, end)) = self.extent(space, addrs, bytes) else { return false };
        let Some(a) = self.whole(low, end).filter(|a| !a.constant) else { return false };
        for lane in self.lanes() {
            a.write(addrs[lane] - a.base, bytes, &std::array::from_fn(|i| words[i][lane]));
        }
        true
    }

    /// The allocation that holds all of a range.
    fn whole(&mut self, low: u64, end: u64) -> Option<&'a Alloc> {
        let memory = self.env.memory;
        let bytes = end - low;
        if let Some(a) = memory.alloc(self.w.hint).filter(|a| a.contains(low, bytes)) {
            return Some(a);
        }
        self.w.hint = memory.find(low, bytes)?;
        memory.alloc(self.w.hint)
    }

    /// True if the address is a multiple of the access size; else a fault.
    pub(super) fn aligned(&mut self, at: u64, bytes: u32, lane: usize) -> Run<bool> {
        if at.is_multiple_of(u64::from(bytes)) {
            return Ok(true);
        }
        self.fault(FaultKind::Misaligned, lane as u32, format!("{bytes}-byte access at {at:#x}"))?;
        Ok(false)
    }

    pub(super) fn outside(&mut self, space: Space, at: u64, bytes: u32, lane: usize, place: String) -> Run {
        let text = format!("{bytes} bytes of {} memory at {at:#x}, {place}", space_name(space));
        self.fault(FaultKind::OutOfBounds, lane as u32, text)
    }

    pub(super) fn unwritten(&mut self, space: Space, at: u64, bytes: u32, lane: usize) -> Run {
        if !self.env.options.check_uninitialised {
            return Ok(());
        }
        let text = format!("{bytes} bytes of {} memory at {at:#x}", space_name(space));
        if space == Space::Shared
            && self.env.options.on_fault == OnFault::Abort
            && self.env.options.check_races
        {
            if self.core.suspect.is_none() {
                let kind = FaultKind::UninitialisedMemory;
                let (env, line) = (self.env, self.inst.line);
                self.core.suspect =
                    Some(describe(env, self.core.ctaid, self.w, line, kind, lane as u32, text));
            }
            return Ok(());
        }
        self.fault(FaultKind::UninitialisedMemory, lane as u32, text)
    }

    /// The allocation around an access; None after a fault.
    pub(super) fn global(
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

    pub(super) fn read(&mut self, space: Space, at: u64, bytes: u32, lane: usize, out: &mut [u32; 4]) -> Run {
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

    pub(super) fn write(&mut self, space: Space, at: u64, bytes: u32, lane: usize, value: &[u32; 4]) -> Run {
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
        if at > u64::from(size) || at + u64::from(bytes) > u64::from(size) {
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
    pub(super) fn clash(&mut self, clash: Clash, at: u64, bytes: u32, lane: usize, what: Touch) -> Run {
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
            Clash::BeingRead => {
                let text = format!(
                    "{bytes} bytes of shared memory at {at:#x}: an asynchronous reader has not finished"
                );
                self.fault(FaultKind::AsyncNotWaited, lane as u32, text)
            }
            Clash::Unfenced { warp, lane: l } => {
                let text = format!(
                    "{bytes} bytes of shared memory at {at:#x}, stored by {} with no fence.proxy.async behind it",
                    thread(warp, l)
                );
                self.fault(FaultKind::AsyncNotFenced, lane as u32, text)
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
        for (i, value) in value.iter_mut().enumerate().take((bytes / 4) as usize) {
            let word = first + i * 32;
            if write {
                self.w.local[word] = *value;
                self.w.local_init[word] = 15;
            } else {
                *value = self.w.local[word];
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
}
