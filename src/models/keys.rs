//! What a configuration may say of an encoder: keys, and what their values must be.

/// A key of an encoder's section.
#[derive(Clone, Copy, Debug)]
pub struct EncoderKey {
    /// Dotted, such as `encoder.embed_dim`.
    pub name: &'static str,
    /// Whole numbers that it takes; 1 is a number, more are an array.
    pub values: usize,
    pub doc: &'static str,
    pub rule: KeyRule,
}

/// What the values of a key must be, one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyRule {
    /// A width, from 1.
    Width,
    /// A number of blocks, from 1.
    Depth,
    /// From 1 to this.
    UpTo(usize),
    /// The edge of an attention window in positions, from 1.
    Window,
    /// A divisor of that other key's value.
    Divides(&'static str),
    /// A number from 0, below that other key's value.
    Below(&'static str),
    /// Height and width of images in pixels.
    ImageSize,
}

impl EncoderKey {
    pub const fn new(name: &'static str, values: usize, rule: KeyRule, doc: &'static str) -> Self {
        EncoderKey { name, values, doc, rule }
    }
}
