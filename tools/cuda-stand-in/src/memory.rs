//! Memory as addresses only: what is live, what was freed, what is left.

use crate::codes::{Answer, Code, refuse};
use std::collections::BTreeMap;

/// First address that is given out: far from where hosts have their memory, and no two numbers of 32 bits that a kernel is
/// given beside each other look like one.
const FIRST: u64 = 0x7e57_0000_0000_0000;
/// What memory is given out in, bytes.
const UNIT: u64 = 512;
/// Addresses between two allocations that belong to nobody, bytes.
const GAP: u64 = 4096;
/// Freed pinned buffers whose addresses are kept from the host's allocator, so that their use can be told.
const QUARANTINE: usize = 8;

/// The device's memory. No address is given out twice.
#[derive(Debug)]
pub struct Memory {
    live: BTreeMap<u64, u64>,
    freed: BTreeMap<u64, u64>,
    next: u64,
    used: u64,
    total: u64,
}

fn units(bytes: u64) -> Option<u64> {
    bytes.checked_next_multiple_of(UNIT)
}

/// The stretch of `all` that `at` lies in.
fn within(all: &BTreeMap<u64, u64>, at: u64) -> Option<(u64, u64)> {
    all.range(..=at).next_back().map(|(s, b)| (*s, *b)).filter(|(start, bytes)| at - start < *bytes)
}

impl Memory {
    pub fn new(total: u64) -> Self {
        Memory { live: BTreeMap::new(), freed: BTreeMap::new(), next: FIRST, used: 0, total }
    }

    pub fn allocate(&mut self, bytes: u64) -> Answer<u64> {
        if bytes == 0 {
            return refuse(Code::InvalidValue, "an allocation of no bytes");
        }
        let fits = units(bytes).filter(|b| *b <= self.total.saturating_sub(self.used));
        let Some(taken) = fits else {
            let why =
                format!("{bytes} bytes are asked for, {} of {} are left", self.total - self.used, self.total);
            return refuse(Code::OutOfMemory, why);
        };
        let at = self.next;
        self.next += taken + GAP;
        self.used += taken;
        self.live.insert(at, bytes);
        Ok(at)
    }

    pub fn free(&mut self, at: u64) -> Answer {
        let Some(bytes) = self.live.remove(&at) else {
            return refuse(Code::InvalidValue, format!("{} cannot be freed", self.describe(at)));
        };
        self.used -= units(bytes).unwrap_or(bytes);
        self.freed.insert(at, bytes);
        Ok(())
    }

    /// An address in words.
    fn describe(&self, at: u64) -> String {
        if let Some((start, bytes)) = within(&self.live, at) {
            format!("{at:#x}, byte {} of an allocation of {bytes},", at - start)
        } else if let Some((start, bytes)) = within(&self.freed, at) {
            format!("{at:#x}, byte {} of {bytes} that were freed,", at - start)
        } else {
            format!("{at:#x}, which was never given out,")
        }
    }

    /// The allocation that holds `bytes` at `at`.
    pub fn range(&self, at: u64, bytes: u64) -> Answer<u64> {
        let Some((start, have)) = within(&self.live, at) else {
            return refuse(Code::InvalidValue, format!("{} is used", self.describe(at)));
        };
        if bytes > have - (at - start) {
            let why = format!("{bytes} bytes from {} leave it", self.describe(at));
            return refuse(Code::InvalidValue, why);
        }
        Ok(start)
    }

    /// The live allocation that `at` lies in.
    pub fn owner(&self, at: u64) -> Option<u64> {
        within(&self.live, at).map(|(start, _)| start)
    }

    /// Whether `at` lies in memory that was freed.
    pub fn is_freed(&self, at: u64) -> bool {
        within(&self.freed, at).is_some()
    }

    pub fn is_live(&self, start: u64) -> bool {
        self.live.contains_key(&start)
    }

    /// Free and all bytes.
    pub fn info(&self) -> (u64, u64) {
        (self.total - self.used, self.total)
    }

    pub fn len(&self) -> u64 {
        self.live.len() as u64
    }

    /// As much memory as there is from now on.
    pub fn resize(&mut self, total: u64) {
        self.total = total;
    }

    /// Frees all.
    pub fn clear(&mut self) {
        self.freed.append(&mut self.live);
        self.used = 0;
    }
}

/// Pinned memory of the host: real memory, as programs write into it.
#[derive(Debug, Default)]
pub struct Pinned {
    live: BTreeMap<u64, Vec<u8>>,
    freed: Vec<(u64, Vec<u8>)>,
}

impl Pinned {
    pub fn allocate(&mut self, bytes: usize) -> Answer<u64> {
        if bytes == 0 {
            return refuse(Code::InvalidValue, "pinned memory of no bytes");
        }
        let mut memory = Vec::<u8>::new();
        if memory.try_reserve_exact(bytes).is_err() {
            return refuse(Code::OutOfMemory, format!("{bytes} bytes of pinned memory"));
        }
        memory.resize(bytes, 0);
        let at = memory.as_ptr() as u64;
        self.live.insert(at, memory);
        Ok(at)
    }

    fn was_freed(&self, at: u64) -> bool {
        self.freed.iter().any(|(start, m)| at >= *start && at - start < m.len() as u64)
    }

    pub fn free(&mut self, at: u64) -> Answer {
        match self.live.remove(&at) {
            Some(memory) => {
                self.quarantine(at, memory);
                Ok(())
            }
            None if self.was_freed(at) => {
                refuse(Code::InvalidValue, format!("pinned memory {at:#x} is freed twice"))
            }
            None => refuse(Code::InvalidValue, format!("pinned memory {at:#x} was never given out")),
        }
    }

    fn quarantine(&mut self, at: u64, memory: Vec<u8>) {
        self.freed.push((at, memory));
        if self.freed.len() > QUARANTINE {
            self.freed.remove(0);
        }
    }

    /// The pinned buffer that `bytes` at `at` lie in, None for other memory of the host.
    pub fn range(&self, at: u64, bytes: u64) -> Answer<Option<u64>> {
        if let Some((start, memory)) = self.live.range(..=at).next_back()
            && at - start < memory.len() as u64
        {
            if bytes > memory.len() as u64 - (at - start) {
                let why = format!("{bytes} bytes at {at:#x} leave pinned memory of {}", memory.len());
                return refuse(Code::InvalidValue, why);
            }
            return Ok(Some(*start));
        }
        if self.was_freed(at) {
            return refuse(Code::InvalidValue, format!("pinned memory {at:#x} is used after it was freed"));
        }
        Ok(None)
    }

    pub fn is_live(&self, start: u64) -> bool {
        self.live.contains_key(&start)
    }

    pub fn len(&self) -> u64 {
        self.live.len() as u64
    }

    /// Frees all.
    pub fn clear(&mut self) {
        for (at, memory) in std::mem::take(&mut self.live) {
            self.quarantine(at, memory);
        }
    }
}
