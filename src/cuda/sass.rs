//! What a cubin says of its kernels.

use object::{Object, ObjectSection};

/// Bytes of an instruction since Volta, and of its opcode the low bits that tell instructions apart.
const BYTES: usize = 16;
const OPCODE: u16 = 0xfff;
/// Fills the text up.
const NOP: u16 = 0x918;

/// Instructions of a kernel's text, those that fill it up left out; None where the image has no such kernel or cannot be read.
pub fn instructions(cubin: &[u8], kernel: &str) -> Option<usize> {
    let file = object::File::parse(cubin).ok()?;
    let text = file.section_by_name(&format!(".text.{kernel}"))?;
    let words = text.data().ok()?.chunks_exact(BYTES);
    Some(words.filter(|w| u16::from_le_bytes([w[0], w[1]]) & OPCODE != NOP).count())
}
