//! When a warp's instructions could run, if nothing but latencies held them up.
//!
//! Compilers order what lies between two branches or waits as they like, and make several turns of a loop one. So there an
//! instruction runs as soon as its operands are there, one a cycle; everything behind a wait, a branch ahead or [`UNROLLED`]
//! turns of a loop runs after what was started before it.

/// Turns of a loop that compilers make one, where its text does not say how many there are.
const UNROLLED: u64 = 4;

/// Cycles of one warp.
#[derive(Debug, Default)]
pub(crate) struct Timeline {
    /// Of the instruction that runs: when it starts.
    pub now: u64,
    /// Whether the last load found all that it read in its multiprocessor.
    pub near: bool,
    /// Before it nothing more starts.
    floor: u64,
    /// Instructions since the floor was last raised, and the latest start of them.
    issued: u64,
    last: u64,
    /// Branches back so far.
    turns: u64,
    /// When the value of each register and predicate is there.
    pub registers: Vec<u64>,
    pub predicates: Vec<u64>,
    pub copies: Async,
    pub products: Async,
}

/// Work that ends in order, in groups.
#[derive(Debug, Default)]
pub(crate) struct Async {
    open: u64,
    groups: Vec<u64>,
}

impl Async {
    /// Work of the open group that ends at `end`.
    pub fn add(&mut self, end: u64) {
        self.open = self.open.max(end);
    }

    /// Work of the open group that takes `cycles` of something that one does at a time, from `start` on.
    pub fn queue(&mut self, start: u64, cycles: u64) {
        self.open = self.open.max(start) + cycles;
    }

    pub fn commit(&mut self) {
        self.groups.push(self.open);
    }

    /// When all groups but the `pending` newest have ended.
    pub fn wait(&mut self, pending: u32) -> u64 {
        let done = self.groups.len().saturating_sub(pending as usize);
        self.groups.drain(..done).max().unwrap_or(0)
    }

    /// When everything has ended.
    pub fn all(&self) -> u64 {
        self.open
    }

    fn clear(&mut self) {
        self.open = 0;
        self.groups.clear();
    }
}

impl Timeline {
    pub fn clear(&mut self) {
        (self.now, self.floor, self.issued, self.last, self.turns) = (0, 0, 0, 0, 0);
        self.registers.clear();
        self.predicates.clear();
        self.copies.clear();
        self.products.clear();
    }

    /// Whether a branch orders what lies before and behind it.
    pub fn branches(&mut self, back: bool) -> bool {
        self.turns += u64::from(back);
        !back || self.turns.is_multiple_of(UNROLLED)
    }

    /// Starts an instruction whose operands are there at `ready`; one that orders others waits for their start.
    pub fn start(&mut self, ready: u64, orders: bool, slots: u64) {
        self.issued += slots;
        self.now = ready.max(self.floor);
        self.last = self.last.max(self.now);
        if orders {
            self.floor = self.end();
            self.now = self.floor;
        }
    }

    /// Nothing more starts before `cycle`.
    pub fn wait(&mut self, cycle: u64) {
        self.floor = self.floor.max(cycle);
        self.last = self.last.max(self.floor);
    }

    /// When all that started has been issued.
    pub fn end(&mut self) -> u64 {
        self.floor = (self.floor + self.issued).max(self.last);
        (self.issued, self.last) = (0, self.floor);
        self.floor
    }
}
