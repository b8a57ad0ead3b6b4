//! The two number types of the CPU backend and their elementary functions.
//!
//! The f32 functions are branch-free so that loops over them vectorise; the f64 ones favour accuracy.

use crate::tensor::DType;

/// f32 for training, f64 for checking.
pub trait Real:
    Copy
    + Send
    + Sync
    + PartialOrd
    + Default
    + std::fmt::Debug
    + std::iter::Sum
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::Neg<Output = Self>
    + std::ops::AddAssign
    + std::ops::SubAssign
    + std::ops::MulAssign
    + bytemuck::Pod
{
    const DTYPE: DType;
    const ZERO: Self;
    const ONE: Self;

    fn from_f32(x: f32) -> Self;
    fn to_f32(self) -> f32;
    fn from_f64(x: f64) -> Self;
    fn to_f64(self) -> f64;
    fn exp(self) -> Self;
    fn ln(self) -> Self;
    fn sqrt(self) -> Self;
    fn abs(self) -> Self;
    fn is_finite(self) -> bool;
    /// `self * factor + term`, rounded once.
    fn mul_add(self, factor: Self, term: Self) -> Self;
    /// `(Phi(x), phi(x))`: the normal distribution function and density.
    fn normal(self) -> (Self, Self);

    #[inline(always)]
    fn is_nan(self) -> bool {
        self.partial_cmp(&self).is_none()
    }

    /// The larger one; `other` if `self` is NaN.
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        if self > other { self } else { other }
    }

    /// `x * Phi(x)`.
    #[inline(always)]
    fn gelu(self) -> Self {
        self * self.normal().0
    }

    /// Derivative of [`Real::gelu`]: `Phi(x) + x phi(x)`.
    #[inline(always)]
    fn gelu_grad(self) -> Self {
        let (cdf, density) = self.normal();
        cdf + self * density
    }
}

/// Coefficients, lowest first, of `erfcx(t / sqrt 2) / 2` in `u = (t - 3.5) / (t + 3.5)`; relative error 2e-8 for
/// `0 <= t <= 13.5`, where `exp(-t^2 / 2)` leaves the range of f32.
const TAIL: [f32; 11] = [
    1.063_451_5e-1,
    -1.871_397e-1,
    1.258_552_5e-1,
    -6.163_944e-2,
    1.906_562_6e-2,
    -1.561_332e-3,
    -1.381_535_7e-3,
    3.898_781_7e-4,
    1.338_248_1e-4,
    -5.184_127_8e-5,
    -2.075_360_3e-5,
];

impl Real for f32 {
    const DTYPE: DType = DType::F32;
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;

    #[inline(always)]
    fn from_f32(x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f64(x: f64) -> f32 {
        x as f32
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }

    /// Within 2 ulp; results below the smallest normal number are 0.
    #[inline(always)]
    fn exp(self) -> f32 {
        // Adding 1.5 * 2^23 rounds to an integer that then sits in the low bits.
        const ROUND: f32 = 12_582_912.0;
        const LN2_HIGH: f32 = 0.693_359_4;
        const LN2_LOW: f32 = -2.121_944_4e-4;
        // Comparisons in this order let NaN through.
        let x = if self > 89.0 { 89.0 } else { self };
        let x = if x < -88.0 { -88.0 } else { x };
        let rounded = x * std::f32::consts::LOG2_E + ROUND;
        let n = rounded - ROUND;
        let r = (x - n * LN2_HIGH) - n * LN2_LOW;
        let mut p = 1.987_569_1e-4;
        p = p * r + 1.398_199_9e-3;
        p = p * r + 8.333_452e-3;
        p = p * r + 4.166_579_6e-2;
        p = p * r + 1.666_666_5e-1;
        p = p * r + 5e-1;
        let y = p * r * r + r + 1.0;
        // 2^n in two factors: n reaches 128.
        let n = (rounded.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
        let half = n >> 1;
        let power = |e: i32| f32::from_bits((e.wrapping_add(127) as u32) << 23);
        let y = y * power(half) * power(n.wrapping_sub(half));
        let y = if self < -87.336_54 { 0.0 } else { y };
        if self.is_nan() { self } else { y }
    }
    #[inline(always)]
    fn ln(self) -> f32 {
        f32::ln(self)
    }
    #[inline(always)]
    fn sqrt(self) -> f32 {
        f32::sqrt(self)
    }
    #[inline(always)]
    fn abs(self) -> f32 {
        f32::abs(self)
    }
    #[inline(always)]
    fn is_finite(self) -> bool {
        f32::is_finite(self)
    }
    #[inline(always)]
    fn mul_add(self, factor: f32, term: f32) -> f32 {
        f32::mul_add(self, factor, term)
    }

    #[inline(always)]
    fn normal(self) -> (f32, f32) {
        const DENSITY_0: f32 = 0.398_942_3;
        let t = self.abs();
        let e = Real::exp(-0.5 * t * t);
        // Behind 14 the exponential is 0 and the polynomial would leave its range.
        let t = if t > 14.0 { 14.0 } else { t };
        let u = (t - 3.5) / (t + 3.5);
        let mut p = TAIL[10];
        p = p * u + TAIL[9];
        p = p * u + TAIL[8];
        p = p * u + TAIL[7];
        p = p * u + TAIL[6];
        p = p * u + TAIL[5];
        p = p * u + TAIL[4];
        p = p * u + TAIL[3];
        p = p * u + TAIL[2];
        p = p * u + TAIL[1];
        p = p * u + TAIL[0];
        let tail = e * p;
        (if self < 0.0 { tail } else { 1.0 - tail }, e * DENSITY_0)
    }
}

impl Real for f64 {
    const DTYPE: DType = DType::F64;
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;

    #[inline(always)]
    fn from_f32(x: f32) -> f64 {
        f64::from(x)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self as f32
    }
    #[inline(always)]
    fn from_f64(x: f64) -> f64 {
        x
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }
    #[inline(always)]
    fn exp(self) -> f64 {
        f64::exp(self)
    }
    #[inline(always)]
    fn ln(self) -> f64 {
        f64::ln(self)
    }
    #[inline(always)]
    fn sqrt(self) -> f64 {
        f64::sqrt(self)
    }
    #[inline(always)]
    fn abs(self) -> f64 {
        f64::abs(self)
    }
    #[inline(always)]
    fn is_finite(self) -> bool {
        f64::is_finite(self)
    }
    #[inline(always)]
    fn mul_add(self, factor: f64, term: f64) -> f64 {
        f64::mul_add(self, factor, term)
    }
    #[inline(always)]
    fn normal(self) -> (f64, f64) {
        const DENSITY_0: f64 = 0.398_942_280_401_432_7;
        let cdf = 0.5 * libm::erfc(-self * std::f64::consts::FRAC_1_SQRT_2);
        (cdf, DENSITY_0 * (-0.5 * self * self).exp())
    }
}

#[cfg(test)]
mod tests {
    use super::Real;

    #[test]
    fn f32_exp_is_within_two_ulp() {
        for i in -870_000..887_000 {
            let x = i as f32 * 1e-4;
            let (got, want) = (f64::from(Real::exp(x)), f64::from(x).exp());
            assert!((got / want - 1.0).abs() < 2.0 * f64::from(f32::EPSILON), "exp({x}) = {got}, not {want}");
        }
        assert_eq!(Real::exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(Real::exp(90.0f32), f32::INFINITY);
        assert_eq!(Real::exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(Real::exp(-100.0f32), 0.0);
        assert!(Real::exp(f32::NAN).is_nan());
    }

    #[test]
    fn f32_gelu_is_the_exact_form() {
        for i in -60_000..60_000 {
            let x = i as f32 * 1e-4;
            let eps = f64::from(f32::EPSILON);
            let (got, want) = (f64::from(x.gelu()), f64::from(x).gelu());
            assert!(
                (got - want).abs() <= eps * want.abs() * (2.5 + 0.5 * f64::from(x * x)),
                "{x}: {got} {want}"
            );
            let (got, want) = (f64::from(x.gelu_grad()), f64::from(x).gelu_grad());
            assert!((got - want).abs() <= 3e-7, "{x}: {got} {want}");
        }
        assert_eq!(1e30f32.gelu(), 1e30);
        assert_eq!((-50f32).gelu(), 0.0);
        assert!(f32::NAN.gelu().is_nan());
    }
}
