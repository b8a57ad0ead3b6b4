//! How many blocks of a kernel a multiprocessor holds, from the published limits: what a driver would tell.

/// Limits of a multiprocessor: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability". Common to all
/// of them: 65,536 registers in four partitions, given to warps 256 at a time; shared memory is given 128 bytes at a time,
/// 1 KiB of every block's is the system's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Architecture {
    pub capability: (u32, u32),
    /// Resident warps.
    pub warps: u32,
    /// Resident blocks.
    pub blocks: u32,
    /// Shared memory, bytes.
    pub shared: u32,
}

const fn of(capability: (u32, u32), warps: u32, blocks: u32, shared_kib: u32) -> Architecture {
    Architecture { capability, warps, blocks, shared: shared_kib << 10 }
}

/// Every architecture whose limits are known.
pub const ARCHITECTURES: [Architecture; 8] = [
    of((8, 0), 64, 32, 164),
    of((8, 6), 48, 16, 100),
    of((8, 7), 48, 16, 164),
    of((8, 9), 48, 24, 100),
    of((9, 0), 64, 32, 228),
    of((10, 0), 64, 32, 228),
    of((10, 3), 64, 32, 228),
    of((12, 0), 48, 24, 100),
];

const WARP: u32 = 32;
const REGISTERS: u32 = 65536;
/// Parts of a multiprocessor, each with its share of the registers and of the warps.
const PARTITIONS: u32 = 4;
const REGISTER_UNIT: u32 = 256;
const SHARED_UNIT: u32 = 128;
const SYSTEM_SHARED: u32 = 1024;

/// The limits of a compute capability, if they are known.
pub fn architecture(capability: (u32, u32)) -> Option<&'static Architecture> {
    ARCHITECTURES.iter().find(|a| a.capability == capability)
}

impl Architecture {
    /// Blocks of `threads` threads with `registers` each and `shared` bytes of shared memory that are resident at a time.
    pub fn resident_blocks(&self, threads: u32, registers: u32, shared: u32) -> u32 {
        let warps = threads.div_ceil(WARP).max(1);
        let each = (registers * WARP).next_multiple_of(REGISTER_UNIT).max(REGISTER_UNIT);
        let by_registers = REGISTERS / PARTITIONS / each * PARTITIONS / warps;
        let by_shared = self.shared / (shared + SYSTEM_SHARED).next_multiple_of(SHARED_UNIT);
        self.blocks.min(self.warps / warps).min(by_registers).min(by_shared)
    }

    /// Resident warps of `blocks` blocks as a part of the most.
    pub fn occupancy(&self, threads: u32, blocks: u32) -> f64 {
        f64::from(blocks * threads.div_ceil(WARP)) / f64::from(self.warps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_occupancies() {
        // (capability, threads, registers, shared) and the blocks that NVIDIA's occupancy calculator gives.
        let cases = [
            ((8, 0), 256, 32, 0, 8),
            ((8, 0), 256, 64, 0, 4),
            // 37 registers are given as 40: 12 warps in each partition.
            ((8, 0), 256, 37, 0, 6),
            ((8, 0), 256, 128, 0, 2),
            ((8, 0), 256, 255, 0, 1),
            ((8, 0), 1024, 64, 0, 1),
            ((8, 0), 1024, 65, 0, 0),
            ((8, 0), 32, 16, 0, 32),
            ((8, 6), 32, 16, 0, 16),
            ((8, 9), 32, 16, 0, 24),
            ((8, 6), 256, 32, 0, 6),
            // The most that a block may have: all of it but the system's KiB.
            ((8, 0), 128, 64, 163 << 10, 1),
            ((8, 6), 128, 64, 99 << 10, 1),
            ((9, 0), 128, 64, 227 << 10, 1),
            ((9, 0), 128, 64, 228 << 10, 0),
            ((9, 0), 128, 64, 113 << 10, 2),
            ((9, 0), 128, 64, (113 << 10) + 1, 1),
        ];
        for (capability, threads, registers, shared, want) in cases {
            let got = architecture(capability).unwrap().resident_blocks(threads, registers, shared);
            assert_eq!(got, want, "{capability:?}: {threads} threads, {registers} registers, {shared} bytes");
        }
        let a100 = architecture((8, 0)).unwrap();
        assert_eq!((a100.occupancy(256, 6), a100.occupancy(96, 4)), (0.75, 12.0 / 64.0));
        assert_eq!(architecture((7, 0)), None);
    }
}
