//! Float arithmetic of every width. Approximate functions are computed in f64 and rounded once: closer than the
//! hardware's documented error.

use super::context::{Cx, Run};
use super::round::{NAN, add_odd, decode, encode, flush};
use crate::ir::{FMod, FloatOp, Reg, Round, Src, Ty};
use crate::warp::{Lanes, Wide, each};

#[inline]
fn canonical(v: f32) -> u32 {
    if v.is_nan() { NAN } else { v.to_bits() }
}

#[inline]
fn map(a: &Lanes, b: &Lanes, f: impl Fn(f32, f32) -> f32) -> Lanes {
    each(|l| canonical(f(f32::from_bits(a[l]), f32::from_bits(b[l]))))
}

/// The product of two f32 is exact in f64, so that only the sum is rounded twice; that matters where the f64 sum lies
/// halfway between two f32 or the result is subnormal. Then (rarely) the whole warp takes the exact way.
fn fma(a: &Lanes, b: &Lanes, c: &Lanes) -> Lanes {
    const REST: u64 = (1 << 29) - 1;
    let mut doubtful = 0u32;
    let v = each(|l| {
        let wide = |v: u32| f64::from(f32::from_bits(v));
        let sum = wide(a[l]) * wide(b[l]) + wide(c[l]);
        let bits = sum.to_bits();
        let tie = bits & REST == 1 << 28;
        let tiny = sum.abs() < f64::from(f32::MIN_POSITIVE) && sum != 0.0;
        doubtful |= u32::from(tie | tiny);
        canonical(sum as f32)
    });
    if doubtful == 0 {
        return v;
    }
    each(|l| canonical(f32::from_bits(a[l]).mul_add(f32::from_bits(b[l]), f32::from_bits(c[l]))))
}

/// min and max of numbers without modifiers; NaN and zeros of both signs take the general way.
fn extremes(a: &Lanes, b: &Lanes, min: bool) -> Option<Lanes> {
    let mut special = false;
    let v = each(|l| {
        let (x, y) = (f32::from_bits(a[l]), f32::from_bits(b[l]));
        special |= (x == y || y.is_nan()) && a[l] != b[l] || x.is_nan();
        if (x < y) == min { a[l] } else { b[l] }
    });
    (!special).then_some(v)
}

impl Cx<'_> {
    pub(super) fn float(&mut self, op: FloatOp, ty: Ty, m: FMod, d: Reg, s: &[Src; 3]) -> Run {
        if ty == Ty::F64 {
            let (a, b, c) = (self.fetch_wide(&s[0]), self.fetch_wide(&s[1]), self.fetch_wide(&s[2]));
            let v: Wide = each(|l| double(op, m, a[l], b[l], c[l]));
            self.w.put_wide(d, self.mask, &v);
            return Ok(());
        }
        let unused = [0; 32];
        let (a, b) = (self.fetch(&s[0]), self.fetch(&s[1]));
        let c = if op == FloatOp::Fma { self.fetch(&s[2]) } else { unused };
        let plain = m.round == Round::Near && !m.ftz && !m.sat && !m.relu;
        let v: Lanes = match (ty, op) {
            (Ty::F32, FloatOp::Add) if plain => map(&a, &b, |a, b| a + b),
            (Ty::F32, FloatOp::Sub) if plain => map(&a, &b, |a, b| a - b),
            (Ty::F32, FloatOp::Mul) if plain => map(&a, &b, |a, b| a * b),
            (Ty::F32, FloatOp::Fma) if plain => fma(&a, &b, &c),
            (Ty::F32, FloatOp::Min | FloatOp::Max)
                if plain
                    && !m.abs
                    && let Some(v) = extremes(&a, &b, op == FloatOp::Min) =>
            {
                v
            }
            (Ty::F16x2 | Ty::Bf16x2, _) => each(|l| {
                let half = |shift: u32| {
                    let pick = |v: u32| u64::from(v >> shift & 0xffff);
                    (narrow(op, ty, m, pick(a[l]), pick(b[l]), pick(c[l])) as u32) << shift
                };
                half(0) | half(16)
            }),
            (Ty::F16 | Ty::Bf16, _) => each(|l| {
                let pick = |v: u32| u64::from(v & 0xffff);
                narrow(op, ty, m, pick(a[l]), pick(b[l]), pick(c[l])) as u32
            }),
            _ => each(|l| narrow(op, ty, m, u64::from(a[l]), u64::from(b[l]), u64::from(c[l])) as u32),
        };
        self.w.put(d, self.mask, &v, false);
        Ok(())
    }
}

/// One lane of an f32, f16 or bf16 operation: computed in f64 without double rounding.
pub(crate) fn narrow(op: FloatOp, ty: Ty, m: FMod, a: u64, b: u64, c: u64) -> u64 {
    let sign = if ty == Ty::F32 { 1 << 31 } else { 1 << 15 };
    let ftz = |x: f64| if m.ftz { flush(x, ty) } else { x };
    let (x, y, z) = (ftz(decode(a, ty)), ftz(decode(b, ty)), ftz(decode(c, ty)));
    match op {
        // Bit operations: they keep the payload of a NaN.
        FloatOp::Neg if x.is_nan() => return a ^ sign,
        FloatOp::Abs if x.is_nan() => return a & !sign,
        FloatOp::CopySign => return b & !sign | a & sign,
        _ => {}
    }
    let r = match op {
        FloatOp::Add => add_odd(x, y),
        FloatOp::Sub => add_odd(x, -y),
        FloatOp::Mul => x * y,
        FloatOp::Fma => add_odd(x * y, z),
        FloatOp::Div if m.round == Round::Near => x / y,
        FloatOp::Div => odd_quotient(x, y),
        FloatOp::Rcp if m.round == Round::Near => 1.0 / x,
        FloatOp::Rcp => odd_quotient(1.0, x),
        FloatOp::Sqrt if m.round == Round::Near => x.sqrt(),
        FloatOp::Sqrt => {
            let r = x.sqrt();
            super::round::odd(r, -r.mul_add(r, -x))
        }
        _ => function(op, m, x, y),
    };
    let mut r = r;
    if m.sat {
        r = saturate(r);
    }
    if m.relu && r <= 0.0 {
        r = 0.0;
    }
    let bits = encode(r, ty, m.round);
    if m.ftz { encode(flush(decode(bits, ty), ty), ty, Round::Near) } else { bits }
}

/// `.sat`: within 0 and 1; NaN becomes 0, and so does -0, as an H200 does it.
pub(super) fn saturate(x: f64) -> f64 {
    if x > 0.0 { x.min(1.0) } else { 0.0 }
}

fn odd_quotient(x: f64, y: f64) -> f64 {
    let q = x / y;
    let rest = (-q).mul_add(y, x);
    super::round::odd(q, if y < 0.0 { -rest } else { rest })
}

/// Functions whose exact value needs no care beyond f64.
fn function(op: FloatOp, m: FMod, x: f64, y: f64) -> f64 {
    match op {
        FloatOp::Rsqrt => 1.0 / x.sqrt(),
        FloatOp::Ex2 => x.exp2(),
        FloatOp::Lg2 => x.log2(),
        FloatOp::Sin => x.sin(),
        FloatOp::Cos => x.cos(),
        FloatOp::Tanh => x.tanh(),
        FloatOp::Min => extreme(m, x, y, true),
        FloatOp::Max => extreme(m, x, y, false),
        FloatOp::Abs => x.abs(),
        FloatOp::Neg => -x,
        FloatOp::CopySign => y.copysign(x),
        _ => x,
    }
}

/// min and max: a number wins over NaN unless `.NaN` is given, and -0 is less than +0.
fn extreme(m: FMod, x: f64, y: f64, min: bool) -> f64 {
    if x.is_nan() || y.is_nan() {
        return match (m.nan, x.is_nan()) {
            (true, _) => f64::NAN,
            (_, true) => y,
            _ => x,
        };
    }
    let x_first = x < y || x == y && x.is_sign_negative();
    if x_first == min { x } else { y }
}

fn double(op: FloatOp, m: FMod, a: u64, b: u64, c: u64) -> u64 {
    let (x, y, z) = (f64::from_bits(a), f64::from_bits(b), f64::from_bits(c));
    let r = match op {
        FloatOp::Neg => return a ^ 1 << 63,
        FloatOp::Abs => return a & !(1 << 63),
        FloatOp::CopySign => return b & !(1 << 63) | a & 1 << 63,
        FloatOp::Add => directed(x + y, m.round, || {
            let part = (x + y) - x;
            (x - ((x + y) - part)) + (y - part)
        }),
        FloatOp::Sub => directed(x - y, m.round, || {
            let part = (x - y) - x;
            (x - ((x - y) - part)) + (-y - part)
        }),
        FloatOp::Mul => directed(x * y, m.round, || x.mul_add(y, -(x * y))),
        FloatOp::Fma => x.mul_add(y, z),
        FloatOp::Div => x / y,
        FloatOp::Rcp => 1.0 / x,
        FloatOp::Sqrt => x.sqrt(),
        _ => function(op, m, x, y),
    };
    encode(r, Ty::F64, Round::Near)
}

/// Moves a result rounded to nearest to its neighbour where the direction asks for it.
fn directed(r: f64, round: Round, rest: impl Fn() -> f64) -> f64 {
    if round == Round::Near || !r.is_finite() {
        return r;
    }
    let rest = rest();
    match round {
        Round::Down if rest < 0.0 => r.next_down(),
        Round::Up if rest > 0.0 => r.next_up(),
        Round::Zero if r > 0.0 && rest < 0.0 => r.next_down(),
        Round::Zero if r < 0.0 && rest > 0.0 => r.next_up(),
        _ => r,
    }
}
