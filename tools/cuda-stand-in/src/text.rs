//! Kernels of PTX text: names, parameters and `.maxntid`. The rest of it would take the compiler that the driver has:
//! registers, static shared and local memory are taken to be none.

use crate::codes::{Answer, Code, refuse};
use crate::elf::Kernel;

/// The kernels of a text that a driver would compile.
pub fn kernels(text: &str) -> Answer<Vec<Kernel>> {
    if !text.contains(".version") || !text.contains(".target") {
        return refuse(Code::InvalidImage, "the image is neither a cubin nor PTX");
    }
    // Comments may hold words that count elsewhere.
    let text: String =
        text.lines().map(|l| l.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n");
    let mut found = Vec::new();
    for entry in text.split(".entry").skip(1) {
        let head = entry.split('{').next().unwrap_or("");
        let (name, rest) = head.split_once('(').unwrap_or((head, ""));
        let (list, bounds) = rest.split_once(')').unwrap_or((rest, ""));
        let mut kernel = Kernel { name: name.trim().to_owned(), ..Kernel::default() };
        let mut end = 0usize;
        for param in list.split(',').filter(|p| !p.trim().is_empty()) {
            let Some((size, align)) = size_and_alignment(param) else {
                let why = format!("kernel {}: no parameter: {}", kernel.name, param.trim());
                return refuse(Code::InvalidPtx, why);
            };
            let offset = end.next_multiple_of(align);
            kernel.params.push((offset, size));
            end = offset + size;
        }
        kernel.threads = bounds.split_once(".maxntid").map(|(_, numbers)| product(numbers));
        found.push(kernel);
    }
    if found.is_empty() {
        return refuse(Code::InvalidPtx, "the text has no kernel");
    }
    Ok(found)
}

/// The product of the numbers that a text begins with.
fn product(numbers: &str) -> u32 {
    let end = numbers.find(|c: char| !(c.is_ascii_digit() || c == ',' || c.is_whitespace()));
    let listed = &numbers[..end.unwrap_or(numbers.len())];
    listed.split(',').filter_map(|n| n.trim().parse().ok()).fold(1, u32::saturating_mul)
}

/// Of a parameter such as `.param .align 8 .b8 p[16]` or `.param .u64 .ptr .global p`.
fn size_and_alignment(param: &str) -> Option<(usize, usize)> {
    let words: Vec<&str> = param.split_whitespace().collect();
    let width = |w: &str| match w {
        ".u8" | ".s8" | ".b8" => Some(1),
        ".u16" | ".s16" | ".b16" | ".f16" => Some(2usize),
        ".u32" | ".s32" | ".b32" | ".f32" => Some(4),
        ".u64" | ".s64" | ".b64" | ".f64" => Some(8),
        _ => None,
    };
    let element = words.iter().find_map(|w| width(w))?;
    let count = match words.last()?.split_once('[') {
        Some((_, n)) => n.strip_suffix(']')?.parse::<usize>().ok().filter(|n| *n <= 1 << 16)?,
        None => 1,
    };
    let align = words.iter().position(|w| *w == ".align").and_then(|i| words.get(i + 1));
    let align = align.map_or(Some(element), |a| a.parse().ok()).filter(|a| (1..=128).contains(a))?;
    (words[0] == ".param").then_some((element * count, align))
}
