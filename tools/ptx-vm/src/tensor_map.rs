//! Tensor maps: what tensor copies know of a tensor in global memory.

use crate::error::{Error, Result};

/// First bytes of an encoded map. A driver's own encoding is opaque; this one is ours.
const MAGIC: u64 = u64::from_le_bytes(*b"PTXVMMAP");
/// Dimensions a tensor has at most.
pub(crate) const RANK: usize = 5;

/// A tensor and the box that a copy moves, as `cuTensorMapEncodeTiled` takes them (no interleave, element strides of 1,
/// zeros outside).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorMap {
    /// Address of the first element, a multiple of 16.
    pub address: u64,
    /// Bytes of an element: 1, 2, 4 or 8.
    pub element: u32,
    /// Elements along each dimension, the contiguous one first: 1 to 5 of them.
    pub sizes: Vec<u64>,
    /// Bytes between neighbours along every dimension but the first: multiples of 16, below 2^40.
    pub strides: Vec<u64>,
    /// Elements of the box along each dimension, 1 to 256.
    pub box_sizes: Vec<u32>,
    /// 0, or bytes within which chunks of 16 bytes are swapped in shared memory: 32, 64 or 128. The box must then be as wide;
    /// a driver also takes narrower ones.
    pub swizzle: u32,
}

impl TensorMap {
    /// The map as a kernel takes it: 128 bytes to be put where a multiple of 64 bytes is.
    ///
    /// # Errors
    /// [`Error::Memory`] for what a driver would refuse.
    pub fn encode(&self) -> Result<[u8; 128]> {
        if let Some(why) = self.refused() {
            return Err(Error::Memory(format!("no tensor map: {why}")));
        }
        let mut bytes = [0u8; 128];
        let mut at = 0;
        let mut put = |value: &[u8]| {
            bytes[at..at + value.len()].copy_from_slice(value);
            at += value.len();
        };
        put(&MAGIC.to_le_bytes());
        put(&self.address.to_le_bytes());
        put(&(self.sizes.len() as u32).to_le_bytes());
        put(&self.element.to_le_bytes());
        put(&self.swizzle.to_le_bytes());
        let or = |list: &[u64], i: usize| list.get(i).copied().unwrap_or(0);
        (0..RANK).for_each(|i| put(&or(&self.sizes, i).to_le_bytes()));
        (0..RANK - 1).for_each(|i| put(&or(&self.strides, i).to_le_bytes()));
        self.box_sizes.iter().for_each(|b| put(&(*b as u16).to_le_bytes()));
        Ok(bytes)
    }

    /// Reads what [`TensorMap::encode`] wrote; None for anything else.
    pub(crate) fn decode(bytes: &[u8; 128]) -> Option<Self> {
        let word = |at: usize| bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
        let half = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
        if word(0)? != MAGIC {
            return None;
        }
        let rank = half(16)? as usize;
        if !(1..=RANK).contains(&rank) {
            return None;
        }
        let boxes = 28 + 8 * (2 * RANK - 1);
        let map = TensorMap {
            address: word(8)?,
            element: half(20)?,
            swizzle: half(24)?,
            sizes: (0..rank).map(|i| word(28 + 8 * i)).collect::<Option<_>>()?,
            strides: (0..rank - 1).map(|i| word(28 + 8 * (RANK + i))).collect::<Option<_>>()?,
            box_sizes: (0..rank)
                .map(|i| {
                    Some(u32::from(u16::from_le_bytes([bytes[boxes + 2 * i], bytes[boxes + 2 * i + 1]])))
                })
                .collect::<Option<_>>()?,
        };
        map.refused().is_none().then_some(map)
    }

    fn refused(&self) -> Option<String> {
        let TensorMap { address, element, sizes, strides, box_sizes, swizzle } = self;
        if !address.is_multiple_of(16) {
            return Some(format!("the address {address:#x} is no multiple of 16"));
        }
        if !matches!(element, 1 | 2 | 4 | 8) {
            return Some(format!("elements of {element} bytes; 1, 2, 4 and 8 are possible"));
        }
        let rank = sizes.len();
        if !(1..=RANK).contains(&rank) || strides.len() + 1 != rank || box_sizes.len() != rank {
            let (s, b) = (strides.len(), box_sizes.len());
            return Some(format!(
                "{rank} sizes, {s} strides and {b} sizes of the box do not belong together"
            ));
        }
        if let Some(size) = sizes.iter().find(|s| !(1..=1 << 32).contains(*s)) {
            return Some(format!("a size of {size}; 1 to 2^32 are possible"));
        }
        if let Some(stride) = strides.iter().find(|s| !s.is_multiple_of(16) || **s >= 1 << 40) {
            return Some(format!("a stride of {stride} bytes; multiples of 16 below 2^40 are possible"));
        }
        if let Some(size) = box_sizes.iter().find(|s| !(1..=256).contains(*s)) {
            return Some(format!("a box of {size}; 1 to 256 are possible"));
        }
        let wide = box_sizes[0] * element;
        if !wide.is_multiple_of(16) {
            return Some(format!("rows of the box of {wide} bytes are no multiple of 16"));
        }
        if !matches!(swizzle, 0 | 32 | 64 | 128) || *swizzle != 0 && wide != *swizzle {
            return Some(format!("a swizzle of {swizzle} bytes for rows of the box of {wide}"));
        }
        None
    }

    /// Bytes of the box.
    pub(crate) fn box_bytes(&self) -> u64 {
        self.box_sizes.iter().map(|b| u64::from(*b)).product::<u64>() * u64::from(self.element)
    }

    /// Where a chunk of 16 bytes lies that would be at `at` without a swizzle.
    pub(crate) fn swizzled(&self, at: u32) -> u32 {
        at ^ (at >> 7 & (self.swizzle / 16).saturating_sub(1)) << 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> TensorMap {
        TensorMap {
            address: 1 << 40,
            element: 2,
            sizes: vec![200, 30, 7],
            strides: vec![400, 12000],
            box_sizes: vec![64, 8, 2],
            swizzle: 128,
        }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let bytes = map().encode().unwrap();
        assert_eq!(TensorMap::decode(&bytes), Some(map()));
        assert_eq!(map().box_bytes(), 64 * 8 * 2 * 2);
        let five = TensorMap {
            element: 4,
            sizes: vec![1, 2, 3, 4, 1 << 32],
            strides: vec![16, 32, 48, (1 << 40) - 16],
            box_sizes: vec![4, 256, 1, 1, 1],
            swizzle: 0,
            ..map()
        };
        assert_eq!(TensorMap::decode(&five.encode().unwrap()), Some(five));
        assert_eq!(TensorMap::decode(&[0; 128]), None);
        for i in 0..128 {
            let mut spoilt = bytes;
            spoilt[i] ^= 0x81;
            // Either noticed or another valid map; never a panic.
            let _ = TensorMap::decode(&spoilt);
        }
    }

    #[test]
    fn what_a_driver_refuses_is_refused() {
        let refused = |edit: fn(&mut TensorMap), word: &str| {
            let mut map = map();
            edit(&mut map);
            let message = map.encode().unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        };
        refused(|m| m.address += 8, "address");
        refused(|m| m.element = 3, "elements of 3");
        refused(|m| m.sizes[1] = 0, "size of 0");
        refused(|m| m.strides[0] = 8, "stride of 8");
        refused(|m| m.strides[1] = 1 << 40, "stride");
        refused(|m| m.box_sizes[2] = 257, "box of 257");
        refused(|m| m.box_sizes[0] = 4, "rows of the box of 8");
        refused(|m| m.box_sizes[0] = 32, "swizzle of 128");
        refused(|m| m.swizzle = 48, "swizzle of 48");
        refused(|m| m.sizes.truncate(2), "do not belong together");
        refused(|m| m.sizes.clear(), "0 sizes");
    }

    #[test]
    fn swizzles_swap_chunks_within_their_rows() {
        for (swizzle, chunks) in [(0, 1), (32, 2), (64, 4), (128, 8)] {
            let map = TensorMap { swizzle, ..map() };
            // 1024 bytes map onto themselves, every chunk once.
            let mut seen: Vec<u32> = (0..1024).step_by(16).map(|at| map.swizzled(at)).collect();
            assert!(
                seen.iter().enumerate().all(|(i, at)| at / (16 * chunks) == i as u32 * 16 / (16 * chunks))
            );
            seen.sort_unstable();
            assert!(seen.iter().enumerate().all(|(i, at)| *at == i as u32 * 16));
        }
        let map = map();
        assert_eq!([0, 128, 128 + 112, 1024].map(|at| map.swizzled(at)), [0, 144, 128 + 96, 1024]);
    }
}
