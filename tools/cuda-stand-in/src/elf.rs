//! What a cubin, NVIDIA's ELF of machine code, tells of its kernels. Nothing here trusts a number of the file.

use crate::codes::{Answer, Code, refuse};
use crate::limits::SYSTEM_SHARED;
use object::elf::{EM_CUDA, FileHeader64};
use object::read::elf::{ElfFile64, FileHeader, SectionHeader};
use object::{LittleEndian, Object, ObjectSection, ObjectSymbol, SymbolIndex};
use std::collections::HashMap;

/// What a launch is held against.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kernel {
    pub name: String,
    /// Of a thread.
    pub registers: u32,
    /// Static shared memory, bytes.
    pub shared: u32,
    /// Local memory of a thread, bytes.
    pub local: u32,
    /// What `__launch_bounds__` promises; None without it.
    pub threads: Option<u32>,
    /// Offset and bytes of each parameter.
    pub params: Vec<(usize, usize)>,
}

/// Attributes of `.nv.info`, each with the form of its value.
const WITH_BYTES: u8 = 4;
const MAX_THREADS: u8 = 0x05;
const FRAME_SIZE: u8 = 0x11;
const PARAMETER: u8 = 0x17;
const REGISTER_COUNT: u8 = 0x2f;
/// As [`PARAMETER`], with more room for offsets and sizes.
const PARAMETER_WIDE: u8 = 0x45;

fn invalid<T>(why: impl Into<String>) -> Answer<T> {
    refuse(Code::InvalidImage, why)
}

/// The kernels of a cubin, if a device of `capability` runs it.
pub fn kernels(image: &[u8], capability: (u32, u32)) -> Answer<Vec<Kernel>> {
    let Ok(file) = ElfFile64::<LittleEndian>::parse(image) else {
        return invalid("the image is no whole ELF file");
    };
    let header = file.elf_header();
    if header.e_machine(LittleEndian) != EM_CUDA {
        return invalid("the ELF file is for another machine than a GPU");
    }
    fits(header, capability)?;
    let mut of_symbols = HashMap::new();
    if let Some(section) = file.section_by_name(".nv.info") {
        for (attribute, value) in attributes(data(&section)?)? {
            if let (REGISTER_COUNT | FRAME_SIZE, [symbol, number]) = (attribute, &words(value)[..]) {
                of_symbols.insert((*symbol, attribute), *number);
            }
        }
    }
    // Where the system has shared memory of its own, the sections of kernels begin with it.
    let system = if file.section_by_name(".nv.shared.reserved.0").is_some() { SYSTEM_SHARED } else { 0 };
    let mut found = Vec::new();
    for section in file.sections() {
        let Some(name) = section.name().ok().and_then(|n| n.strip_prefix(".text.")) else { continue };
        // The upper byte held the registers before there was an attribute for them.
        let info = section.elf_section_header().sh_info(LittleEndian);
        let symbol = info & 0x00ff_ffff;
        let is_kernel =
            file.symbol_by_index(SymbolIndex(symbol as usize)).is_ok_and(|s| s.name() == Ok(name));
        if !is_kernel {
            return invalid(format!("section .text.{name} does not name its kernel"));
        }
        let Some(facts) = file.section_by_name(&format!(".nv.info.{name}")) else { continue };
        let mut kernel = described(name, data(&facts)?)?;
        kernel.registers = of_symbols.get(&(symbol, REGISTER_COUNT)).copied().unwrap_or(info >> 24);
        kernel.local = of_symbols.get(&(symbol, FRAME_SIZE)).copied().unwrap_or(0);
        let shared = file.section_by_name(&format!(".nv.shared.{name}")).map_or(0, |s| s.size());
        kernel.shared = u32::try_from(shared).unwrap_or(u32::MAX).saturating_sub(system);
        found.push(kernel);
    }
    if found.is_empty() {
        return invalid("the image holds no kernel");
    }
    Ok(found)
}

fn data<'a>(section: &impl ObjectSection<'a>) -> Answer<&'a [u8]> {
    section.data().or_else(|_| invalid("a section lies outside of the file"))
}

/// Machine code runs on its own generation, from its own member on.
fn fits(header: &FileHeader64<LittleEndian>, capability: (u32, u32)) -> Answer {
    let number = header.e_flags(LittleEndian).0 >> 8 & 0xff;
    let made_for = (number / 10, number % 10);
    if made_for.0 == capability.0 && made_for.1 <= capability.1 {
        return Ok(());
    }
    let (x, y) = capability;
    refuse(Code::NoBinaryForGpu, format!("machine code for sm_{number} does not run on sm_{x}{y}"))
}

/// Kinds and values of a section of attributes.
fn attributes(mut data: &[u8]) -> Answer<Vec<(u8, &[u8])>> {
    let mut found = Vec::new();
    while let [form, kind, low, high, rest @ ..] = data {
        let bytes = if *form == WITH_BYTES { usize::from(u16::from_le_bytes([*low, *high])) } else { 0 };
        let Some((value, rest)) = rest.split_at_checked(bytes) else {
            return invalid("an attribute ends behind its section");
        };
        if *form == WITH_BYTES {
            found.push((*kind, value));
        }
        data = rest;
    }
    if data.is_empty() { Ok(found) } else { invalid("a section of attributes ends within one") }
}

fn words(value: &[u8]) -> Vec<u32> {
    value.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect()
}

/// Parameters and bounds, from the attributes of one kernel.
fn described(name: &str, data: &[u8]) -> Answer<Kernel> {
    let mut kernel = Kernel { name: name.to_owned(), ..Kernel::default() };
    let mut params: Vec<(u16, usize, usize)> = Vec::new();
    for (attribute, value) in attributes(data)? {
        match (attribute, &&words(value)[..]) {
            (MAX_THREADS, [x, y, z]) => {
                kernel.threads = Some(x.saturating_mul(*y).saturating_mul(*z));
            }
            (PARAMETER | PARAMETER_WIDE, [_, place, size]) => {
                let size = if attribute == PARAMETER { size >> 18 } else { size & 0xffff };
                params.push((*place as u16, (place >> 16) as usize, size as usize));
            }
            (MAX_THREADS | PARAMETER | PARAMETER_WIDE, _) => {
                return invalid(format!("kernel {name}: attribute {attribute:#x} has another length"));
            }
            _ => {}
        }
    }
    params.sort_unstable();
    if params.iter().enumerate().any(|(i, p)| i != usize::from(p.0)) {
        return invalid(format!("kernel {name}: its parameters are not numbered from 0"));
    }
    kernel.params = params.into_iter().map(|(_, offset, size)| (offset, size)).collect();
    Ok(kernel)
}
