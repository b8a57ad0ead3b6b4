//! Turns an opcode with its modifiers and operands into an [`Op`]. What is not known is an error that names it.

mod alu;
mod async_;
mod control;
mod memory;
mod mods;
mod moves;
mod operands;
mod warp;

use mods::{Decoded, Mods};

use crate::parse::context::FnCtx;
use crate::parse::cursor::Operand;

/// Decodes one instruction.
pub(crate) fn decode(ctx: &mut FnCtx<'_>, opcode: &str, ops: &[Operand<'_>]) -> Decoded {
    let (base, mut m) = Mods::new(opcode);
    let m = &mut m;
    match base {
        "mov" | "selp" | "slct" | "cvt" | "cvta" | "isspacep" => moves::moves(ctx, base, m, ops),
        "setp" | "set" | "testp" => moves::compare(ctx, base, m, ops),
        "ld" | "ldu" | "st" | "atom" | "red" | "prefetch" | "prefetchu" | "applypriority" | "discard" => {
            memory::decode(ctx, base, m, ops)
        }
        "ldmatrix" | "stmatrix" | "movmatrix" | "mma" => memory::matrix(ctx, base, m, ops),
        "cp" | "mbarrier" | "wgmma" | "setmaxnreg" | "griddepcontrol" => async_::decode(ctx, base, m, ops),
        "bra" | "brx" | "call" | "ret" | "exit" | "trap" | "brkpt" | "bar" | "barrier" | "membar"
        | "fence" | "nanosleep" | "pmevent" => control::decode(ctx, base, m, ops),
        "shfl" | "vote" | "match" | "redux" | "activemask" | "elect" => warp::decode(ctx, base, m, ops),
        _ => alu::arithmetic(ctx, base, m, ops),
    }
}
