//! Tensor maps: what tensor copies know of a tensor in global memory.

use crate::error::{Error, Result};

/// First bytes of an encoded map. A driver's own encoding is opaque; this one is ours.
const MAGIC: u64 = u64::from_le_bytes(*b"PTXVMMAP");
/// Dimensions a tensor has at most.
pub(crate) const RANK: usize = 5;

/// Places of the header, of sizes, strides, the box and windows in an encoded map.
const SIZES: usize = 28;
const STRIDES: usize = SIZES + 8 * RANK;
const BOX: usize = STRIDES + 8 * (RANK - 1);
const WINDOWS: usize = BOX + 2 * RANK;

/// Where the windows of a convolution begin on the images of a tensor: what `cuTensorMapEncodeIm2col` takes beside the rest.
/// Dimensions of an image come width first, as those of the tensor do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    /// Coordinate of the first window along each dimension of an image.
    pub lower: Vec<i32>,
    /// Distance from the image's last coordinate to the last that a window may begin at.
    pub upper: Vec<i32>,
    /// From one window to the next, 1 to 8.
    pub steps: Vec<u32>,
}

/// A tensor and the box that a copy moves, as `cuTensorMapEncodeTiled` takes them (no interleave, element strides of 1,
/// zeros outside), or with windows `cuTensorMapEncodeIm2col`.
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
    /// Elements of the box along each dimension, 1 to 256. With windows: channels, and windows in a row, 1 to 1024.
    pub box_sizes: Vec<u32>,
    /// 0, or bytes within which chunks of 16 bytes are swapped in shared memory: 32, 64 or 128. The box must then be as wide;
    /// a driver also takes narrower ones.
    pub swizzle: u32,
    /// With them the tensor is channels, images of 1 to 3 dimensions, and their number.
    pub windows: Option<Windows>,
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
        let size = |i: usize| self.box_sizes.get(i).copied().unwrap_or(0) as u16;
        (0..RANK).for_each(|i| put(&size(i).to_le_bytes()));
        if let Some(Windows { lower, upper, steps }) = &self.windows {
            // Of three dimensions at most; a step of 0 ends them.
            for i in 0..RANK - 2 {
                let corner = |of: &[i32]| of.get(i).copied().unwrap_or(0) as i16;
                put(&corner(lower).to_le_bytes());
                put(&corner(upper).to_le_bytes());
                put(&[steps.get(i).copied().unwrap_or(0) as u8]);
            }
        }
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
        let short = |at: usize| i16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let spatial: Vec<usize> = (0..rank.saturating_sub(2)).map(|i| WINDOWS + 5 * i).collect();
        let windows = (bytes[WINDOWS + 4] > 0).then(|| Windows {
            lower: spatial.iter().map(|at| short(*at).into()).collect(),
            upper: spatial.iter().map(|at| short(at + 2).into()).collect(),
            steps: spatial.iter().map(|at| bytes[at + 4].into()).collect(),
        });
        let boxes = if windows.is_some() { 2 } else { rank };
        let map = TensorMap {
            address: word(8)?,
            element: half(20)?,
            swizzle: half(24)?,
            sizes: (0..rank).map(|i| word(SIZES + 8 * i)).collect::<Option<_>>()?,
            strides: (0..rank - 1).map(|i| word(STRIDES + 8 * i)).collect::<Option<_>>()?,
            box_sizes: (0..boxes).map(|i| u32::from(short(BOX + 2 * i) as u16)).collect(),
            windows,
        };
        map.refused().is_none().then_some(map)
    }

    fn refused(&self) -> Option<String> {
        let TensorMap { address, element, sizes, strides, box_sizes, swizzle, windows } = self;
        if !address.is_multiple_of(16) {
            return Some(format!("the address {address:#x} is no multiple of 16"));
        }
        if !matches!(element, 1 | 2 | 4 | 8) {
            return Some(format!("elements of {element} bytes; 1, 2, 4 and 8 are possible"));
        }
        let rank = sizes.len();
        let boxes = if windows.is_some() { 2 } else { rank };
        if !(1..=RANK).contains(&rank) || strides.len() + 1 != rank || box_sizes.len() != boxes {
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
        let most = |i: usize| if windows.is_some() && i == 1 { 1024 } else { 256 };
        if let Some((i, size)) = box_sizes.iter().enumerate().find(|(i, s)| !(1..=most(*i)).contains(*s)) {
            return Some(format!("a box of {size}; 1 to {} are possible", most(i)));
        }
        let wide = box_sizes[0] * element;
        if !wide.is_multiple_of(16) {
            return Some(format!("rows of the box of {wide} bytes are no multiple of 16"));
        }
        if !matches!(swizzle, 0 | 32 | 64 | 128) || *swizzle != 0 && wide != *swizzle {
            return Some(format!("a swizzle of {swizzle} bytes for rows of the box of {wide}"));
        }
        windows.as_ref().and_then(|w| w.refused(sizes))
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

impl Windows {
    /// Why no map of a tensor of these sizes has such windows.
    fn refused(&self, sizes: &[u64]) -> Option<String> {
        let Windows { lower, upper, steps } = self;
        if !(3..=RANK).contains(&sizes.len()) {
            return Some(format!("windows on a tensor of {} dimensions; 3 to 5 are possible", sizes.len()));
        }
        let images = &sizes[1..sizes.len() - 1];
        if [lower.len(), upper.len(), steps.len()].iter().any(|n| *n != images.len()) {
            return Some(format!("windows with other than {} corners and steps", images.len()));
        }
        // The fewer the dimensions, the more bits each has.
        let most = 1 << [15, 7, 4][images.len() - 1];
        if let Some(corner) = lower.iter().chain(upper).find(|c| !(-most..most).contains(*c)) {
            return Some(format!("a corner of {corner}; {} to {} are possible", -most, most - 1));
        }
        if let Some(step) = steps.iter().find(|s| !(1..=8).contains(*s)) {
            return Some(format!("a step of {step}; 1 to 8 are possible"));
        }
        let first_last = lower.iter().zip(self.last(sizes));
        if first_last.clone().any(|(first, last)| last < i64::from(*first)) {
            return Some("no window between the corners".to_owned());
        }
        None
    }

    /// The last coordinate that a window may begin at, along each dimension of an image.
    pub(crate) fn last(&self, sizes: &[u64]) -> Vec<i64> {
        self.upper.iter().zip(&sizes[1..]).map(|(upper, size)| *size as i64 - 1 + i64::from(*upper)).collect()
    }

    /// The largest offset from a window's first element that a copy may ask for.
    pub(crate) fn most_offset(&self) -> u32 {
        match self.lower.len() {
            1 => 0xffff,
            2 => 0xff,
            _ => 0x1f,
        }
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
            windows: None,
        }
    }

    /// Windows of 3x3 on images of 14 by 9, every second line.
    fn images() -> TensorMap {
        TensorMap {
            address: 1 << 40,
            element: 2,
            sizes: vec![64, 9, 14, 5],
            strides: vec![128, 1152, 16128],
            box_sizes: vec![64, 1024],
            swizzle: 128,
            windows: Some(Windows { lower: vec![-1, -128], upper: vec![-1, 127], steps: vec![1, 2] }),
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
        let line = TensorMap {
            sizes: vec![64, 1 << 16, 3],
            strides: vec![128, 128 << 16],
            windows: Some(Windows { lower: vec![-0x8000], upper: vec![0x7fff], steps: vec![8] }),
            ..images()
        };
        let solid = TensorMap {
            sizes: vec![64, 9, 14, 8, 2],
            strides: vec![128, 1152, 16128, 129024],
            windows: Some(Windows { lower: vec![-16, 0, 1], upper: vec![15, 0, -2], steps: vec![1, 2, 3] }),
            ..images()
        };
        for windows in [images(), line, solid] {
            assert_eq!(TensorMap::decode(&windows.encode().unwrap()), Some(windows));
        }
        assert_eq!(images().box_bytes(), 64 * 1024 * 2);
        assert_eq!(TensorMap::decode(&[0; 128]), None);
        for bytes in [bytes, images().encode().unwrap()] {
            for i in 0..128 {
                let mut spoilt = bytes;
                spoilt[i] ^= 0x81;
                // Either noticed or another valid map; never a panic.
                let _ = TensorMap::decode(&spoilt);
            }
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
        let refused = |edit: fn(&mut TensorMap, &mut Windows), word: &str| {
            let mut map = images();
            let mut windows = map.windows.take().unwrap();
            edit(&mut map, &mut windows);
            map.windows = Some(windows);
            let message = map.encode().unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        };
        refused(|m, _| m.box_sizes[1] = 1025, "box of 1025; 1 to 1024");
        refused(|m, _| m.box_sizes[0] = 264, "box of 264; 1 to 256");
        refused(|m, _| m.box_sizes.push(1), "do not belong together");
        refused(|_, w| w.lower[0] = -129, "corner of -129; -128 to 127");
        refused(|_, w| w.upper[1] = 128, "corner of 128; -128 to 127");
        refused(|_, w| w.steps[0] = 9, "step of 9");
        refused(|_, w| w.steps[0] = 0, "step of 0");
        refused(|_, w| w.upper.truncate(1), "other than 2 corners");
        // A line of 9 whose first window begins at 3 and whose last at 2.
        refused(|_, w| (w.lower[0], w.upper[0]) = (3, -6), "no window");
        let flat = |m: &mut TensorMap, _: &mut Windows| {
            m.sizes.truncate(2);
            m.strides.truncate(1);
        };
        refused(flat, "tensor of 2 dimensions");
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
