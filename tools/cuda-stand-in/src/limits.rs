//! Limits of the devices that can be stood in for: CUDA C++ Programming Guide, "Technical Specifications per Compute
//! Capability".

/// What a multiprocessor holds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Resident warps.
    pub warps: u32,
    /// Resident blocks.
    pub blocks: u32,
    /// Shared memory, bytes.
    pub shared: u32,
    /// Second-level cache of the device, bytes.
    pub cache: u32,
}

/// Shared memory of a block that needs no permission, bytes.
pub const PLAIN_SHARED: u32 = 48 << 10;
/// Shared memory of each block that is the system's, bytes.
pub const SYSTEM_SHARED: u32 = 1 << 10;
/// Threads of a block.
pub const THREADS: u32 = 1024;
pub const BLOCK: [u32; 3] = [1024, 1024, 64];
pub const GRID: [u32; 3] = [i32::MAX as u32, 65535, 65535];
pub const REGISTERS: u32 = 65536;
const WARP: u32 = 32;
/// Parts of a multiprocessor, each with its share of registers and warps.
const PARTITIONS: u32 = 4;
const REGISTER_UNIT: u32 = 256;
const SHARED_UNIT: u32 = 128;

/// The limits of a compute capability; of one that is not listed, those of the nearest below it.
pub fn limits(capability: (u32, u32)) -> Limits {
    let of = |warps, blocks, shared_kib: u32, cache_mib: u32| Limits {
        warps,
        blocks,
        shared: shared_kib << 10,
        cache: cache_mib << 20,
    };
    match capability {
        (12.., _) => of(48, 24, 100, 96),
        (9.., _) => of(64, 32, 228, 50),
        (8, 9) => of(48, 24, 100, 72),
        (8, 7) => of(48, 16, 164, 4),
        (8, 6) => of(48, 16, 100, 6),
        _ => of(64, 32, 164, 40),
    }
}

impl Limits {
    /// Shared memory that a block may ask permission for, bytes.
    pub fn most_shared(&self) -> u32 {
        self.shared - SYSTEM_SHARED
    }

    /// Blocks of `threads` threads that are resident at a time; no more than fit.
    pub fn resident(&self, threads: u32, registers: u32, shared: u32) -> u32 {
        let warps = threads.div_ceil(WARP).max(1);
        let taken = shared.saturating_add(SYSTEM_SHARED);
        let by_shared = self.shared / taken.checked_next_multiple_of(SHARED_UNIT).unwrap_or(u32::MAX);
        self.blocks.min(self.warps / warps).min(by_registers(warps, registers)).min(by_shared)
    }

    /// The most threads of a block that has `registers` registers a thread.
    pub fn most_threads(&self, registers: u32) -> u32 {
        (1..=THREADS / WARP).rev().find(|w| by_registers(*w, registers) > 0).unwrap_or(0) * WARP
    }
}

/// Blocks of `warps` warps that the registers suffice for: they are given out a warp at a time, within partitions.
fn by_registers(warps: u32, registers: u32) -> u32 {
    let each = registers.saturating_mul(WARP).checked_next_multiple_of(REGISTER_UNIT).unwrap_or(u32::MAX);
    REGISTERS / PARTITIONS / each.max(REGISTER_UNIT) * PARTITIONS / warps
}
