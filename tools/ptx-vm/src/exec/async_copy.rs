//! `cp.async`: the data moves at once, but the destination counts as in flight until the thread waits for it.

use super::address::resolve;
use super::context::{Cx, Run};
use crate::error::FaultKind;
use crate::ir::{Op, Space};
use crate::shared::Touch;
use crate::warp::{Flight, Group};

impl Cx<'_> {
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
        let mut flights = self.w.spare.pop().unwrap_or_default();
        flights.extend(self.w.open.iter().copied().filter(mine));
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
                *n += mask >> lane & 1;
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
        self.w.spare.extend(self.w.groups.drain(..keep).map(|g| g.flights));
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
