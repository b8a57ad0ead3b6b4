//! What a tensor map must keep to, as the driver's manual lists for `cuTensorMapEncodeTiled` and `cuTensorMapEncodeIm2col`.

use crate::codes::{Answer, Code, refuse};

/// What both kinds of requests say of the tensor, without interleaving.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub data_type: u32,
    pub at: u64,
    pub sizes: Vec<u64>,
    /// Bytes, of all dimensions but the first.
    pub strides: Vec<u64>,
    pub element_strides: Vec<u32>,
    pub swizzle: u32,
}

/// A box of a tensor.
#[derive(Clone, Debug)]
pub struct Tiled {
    pub tensor: Tensor,
    pub boxes: Vec<u32>,
}

/// Windows on a tensor of channels, images and their number.
#[derive(Clone, Debug)]
pub struct Im2col {
    pub tensor: Tensor,
    /// Along the dimensions of an image, the innermost first.
    pub lower: Vec<i32>,
    pub upper: Vec<i32>,
    pub channels: u32,
    pub pixels: u32,
}

/// Bytes of the elements of each data type.
const ELEMENTS: [u64; 13] = [1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4];
/// Bytes of a box's rows at most, by swizzle.
const SPANS: [u64; 4] = [u64::MAX, 32, 64, 128];
const ALIGNED: u64 = 16;
const MOST_STRIDE: u64 = 1 << 40;
const MOST_SIZE: u64 = 1 << 32;
const MOST_BOX: u32 = 256;
const MOST_PIXELS: u32 = 1024;
const MOST_ELEMENT_STRIDE: u32 = 8;
pub const MOST_RANK: usize = 5;
pub const FEWEST_OF_IMAGES: usize = 3;
/// Bits of a corner, by the dimensions of an image.
const CORNER_BITS: [u32; 3] = [16, 8, 5];

fn bad<T>(why: String) -> Answer<T> {
    refuse(Code::InvalidValue, format!("tensor map: {why}"))
}

impl Tensor {
    /// Bytes from the first to behind the last element, if it keeps to the rules with boxes of `across` elements a row.
    fn check(&self, across: u32) -> Answer<u64> {
        let Some(element) = ELEMENTS.get(self.data_type as usize).copied() else {
            return bad(format!("data type {} is not known", self.data_type));
        };
        let Some(span) = SPANS.get(self.swizzle as usize).copied() else {
            return bad(format!("swizzle {} is not known", self.swizzle));
        };
        if !self.at.is_multiple_of(ALIGNED) {
            return bad(format!("address {:#x} is no multiple of {ALIGNED}", self.at));
        }
        if let Some(size) = self.sizes.iter().find(|s| !(1..=MOST_SIZE).contains(*s)) {
            return bad(format!("an extent of {size}, 1 to 2^32 are possible"));
        }
        let odd = |s: &&u64| !s.is_multiple_of(ALIGNED) || **s >= MOST_STRIDE;
        if let Some(stride) = self.strides.iter().find(odd) {
            return bad(format!(
                "a stride of {stride} bytes: multiples of {ALIGNED} below 2^40 are possible"
            ));
        }
        if let Some(stride) = self.element_strides.iter().find(|s| !(1..=MOST_ELEMENT_STRIDE).contains(*s)) {
            return bad(format!("an element stride of {stride}, 1 to {MOST_ELEMENT_STRIDE} are possible"));
        }
        let row = u64::from(across) * element;
        if row > span || !row.is_multiple_of(ALIGNED) {
            return bad(format!(
                "boxes of {row} bytes a row: multiples of {ALIGNED} up to {span} are possible"
            ));
        }
        self.extent(element)
    }

    /// Strides must hold what lies within them.
    fn extent(&self, element: u64) -> Answer<u64> {
        let mut inner = u128::from(self.sizes[0]) * u128::from(element);
        for (size, stride) in self.sizes[1..].iter().zip(&self.strides) {
            if u128::from(*stride) < inner {
                return bad(format!("a stride of {stride} bytes, but {inner} lie within it"));
            }
            inner += u128::from(*stride) * u128::from(size - 1);
        }
        u64::try_from(inner).or_else(|_| bad("more than 2^64 bytes".to_owned()))
    }

    /// A map in a form of our own: its address comes first, so that a launch which takes the map is seen to use it.
    pub fn encode(&self) -> [u64; 16] {
        let mut made = [0; 16];
        made[0] = self.at;
        let sizes = self.sizes.iter().chain(&self.strides).copied();
        for (to, from) in made[1..].iter_mut().zip(sizes) {
            *to = from;
        }
        made
    }
}

/// Whether boxes have between 1 and `most` elements along a dimension.
fn bounded(extents: &[u32], most: u32) -> Answer {
    match extents.iter().find(|b| !(1..=most).contains(*b)) {
        Some(extent) => {
            bad(format!("a box of {extent} elements along a dimension, 1 to {most} are possible"))
        }
        None => Ok(()),
    }
}

impl Tiled {
    /// Bytes from the first to behind the last element, if the map keeps to the rules.
    pub fn check(&self) -> Answer<u64> {
        bounded(&self.boxes, MOST_BOX)?;
        self.tensor.check(self.boxes[0])
    }
}

impl Im2col {
    /// Bytes from the first to behind the last element, if the map keeps to the rules.
    pub fn check(&self) -> Answer<u64> {
        bounded(&[self.channels], MOST_BOX)?;
        bounded(&[self.pixels], MOST_PIXELS)?;
        let bytes = self.tensor.check(self.channels)?;
        let images = &self.tensor.sizes[1..self.tensor.sizes.len() - 1];
        let most = 1i64 << (CORNER_BITS[images.len() - 1] - 1);
        for ((lower, upper), size) in self.lower.iter().zip(&self.upper).zip(images) {
            let [lower, upper] = [lower, upper].map(|c| i64::from(*c));
            if let Some(corner) = [lower, upper].into_iter().find(|c| !(-most..most).contains(c)) {
                return bad(format!("a corner of {corner}, {} to {} are possible", -most, most - 1));
            }
            let last = *size as i64 - 1 + upper;
            if last < lower {
                return bad(format!("nothing between the corners {lower} and {last}"));
            }
        }
        Ok(bytes)
    }
}
