//! Global memory: allocations with guard gaps, and a shadow that knows which bytes were ever written.
//!
//! Blocks of a launch share this memory between threads of the host. All words are atomics accessed with relaxed
//! ordering, so a kernel that races with itself gives some mixture of its values but never undefined behaviour here.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};

use crate::error::{Error, Result};
use crate::ir::Space;
use crate::module::Module;

/// First address handed out; everything below (null included) and the windows of other spaces is out of bounds.
const FIRST: u64 = 0x10_0000_0000;
const ALIGN: u64 = 256;
/// Keeps sums of addresses and sizes far from overflow.
const MAX_LIMIT: u64 = 1 << 46;

/// One allocation.
#[derive(Debug)]
pub(crate) struct Alloc {
    pub base: u64,
    pub size: u64,
    pub constant: bool,
    words: Box<[AtomicU32]>,
    /// Four bits per word: which of its bytes were written.
    init: Box<[AtomicU8]>,
}

impl Alloc {
    /// None if the host has not enough memory.
    fn new(base: u64, size: u64, constant: bool) -> Option<Self> {
        let n = usize::try_from(size.div_ceil(4)).ok()?;
        // Zeroed pages come from the system untouched, so large allocations cost nothing until they are used.
        let words = bytemuck::try_zeroed_slice_box(n).ok()?;
        Some(Alloc { base, size, constant, words, init: bytemuck::try_zeroed_slice_box(n).ok()? })
    }

    pub fn contains(&self, addr: u64, bytes: u64) -> bool {
        addr >= self.base && addr - self.base < self.size && bytes <= self.size - (addr - self.base)
    }

    /// Reads up to 16 bytes at a naturally aligned offset; false if any of them was never written.
    pub fn read(&self, offset: u64, bytes: u32, out: &mut [u32; 4]) -> bool {
        let first = (offset / 4) as usize;
        if bytes < 4 {
            let shift = (offset % 4) as u32;
            let mask = ((1u32 << bytes) - 1) << shift;
            out[0] = self.words[first].load(Relaxed) >> (8 * shift) & ((1u64 << (8 * bytes)) - 1) as u32;
            return u32::from(self.init[first].load(Relaxed)) & mask == mask;
        }
        let n = (bytes / 4) as usize;
        let (words, init) = (&self.words[first..first + n], &self.init[first..first + n]);
        let mut known = 15;
        for ((o, w), i) in out.iter_mut().zip(words).zip(init) {
            *o = w.load(Relaxed);
            known &= i.load(Relaxed);
        }
        known == 15
    }

    /// Writes up to 16 bytes at a naturally aligned offset.
    pub fn write(&self, offset: u64, bytes: u32, value: &[u32; 4]) {
        let first = (offset / 4) as usize;
        if bytes < 4 {
            let shift = (offset % 4) as u32;
            let mask = (((1u64 << (8 * bytes)) - 1) as u32) << (8 * shift);
            let bits = value[0] << (8 * shift) & mask;
            let merge = |old: u32| old & !mask | bits;
            let word = &self.words[first];
            let mut old = word.load(Relaxed);
            while let Err(now) = word.compare_exchange_weak(old, merge(old), Relaxed, Relaxed) {
                old = now;
            }
            let known = (((1u32 << bytes) - 1) << shift) as u8;
            if self.init[first].load(Relaxed) & known != known {
                self.init[first].fetch_or(known, Relaxed);
            }
            return;
        }
        let n = (bytes / 4) as usize;
        for ((v, w), i) in value.iter().zip(&self.words[first..first + n]).zip(&self.init[first..first + n]) {
            w.store(*v, Relaxed);
            i.store(15, Relaxed);
        }
    }

    /// The word at a byte offset (a multiple of four), for atomics.
    pub fn word(&self, offset: u64) -> &AtomicU32 {
        &self.words[(offset / 4) as usize]
    }

    /// Copies host bytes in. The bounds have been checked.
    fn fill_from(&mut self, offset: u64, bytes: impl ExactSizeIterator<Item = u8>) {
        for (at, byte) in (offset..).zip(bytes) {
            let (word, shift) = ((at / 4) as usize, (at % 4) * 8);
            let w = self.words[word].get_mut();
            *w = *w & !(0xff << shift) | u32::from(byte) << shift;
            *self.init[word].get_mut() |= 1 << (at % 4);
        }
    }
}

/// Device memory: what `cuMemAlloc` and its kin operate on. One owner keeps it, behind a lock where threads share it.
#[derive(Debug)]
pub struct Memory {
    /// Sorted by address.
    allocs: Vec<Alloc>,
    next: u64,
    /// Addresses of the variables of modules that have been launched or looked up.
    modules: HashMap<u64, Vec<u64>>,
    used: u64,
    limit: u64,
}

impl Default for Memory {
    fn default() -> Self {
        Self::new(80 << 30)
    }
}

impl Memory {
    /// A device with `limit` bytes. Host memory is only spent on pages that are touched.
    pub fn new(limit: u64) -> Self {
        Memory {
            allocs: Vec::new(),
            next: FIRST,
            modules: HashMap::new(),
            used: 0,
            limit: limit.min(MAX_LIMIT),
        }
    }

    /// Bytes allocated now.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// The device's size in bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Allocates uninitialised memory: 256-byte aligned, with an inaccessible gap of at least 256 bytes behind it.
    /// Addresses are never reused, so a use after [`Memory::free`] is always noticed.
    pub fn allocate(&mut self, bytes: u64) -> Result<u64> {
        self.allocate_as(bytes, false)
    }

    fn allocate_as(&mut self, bytes: u64, constant: bool) -> Result<u64> {
        if bytes > self.limit - self.used.min(self.limit) {
            return Err(Error::Memory(format!(
                "cannot allocate {bytes} bytes: {} of {} are in use",
                self.used, self.limit
            )));
        }
        let base = self.next;
        let Some(alloc) = Alloc::new(base, bytes, constant) else {
            return Err(Error::Memory(format!("the host cannot provide {bytes} bytes")));
        };
        self.next = base + bytes.next_multiple_of(ALIGN) + ALIGN;
        self.used += bytes;
        self.allocs.push(alloc);
        Ok(base)
    }

    /// Frees an allocation by its address.
    pub fn free(&mut self, address: u64) -> Result<()> {
        match self.allocs.binary_search_by_key(&address, |a| a.base) {
            Ok(i) => {
                self.used -= self.allocs.remove(i).size;
                Ok(())
            }
            Err(_) => Err(Error::Memory(format!("{address:#x} is not the address of an allocation"))),
        }
    }

    fn range(&self, address: u64, bytes: u64) -> Result<usize> {
        self.find(address, bytes).ok_or_else(|| {
            Error::Memory(format!("{bytes} bytes at {address:#x} are not inside one allocation"))
        })
    }

    /// Copies host bytes to the device.
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let at = self.range(address, bytes.len() as u64)?;
        let alloc = &mut self.allocs[at];
        let mut offset = address - alloc.base;
        let mut rest = bytes;
        if offset.is_multiple_of(4) {
            let whole = rest.chunks_exact(4);
            rest = whole.remainder();
            let first = (offset / 4) as usize;
            for ((w, i), b) in alloc.words[first..].iter_mut().zip(&mut alloc.init[first..]).zip(whole) {
                *w.get_mut() = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                *i.get_mut() = 15;
            }
            offset += (bytes.len() - rest.len()) as u64;
        }
        alloc.fill_from(offset, rest.iter().copied());
        Ok(())
    }

    /// Copies device bytes to the host. Bytes that nobody wrote read as zero; see [`Memory::unwritten`].
    pub fn read(&self, address: u64, out: &mut [u8]) -> Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        let alloc = &self.allocs[self.range(address, out.len() as u64)?];
        let offset = address - alloc.base;
        for (at, byte) in (offset..).zip(out) {
            *byte = (alloc.words[(at / 4) as usize].load(Relaxed) >> (8 * (at % 4))) as u8;
        }
        Ok(())
    }

    /// Offset of the first byte of a range that was never written.
    pub fn unwritten(&self, address: u64, bytes: u64) -> Result<Option<u64>> {
        if bytes == 0 {
            return Ok(None);
        }
        let alloc = &self.allocs[self.range(address, bytes)?];
        let offset = address - alloc.base;
        let known = |at: u64| alloc.init[(at / 4) as usize].load(Relaxed) >> (at % 4) & 1 == 1;
        Ok((0..bytes).find(|i| !known(offset + i)))
    }

    /// Sets bytes.
    pub fn memset(&mut self, address: u64, value: u8, bytes: u64) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let at = self.range(address, bytes)?;
        let alloc = &mut self.allocs[at];
        let offset = address - alloc.base;
        let (head, tail) = (offset.next_multiple_of(4).min(offset + bytes), (offset + bytes) / 4 * 4);
        alloc.fill_from(offset, vec![value; (head - offset) as usize].into_iter());
        if tail > head {
            let words = (head / 4) as usize..(tail / 4) as usize;
            alloc.words[words.clone()].iter_mut().for_each(|w| *w.get_mut() = u32::from_ne_bytes([value; 4]));
            alloc.init[words].iter_mut().for_each(|i| *i.get_mut() = 15);
        }
        let from = tail.max(head);
        alloc.fill_from(from, vec![value; (offset + bytes - from) as usize].into_iter());
        Ok(())
    }

    /// Copies between device ranges (which may overlap). The whole destination counts as written afterwards.
    pub fn copy(&mut self, to: u64, from: u64, bytes: u64) -> Result<()> {
        self.range(to, bytes.max(1))?;
        self.range(from, bytes.max(1))?;
        let mut staged = vec![0; bytes as usize];
        self.read(from, &mut staged)?;
        self.write(to, &staged)
    }

    /// Address and size of a module's `.global` or `.const` variable.
    pub fn symbol(&mut self, module: &Module, name: &str) -> Result<(u64, u64)> {
        let unknown = || Error::Memory(format!("the module has no variable `{name}`"));
        let id = *module.names.get(name).ok_or_else(unknown)?;
        let addresses = self.instantiate(module)?;
        let address = addresses.get(id as usize).copied().filter(|&a| a != 0).ok_or_else(unknown)?;
        Ok((address, module.symbols.get(id as usize).map_or(0, |s| s.size)))
    }

    /// Places the variables of a module, once.
    pub(crate) fn instantiate(&mut self, module: &Module) -> Result<Vec<u64>> {
        if let Some(found) = self.modules.get(&module.id) {
            return Ok(found.clone());
        }
        let mut addresses = Vec::with_capacity(module.symbols.len());
        for s in module.symbols.iter() {
            let placed = matches!(s.space, Space::Global | Space::Const);
            addresses.push(if placed { self.allocate_as(s.size, s.space == Space::Const)? } else { 0 });
        }
        for (s, &address) in module.symbols.iter().zip(&addresses).filter(|(_, a)| **a != 0) {
            // Variables without an initialiser are zero, as the language says.
            self.memset(address, 0, s.size)?;
            self.write(address, &s.init)?;
            for &(at, target, offset) in &s.relocations {
                let value = addresses.get(target as usize).copied().unwrap_or(0).wrapping_add(offset as u64);
                self.write(address + at, &value.to_le_bytes())?;
            }
        }
        self.modules.insert(module.id, addresses.clone());
        Ok(addresses)
    }

    /// Forgets a module's variables and frees them.
    pub fn unload(&mut self, module: &Module) -> Result<()> {
        for address in self.modules.remove(&module.id).unwrap_or_default().into_iter().filter(|a| *a != 0) {
            self.free(address)?;
        }
        Ok(())
    }

    /// Index of the allocation that contains the whole range.
    pub(crate) fn find(&self, address: u64, bytes: u64) -> Option<usize> {
        let at = self.allocs.partition_point(|a| a.base <= address).checked_sub(1)?;
        self.allocs[at].contains(address, bytes).then_some(at)
    }

    pub(crate) fn alloc(&self, index: usize) -> Option<&Alloc> {
        self.allocs.get(index)
    }

    /// Where an address that is out of bounds lies, in words.
    pub(crate) fn describe(&self, address: u64) -> String {
        let at = self.allocs.partition_point(|a| a.base <= address);
        match at.checked_sub(1).map(|i| &self.allocs[i]) {
            Some(a) => format!(
                "{} bytes behind the end of the allocation of {} bytes at {:#x}",
                (address - a.base).saturating_sub(a.size),
                a.size,
                a.base
            ),
            None => "below every allocation".to_string(),
        }
    }
}
