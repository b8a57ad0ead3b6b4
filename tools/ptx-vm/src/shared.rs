//! Shared memory of a block, with the shadow that finds races.
//!
//! Warps are ordered by vector clocks: a barrier joins the clocks of the warps that meet there, and an access is
//! ordered after another when its warp's clock has seen the other's. The shadow keeps the last writer and the readers
//! since of every 32-bit word; a word that is accessed in smaller pieces gets four byte cells instead.

/// What a thread does to a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Touch {
    Read,
    Write,
    Atomic,
    /// An asynchronous write, in flight until the thread waits for it.
    Async,
    /// The same by a bulk copy, which needs no fence before asynchronous readers.
    Bulk,
}

/// Why an access is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clash {
    Unwritten,
    /// The other access: warp, lane where known, and whether it was a write.
    Race {
        warp: u8,
        lane: Option<u8>,
        write: bool,
    },
    InFlight {
        warp: u8,
        lane: u8,
    },
    /// A write under an asynchronous reader.
    BeingRead,
    /// An asynchronous read of what this thread stored without a proxy fence.
    Unfenced {
        warp: u8,
        lane: u8,
    },
}

const WRITTEN: u16 = 1;
const ATOMIC: u16 = 2;
const FLYING: u16 = 4;
/// Written by a bulk copy.
const BULK: u16 = 8;
/// The upper bits of the flags count asynchronous readers that have not been waited for.
const READER: u16 = 16;
/// More than one lane of the warp read.
const MANY: u8 = 32;

#[derive(Debug, Clone, Copy, Default)]
struct Cell {
    flags: u16,
    warp: u8,
    lane: u8,
    read_lane: u8,
    clock: u32,
    /// Warps that read since the last write, the last of them at `read_clock`.
    readers: u32,
    read_clock: u32,
}

/// Who accesses: warp, lane and the warp's view of all clocks.
pub(crate) struct Who<'a> {
    pub warp: u8,
    pub lane: u8,
    pub clocks: &'a [u32; 32],
    pub strict: bool,
}

impl Cell {
    #[inline]
    fn touch(&mut self, who: &Who<'_>, what: Touch) -> Option<Clash> {
        let now = who.clocks[who.warp as usize];
        if self.flags & FLYING != 0 {
            let clash = Clash::InFlight { warp: self.warp, lane: self.lane };
            self.flags &= !FLYING;
            return Some(clash);
        }
        let mut clash = None;
        if self.flags & WRITTEN != 0 {
            let other = self.warp != who.warp && who.clocks[self.warp as usize & 31] < self.clock;
            let sibling = who.strict && self.warp == who.warp && self.lane != who.lane && self.clock == now;
            let atomics = what == Touch::Atomic && self.flags & ATOMIC != 0;
            if (other || sibling) && !atomics {
                clash = Some(Clash::Race { warp: self.warp, lane: Some(self.lane), write: true });
            }
        } else if matches!(what, Touch::Read | Touch::Atomic) {
            clash = Some(Clash::Unwritten);
        }
        if what == Touch::Read {
            self.read(who, now);
            return clash;
        }
        if self.flags >= READER {
            clash = clash.or(Some(Clash::BeingRead));
        }
        if clash.is_none() {
            clash = self.unordered_reader(who, now);
        }
        let flag = match what {
            Touch::Atomic => WRITTEN | ATOMIC,
            Touch::Async => WRITTEN | FLYING,
            Touch::Bulk => WRITTEN | FLYING | BULK,
            _ => WRITTEN,
        };
        *self = Cell { flags: flag, warp: who.warp, lane: who.lane, clock: now, ..Cell::default() };
        clash
    }

    fn read(&mut self, who: &Who<'_>, now: u32) {
        let me = 1 << who.warp;
        if self.readers == 0 || self.readers == me {
            let same = self.readers == me && self.read_clock == now;
            self.read_lane = if same && self.read_lane != who.lane { MANY } else { who.lane };
            self.readers = me;
        } else {
            if self.read_clock != now {
                // Readers that are ordered before this one need no record: what follows this read follows them.
                let seen = |w: u32| who.clocks[w as usize] >= self.read_clock;
                self.readers =
                    (0..32).filter(|w| self.readers >> w & 1 == 1 && !seen(*w)).fold(0, |m, w| m | 1 << w);
            }
            self.readers |= me;
            self.read_lane = MANY;
        }
        self.read_clock = now;
    }

    fn unordered_reader(&self, who: &Who<'_>, now: u32) -> Option<Clash> {
        let mut others = self.readers & !(1 << who.warp);
        while others != 0 {
            let w = others.trailing_zeros();
            if who.clocks[w as usize] < self.read_clock {
                return Some(Clash::Race { warp: w as u8, lane: None, write: false });
            }
            others &= others - 1;
        }
        let mine = self.readers >> who.warp & 1 == 1 && self.read_clock == now && self.read_lane != who.lane;
        let lane = (self.read_lane < 32).then_some(self.read_lane);
        (who.strict && mine).then_some(Clash::Race { warp: who.warp, lane, write: false })
    }
}

/// A block's shared memory.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    words: Vec<u32>,
    cells: Vec<Cell>,
    /// Byte cells of words that are accessed in pieces; empty until the first such access.
    bytes: Vec<Cell>,
    split: Vec<bool>,
    pub size: u32,
}

impl Shared {
    /// Empties the memory for the next block.
    pub fn reset(&mut self, size: u32) {
        let words = (size as usize).div_ceil(4);
        self.size = size;
        self.words.clear();
        self.words.resize(words, 0);
        self.cells.clear();
        self.cells.resize(words, Cell::default());
        self.split.clear();
        self.split.resize(words, false);
    }

    /// Reads up to 16 aligned bytes that lie in bounds.
    pub fn read(&self, at: u32, bytes: u32, out: &mut [u32; 4]) {
        let first = (at / 4) as usize;
        if bytes < 4 {
            out[0] = self.words[first] >> (8 * (at % 4)) & ((1u64 << (8 * bytes)) - 1) as u32;
            return;
        }
        let n = (bytes / 4) as usize;
        out[..n].copy_from_slice(&self.words[first..first + n]);
    }

    /// Writes up to 16 aligned bytes that lie in bounds.
    pub fn write(&mut self, at: u32, bytes: u32, value: &[u32; 4]) {
        let first = (at / 4) as usize;
        if bytes < 4 {
            let mask = (((1u64 << (8 * bytes)) - 1) as u32) << (8 * (at % 4));
            let word = &mut self.words[first];
            *word = *word & !mask | value[0] << (8 * (at % 4)) & mask;
            return;
        }
        let n = (bytes / 4) as usize;
        self.words[first..first + n].copy_from_slice(&value[..n]);
    }

    /// Checks and records an access to aligned bytes in bounds; the first clash is reported.
    #[inline]
    pub fn touch(&mut self, at: u32, bytes: u32, who: &Who<'_>, what: Touch) -> Option<Clash> {
        let first = (at / 4) as usize;
        if bytes < 4 {
            self.split_word(first);
            return self.touch_bytes(at as usize..(at + bytes) as usize, who, what);
        }
        let mut clash = None;
        for word in first..first + (bytes / 4) as usize {
            let found = if self.split[word] {
                self.touch_bytes(word * 4..word * 4 + 4, who, what)
            } else {
                self.cells[word].touch(who, what)
            };
            clash = clash.or(found);
        }
        clash
    }

    /// Records a read of aligned bytes in bounds if nothing speaks against it; false: ask [`Shared::touch`], which says
    /// what. A read that was recorded already may be recorded again.
    #[inline]
    pub fn quiet_read(&mut self, at: u32, bytes: u32, who: &Who<'_>) -> bool {
        let first = (at / 4) as usize;
        let n = bytes.div_ceil(4) as usize;
        if bytes < 4 || self.split[first..first + n].iter().any(|s| *s) {
            return false;
        }
        let now = who.clocks[who.warp as usize & 31];
        let me = 1 << who.warp;
        self.cells[first..first + n].iter_mut().all(|cell| {
            let ordered = cell.warp == who.warp && !who.strict
                || cell.warp != who.warp && who.clocks[cell.warp as usize & 31] >= cell.clock;
            if cell.flags & (WRITTEN | FLYING) != WRITTEN || !ordered {
                return false;
            }
            if cell.read_clock == now && cell.readers != 0 {
                let same = cell.readers == me && cell.read_lane == who.lane;
                cell.readers |= me;
                cell.read_lane = if same { who.lane } else { MANY };
            } else {
                cell.read(who, now);
            }
            true
        })
    }

    fn split_word(&mut self, word: usize) {
        if self.bytes.len() < self.cells.len() * 4 {
            self.bytes.resize(self.cells.len() * 4, Cell::default());
        }
        if !self.split[word] {
            self.split[word] = true;
            let cell = self.cells[word];
            self.bytes[word * 4..word * 4 + 4].fill(cell);
        }
    }

    fn touch_bytes(&mut self, range: std::ops::Range<usize>, who: &Who<'_>, what: Touch) -> Option<Clash> {
        let cells = self.bytes[range].iter_mut();
        cells.fold(None, |clash, cell| {
            let found = cell.touch(who, what);
            clash.or(found)
        })
    }

    /// The cells of 16 bytes.
    fn cells_of_row(&mut self, at: u32, mut f: impl FnMut(&mut Cell)) {
        for word in (at / 4) as usize..(at / 4) as usize + 4 {
            if self.split[word] {
                self.bytes[word * 4..word * 4 + 4].iter_mut().for_each(&mut f);
            } else {
                f(&mut self.cells[word]);
            }
        }
    }

    /// Begins an asynchronous read of 16 bytes; `fences` are the clocks of the warps' last proxy fences.
    pub fn begin_read(&mut self, at: u32, who: &Who<'_>, fences: &[u32; 32]) -> Option<Clash> {
        let mut clash = self.touch(at, 16, who, Touch::Read);
        self.cells_of_row(at, |cell| {
            if cell.flags & (WRITTEN | BULK) == WRITTEN && fences[cell.warp as usize & 31] < cell.clock {
                clash = clash.or(Some(Clash::Unfenced { warp: cell.warp, lane: cell.lane }));
            }
            cell.flags = cell.flags.checked_add(READER).unwrap_or(cell.flags);
        });
        clash
    }

    /// The asynchronous read has been waited for.
    pub fn end_read(&mut self, at: u32) {
        self.cells_of_row(at, |cell| {
            if cell.flags >= READER {
                cell.flags -= READER;
            }
        });
    }

    /// A piece of 16 bytes of a bulk copy has been waited for.
    pub fn landed(&mut self, at: u32) {
        self.cells_of_row(at, |cell| cell.flags &= !FLYING);
    }

    /// An asynchronous write has arrived: from now on it counts as written by the waiting warp at `clock`.
    pub fn land(&mut self, at: u32, bytes: u32, clock: u32) {
        for word in (at / 4) as usize..((at + bytes) / 4) as usize {
            let cells = if self.split[word] {
                &mut self.bytes[word * 4..word * 4 + 4]
            } else {
                std::slice::from_mut(&mut self.cells[word])
            };
            for cell in cells.iter_mut().filter(|c| c.flags & FLYING != 0) {
                cell.flags &= !FLYING;
                cell.clock = clock;
            }
        }
    }
}
