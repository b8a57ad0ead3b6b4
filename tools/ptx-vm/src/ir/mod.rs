//! The decoded program: what the parser produces and the executor runs.
//!
//! Registers are slots of 32 lanes x 32 bits; a 64-bit register takes two consecutive slots (low word first).
//! Predicates are lane masks in a file of their own.

mod function;
mod kinds;
mod ty;

pub use function::Param;
pub(crate) use function::{Function, Symbol};
pub(crate) use kinds::*;
pub(crate) use ty::Ty;

use crate::report::Class;

/// A destination (or source) register: first slot and size in bytes (2, 4 or 8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reg {
    pub slot: u16,
    pub size: u8,
}

/// Special registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sreg {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    LaneId,
    WarpId,
    NWarpId,
    SmId,
    NSmId,
    GridId,
    Clock,
    Clock64,
    GlobalTimer,
    /// eq, lt, le, gt, ge
    LaneMask(u8),
    DynamicSmem,
    TotalSmem,
    /// Position inside a cluster of one block: always zero.
    Zero,
    /// Size of a cluster of one block.
    One,
}

/// A source operand.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Src {
    Reg(Reg),
    /// Bits of an immediate, already in the instruction's type.
    Imm(u64),
    Special(Sreg),
    /// Address of a module symbol plus an offset; resolved when the kernel is launched.
    Sym(u32, i64),
    /// Address in the current call frame's local memory.
    Local(u32),
    /// A predicate, where an instruction takes one as data.
    Pred(u16),
}

/// A predicate operand, possibly negated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Guard {
    pub pred: u16,
    pub negated: bool,
}

/// State spaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Space {
    Generic,
    Global,
    Shared,
    Local,
    Const,
    Param,
}

/// Rounding of float results and of conversions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Round {
    /// To nearest, ties to even.
    Near,
    /// To nearest, ties away from zero.
    Away,
    Zero,
    Down,
    Up,
}

/// Modifiers of float instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FMod {
    pub round: Round,
    /// Round to an integral value (cvt `.rni`, `.rzi`, ...).
    pub integral: bool,
    pub ftz: bool,
    pub sat: bool,
    pub relu: bool,
    /// min/max give NaN when an input is NaN.
    pub nan: bool,
    pub abs: bool,
}

impl Default for FMod {
    fn default() -> Self {
        FMod {
            round: Round::Near,
            integral: false,
            ftz: false,
            sat: false,
            relu: false,
            nan: false,
            abs: false,
        }
    }
}

/// Memory operand: base plus byte offset.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Addr {
    pub base: Src,
    pub offset: i64,
}

/// Barrier behaviour.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum BarKind {
    Sync,
    Arrive,
    /// Reduction of a predicate over the block; popc writes a register, and/or write a predicate.
    Red {
        op: Redux,
        d: Src,
        p: Guard,
    },
}

/// Shapes and input types of `mma.sync`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MmaKind {
    pub k: u8,
    /// F16, Bf16 or Tf32.
    pub input: Ty,
    /// Accumulators are f16 instead of f32.
    pub half_acc: bool,
}

/// Operands of `wgmma.mma_async` m64nNk16 with f32 sums.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Wgmma {
    pub input: Ty,
    /// n / 2 registers: the sums are read and written.
    pub d: Box<[Reg]>,
    /// One descriptor or four registers.
    pub a: Box<[Src]>,
    pub b: Src,
    /// Where false, the old sums do not count.
    pub accumulate: Guard,
    pub negate: [bool; 2],
    /// The operand's rows are stored along m or n instead of along k.
    pub transposed: [bool; 2],
}

/// What a bulk copy moves in global memory.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Bulk {
    Range {
        global: Addr,
        bytes: Src,
    },
    /// The box of a tensor map at coordinates; of a map with windows with the place in a window.
    Tensor {
        map: Addr,
        at: Box<[Src]>,
        within: Option<Box<[Src]>>,
    },
}

/// One operation.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Op {
    Nop,
    Mov {
        d: Reg,
        a: Src,
    },
    MovPred {
        d: u16,
        a: Src,
    },
    /// Vector to scalar: parts of `bits` bits, low first.
    Pack {
        d: Reg,
        bits: u8,
        parts: Box<[Src]>,
    },
    Unpack {
        d: Box<[Option<Reg>]>,
        bits: u8,
        a: Src,
    },
    Int {
        op: IntOp,
        ty: Ty,
        d: Reg,
        s: [Src; 3],
    },
    Bfi {
        ty: Ty,
        d: Reg,
        s: [Src; 2],
        pos: Src,
        len: Src,
    },
    Carry {
        op: CarryOp,
        ty: Ty,
        d: Reg,
        s: [Src; 3],
        carry_in: bool,
        carry_out: bool,
    },
    Float {
        op: FloatOp,
        ty: Ty,
        m: FMod,
        d: Reg,
        s: [Src; 3],
    },
    Setp {
        cmp: Cmp,
        combine: Option<(Bool, Guard)>,
        ty: Ty,
        ftz: bool,
        p: Option<u16>,
        q: Option<u16>,
        s: [Src; 2],
    },
    /// Packed half comparison into two predicates.
    Setp2 {
        cmp: Cmp,
        combine: Option<(Bool, Guard)>,
        ty: Ty,
        ftz: bool,
        p: Option<u16>,
        q: Option<u16>,
        s: [Src; 2],
    },
    Set {
        cmp: Cmp,
        combine: Option<(Bool, Guard)>,
        dty: Ty,
        ty: Ty,
        ftz: bool,
        d: Reg,
        s: [Src; 2],
    },
    Selp {
        ty: Ty,
        d: Reg,
        a: Src,
        b: Src,
        p: Guard,
    },
    Slct {
        ty: Ty,
        cty: Ty,
        ftz: bool,
        d: Reg,
        s: [Src; 3],
    },
    TestP {
        test: TestP,
        ty: Ty,
        p: u16,
        a: Src,
    },
    PredLogic {
        op: Bool,
        d: u16,
        a: Guard,
        b: Guard,
    },
    Cvt {
        to: Ty,
        from: Ty,
        m: FMod,
        d: Reg,
        a: Src,
    },
    /// Two f32 into one packed register: `a` goes to the upper half.
    CvtPack {
        to: Ty,
        m: FMod,
        d: Reg,
        a: Src,
        b: Src,
    },
    Cvta {
        space: Space,
        to_space: bool,
        ty: Ty,
        d: Reg,
        a: Src,
    },
    IsSpace {
        space: Space,
        p: u16,
        a: Src,
    },
    Ld {
        space: Space,
        ty: Ty,
        d: Box<[Option<Reg>]>,
        addr: Addr,
    },
    St {
        space: Space,
        ty: Ty,
        s: Box<[Src]>,
        addr: Addr,
    },
    Atom {
        space: Space,
        op: AtomOp,
        ty: Ty,
        d: Option<Reg>,
        addr: Addr,
        s: [Src; 2],
    },
    Shfl {
        mode: Shfl,
        d: Option<Reg>,
        p: Option<u16>,
        a: Src,
        b: Src,
        c: Src,
        mask: Src,
    },
    Vote {
        op: Vote,
        d: Option<Reg>,
        p: Option<u16>,
        a: Guard,
        mask: Src,
    },
    Match {
        all: bool,
        ty: Ty,
        d: Reg,
        p: Option<u16>,
        a: Src,
        mask: Src,
    },
    Redux {
        op: Redux,
        ty: Ty,
        d: Reg,
        a: Src,
        mask: Src,
    },
    Activemask {
        d: Reg,
    },
    Elect {
        d: Option<Reg>,
        p: u16,
        mask: Src,
    },
    Bar {
        kind: BarKind,
        id: Src,
        count: Option<Src>,
    },
    WarpSync {
        mask: Src,
    },
    Bra {
        target: u32,
    },
    Brx {
        index: Src,
        targets: Box<[u32]>,
    },
    Call {
        func: u32,
        args: Box<[(u32, u32)]>,
        rets: Box<[(u32, u32)]>,
        name: Box<str>,
    },
    Ret,
    Exit,
    Trap,
    Ldmatrix {
        n: u8,
        trans: bool,
        d: Box<[Reg]>,
        addr: Addr,
    },
    Stmatrix {
        n: u8,
        trans: bool,
        s: Box<[Src]>,
        addr: Addr,
    },
    Movmatrix {
        d: Reg,
        a: Src,
    },
    Mma {
        kind: MmaKind,
        d: Box<[Reg]>,
        a: Box<[Src]>,
        b: Box<[Src]>,
        c: Box<[Src]>,
    },
    CpAsync {
        bytes: u8,
        dst: Addr,
        src: Addr,
        src_size: Option<Src>,
        ignore: Option<Guard>,
    },
    CpCommit,
    /// `all`: also the copies that were not committed.
    CpWait {
        pending: u32,
        all: bool,
    },
    /// An operation on an mbarrier in shared memory; `a` is its count, bytes, state or parity.
    Mbarrier {
        op: MbarOp,
        d: Option<Reg>,
        p: Option<u16>,
        addr: Addr,
        a: Option<Src>,
    },
    BulkLoad {
        to: Addr,
        from: Box<Bulk>,
        barrier: Addr,
    },
    BulkStore {
        from: Addr,
        to: Box<Bulk>,
    },
    BulkCommit,
    BulkWait {
        pending: u32,
    },
    /// `fence.proxy.async`: this warp's stores become visible to asynchronous readers.
    ProxyFence,
    Wgmma(Box<Wgmma>),
    WgmmaFence,
    WgmmaCommit,
    WgmmaWait {
        pending: u32,
    },
}

/// A decoded instruction.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Inst {
    pub op: Op,
    pub guard: Option<Guard>,
    pub line: u32,
    pub class: Class,
    /// Register slots read: checked for initialisation.
    pub reads: Box<[u16]>,
    /// Predicates read, guard included.
    pub pred_reads: Box<[u16]>,
    /// Register slots and predicates written.
    pub writes: Box<[u16]>,
    pub pred_writes: Box<[u16]>,
}

impl Inst {
    /// False for moves between registers, which mostly vanish when registers are assigned, and for hints.
    pub fn takes_a_slot(&self) -> bool {
        !matches!(self.op, Op::Mov { .. } | Op::Nop)
    }
}

/// Per-thread parameter space begins here; below lies the kernel's own (uniform) parameter block.
pub(crate) const FRAME_BASE: u64 = 0x1_0000;
/// "No reconvergence before the function ends".
pub(crate) const NO_PC: u32 = u32::MAX;
