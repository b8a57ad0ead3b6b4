//! Loads, stores, atomics and matrix instructions.

use crate::decode::mods::{Decoded, Mods};
use crate::decode::operands::space;
use crate::error::Result;
use crate::ir::{AtomOp, MmaKind, Op, Space, Src, Ty};
use crate::parse::context::FnCtx;
use crate::parse::cursor::Operand;
use crate::report::Class;

/// Caching, ordering and scope: of no consequence to an interpreter that keeps memory coherent.
const IGNORED: [&str; 34] = [
    "weak",
    "relaxed",
    "acquire",
    "release",
    "acq_rel",
    "volatile",
    "mmio",
    "cta",
    "cluster",
    "gpu",
    "sys",
    "ca",
    "cg",
    "cs",
    "cv",
    "lu",
    "wb",
    "wt",
    "nc",
    "noftz",
    "L1::evict_normal",
    "L1::evict_unchanged",
    "L1::evict_first",
    "L1::evict_last",
    "L1::no_allocate",
    "L2::evict_normal",
    "L2::evict_first",
    "L2::evict_last",
    "L2::cache_hint",
    "L2::64B",
    "L2::128B",
    "L2::256B",
    "L1",
    "L2",
];

pub(crate) fn decode(ctx: &mut FnCtx<'_>, base: &str, m: &mut Mods<'_>, ops: &[Operand<'_>]) -> Decoded {
    let hint = m.take("L2::cache_hint");
    m.ignore(&IGNORED);
    let ops = if hint { &ops[..ops.len().saturating_sub(1)] } else { ops };
    let space = m.find(space).unwrap_or(Space::Generic);
    match base {
        "ld" | "ldu" => {
            let (n, ty) = vector(ctx, m)?;
            ctx.arity(m.opcode, ops, &[2])?;
            let list = ctx.elements(&ops[0]);
            if list.len() != n {
                return ctx.error(format!("`{}` loads {n} elements, found {}", m.opcode, list.len()));
            }
            let addr = ctx.addr(&ops[1])?;
            let d = list.iter().map(|o| ctx.sink(o, ty)).collect::<Result<_>>()?;
            Ok((Op::Ld { space, ty, d, addr }, Class::Memory))
        }
        "st" => {
            let (n, ty) = vector(ctx, m)?;
            ctx.arity(m.opcode, ops, &[2])?;
            let addr = ctx.addr(&ops[0])?;
            Ok((Op::St { space, ty, s: ctx.srcs(&ops[1], ty, n)?, addr }, Class::Memory))
        }
        "atom" | "red" => atom(ctx, base == "atom", space, m, ops),
        _ => Ok((Op::Nop, Class::Memory)),
    }
}

fn vector(ctx: &FnCtx<'_>, m: &mut Mods<'_>) -> Result<(usize, Ty)> {
    let n = match (m.take("v2"), m.take("v4")) {
        (true, _) => 2,
        (_, true) => 4,
        _ => 1,
    };
    let ty = m.ty(ctx)?;
    m.finish(ctx)?;
    if n as u32 * ty.size() > 16 || matches!(ty, Ty::Pred | Ty::B128) {
        return ctx.error(format!("`{}`: vector is not supported", m.opcode));
    }
    Ok((n, ty))
}

fn atom(ctx: &mut FnCtx<'_>, returns: bool, space: Space, m: &mut Mods<'_>, ops: &[Operand<'_>]) -> Decoded {
    let op = m.find(|n| {
        Some(match n {
            "add" => AtomOp::Add,
            "min" => AtomOp::Min,
            "max" => AtomOp::Max,
            "exch" => AtomOp::Exch,
            "cas" => AtomOp::Cas,
            "and" => AtomOp::And,
            "or" => AtomOp::Or,
            "xor" => AtomOp::Xor,
            "inc" => AtomOp::Inc,
            "dec" => AtomOp::Dec,
            _ => return None,
        })
    });
    let Some(op) = op else { return ctx.error(format!("`{}` has no known operation", m.opcode)) };
    let ty = m.ty(ctx)?;
    m.finish(ctx)?;
    if ty.size() < 2 || ty.size() > 8 {
        return ctx.error(format!("`{}`: this width is not supported", m.opcode));
    }
    let first = usize::from(returns);
    let sources = if op == AtomOp::Cas { 2 } else { 1 };
    ctx.arity(m.opcode, ops, &[first + 1 + sources])?;
    let addr = ctx.addr(&ops[first])?;
    let mut s = [Src::Imm(0); 2];
    for (s, o) in s.iter_mut().zip(&ops[first + 1..]) {
        *s = ctx.src(o, ty)?;
    }
    let d = if returns { ctx.sink(&ops[0], ty)? } else { None };
    Ok((Op::Atom { space, op, ty, d, addr, s }, Class::Memory))
}

pub(crate) fn matrix(ctx: &mut FnCtx<'_>, base: &str, m: &mut Mods<'_>, ops: &[Operand<'_>]) -> Decoded {
    m.ignore(&["sync", "aligned"]);
    if base == "mma" {
        return mma(ctx, m, ops);
    }
    let trans = m.take("trans");
    if !m.take("m8n8") || !m.take("b16") {
        return ctx.error(format!("`{}`: only m8n8 matrices of b16 are supported", m.opcode));
    }
    if base == "movmatrix" {
        m.finish(ctx)?;
        ctx.arity(m.opcode, ops, &[2])?;
        let a = ctx.src(&ops[1], Ty::B32)?;
        return Ok((Op::Movmatrix { a, d: ctx.dst(&ops[0], Ty::B32)? }, Class::Warp));
    }
    m.find(space);
    let n = match (m.take("x1"), m.take("x2"), m.take("x4")) {
        (true, _, _) => 1,
        (_, true, _) => 2,
        (_, _, true) => 4,
        _ => return ctx.error(format!("`{}` without a matrix count", m.opcode)),
    };
    m.finish(ctx)?;
    ctx.arity(m.opcode, ops, &[2])?;
    let n8 = n as u8;
    if base == "ldmatrix" {
        let addr = ctx.addr(&ops[1])?;
        return Ok((Op::Ldmatrix { n: n8, trans, addr, d: ctx.dsts(&ops[0], Ty::B32, n)? }, Class::Memory));
    }
    let addr = ctx.addr(&ops[0])?;
    Ok((Op::Stmatrix { n: n8, trans, addr, s: ctx.srcs(&ops[1], Ty::B32, n)? }, Class::Memory))
}

fn mma(ctx: &mut FnCtx<'_>, m: &mut Mods<'_>, ops: &[Operand<'_>]) -> Decoded {
    let k = m.find(|s| match s {
        "m16n8k4" => Some(4u8),
        "m16n8k8" => Some(8),
        "m16n8k16" => Some(16),
        _ => None,
    });
    let layout = m.take("row") && m.take("col");
    let (d_ty, input, b_ty, c_ty) = (m.ty(ctx)?, m.ty(ctx)?, m.ty(ctx)?, m.ty(ctx)?);
    m.finish(ctx)?;
    let supported = layout
        && input == b_ty
        && d_ty == c_ty
        && match (input, k) {
            (Ty::F16, Some(8 | 16)) => matches!(d_ty, Ty::F32 | Ty::F16),
            (Ty::Bf16, Some(8 | 16)) | (Ty::Tf32, Some(4 | 8)) => d_ty == Ty::F32,
            _ => false,
        };
    let (Some(k), true) = (k, supported) else {
        return ctx.error(format!("`{}` is not supported", m.opcode));
    };
    ctx.arity(m.opcode, ops, &[4])?;
    // A is 16 x k, B is k x 8; a register holds one tf32 or two half elements of a lane.
    let per = if input == Ty::Tf32 { 1 } else { 2 };
    let (na, nb) = (usize::from(k) * 16 / 32 / per, usize::from(k) * 8 / 32 / per);
    let nc = if d_ty == Ty::F32 { 4 } else { 2 };
    let a = ctx.srcs(&ops[1], Ty::B32, na)?;
    let b = ctx.srcs(&ops[2], Ty::B32, nb)?;
    let c = ctx.srcs(&ops[3], Ty::B32, nc)?;
    let d = ctx.dsts(&ops[0], Ty::B32, nc)?;
    Ok((Op::Mma { kind: MmaKind { k, input, half_acc: d_ty == Ty::F16 }, d, a, b, c }, Class::Mma))
}
