//! Rounding to narrow float formats, in every direction, from an exact or sticky f64.

use half::f16;

use crate::ir::{Round, Ty};

/// Canonical NaN of f32 results.
pub(crate) const NAN: u32 = 0x7fff_ffff;

/// `sum` is the rounded and `err` the exact rest of a value; the result carries "inexact" in its last bit (rounding to
/// odd), so that a second rounding to 50 bits or fewer is correct in every direction.
pub(crate) fn odd(sum: f64, err: f64) -> f64 {
    if err == 0.0 || !sum.is_finite() || !err.is_finite() || sum.to_bits() & 1 == 1 {
        return sum;
    }
    let away = (err > 0.0) == (sum > 0.0);
    f64::from_bits(if away { sum.to_bits() + 1 } else { sum.to_bits() - 1 })
}

/// a + b, rounded to odd.
pub(crate) fn add_odd(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let part = sum - a;
    odd(sum, (a - (sum - part)) + (b - part))
}

/// 2^e for normal exponents.
fn power(e: i32) -> f64 {
    f64::from_bits(((e.clamp(-1022, 1023) + 1023) as u64) << 52)
}

/// Precision in bits, smallest and largest exponent.
fn format(ty: Ty) -> (i32, i32, i32) {
    match ty {
        Ty::F16 | Ty::F16x2 => (11, -14, 15),
        Ty::Bf16 | Ty::Bf16x2 => (8, -126, 127),
        Ty::Tf32 => (11, -126, 127),
        _ => (24, -126, 127),
    }
}

/// Rounds an integral-scaled value.
pub(crate) fn integral(x: f64, round: Round) -> f64 {
    match round {
        Round::Near => x.round_ties_even(),
        Round::Away => x.round(),
        Round::Zero => x.trunc(),
        Round::Down => x.floor(),
        Round::Up => x.ceil(),
    }
}

/// Rounds to a format; the result is exactly representable in it (or infinite).
pub(crate) fn round_to(x: f64, ty: Ty, round: Round) -> f64 {
    if ty == Ty::F64 || x == 0.0 || !x.is_finite() {
        return x;
    }
    if ty == Ty::F32 && round == Round::Near {
        return f64::from(x as f32);
    }
    let (precision, low, high) = format(ty);
    let exponent = (x.to_bits() >> 52 & 0x7ff) as i32 - 1023;
    let quantum = exponent.max(low) - (precision - 1);
    let r = integral(x * power(-quantum), round) * power(quantum);
    let max = (2.0 - power(1 - precision)) * power(high);
    if r.abs() <= max {
        return if r == 0.0 { f64::copysign(0.0, x) } else { r };
    }
    let to_max = match round {
        Round::Zero => true,
        Round::Down => x > 0.0,
        Round::Up => x < 0.0,
        _ => false,
    };
    f64::copysign(if to_max { max } else { f64::INFINITY }, x)
}

/// The value of a float's bits.
pub(crate) fn decode(bits: u64, ty: Ty) -> f64 {
    match ty {
        Ty::F16 | Ty::F16x2 => f64::from(f16::from_bits(bits as u16).to_f32()),
        Ty::Bf16 | Ty::Bf16x2 => f64::from(f32::from_bits((bits as u32) << 16)),
        Ty::F64 => f64::from_bits(bits),
        _ => f64::from(f32::from_bits(bits as u32)),
    }
}

/// The bits of a value, rounded to the format.
pub(crate) fn encode(x: f64, ty: Ty, round: Round) -> u64 {
    if x.is_nan() {
        return match ty {
            Ty::F16 | Ty::F16x2 | Ty::Bf16 | Ty::Bf16x2 => 0x7fff,
            Ty::F64 => 0x7ff8_0000_0000_0000,
            _ => u64::from(NAN),
        };
    }
    let r = round_to(x, ty, round);
    match ty {
        Ty::F16 | Ty::F16x2 => u64::from(f16::from_f32(r as f32).to_bits()),
        Ty::Bf16 | Ty::Bf16x2 => u64::from((r as f32).to_bits() >> 16),
        Ty::F64 => r.to_bits(),
        _ => u64::from((r as f32).to_bits()),
    }
}

/// Flushes a subnormal of the format to zero of the same sign.
pub(crate) fn flush(x: f64, ty: Ty) -> f64 {
    let smallest = match ty {
        Ty::F16 | Ty::F16x2 => power(-14),
        _ => power(-126),
    };
    if x.abs() < smallest { f64::copysign(0.0, x) } else { x }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directed_rounding_brackets_the_value() {
        let x = 1.0 + f64::EPSILON;
        assert_eq!(round_to(x, Ty::F32, Round::Down), 1.0);
        assert_eq!(round_to(x, Ty::F32, Round::Up), f64::from(1.0f32.next_up()));
        assert_eq!(round_to(-x, Ty::F32, Round::Zero), -1.0);
        assert_eq!(round_to(65519.9, Ty::F16, Round::Near), 65504.0);
        assert_eq!(round_to(65520.0, Ty::F16, Round::Near), f64::INFINITY);
        assert_eq!(round_to(1e9, Ty::F16, Round::Zero), 65504.0);
        assert_eq!(round_to(3e-8, Ty::F16, Round::Near), 2f64.powi(-24));
    }

    #[test]
    fn a_tie_broken_by_a_tiny_rest_is_not_a_tie() {
        // 1 + 2^-11 is halfway between two f16 values; the rest is lost in f64 but decides.
        let x = add_odd(1.0 + 2f64.powi(-11), 2f64.powi(-80));
        assert_eq!(round_to(x, Ty::F16, Round::Near), 1.0 + 2f64.powi(-10));
        let y = add_odd(1.0 + 2f64.powi(-11), -(2f64.powi(-80)));
        assert_eq!(round_to(y, Ty::F16, Round::Near), 1.0);
    }
}
