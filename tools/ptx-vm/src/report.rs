//! What a launch did: instruction counts, memory traffic and how well it was shaped.

use std::fmt;

use crate::error::Fault;

/// Instruction classes of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Integer arithmetic, logic and comparisons.
    Integer,
    /// Float arithmetic of every width.
    Float,
    /// Approximate functions and divisions.
    Special,
    /// Conversions between types.
    Convert,
    /// Register moves and selections.
    Move,
    /// Loads, stores, atomics and copies.
    Memory,
    /// Branches, calls and exits.
    Control,
    /// Barriers, fences and waits.
    Sync,
    /// Shuffles, votes and other exchanges inside a warp.
    Warp,
    /// Matrix instructions.
    Mma,
}

/// The classes in the order of [`Counts::instructions`].
pub const CLASSES: [(Class, &str); 10] = [
    (Class::Integer, "integer"),
    (Class::Float, "float"),
    (Class::Special, "special"),
    (Class::Convert, "convert"),
    (Class::Move, "move"),
    (Class::Memory, "memory"),
    (Class::Control, "control"),
    (Class::Sync, "sync"),
    (Class::Warp, "warp"),
    (Class::Mma, "mma"),
];

/// Bytes moved in one state space.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes read by all threads.
    pub loaded: u64,
    /// Bytes written by all threads.
    pub stored: u64,
}

/// Sums over a launch. All are independent of the order in which blocks ran.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Warp instructions per class, in the order of [`CLASSES`].
    pub instructions: [u64; 10],
    /// Instructions times active lanes.
    pub lane_instructions: u64,
    /// Global (and constant) memory.
    pub global: Traffic,
    /// Shared memory.
    pub shared: Traffic,
    /// Local memory (spills and indexed private arrays).
    pub local: Traffic,
    /// 32-byte sectors that the global requests of warps touch.
    pub global_sectors: u64,
    /// Those of them that a load of the same block had read before, counted where [`crate::Options::latencies`] are given: a
    /// first-level cache may have them.
    pub near_sectors: u64,
    /// Sectors the same bytes would fill without gaps: `global_sectors` above this is uncoalesced traffic.
    pub global_sectors_ideal: u64,
    /// Passes of shared memory requests through its 32 banks.
    pub shared_wavefronts: u64,
    /// Passes without any bank conflict.
    pub shared_wavefronts_ideal: u64,
    /// Multiply-adds of matrix instructions, counted as two operations each.
    pub mma_flops: u64,
    /// Those of them that warpgroups make.
    pub warpgroup_flops: u64,
    /// Instructions that take an issue slot: all but moves between registers, which vanish when registers are assigned. Counted
    /// where [`crate::Options::latencies`] are given.
    pub issued: u64,
    /// Cycles of each block if it were alone and nothing but latencies held it up, where [`crate::Options::latencies`] are
    /// given.
    pub cycles: u64,
    /// Branches where the lanes of a warp went different ways.
    pub divergent_branches: u64,
}

impl Counts {
    /// Warp instructions of one class.
    pub fn class(&self, class: Class) -> u64 {
        self.instructions[class as usize]
    }

    /// Warp instructions of all classes.
    pub fn total(&self) -> u64 {
        self.instructions.iter().sum()
    }

    /// Extra passes through the banks of shared memory.
    pub fn bank_conflicts(&self) -> u64 {
        self.shared_wavefronts.saturating_sub(self.shared_wavefronts_ideal)
    }

    /// Adds the counts of another part of the launch.
    pub fn add(&mut self, other: &Counts) {
        for (a, b) in self.instructions.iter_mut().zip(other.instructions) {
            *a += b;
        }
        self.lane_instructions += other.lane_instructions;
        for (a, b) in [
            (&mut self.global, other.global),
            (&mut self.shared, other.shared),
            (&mut self.local, other.local),
        ] {
            a.loaded += b.loaded;
            a.stored += b.stored;
        }
        self.global_sectors += other.global_sectors;
        self.near_sectors += other.near_sectors;
        self.global_sectors_ideal += other.global_sectors_ideal;
        self.shared_wavefronts += other.shared_wavefronts;
        self.shared_wavefronts_ideal += other.shared_wavefronts_ideal;
        self.mma_flops += other.mma_flops;
        self.warpgroup_flops += other.warpgroup_flops;
        self.issued += other.issued;
        self.cycles += other.cycles;
        self.divergent_branches += other.divergent_branches;
    }
}

/// The result of a launch that ran to its end (or collected its faults).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The kernel's name.
    pub kernel: String,
    /// Number of blocks and threads per block.
    pub blocks: u64,
    /// Threads per block.
    pub threads: u32,
    /// Blocks that ran: all, or those of a sample.
    pub ran: u64,
    /// Sums over the blocks that ran.
    pub counts: Counts,
    /// Collected faults, in the order of blocks; empty for a clean kernel.
    pub faults: Vec<Fault>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let c = &self.counts;
        writeln!(f, "{}: {} blocks x {} threads", self.kernel, self.blocks, self.threads)?;
        write!(f, "  {} warp instructions ({} lane):", c.total(), c.lane_instructions)?;
        for ((_, name), n) in CLASSES.iter().zip(c.instructions).filter(|(_, n)| *n > 0) {
            write!(f, " {name} {n}")?;
        }
        writeln!(f)?;
        for (name, t) in [("global", c.global), ("shared", c.shared), ("local", c.local)] {
            if t != Traffic::default() {
                writeln!(f, "  {name}: {} bytes loaded, {} bytes stored", t.loaded, t.stored)?;
            }
        }
        writeln!(f, "  global sectors {} (ideal {})", c.global_sectors, c.global_sectors_ideal)?;
        writeln!(f, "  shared wavefronts {} (ideal {})", c.shared_wavefronts, c.shared_wavefronts_ideal)?;
        if c.mma_flops > 0 {
            writeln!(f, "  matrix operations {}", c.mma_flops)?;
        }
        for fault in &self.faults {
            writeln!(f, "  {fault}")?;
        }
        Ok(())
    }
}
