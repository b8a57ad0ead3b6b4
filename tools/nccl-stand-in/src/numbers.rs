//! Element types and their sums.

/// `ncclFloat32`, `ncclBfloat16`.
const F32: i32 = 7;
const BF16: i32 = 9;

/// Bytes of an element; None for types that are not summed here.
pub fn bytes(dtype: i32) -> Option<usize> {
    match dtype {
        F32 => Some(4),
        BF16 => Some(2),
        _ => None,
    }
}

pub fn name(dtype: i32) -> &'static str {
    match dtype {
        F32 => "f32",
        BF16 => "bf16",
        _ => "other",
    }
}

/// To the nearest, ties to the even one.
fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

fn from_bf16(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

/// Adds `more` to `sum`, rounded to the type after the addition.
pub fn add(sum: &mut [u8], more: &[u8], dtype: i32) {
    if dtype == F32 {
        for (s, m) in sum.chunks_exact_mut(4).zip(more.chunks_exact(4)) {
            let [a, b] = [&*s, m].map(|x| f32::from_ne_bytes([x[0], x[1], x[2], x[3]]));
            s.copy_from_slice(&(a + b).to_ne_bytes());
        }
    } else {
        for (s, m) in sum.chunks_exact_mut(2).zip(more.chunks_exact(2)) {
            let [a, b] = [&*s, m].map(|x| from_bf16(u16::from_ne_bytes([x[0], x[1]])));
            s.copy_from_slice(&to_bf16(a + b).to_ne_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_round_to_the_nearest_and_ties_to_the_even_one() {
        for (x, bits) in [
            (1.0, 0x3f80),
            (1.0 + 1.0 / 256.0, 0x3f80),
            (1.0 + 3.0 / 256.0, 0x3f82),
            (1.005, 0x3f81),
            (-2.0, 0xc000),
        ] {
            assert_eq!(to_bf16(x), bits, "{x}");
        }
        assert!(from_bf16(to_bf16(f32::NAN)).is_nan());
        assert_eq!(from_bf16(to_bf16(f32::INFINITY)), f32::INFINITY);
        let mut sum = 256.0f32.to_bits().to_ne_bytes().to_vec();
        add(&mut sum, &1.5f32.to_ne_bytes(), F32);
        assert_eq!(sum, 257.5f32.to_ne_bytes());
        // 257 has no bf16: 256 and 258 are as near, the mantissa of 256 is even.
        let mut sum = to_bf16(256.0).to_ne_bytes();
        add(&mut sum, &to_bf16(1.0).to_ne_bytes(), BF16);
        assert_eq!(sum, to_bf16(256.0).to_ne_bytes());
    }
}
