//! Read-modify-write operations on global and shared memory.

use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;

use super::address::resolve;
use super::context::{Cx, Run};
use super::float::narrow;
use crate::ir::{Addr, AtomOp, FMod, FloatOp, Reg, Space, Src, Ty};
use crate::memory::Alloc;
use crate::shared::Touch;
use crate::warp::Wide;

/// Serialises the read-modify-write operations that span two words.
static WIDE_ATOMIC: Mutex<()> = Mutex::new(());

impl Cx<'_> {
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
