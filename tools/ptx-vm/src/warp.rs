//! The state of a warp: registers, reconvergence stack, call frames, local memory, copies in flight.

use crate::ir::{Function, NO_PC, Reg, Src};
use crate::timeline::Timeline;

pub(crate) const ALL: u32 = u32::MAX;
pub(crate) type Lanes = [u32; 32];
pub(crate) type Wide = [u64; 32];

/// One value a lane. A plain loop: the library's array functions are calls per element where they are not inlined.
#[inline(always)]
pub(crate) fn each<T: Copy + Default>(mut f: impl FnMut(usize) -> T) -> [T; 32] {
    let mut out = [T::default(); 32];
    for (lane, v) in out.iter_mut().enumerate() {
        *v = f(lane);
    }
    out
}

/// An entry of the reconvergence stack: `mask` runs at `pc` until it gets to `meet`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Path {
    pub pc: u32,
    pub meet: u32,
    pub mask: u32,
}

/// A function call in progress.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Frame {
    pub function: u32,
    pub regs: usize,
    pub preds: usize,
    /// Start of the frame in per-lane parameter bytes and in local memory.
    pub param: usize,
    pub local: u32,
    /// Paths of the stack below this index belong to callers.
    pub paths: usize,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) enum State {
    #[default]
    Ready,
    /// Waits at a barrier; a reduction writes its result there.
    Barrier(u8),
    Done,
}

/// One asynchronous copy into shared memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flight {
    pub at: u32,
    pub bytes: u32,
    pub lane: u8,
    pub line: u32,
}

/// A committed group: the lanes that committed and the copies still in flight.
#[derive(Debug, Clone, Default)]
pub(crate) struct Group {
    pub lanes: u32,
    pub flights: Vec<Flight>,
}

/// Asynchronous matrix products in flight: their sums (indices into the registers) and the shared rows they read.
#[derive(Debug, Default)]
pub(crate) struct Products {
    pub sums: Vec<usize>,
    /// Registers that hold an operand.
    pub operands: Vec<usize>,
    pub rows: Vec<u32>,
}

#[derive(Debug, Default)]
pub(crate) struct Warp {
    pub index: u32,
    /// Lanes that exist in this block, and those that have not exited.
    pub present: u32,
    pub live: u32,
    pub tid: [Lanes; 3],
    pub state: State,
    pub paths: Vec<Path>,
    pub frames: Vec<Frame>,
    pub frame: Frame,
    pub regs: Vec<Lanes>,
    pub preds: Vec<u32>,
    /// Lanes in which a register or predicate was written.
    pub init: Vec<u32>,
    pub pred_init: Vec<u32>,
    pub carry: u32,
    /// Word-interleaved by lane: word `i` of lane `l` is at `i * 32 + l`; the shadow has four bits per word.
    pub local: Vec<u32>,
    pub local_init: Vec<u8>,
    /// Lane `l`'s byte `b` of parameter space is at `b * 32 + l`.
    pub param: Vec<u8>,
    pub clocks: [u32; 32],
    pub open: Vec<Flight>,
    pub groups: Vec<Group>,
    /// Asynchronous products: not committed, and committed in order.
    pub products: Products,
    pub product_groups: Vec<Products>,
    /// `wgmma.fence`s so far, and how many there had been when each register was last written; kept from the first on.
    pub product_fences: u32,
    pub written_after: Vec<u32>,
    pub products_issued: u64,
    /// Shared memory that bulk stores read: not committed, and committed in order.
    pub bulk: Vec<u32>,
    pub bulk_groups: Vec<Vec<u32>>,
    /// The mbarrier that the warp found incomplete; it gives way to the others.
    pub polled: Option<u32>,
    /// Emptied lists of groups, to be used again.
    pub spare: Vec<Vec<Flight>>,
    pub executed: u64,
    /// Destination of the barrier reduction being waited for.
    pub reduction: Option<(crate::ir::Redux, Src)>,
    /// Allocation found by the last global access.
    pub hint: usize,
    /// Cycles, where they are followed.
    pub time: Timeline,
}

impl Warp {
    /// A warp at the start of a kernel; `old` gives its storage.
    pub fn new(
        index: u32,
        present: u32,
        tid: [Lanes; 3],
        f: &Function,
        function: u32,
        old: Option<Warp>,
    ) -> Self {
        let mut old = old.unwrap_or_default();
        old.paths.clear();
        old.paths.push(Path { pc: 0, meet: NO_PC, mask: present });
        old.frames.clear();
        old.regs.clear();
        old.preds.clear();
        old.init.clear();
        old.pred_init.clear();
        old.local.clear();
        old.local_init.clear();
        old.param.clear();
        old.open.clear();
        old.groups.clear();
        old.product_groups.clear();
        old.written_after.clear();
        old.bulk.clear();
        old.bulk_groups.clear();
        old.time.clear();
        let mut clocks = [0; 32];
        clocks[index as usize & 31] = 1;
        let frame = Frame { function, regs: 0, preds: 0, param: 0, local: 0, paths: 0 };
        let mut w = Warp {
            index,
            present,
            live: present,
            tid,
            state: State::Ready,
            frame,
            carry: 0,
            clocks,
            executed: 0,
            reduction: None,
            products: Products::default(),
            product_fences: 0,
            products_issued: 0,
            polled: None,
            ..old
        };
        w.reserve(f);
        w
    }

    /// Makes room for the current frame of `f`; its registers start unwritten.
    pub fn reserve(&mut self, f: &Function) {
        let fr = self.frame;
        self.regs.resize(fr.regs + f.slots as usize, [0; 32]);
        self.init.truncate(fr.regs);
        self.init.resize(fr.regs + f.slots as usize, 0);
        self.preds.resize(fr.preds + f.preds as usize, 0);
        self.pred_init.truncate(fr.preds);
        self.pred_init.resize(fr.preds + f.preds as usize, 0);
        self.param.resize((fr.param + f.frame_bytes as usize) * 32, 0);
        let words = (fr.local as usize + f.local_bytes as usize).div_ceil(4) * 32;
        self.local.resize(words, 0);
        self.local_init.truncate((fr.local as usize).div_ceil(4) * 32);
        self.local_init.resize(words, 0);
    }

    /// The group of products in flight that writes a register.
    pub fn in_flight(&mut self, index: usize) -> Option<&mut Products> {
        let groups = std::iter::once(&mut self.products).chain(&mut self.product_groups);
        groups.into_iter().find(|g| g.sums.contains(&index))
    }

    /// Whether a product in flight reads or writes a register.
    pub fn in_use(&self, index: usize) -> bool {
        let mut groups = std::iter::once(&self.products).chain(&self.product_groups);
        groups.any(|g| g.sums.contains(&index) || g.operands.contains(&index))
    }

    pub fn reg(&self, slot: u16) -> &Lanes {
        &self.regs[self.frame.regs + slot as usize]
    }

    pub fn pred(&self, p: u16) -> u32 {
        self.preds[self.frame.preds + p as usize]
    }

    pub fn set_pred(&mut self, p: u16, mask: u32, value: u32) {
        let p = &mut self.preds[self.frame.preds + p as usize];
        *p = *p & !mask | value & mask;
    }

    fn blend(&mut self, slot: usize, mask: u32, v: &Lanes) {
        let d = &mut self.regs[self.frame.regs + slot];
        if mask == ALL {
            *d = *v;
        } else {
            for (lane, (d, v)) in d.iter_mut().zip(v).enumerate() {
                *d = if mask >> lane & 1 == 1 { *v } else { *d };
            }
        }
    }

    /// Writes 32-bit results; the upper half of a 64-bit register becomes zero (or the sign).
    pub fn put(&mut self, d: Reg, mask: u32, v: &Lanes, sign: bool) {
        match d.size {
            2 => self.blend(d.slot as usize, mask, &each(|l| v[l] & 0xffff)),
            8 => {
                self.blend(d.slot as usize, mask, v);
                let high = if sign { each(|l| ((v[l] as i32) >> 31) as u32) } else { [0; 32] };
                self.blend(d.slot as usize + 1, mask, &high);
            }
            _ => self.blend(d.slot as usize, mask, v),
        }
    }

    /// Writes 64-bit results (or the part of them that fits).
    pub fn put_wide(&mut self, d: Reg, mask: u32, v: &Wide) {
        let low = each(|l| v[l] as u32);
        if d.size < 8 {
            return self.put(d, mask, &low, false);
        }
        self.blend(d.slot as usize, mask, &low);
        self.blend(d.slot as usize + 1, mask, &each(|l| (v[l] >> 32) as u32));
    }
}
