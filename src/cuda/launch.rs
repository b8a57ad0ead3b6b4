//! From a call to work of the driver.

use super::compiler::{Compiler, Wanted};
use super::driver::{Driver, Launch, Work};
use super::kernel::Call;
use super::sources::Sources;
use crate::error::Result;
use crate::tensor::DType;
use std::collections::HashSet;

/// Compiles and loads what `call` needs; addresses of its constant tables are added to `tables`.
///
/// # Errors
/// Those of the compiler and the driver.
pub(super) fn prepare<D: Driver>(
    driver: &mut D,
    compiler: &Compiler,
    call: Call,
    tables: &mut Vec<u64>,
) -> Result<Work> {
    if let Some(product) = &call.library
        && let Some(id) = driver.library_product(product)?
    {
        return Ok(Work::Product(id));
    }
    let image = compiler.module(&call, driver.image_kind())?;
    let kernel = driver.load(&image, call.kernel, call.shared)?;
    let (grid, block, shared, mut params) = (call.grid, call.block, call.shared, call.params);
    for (offset, bytes) in call.tables {
        let at = driver.allocate(bytes.len())?;
        tables.push(at);
        driver.upload(at, &bytes)?;
        params[offset..offset + size_of::<u64>()].copy_from_slice(&at.to_ne_bytes());
    }
    for (offset, map) in call.maps {
        let map = driver.tensor_map(&map)?;
        params[offset..offset + size_of_val(&map)].copy_from_slice(bytemuck::bytes_of(&map));
    }
    Ok(Work::Kernel(Launch { kernel, grid, block, shared, params }))
}

/// Fills memory with numbers between -1 and 1 without a pattern: a GPU draws less power on zeros, and runs faster.
pub(super) fn fill<D: Driver>(driver: &mut D, at: u64, bytes: usize, dtype: DType) -> Result<()> {
    const PART: usize = 1 << 22;
    let mut state = 0x2545_f491u32;
    let mut random = || {
        // xorshift (Marsaglia 2003).
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as i32 as f32 / i32::MAX as f32
    };
    let part: Vec<u8> = if dtype == DType::Bf16 {
        (0..PART / 2).flat_map(|_| half::bf16::from_f32(random()).to_ne_bytes()).collect()
    } else {
        (0..PART / 4).flat_map(|_| random().to_ne_bytes()).collect()
    };
    (0..bytes).step_by(PART).try_for_each(|i| driver.upload(at + i as u64, &part[..PART.min(bytes - i)]))
}

/// Adds the texts of `calls`.
pub(super) fn want(wanted: &mut Wanted, sources: &Sources, calls: impl IntoIterator<Item = Call>) {
    let mut seen = HashSet::new();
    let new = calls.into_iter().filter(|call| seen.insert(call.variant()));
    wanted.extend(new.map(|call| (call.source(sources), call.family.file())));
}
