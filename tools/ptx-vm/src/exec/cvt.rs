//! Conversions between all types.

use super::context::Cx;
use super::round::{decode, encode, flush, integral};
use crate::ir::{FMod, Op, Round, Ty};
use crate::warp::{Lanes, Wide, each};

impl Cx<'_> {
    pub(super) fn convert(&mut self) {
        match &self.inst.op {
            Op::Cvt { to, from, m, d, a } => {
                let a = self.fetch_wide(a);
                let v: Wide = match (from, to) {
                    (Ty::U32, Ty::U64 | Ty::S64) => each(|l| a[l] & 0xffff_ffff),
                    (Ty::S32, Ty::S64 | Ty::U64) => each(|l| a[l] as i32 as i64 as u64),
                    (Ty::S64 | Ty::U64, Ty::S32 | Ty::U32) if !m.sat => each(|l| a[l] & 0xffff_ffff),
                    _ => each(|l| convert(*to, *from, *m, a[l])),
                };
                self.w.put_wide(*d, self.mask, &v);
            }
            Op::CvtPack { to, m, d, a, b } => {
                let (a, b) = (self.fetch(a), self.fetch(b));
                let one = |v: u32| convert(*to, Ty::F32, *m, u64::from(v)) as u32 & 0xffff;
                let v: Lanes = each(|l| one(a[l]) << 16 | one(b[l]));
                self.w.put(*d, self.mask, &v, false);
            }
            _ => {}
        }
    }
}

/// The integer a source holds.
fn integer(v: u64, ty: Ty) -> i128 {
    let up = 64 - ty.bits();
    if ty.signed() { i128::from((v << up) as i64 >> up) } else { i128::from(v << up >> up) }
}

fn convert(to: Ty, from: Ty, m: FMod, v: u64) -> u64 {
    match (from.float(), to.float()) {
        (false, false) => to_int(integer(v, from), to, m.sat),
        (false, true) => int_to_float(integer(v, from), to, m.round),
        (true, _) => {
            let mut x = decode(v, from);
            if m.ftz && from == Ty::F32 {
                x = flush(x, Ty::F32);
            }
            if to.float() { float_to_float(x, from, to, m, v) } else { float_to_int(x, to, m.round) }
        }
    }
}

fn limits(ty: Ty) -> (i128, i128) {
    let bits = ty.bits();
    if ty.signed() { (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) }
}

/// The upper bits are those of a register wider than the type: extended by the type's sign.
fn to_int(v: i128, to: Ty, sat: bool) -> u64 {
    let (low, high) = limits(to);
    let v = if sat { v.clamp(low, high) } else { v };
    integer(v as u64, to) as u64
}

fn int_to_float(v: i128, to: Ty, round: Round) -> u64 {
    if to != Ty::F64 {
        // Bits beyond the 53 of an f64 only matter as "there is more".
        let surplus = (128 - v.unsigned_abs().leading_zeros()).saturating_sub(53);
        let kept = v.abs() >> surplus;
        let sticky = kept << surplus != v.abs();
        let x = (kept | i128::from(sticky)) as f64 * 2f64.powi(surplus as i32);
        return encode(if v < 0 { -x } else { x }, to, round);
    }
    let near = v as f64;
    let exact = near as i128;
    let x = match round {
        Round::Down if exact > v => near.next_down(),
        Round::Up if exact < v => near.next_up(),
        Round::Zero if exact.abs() > v.abs() => near.abs().next_down().copysign(near),
        _ => near,
    };
    x.to_bits()
}

fn float_to_int(x: f64, to: Ty, round: Round) -> u64 {
    let (low, high) = limits(to);
    // Out-of-range values saturate and NaN becomes zero, as the cast does.
    to_int((integral(x, round) as i128).clamp(low, high), to, false)
}

fn float_to_float(x: f64, from: Ty, to: Ty, m: FMod, bits: u64) -> u64 {
    let mut x = if m.integral { integral(x, m.round) } else { x };
    if m.sat {
        x = super::float::saturate(x);
    }
    if m.relu && x <= 0.0 {
        x = 0.0;
    }
    if from == to && !m.sat && !m.integral && !m.relu && !m.ftz {
        return bits;
    }
    let round = if m.integral { Round::Near } else { m.round };
    let out = encode(x, to, round);
    if m.ftz && to == Ty::F32 { encode(flush(decode(out, to), to), to, Round::Near) } else { out }
}
