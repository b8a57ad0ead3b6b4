//! Launching: checks the configuration, runs the blocks in parallel, gathers counts and faults.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rayon::prelude::*;

use crate::env::{Env, OnFault, Options};
use crate::error::{Error, Fault, Result};
use crate::exec::Block;
use crate::memory::Memory;
use crate::module::{Kernel, Module};
use crate::report::{Counts, Report};

/// Runs a kernel to its end. `params` is the parameter block as [`Kernel::params`] lays it out.
#[expect(clippy::too_many_arguments, reason = "the parameters of cuLaunchKernel, in its order")]
pub fn launch(
    module: &Module,
    kernel: &str,
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_shared: u32,
    params: &[u8],
    memory: &mut Memory,
    options: &Options,
) -> Result<Report> {
    let kernel = module.kernel(kernel)?;
    let shared_bytes = check(&kernel, grid, block, dynamic_shared, params, options)?;
    let mut symbols = memory.instantiate(module)?;
    for &(id, offset) in &kernel.shared {
        symbols[id as usize] = offset;
    }
    let memory = &*memory;
    let env =
        Env { kernel: &kernel, memory, symbols, params, grid, block, shared_bytes, dynamic_shared, options };
    let blocks = grid.iter().map(|&d| u64::from(d)).product::<u64>();
    let ran = if options.sample == 0 { blocks } else { options.sample.min(blocks) };
    let (counts, mut faults) = run_blocks(&env, blocks, ran);
    faults.sort_by_key(|(index, _)| *index);
    let faults: Vec<Fault> = faults.into_iter().map(|(_, f)| f).collect();
    match (options.on_fault, faults.first()) {
        (OnFault::Abort, Some(fault)) => Err(Error::Fault(Box::new(fault.clone()))),
        _ => {
            let threads = block.iter().product();
            Ok(Report { kernel: kernel.name().to_string(), blocks, threads, ran, counts, faults })
        }
    }
}

/// Runs `sample` of all blocks, spread evenly; once a block has aborted, later ones are skipped, earlier ones still run, so that which fault is
/// reported does not depend on the number of host threads.
fn run_blocks(env: &Env<'_>, all: u64, blocks: u64) -> (Counts, Vec<(u64, Fault)>) {
    // Waking other threads costs more than a small grid itself: the first blocks run here until there is enough work.
    let (mut done, mut state) = (0, (Counts::default(), Vec::new(), None));
    let first_bad = AtomicU64::new(u64::MAX);
    let run = |mut state: (Counts, Vec<(u64, Fault)>, Option<Block>), index: u64| {
        if index > first_bad.load(Relaxed) {
            return state;
        }
        let block = state.2.get_or_insert_with(borrow_block);
        // The middle of each of the equal parts that the grid falls into.
        block.run(env, ((2 * u128::from(index) + 1) * u128::from(all) / (2 * u128::from(blocks))) as u64);
        state.0.add(&block.counts);
        if !block.faults.is_empty() {
            if env.options.on_fault == OnFault::Abort {
                first_bad.fetch_min(index, Relaxed);
            }
            state.1.extend(block.faults.drain(..).map(|f| (index, f)));
        }
        state
    };
    while done < blocks && state.0.lane_instructions < ALONE && state.1.is_empty() {
        state = run(state, done);
        done += 1;
    }
    let finish = |(counts, faults, block): (Counts, Vec<(u64, Fault)>, Option<Block>)| {
        return_block(block);
        (counts, faults)
    };
    let (mut counts, mut faults) = finish(state);
    if done < blocks && (faults.is_empty() || env.options.on_fault != OnFault::Abort) {
        let parts = (done..blocks).into_par_iter().fold(|| (Counts::default(), Vec::new(), None), run);
        let (c, f) = parts.map(finish).reduce(Default::default, |(mut c, mut f), (c2, f2)| {
            c.add(&c2);
            f.extend(f2);
            (c, f)
        });
        counts.add(&c);
        faults.extend(f);
    }
    (counts, faults)
}

/// Lane instructions (about a millisecond) that a launch runs before it asks for other threads.
const ALONE: u64 = 200_000;

thread_local! {
    /// The state of a block, kept from one launch to the next.
    static SPARE: RefCell<Option<Block>> = const { RefCell::new(None) };
}

fn borrow_block() -> Block {
    SPARE.with(|s| s.try_borrow_mut().ok().and_then(|mut s| s.take())).unwrap_or_default()
}

fn return_block(block: Option<Block>) {
    SPARE.with(|s| {
        if let (Ok(mut s), Some(block)) = (s.try_borrow_mut(), block) {
            *s = Some(block);
        }
    });
}

/// Refuses what the driver would refuse; gives the block's shared memory in bytes.
fn check(
    kernel: &Kernel<'_>,
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_shared: u32,
    params: &[u8],
    options: &Options,
) -> Result<u32> {
    let fail = |message: String| Err(Error::Launch { kernel: kernel.name().to_string(), message });
    let threads = block.iter().map(|&d| u64::from(d)).product::<u64>();
    if threads == 0 || threads > 1024 || block[2] > 64 {
        return fail(format!("a block of {block:?} threads; 1 to 1024 are possible, 64 at most along z"));
    }
    if grid.contains(&0) || grid[0] > i32::MAX as u32 || grid[1] > 65535 || grid[2] > 65535 {
        return fail(format!("a grid of {grid:?} blocks; 1 to 2^31 - 1, 65535 and 65535 are possible"));
    }
    if let Some(max) = kernel.maxntid()
        && threads > max.iter().map(|&d| u64::from(d)).product::<u64>()
    {
        return fail(format!("a block of {block:?} threads, the kernel was compiled for at most {max:?}"));
    }
    if let Some(required) = kernel.reqntid()
        && required != block
    {
        return fail(format!("a block of {block:?} threads, the kernel requires {required:?}"));
    }
    if params.len() != kernel.param_bytes() as usize {
        return fail(format!(
            "{} bytes of parameters, the kernel takes {}",
            params.len(),
            kernel.param_bytes()
        ));
    }
    let shared = u64::from(kernel.static_shared) + u64::from(dynamic_shared);
    if shared > u64::from(options.shared_limit) {
        return fail(format!(
            "{shared} bytes of shared memory, a block has {} at most",
            options.shared_limit
        ));
    }
    Ok(shared as u32)
}
