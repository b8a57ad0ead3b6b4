//! Moves, comparisons, selections and predicates.

use super::address::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, resolve};
use super::context::Cx;
use super::round::decode;
use crate::ir::{Bool, Cmp, Guard, Op, Space, Src, TestP, Ty};
use crate::warp::{Lanes, Wide, each};

impl Cx<'_> {
    pub(super) fn logic(&mut self) {
        let mask = self.mask;
        match &self.inst.op {
            Op::Mov { d, a } if d.size == 8 => {
                let v = self.fetch_wide(a);
                self.w.put_wide(*d, mask, &v);
            }
            Op::Mov { d, a } => {
                let v = self.fetch(a);
                self.w.put(*d, mask, &v, false);
            }
            Op::MovPred { d, a } => {
                let v = match a {
                    Src::Pred(p) => self.w.pred(*p),
                    other => {
                        if self.fetch(other)[0] != 0 {
                            u32::MAX
                        } else {
                            0
                        }
                    }
                };
                self.w.set_pred(*d, mask, v);
            }
            Op::Pack { d, bits, parts } => {
                let bits = u32::from(*bits);
                let mut v: Wide = [0; 32];
                for (i, part) in parts.iter().enumerate() {
                    let part = self.fetch(part);
                    for (v, p) in v.iter_mut().zip(part) {
                        *v |= (u64::from(p) & ((1 << bits) - 1)) << (bits * i as u32);
                    }
                }
                self.w.put_wide(*d, mask, &v);
            }
            Op::Unpack { d, bits, a } => {
                let bits = u32::from(*bits);
                let a = self.fetch_wide(a);
                for (i, d) in d.iter().enumerate() {
                    let Some(d) = d else { continue };
                    let v = a.map(|v| (v >> (bits * i as u32) & ((1 << bits) - 1)) as u32);
                    self.w.put(*d, mask, &v, false);
                }
            }
            Op::Carry { op, ty, d, s, carry_in, carry_out } => {
                self.carry(*op, *ty, *d, s, (*carry_in, *carry_out))
            }
            Op::Bfi { ty, d, s, pos, len } => self.bfi(*ty, *d, s, pos, len),
            Op::Selp { d, a, b, p, .. } => {
                let (a, b, p) = (self.fetch_wide(a), self.fetch_wide(b), self.guard(*p));
                let v: Wide = each(|l| if p >> l & 1 == 1 { a[l] } else { b[l] });
                self.w.put_wide(*d, mask, &v);
            }
            Op::Slct { cty, d, s, .. } => {
                let (a, b, c) = (self.fetch_wide(&s[0]), self.fetch_wide(&s[1]), self.fetch(&s[2]));
                let v: Wide = each(|l| {
                    let first = if *cty == Ty::F32 { f32::from_bits(c[l]) >= 0.0 } else { c[l] as i32 >= 0 };
                    if first { a[l] } else { b[l] }
                });
                self.w.put_wide(*d, mask, &v);
            }
            Op::PredLogic { op, d, a, b } => {
                let v = boolean(*op, self.guard(*a), self.guard(*b));
                self.w.set_pred(*d, mask, v);
            }
            Op::Cvta { .. } | Op::IsSpace { .. } => self.spaces(),
            Op::Activemask { d } => self.w.put(*d, mask, &[mask; 32], false),
            _ => self.comparisons(),
        }
    }

    fn comparisons(&mut self) {
        let mask = self.mask;
        match &self.inst.op {
            Op::Setp { cmp, combine, ty, ftz, p, q, s } => {
                let v = self.compare(*cmp, *ty, *ftz, s);
                self.set_pair(*combine, *p, *q, v, !v);
            }
            Op::Setp2 { cmp, combine, ty, p, q, s, .. } => {
                let (a, b) = (self.fetch(&s[0]), self.fetch(&s[1]));
                let half = |shift: u32| {
                    lanes(|l| {
                        let pick = |v: u32| decode(u64::from(v >> shift & 0xffff), *ty);
                        float_cmp(*cmp, pick(a[l]), pick(b[l]))
                    })
                };
                self.set_pair(*combine, *p, *q, half(0), half(16));
            }
            Op::Set { cmp, combine, dty, ty, ftz, d, s } => {
                let v = self.combined(*combine, self.compare(*cmp, *ty, *ftz, s));
                let yes = match dty {
                    Ty::F32 => 1f32.to_bits(),
                    Ty::F16 => 0x3c00,
                    Ty::Bf16 => 0x3f80,
                    _ => u32::MAX,
                };
                let v: Lanes = each(|l| if v >> l & 1 == 1 { yes } else { 0 });
                self.w.put(*d, mask, &v, false);
            }
            Op::TestP { test, ty, p, a } => {
                let a = self.fetch_wide(a);
                let smallest = if *ty == Ty::F64 { f64::MIN_POSITIVE } else { f64::from(f32::MIN_POSITIVE) };
                let v = lanes(|l| {
                    let x = decode(a[l], *ty);
                    match test {
                        TestP::Finite => x.is_finite(),
                        TestP::Infinite => x.is_infinite(),
                        TestP::Number => !x.is_nan(),
                        TestP::NotANumber => x.is_nan(),
                        TestP::Normal => x.is_finite() && x.abs() >= smallest,
                        TestP::Subnormal => x != 0.0 && x.abs() < smallest,
                    }
                });
                self.w.set_pred(*p, mask, v);
            }
            _ => {}
        }
    }

    fn spaces(&mut self) {
        let window = |space: Space| match space {
            Space::Shared => SHARED_WINDOW,
            Space::Local => LOCAL_WINDOW,
            Space::Param => PARAM_WINDOW,
            _ => 0,
        };
        match &self.inst.op {
            Op::Cvta { space, to_space, d, a, .. } => {
                let w = window(*space);
                let v =
                    self.fetch_wide(a).map(|a| if *to_space { a.wrapping_sub(w) } else { a.wrapping_add(w) });
                self.w.put_wide(*d, self.mask, &v);
            }
            Op::IsSpace { space, p, a } => {
                let a = self.fetch_wide(a);
                let v = lanes(|l| resolve(Space::Generic, a[l]).0 == *space);
                self.w.set_pred(*p, self.mask, v);
            }
            _ => {}
        }
    }

    /// First result: comparison combined with the guard; second: the complement combined likewise.
    fn set_pair(&mut self, combine: Option<(Bool, Guard)>, p: Option<u16>, q: Option<u16>, v: u32, w: u32) {
        let (v, w) = (self.combined(combine, v), self.combined(combine, w));
        for (dst, v) in [(p, v), (q, w)] {
            if let Some(dst) = dst {
                self.w.set_pred(dst, self.mask, v);
            }
        }
    }

    fn combined(&self, combine: Option<(Bool, Guard)>, v: u32) -> u32 {
        combine.map_or(v, |(op, g)| boolean(op, v, self.guard(g)))
    }

    fn compare(&self, cmp: Cmp, ty: Ty, ftz: bool, s: &[Src; 2]) -> u32 {
        if ty.size() == 4 && !ty.float() {
            let (a, b) = (self.fetch(&s[0]), self.fetch(&s[1]));
            return if ty.signed() {
                lanes(|l| order(cmp, a[l] as i32, b[l] as i32))
            } else {
                lanes(|l| order(cmp, a[l], b[l]))
            };
        }
        let (a, b) = (self.fetch_wide(&s[0]), self.fetch_wide(&s[1]));
        if ty.float() {
            let value = |v: u64| {
                let x = decode(v, ty);
                if ftz { super::round::flush(x, ty) } else { x }
            };
            return lanes(|l| float_cmp(cmp, value(a[l]), value(b[l])));
        }
        let up = 64 - ty.bits().clamp(8, 64);
        if ty.signed() {
            lanes(|l| order(cmp, (a[l] << up) as i64, (b[l] << up) as i64))
        } else {
            lanes(|l| order(cmp, a[l] << up, b[l] << up))
        }
    }
}

#[inline]
fn lanes(f: impl Fn(usize) -> bool) -> u32 {
    (0..32).fold(0, |m, l| m | u32::from(f(l)) << l)
}

fn boolean(op: Bool, a: u32, b: u32) -> u32 {
    match op {
        Bool::And => a & b,
        Bool::Or => a | b,
        Bool::Xor => a ^ b,
    }
}

#[inline]
fn order<T: Ord>(cmp: Cmp, a: T, b: T) -> bool {
    match cmp {
        Cmp::Eq | Cmp::Equ => a == b,
        Cmp::Ne | Cmp::Neu => a != b,
        Cmp::Lt | Cmp::Ltu => a < b,
        Cmp::Le | Cmp::Leu => a <= b,
        Cmp::Gt | Cmp::Gtu => a > b,
        Cmp::Ge | Cmp::Geu => a >= b,
        Cmp::Num => true,
        Cmp::Nan => false,
    }
}

fn float_cmp(cmp: Cmp, a: f64, b: f64) -> bool {
    let nan = a.is_nan() || b.is_nan();
    match cmp {
        Cmp::Eq => a == b,
        Cmp::Ne => !nan && a != b,
        Cmp::Lt => a < b,
        Cmp::Le => a <= b,
        Cmp::Gt => a > b,
        Cmp::Ge => a >= b,
        Cmp::Equ => nan || a == b,
        Cmp::Neu => nan || a != b,
        Cmp::Ltu => nan || a < b,
        Cmp::Leu => nan || a <= b,
        Cmp::Gtu => nan || a > b,
        Cmp::Geu => nan || a >= b,
        Cmp::Num => !nan,
        Cmp::Nan => nan,
    }
}
