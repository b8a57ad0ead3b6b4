//! Branches, calls, barriers and fences.

use crate::decode::mods::{Decoded, Mods};
use crate::ir::{BarKind, Op, Redux, Src, Ty};
use crate::parse::context::FnCtx;
use crate::parse::cursor::Operand;
use crate::report::Class;

pub(crate) fn decode(ctx: &mut FnCtx<'_>, base: &str, m: &mut Mods<'_>, ops: &[Operand<'_>]) -> Decoded {
    match base {
        "bra" | "brx" => {
            let indexed = base == "brx";
            m.ignore(&["uni"]);
            if indexed && !m.take("idx") {
                return ctx.error(format!("`{}` is not supported", m.opcode));
            }
            m.finish(ctx)?;
            ctx.arity(m.opcode, ops, if indexed { &[2] } else { &[1] })?;
            let Some(Operand::Word(label)) = ops.last() else { return ctx.error("expected a label") };
            ctx.label = Some(label.to_string());
            if !indexed {
                return Ok((Op::Bra { target: 0 }, Class::Control));
            }
            let index = ctx.src(&ops[0], Ty::U32)?;
            Ok((Op::Brx { index, targets: Box::new([]) }, Class::Control))
        }
        "call" => call(ctx, m, ops),
        "ret" | "exit" | "trap" | "brkpt" => {
            m.ignore(&["uni"]);
            m.finish(ctx)?;
            let op = match base {
                "ret" => Op::Ret,
                "exit" => Op::Exit,
                _ => Op::Trap,
            };
            Ok((op, Class::Control))
        }
        "bar" | "barrier" => barrier(ctx, m, ops),
        "fence" if m.take("proxy") => {
            Ok((if m.take("async") { Op::ProxyFence } else { Op::Nop }, Class::Sync))
        }
        // Memory is coherent here, and what these order is checked through barriers alone.
        _ => Ok((Op::Nop, Class::Sync)),
    }
}

fn call(ctx: &mut FnCtx<'_>, m: &mut Mods<'_>, ops: &[Operand<'_>]) -> Decoded {
    m.ignore(&["uni"]);
    m.finish(ctx)?;
    let (rets, rest): (&[Operand<'_>], _) = match ops {
        [Operand::List(rets), rest @ ..] => (rets, rest),
        rest => (&[], rest),
    };
    let (name, args): (_, &[Operand<'_>]) = match rest {
        [Operand::Word(name)] => (name, &[]),
        [Operand::Word(name), Operand::List(args)] => (name, args),
        _ => return ctx.error("indirect calls are not supported"),
    };
    let rets = rets.iter().map(|o| ctx.call_param(o)).collect::<Result<_, _>>()?;
    let args = args.iter().map(|o| ctx.call_param(o)).collect::<Result<_, _>>()?;
    Ok((Op::Call { func: 0, args, rets, name: (*name).into() }, Class::Control))
}

fn barrier(ctx: &mut FnCtx<'_>, m: &mut Mods<'_>, ops: &[Operand<'_>]) -> Decoded {
    m.ignore(&["cta", "aligned"]);
    if m.take("warp") {
        m.ignore(&["sync"]);
        m.finish(ctx)?;
        ctx.arity(m.opcode, ops, &[1])?;
        return Ok((Op::WarpSync { mask: ctx.src(&ops[0], Ty::B32)? }, Class::Sync));
    }
    let red = m.take("red");
    let arrive = m.take("arrive");
    m.ignore(&["sync"]);
    if !red {
        m.finish(ctx)?;
        ctx.arity(m.opcode, ops, &[1, 2])?;
        let id = ctx.src(&ops[0], Ty::U32)?;
        let count = ops.get(1).map(|o| ctx.src(o, Ty::U32)).transpose()?;
        let kind = if arrive { BarKind::Arrive } else { BarKind::Sync };
        return Ok((Op::Bar { kind, id, count }, Class::Sync));
    }
    let op = m.find(|n| match n {
        "popc" => Some(Redux::Popc),
        "and" => Some(Redux::And),
        "or" => Some(Redux::Or),
        _ => None,
    });
    let Some(op) = op else { return ctx.error(format!("`{}` has no known reduction", m.opcode)) };
    m.ignore(&["u32", "pred"]);
    m.finish(ctx)?;
    ctx.arity(m.opcode, ops, &[3, 4])?;
    let id = ctx.src(&ops[1], Ty::U32)?;
    let count = if ops.len() == 4 { Some(ctx.src(&ops[2], Ty::U32)?) } else { None };
    let p = ctx.guard(&ops[ops.len() - 1])?;
    let d = match op {
        Redux::Popc => Src::Reg(ctx.dst(&ops[0], Ty::U32)?),
        _ => Src::Pred(ctx.pred_dst(&ops[0])?),
    };
    Ok((Op::Bar { kind: BarKind::Red { op, d, p }, id, count }, Class::Sync))
}
