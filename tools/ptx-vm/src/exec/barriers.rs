//! The states of the two kinds of barriers.

/// One of the block's sixteen barriers.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Barrier {
    pub waiting: u32,
    pub warps: u32,
    /// Threads that arrived, and how many complete the barrier.
    pub threads: u32,
    pub expected: u32,
    /// Join of the clocks of all that arrived, and the largest of them.
    pub clocks: [u32; 32],
    pub newest: u32,
    pub count: u32,
    pub any: bool,
    pub none_false: bool,
    /// Cycle of the last arrival.
    pub latest: u64,
}

/// An initialised barrier in shared memory.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mbarrier {
    /// Arrivals a phase takes, and those still missing in this one.
    pub count: u32,
    pub missing: u32,
    pub bytes: i64,
    pub phase: u64,
    /// Clocks of the arrivals of this phase, and of those of all complete phases.
    pub arriving: [u32; 32],
    pub arrived: [u32; 32],
    /// Pieces of shared memory that bulk copies of this phase filled, and of complete phases that no thread has seen.
    pub landing: Vec<u32>,
    pub landed: Vec<u32>,
    /// Cycle of the last arrival, and at which the last phase was complete.
    pub latest: u64,
    pub complete_at: u64,
}

impl Mbarrier {
    /// Begins the next phase if nothing is missing in this one.
    pub fn complete(&mut self) {
        if self.missing == 0 && self.bytes == 0 {
            self.phase += 1;
            self.missing = self.count;
            self.complete_at = self.latest;
            for (done, new) in self.arrived.iter_mut().zip(self.arriving) {
                *done = (*done).max(new);
            }
            self.landed.append(&mut self.landing);
        }
    }
}
