//! Exchanges between the lanes of a warp.

use crate::decode::mods::{Decoded, Mods};
use crate::ir::{Op, Redux, Shfl, Ty, Vote};
use crate::parse::context::FnCtx;
use crate::parse::cursor::Operand;
use crate::report::Class;

pub(crate) fn decode(ctx: &mut FnCtx<'_>, base: &str, m: &mut Mods<'_>, ops: &[Operand<'_>]) -> Decoded {
    if base != "activemask" && !m.take("sync") {
        return ctx.error(format!("`{}`: only the `.sync` form is supported", m.opcode));
    }
    let op = match base {
        "shfl" => shfl(ctx, m, ops)?,
        "vote" => vote(ctx, m, ops)?,
        "match" => {
            let all = m.take("all");
            m.ignore(&["any"]);
            let ty = m.ty(ctx)?;
            m.finish(ctx)?;
            ctx.arity(m.opcode, ops, &[3])?;
            let (a, mask) = (ctx.src(&ops[1], ty)?, ctx.src(&ops[2], Ty::B32)?);
            let (d, p) = ctx.pair(&ops[0]);
            let d = ctx.dst(d, Ty::B32)?;
            let p = p.map(|p| ctx.pred_sink(p)).transpose()?.flatten();
            Op::Match { all, ty, d, p, a, mask }
        }
        "redux" => {
            let op = m.find(|n| {
                Some(match n {
                    "add" => Redux::Add,
                    "min" => Redux::Min,
                    "max" => Redux::Max,
                    "and" => Redux::And,
                    "or" => Redux::Or,
                    "xor" => Redux::Xor,
                    _ => return None,
                })
            });
            let ty = m.ty(ctx)?;
            m.finish(ctx)?;
            ctx.arity(m.opcode, ops, &[3])?;
            let (Some(op), 4, false) = (op, ty.size(), ty.float()) else {
                return ctx.error(format!("`{}` is not supported", m.opcode));
            };
            let (a, mask) = (ctx.src(&ops[1], ty)?, ctx.src(&ops[2], Ty::B32)?);
            Op::Redux { op, ty, a, mask, d: ctx.dst(&ops[0], ty)? }
        }
        "activemask" => {
            m.ignore(&["b32"]);
            m.finish(ctx)?;
            ctx.arity(m.opcode, ops, &[1])?;
            Op::Activemask { d: ctx.dst(&ops[0], Ty::B32)? }
        }
        _ => {
            m.finish(ctx)?;
            ctx.arity(m.opcode, ops, &[2])?;
            let (d, p) = ctx.pair(&ops[0]);
            let Some(p) = p else { return ctx.error("`elect.sync` needs a predicate") };
            Op::Elect { d: ctx.sink(d, Ty::B32)?, p: ctx.pred_dst(p)?, mask: ctx.src(&ops[1], Ty::B32)? }
        }
    };
    Ok((op, Class::Warp))
}

fn shfl(ctx: &mut FnCtx<'_>, m: &mut Mods<'_>, ops: &[Operand<'_>]) -> crate::error::Result<Op> {
    let mode = m.find(|n| {
        Some(match n {
            "up" => Shfl::Up,
            "down" => Shfl::Down,
            "bfly" => Shfl::Bfly,
            "idx" => Shfl::Idx,
            _ => return None,
        })
    });
    let Some(mode) = mode else { return ctx.error(format!("`{}` has no known mode", m.opcode)) };
    m.ignore(&["b32"]);
    m.finish(ctx)?;
    ctx.arity(m.opcode, ops, &[5])?;
    let (a, b) = (ctx.src(&ops[1], Ty::B32)?, ctx.src(&ops[2], Ty::B32)?);
    let (c, mask) = (ctx.src(&ops[3], Ty::B32)?, ctx.src(&ops[4], Ty::B32)?);
    let (d, p) = ctx.pair(&ops[0]);
    let d = ctx.sink(d, Ty::B32)?;
    let p = p.map(|p| ctx.pred_sink(p)).transpose()?.flatten();
    Ok(Op::Shfl { mode, d, p, a, b, c, mask })
}

fn vote(ctx: &mut FnCtx<'_>, m: &mut Mods<'_>, ops: &[Operand<'_>]) -> crate::error::Result<Op> {
    let op = m.find(|n| {
        Some(match n {
            "all" => Vote::All,
            "any" => Vote::Any,
            "uni" => Vote::Uni,
            "ballot" => Vote::Ballot,
            _ => return None,
        })
    });
    let Some(op) = op else { return ctx.error(format!("`{}` has no known mode", m.opcode)) };
    m.ignore(&["pred", "b32"]);
    m.finish(ctx)?;
    ctx.arity(m.opcode, ops, &[3])?;
    let (a, mask) = (ctx.guard(&ops[1])?, ctx.src(&ops[2], Ty::B32)?);
    let (d, p) = match op {
        Vote::Ballot => (Some(ctx.dst(&ops[0], Ty::B32)?), None),
        _ => (None, Some(ctx.pred_dst(&ops[0])?)),
    };
    Ok(Op::Vote { op, d, p, a, mask })
}
