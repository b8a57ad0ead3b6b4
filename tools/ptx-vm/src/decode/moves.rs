//! Moves, selections, conversions and comparisons.

use crate::decode::mods::{Decoded, Mods};
use crate::decode::operands::space;
use crate::error::Result;
use crate::ir::{Bool, Cmp, Guard, Op, Space, TestP, Ty};
use crate::parse::context::FnCtx;
use crate::parse::cursor::Operand;
use crate::report::Class;

pub(crate) fn moves(ctx: &mut FnCtx<'_>, base: &str, m: &mut Mods<'_>, ops: &[Operand<'_>]) -> Decoded {
    match base {
        "mov" => mov(ctx, m, ops),
        "selp" => {
            let ty = m.ty(ctx)?;
            m.finish(ctx)?;
            ctx.arity(m.opcode, ops, &[4])?;
            let (a, b) = (ctx.src(&ops[1], ty)?, ctx.src(&ops[2], ty)?);
            let op = Op::Selp { ty, a, b, p: ctx.guard(&ops[3])?, d: ctx.dst(&ops[0], ty)? };
            Ok((op, Class::Move))
        }
        "slct" => {
            let ftz = m.take("ftz");
            let (ty, cty) = (m.ty(ctx)?, m.ty(ctx)?);
            m.finish(ctx)?;
            ctx.arity(m.opcode, ops, &[4])?;
            let s = [ctx.src(&ops[1], ty)?, ctx.src(&ops[2], ty)?, ctx.src(&ops[3], cty)?];
            Ok((Op::Slct { ty, cty, ftz, s, d: ctx.dst(&ops[0], ty)? }, Class::Move))
        }
        "cvt" => cvt(ctx, m, ops),
        "cvta" => {
            let to_space = m.take("to");
            let space = m.find(space);
            let ty = m.ty(ctx)?;
            m.finish(ctx)?;
            ctx.arity(m.opcode, ops, &[2])?;
            let Some(space) = space else { return ctx.error("`cvta` without a state space") };
            let a = ctx.src(&ops[1], ty)?;
            Ok((Op::Cvta { space, to_space, ty, a, d: ctx.dst(&ops[0], ty)? }, Class::Integer))
        }
        _ => {
            let space = m.find(space).unwrap_or(Space::Generic);
            m.finish(ctx)?;
            ctx.arity(m.opcode, ops, &[2])?;
            let a = ctx.src(&ops[1], Ty::U64)?;
            Ok((Op::IsSpace { space, a, p: ctx.pred_dst(&ops[0])? }, Class::Integer))
        }
    }
}

fn mov(ctx: &mut FnCtx<'_>, m: &mut Mods<'_>, ops: &[Operand<'_>]) -> Decoded {
    let ty = m.ty(ctx)?;
    m.finish(ctx)?;
    ctx.arity(m.opcode, ops, &[2])?;
    if ty == Ty::Pred {
        let a = ctx.src(&ops[1], Ty::Pred)?;
        return Ok((Op::MovPred { a, d: ctx.pred_dst(&ops[0])? }, Class::Move));
    }
    let part = |n: usize| match (n as u32, ty.bits()) {
        (2 | 4, bits @ 16..) => Some(bits / n as u32).filter(|b| *b >= 8),
        _ => None,
    };
    let part_ty = |bits: u32| match bits {
        32 => Ty::B32,
        16 => Ty::B16,
        _ => Ty::B8,
    };
    match (&ops[0], &ops[1]) {
        (d, Operand::Vector(parts)) => {
            let Some(bits) = part(parts.len()) else {
                return ctx.error("vector does not fit the type of `mov`");
            };
            let parts = parts.iter().map(|p| ctx.src(p, part_ty(bits))).collect::<Result<_>>()?;
            Ok((Op::Pack { bits: bits as u8, parts, d: ctx.dst(d, ty)? }, Class::Move))
        }
        (Operand::Vector(parts), a) => {
            let Some(bits) = part(parts.len()) else {
                return ctx.error("vector does not fit the type of `mov`");
            };
            let a = ctx.src(a, ty)?;
            let d = parts.iter().map(|p| ctx.sink(p, part_ty(bits))).collect::<Result<_>>()?;
            Ok((Op::Unpack { d, bits: bits as u8, a }, Class::Move))
        }
        (d, a) => {
            let a = ctx.src(a, ty)?;
            Ok((Op::Mov { a, d: ctx.dst(d, ty)? }, Class::Move))
        }
    }
}

fn cvt(ctx: &mut FnCtx<'_>, m: &mut Mods<'_>, ops: &[Operand<'_>]) -> Decoded {
    let fm = m.float();
    let (to, from) = (m.ty(ctx)?, m.ty(ctx)?);
    m.finish(ctx)?;
    if matches!(to, Ty::F16x2 | Ty::Bf16x2) {
        ctx.arity(m.opcode, ops, &[3])?;
        if from != Ty::F32 {
            return ctx.error(format!("`{}`: only f32 pairs can be packed", m.opcode));
        }
        let (a, b) = (ctx.src(&ops[1], from)?, ctx.src(&ops[2], from)?);
        return Ok((Op::CvtPack { to, m: fm, a, b, d: ctx.dst(&ops[0], to)? }, Class::Convert));
    }
    ctx.arity(m.opcode, ops, &[2])?;
    if matches!(from, Ty::F16x2 | Ty::Bf16x2 | Ty::Tf32 | Ty::Pred | Ty::B128)
        || to == Ty::Pred
        || to == Ty::B128
    {
        return ctx.error(format!("`{}` is not supported", m.opcode));
    }
    let a = ctx.src(&ops[1], from)?;
    Ok((Op::Cvt { to, from, m: fm, a, d: ctx.dst(&ops[0], to)? }, Class::Convert))
}

fn cmp(name: &str) -> Option<(Cmp, bool)> {
    Some(match name {
        "eq" => (Cmp::Eq, false),
        "ne" => (Cmp::Ne, false),
        "lt" => (Cmp::Lt, false),
        "le" => (Cmp::Le, false),
        "gt" => (Cmp::Gt, false),
        "ge" => (Cmp::Ge, false),
        "lo" => (Cmp::Lt, true),
        "ls" => (Cmp::Le, true),
        "hi" => (Cmp::Gt, true),
        "hs" => (Cmp::Ge, true),
        "equ" => (Cmp::Equ, false),
        "neu" => (Cmp::Neu, false),
        "ltu" => (Cmp::Ltu, false),
        "leu" => (Cmp::Leu, false),
        "gtu" => (Cmp::Gtu, false),
        "geu" => (Cmp::Geu, false),
        "num" => (Cmp::Num, false),
        "nan" => (Cmp::Nan, false),
        _ => return None,
    })
}

pub(super) fn bool_op(name: &str) -> Option<Bool> {
    match name {
        "and" => Some(Bool::And),
        "or" => Some(Bool::Or),
        "xor" => Some(Bool::Xor),
        _ => None,
    }
}

pub(crate) fn compare(ctx: &mut FnCtx<'_>, base: &str, m: &mut Mods<'_>, ops: &[Operand<'_>]) -> Decoded {
    if base == "testp" {
        return testp(ctx, m, ops);
    }
    let Some((cmp, unsigned)) = m.find(cmp) else {
        return ctx.error(format!("`{}` has no known comparison", m.opcode));
    };
    let combine = m.find(bool_op);
    let ftz = m.take("ftz");
    let dty = if base == "set" { m.ty(ctx)? } else { Ty::Pred };
    let mut ty = m.ty(ctx)?;
    m.finish(ctx)?;
    if unsigned {
        ty = match ty {
            Ty::S16 => Ty::U16,
            Ty::S32 => Ty::U32,
            Ty::S64 => Ty::U64,
            other => other,
        };
    }
    ctx.arity(m.opcode, ops, if combine.is_some() { &[4] } else { &[3] })?;
    let s = [ctx.src(&ops[1], ty)?, ctx.src(&ops[2], ty)?];
    let combine: Option<(Bool, Guard)> = match combine {
        Some(b) => Some((b, ctx.guard(&ops[3])?)),
        None => None,
    };
    if base == "set" {
        if matches!(ty, Ty::F16x2 | Ty::Bf16x2) {
            return ctx.error(format!("`{}` on pairs is not supported", m.opcode));
        }
        return Ok((Op::Set { cmp, combine, dty, ty, ftz, s, d: ctx.dst(&ops[0], dty)? }, Class::Integer));
    }
    let (p, q) = ctx.pair(&ops[0]);
    let p = ctx.pred_sink(p)?;
    let q = q.map(|q| ctx.pred_sink(q)).transpose()?.flatten();
    let packed = matches!(ty, Ty::F16x2 | Ty::Bf16x2);
    let op = if packed {
        Op::Setp2 { cmp, combine, ty, ftz, p, q, s }
    } else {
        Op::Setp { cmp, combine, ty, ftz, p, q, s }
    };
    Ok((op, if ty.float() { Class::Float } else { Class::Integer }))
}

fn testp(ctx: &mut FnCtx<'_>, m: &mut Mods<'_>, ops: &[Operand<'_>]) -> Decoded {
    let test = m.find(|n| {
        Some(match n {
            "finite" => TestP::Finite,
            "infinite" => TestP::Infinite,
            "number" => TestP::Number,
            "notanumber" => TestP::NotANumber,
            "normal" => TestP::Normal,
            "subnormal" => TestP::Subnormal,
            _ => return None,
        })
    });
    let Some(test) = test else { return ctx.error(format!("`{}` has no known property", m.opcode)) };
    let ty = m.ty(ctx)?;
    m.finish(ctx)?;
    ctx.arity(m.opcode, ops, &[2])?;
    let a = ctx.src(&ops[1], ty)?;
    Ok((Op::TestP { test, ty, a, p: ctx.pred_dst(&ops[0])? }, Class::Float))
}
