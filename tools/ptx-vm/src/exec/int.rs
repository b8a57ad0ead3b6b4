//! Integer arithmetic and logic.

use super::context::{Cx, Run};
use crate::ir::{CarryOp, IntOp, PrmtMode, Reg, Src, Ty};
use crate::warp::{Lanes, Wide, each};

#[inline]
fn map2(a: &Lanes, b: &Lanes, f: impl Fn(u32, u32) -> u32) -> Lanes {
    each(|l| f(a[l], b[l]))
}

impl Cx<'_> {
    pub(super) fn int(&mut self, op: IntOp, ty: Ty, d: Reg, s: &[Src; 3]) -> Run {
        if ty.size() == 4
            && let Some(v) = self.int_fast(op, ty.signed(), s)
        {
            self.w.put(d, self.mask, &v, false);
            return Ok(());
        }
        let (a, b, c) = (self.fetch_wide(&s[0]), self.fetch_wide(&s[1]), self.fetch_wide(&s[2]));
        let v: Wide = match (op, ty) {
            (IntOp::Add, Ty::S64 | Ty::U64 | Ty::B64) => each(|l| a[l].wrapping_add(b[l])),
            (IntOp::MulWide, Ty::S32) => each(|l| (a[l] as i32 as i64 * b[l] as i32 as i64) as u64),
            (IntOp::MulWide, Ty::U32) => each(|l| (a[l] & 0xffff_ffff) * (b[l] & 0xffff_ffff)),
            _ => each(|l| scalar(op, ty.bits(), ty.signed(), a[l], b[l], c[l])),
        };
        self.w.put_wide(d, self.mask, &v);
        Ok(())
    }

    /// The common 32-bit operations as loops that vectorise.
    fn int_fast(&self, op: IntOp, signed: bool, s: &[Src; 3]) -> Option<Lanes> {
        let unary = matches!(op, IntOp::Not);
        let (a, b) = (self.fetch(&s[0]), if unary { [0; 32] } else { self.fetch(&s[1]) });
        Some(match op {
            IntOp::Add => map2(&a, &b, u32::wrapping_add),
            IntOp::Sub => map2(&a, &b, u32::wrapping_sub),
            IntOp::MulLo => map2(&a, &b, u32::wrapping_mul),
            IntOp::MadLo => {
                let c = self.fetch(&s[2]);
                each(|l| a[l].wrapping_mul(b[l]).wrapping_add(c[l]))
            }
            IntOp::And => map2(&a, &b, |a, b| a & b),
            IntOp::Or => map2(&a, &b, |a, b| a | b),
            IntOp::Xor => map2(&a, &b, |a, b| a ^ b),
            IntOp::Not => a.map(|a| !a),
            IntOp::Shl => map2(&a, &b, |a, b| a.checked_shl(b).unwrap_or(0)),
            IntOp::Shr if signed => map2(&a, &b, |a, b| ((a as i32) >> b.min(31)) as u32),
            IntOp::Shr => map2(&a, &b, |a, b| a.checked_shr(b).unwrap_or(0)),
            IntOp::Min if signed => map2(&a, &b, |a, b| (a as i32).min(b as i32) as u32),
            IntOp::Max if signed => map2(&a, &b, |a, b| (a as i32).max(b as i32) as u32),
            IntOp::Min => map2(&a, &b, u32::min),
            IntOp::Max => map2(&a, &b, u32::max),
            _ => return None,
        })
    }

    pub(super) fn bfi(&mut self, ty: Ty, d: Reg, s: &[Src; 2], pos: &Src, len: &Src) {
        let (a, b) = (self.fetch_wide(&s[0]), self.fetch_wide(&s[1]));
        let (pos, len) = (self.fetch(pos), self.fetch(len));
        let bits = ty.bits();
        let v: Wide = each(|l| {
            let (pos, len) = (pos[l] & 0xff, len[l] & 0xff);
            let field = if len >= 64 { u64::MAX } else { (1 << len) - 1 };
            let mask = field.checked_shl(pos).unwrap_or(0) & width(bits);
            b[l] & !mask | a[l].checked_shl(pos).unwrap_or(0) & mask
        });
        self.w.put_wide(d, self.mask, &v);
    }

    pub(super) fn carry(&mut self, op: CarryOp, ty: Ty, d: Reg, s: &[Src; 3], flags: (bool, bool)) {
        let (a, b, c) = (self.fetch_wide(&s[0]), self.fetch_wide(&s[1]), self.fetch_wide(&s[2]));
        let (bits, signed) = (ty.bits(), ty.signed());
        let mut carries = 0;
        let v: Wide = each(|l| {
            let carry = u128::from(flags.0 && self.w.carry >> l & 1 == 1);
            let m = width(bits);
            let (x, y) = match op {
                CarryOp::Add | CarryOp::Sub => (a[l] & m, b[l] & m),
                CarryOp::MadLo => (scalar(IntOp::MulLo, bits, signed, a[l], b[l], 0), c[l] & m),
                CarryOp::MadHi => (scalar(IntOp::MulHi, bits, signed, a[l], b[l], 0), c[l] & m),
            };
            let sum = match op {
                CarryOp::Sub => u128::from(x).wrapping_sub(u128::from(y)).wrapping_sub(carry),
                _ => u128::from(x) + u128::from(y) + carry,
            };
            carries |= ((sum >> bits & 1) as u32) << l;
            sum as u64 & m
        });
        if flags.1 {
            self.w.carry = self.w.carry & !self.mask | carries & self.mask;
        }
        self.w.put_wide(d, self.mask, &v);
    }
}

/// All ones in the low `bits`.
fn width(bits: u32) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}

fn sign_extend(v: u64, bits: u32) -> i64 {
    let up = 64 - bits.min(64);
    ((v << up) as i64) >> up
}

/// One lane of any operation at any width.
fn scalar(op: IntOp, bits: u32, signed: bool, a: u64, b: u64, c: u64) -> u64 {
    let m = width(bits);
    let (ua, ub, uc) = (a & m, b & m, c & m);
    let ext = |v: u64| if signed { i128::from(sign_extend(v, bits)) } else { i128::from(v & m) };
    let (ia, ib) = (ext(a), ext(b));
    let (low, high) =
        if signed { (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1) } else { (0, i128::from(m)) };
    // Products of 64-bit operands need the unsigned form: 2^128 does not fit a signed 128-bit integer.
    let product = if signed { (ia * ib) as u128 } else { u128::from(ua) * u128::from(ub) };
    let count = (b & 0xffff_ffff) as u32;
    let v = match op {
        IntOp::Add => ua.wrapping_add(ub),
        IntOp::Sub => ua.wrapping_sub(ub),
        IntOp::AddSat => (ia + ib).clamp(low, high) as u64,
        IntOp::SubSat => (ia - ib).clamp(low, high) as u64,
        IntOp::MulLo | IntOp::MulWide => product as u64,
        IntOp::MulHi => (product >> bits) as u64,
        IntOp::MadLo => (product as u64).wrapping_add(uc),
        IntOp::MadWide => (product as u64).wrapping_add(c),
        IntOp::MadHi => ((product >> bits) as u64).wrapping_add(uc),
        IntOp::MadHiSat => ((product as i128 >> bits) + ext(c)).clamp(low, high) as u64,
        IntOp::Mul24Lo => mul24(a, b, signed) as u64,
        IntOp::Mul24Hi => (mul24(a, b, signed) >> 16) as u64,
        IntOp::Mad24Lo => (mul24(a, b, signed) as u64).wrapping_add(uc),
        IntOp::Mad24Hi => ((mul24(a, b, signed) >> 16) as u64).wrapping_add(uc),
        // Division by zero is unspecified; the hardware gives all ones, and the dividend as remainder.
        IntOp::Div => {
            if ib == 0 {
                m
            } else {
                (ia / ib) as u64
            }
        }
        IntOp::Rem => {
            if ib == 0 {
                ua
            } else {
                (ia % ib) as u64
            }
        }
        IntOp::Abs => ia.unsigned_abs() as u64,
        IntOp::Neg => ua.wrapping_neg(),
        IntOp::Min => ia.min(ib) as u64,
        IntOp::Max => ia.max(ib) as u64,
        IntOp::MinRelu => ia.min(ib).max(0) as u64,
        IntOp::MaxRelu => ia.max(ib).max(0) as u64,
        IntOp::Shl => {
            if count >= bits {
                0
            } else {
                ua << count
            }
        }
        IntOp::Shr => (ia >> count.min(bits)) as u64,
        IntOp::And => ua & ub,
        IntOp::Or => ua | ub,
        IntOp::Xor => ua ^ ub,
        IntOp::Not => !ua,
        IntOp::Cnot => u64::from(ua == 0),
        IntOp::Popc => u64::from(ua.count_ones()),
        IntOp::Clz => u64::from(ua.leading_zeros() - (64 - bits)),
        IntOp::Bfind { shift } => bfind(ia, bits, m, shift),
        IntOp::Brev => ua.reverse_bits() >> (64 - bits),
        IntOp::Bfe => bfe(ua, b, c, bits, signed),
        IntOp::ShfL { wrap } => {
            let n = if wrap { uc % 32 } else { uc.min(32) };
            ((ub << 32 | ua) << n) >> 32
        }
        IntOp::ShfR { wrap } => {
            let n = if wrap { uc % 32 } else { uc.min(32) };
            (ub << 32 | ua) >> n
        }
        IntOp::Lop3(table) => (0..8).filter(|i| table >> i & 1 == 1).fold(0, |v, i| {
            let pick = |x: u64, bit: u32| if i >> bit & 1 == 1 { x } else { !x };
            v | pick(ua, 2) & pick(ub, 1) & pick(uc, 0)
        }),
        IntOp::Prmt(mode) => u64::from(prmt(mode, ua as u32, ub as u32, uc as u32)),
        IntOp::Sad => (ia.abs_diff(ib) as u64).wrapping_add(uc),
        IntOp::Dp4a { a: sa, b: sb } => {
            (0..4).fold(c as i64, |sum, i| sum + part(ua, 8, i, sa) * part(ub, 8, i, sb)) as u64
        }
        IntOp::Dp2a { a: sa, b: sb, high } => {
            let first = if high { 2 } else { 0 };
            (0..2).fold(c as i64, |sum, i| sum + part(ua, 16, i, sa) * part(ub, 8, first + i, sb)) as u64
        }
        IntOp::Szext { wrap } => {
            let n = if wrap { count % 32 } else { count.min(32) };
            match n {
                0 => 0,
                n if signed => sign_extend(ua, n) as u64,
                n => ua & width(n),
            }
        }
        IntOp::Bmsk { wrap } => {
            let clip = |v: u64| if wrap { v % 32 } else { v.min(32) };
            width(clip(ub) as u32) << clip(ua)
        }
    };
    if op == IntOp::MulWide || op == IntOp::MadWide { v & width(bits * 2) } else { v & m }
}

fn mul24(a: u64, b: u64, signed: bool) -> i64 {
    let cut = |v: u64| if signed { sign_extend(v, 24) } else { (v & 0xff_ffff) as i64 };
    cut(a).wrapping_mul(cut(b))
}

fn part(v: u64, bits: u32, i: u32, signed: bool) -> i64 {
    let field = v >> (bits * i) & width(bits);
    if signed { sign_extend(field, bits) } else { field as i64 }
}

/// Position of the highest bit that differs from the sign.
fn bfind(a: i128, bits: u32, m: u64, shift: bool) -> u64 {
    let v = if a < 0 { !(a as u64) } else { a as u64 } & m;
    match v.checked_ilog2() {
        None => 0xffff_ffff,
        Some(top) if shift => u64::from(bits - 1 - top),
        Some(top) => u64::from(top),
    }
}

fn bfe(a: u64, b: u64, c: u64, bits: u32, signed: bool) -> u64 {
    let (pos, len) = ((b & 0xff) as u32, (c & 0xff) as u32);
    let field = a.checked_shr(pos).unwrap_or(0) & width(len);
    if !signed || len == 0 {
        return field;
    }
    let sign = a >> (pos + len - 1).min(bits - 1) & 1;
    if sign == 1 { field | !width(len.min(bits.saturating_sub(pos))) } else { field }
}

fn prmt(mode: PrmtMode, a: u32, b: u32, c: u32) -> u32 {
    let all = u64::from(b) << 32 | u64::from(a);
    let byte = |i: u32| (all >> (8 * (i & 7))) as u32 & 0xff;
    let gather = |f: &dyn Fn(u32) -> u32| (0..4).fold(0, |v, i| v | f(i) << (8 * i));
    let s = c & 3;
    match mode {
        PrmtMode::Index => gather(&|i| {
            let sel = c >> (4 * i);
            let v = byte(sel & 7);
            if sel & 8 == 0 { v } else { (v >> 7) * 0xff }
        }),
        PrmtMode::F4e => gather(&|i| byte(s + i)),
        PrmtMode::B4e => gather(&|i| byte(s.wrapping_sub(i))),
        PrmtMode::Rc8 => gather(&|_| byte(s)),
        PrmtMode::Ecl => gather(&|i| byte(s.max(i))),
        PrmtMode::Ecr => gather(&|i| byte(s.min(i))),
        PrmtMode::Rc16 => gather(&|i| byte((s & 1) * 2 + (i & 1))),
    }
}
