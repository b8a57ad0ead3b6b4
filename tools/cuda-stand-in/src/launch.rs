//! What a launch must keep to.

use crate::codes::{Answer, Code, refuse};
use crate::elf::Kernel;
use crate::limits::{BLOCK, GRID, Limits, PLAIN_SHARED, THREADS};
use std::sync::Arc;

/// A kernel that was asked for, with what was set of it.
#[derive(Clone, Debug)]
pub struct Function {
    pub module: u64,
    pub kernel: Arc<Kernel>,
    /// The most dynamic shared memory that it may be launched with, bytes.
    pub most_dynamic: u32,
}

impl Function {
    pub fn new(module: u64, kernel: Arc<Kernel>) -> Self {
        let most_dynamic = PLAIN_SHARED.saturating_sub(kernel.shared);
        Function { module, kernel, most_dynamic }
    }

    /// Permits `bytes` of dynamic shared memory, or no more than that.
    pub fn permit(&mut self, bytes: i32, limits: &Limits) -> Answer {
        let (name, fixed) = (&self.kernel.name, self.kernel.shared);
        let most = limits.most_shared().saturating_sub(fixed);
        match u32::try_from(bytes) {
            Ok(bytes) if bytes <= most => {
                self.most_dynamic = bytes;
                Ok(())
            }
            _ => {
                let why = format!(
                    "kernel {name} is to be permitted {bytes} bytes of dynamic shared memory: with {fixed} static ones the device has {most}"
                );
                refuse(Code::InvalidValue, why)
            }
        }
    }
}

/// Extents of a launch.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: u32,
}

/// Holds a launch against the limits of kernel and device.
pub fn check(function: &Function, shape: &Shape, limits: &Limits) -> Answer {
    let Function { kernel, most_dynamic, .. } = function;
    let (name, Shape { grid, block, shared }) = (&kernel.name, shape);
    let bad = |why: String| refuse(Code::InvalidValue, format!("kernel {name}: {why}"));
    if grid.iter().chain(block).any(|n| *n == 0) {
        return bad(format!("grid {grid:?} of blocks {block:?} has an extent of 0"));
    }
    if grid.iter().zip(GRID).any(|(n, most)| *n > most) {
        return bad(format!("grid {grid:?} is larger than {GRID:?}"));
    }
    if block.iter().zip(BLOCK).any(|(n, most)| *n > most) {
        return bad(format!("block {block:?} is larger than {BLOCK:?}"));
    }
    let threads = block[0] * block[1] * block[2];
    if threads > THREADS {
        return bad(format!("{threads} threads in a block, {THREADS} are the most"));
    }
    if let Some(bound) = kernel.threads.filter(|bound| threads > *bound) {
        return bad(format!("{threads} threads in a block, its launch bounds say {bound}"));
    }
    let sum = u64::from(*shared) + u64::from(kernel.shared);
    if sum > u64::from(limits.most_shared()) {
        return bad(format!("{sum} bytes of shared memory, a block has {}", limits.most_shared()));
    }
    if shared > most_dynamic {
        let fixed = kernel.shared;
        return bad(format!(
            "{shared} bytes of dynamic shared memory beside {fixed} static ones, {most_dynamic} are permitted: set MAX_DYNAMIC_SHARED_SIZE_BYTES"
        ));
    }
    if threads > limits.most_threads(kernel.registers) {
        let why = format!("kernel {name}: {threads} threads of {} registers each", kernel.registers);
        return refuse(Code::OutOfResources, why);
    }
    Ok(())
}
