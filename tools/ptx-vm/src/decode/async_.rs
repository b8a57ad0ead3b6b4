//! Asynchronous copies.

use crate::decode::{Decoded, Mods};
use crate::ir::{Op, Ty};
use crate::parse::{FnCtx, Operand};
use crate::report::Class;

pub(crate) fn decode(ctx: &mut FnCtx<'_>, base: &str, m: &mut Mods<'_>, ops: &[Operand<'_>]) -> Decoded {
    match base {
        // Hints about register budgets and the launch order of dependent grids.
        "setmaxnreg" | "griddepcontrol" => Ok((Op::Nop, Class::Sync)),
        "cp" if m.take("async") => cp_async(ctx, m, ops),
        _ => ctx.error(format!("`{}` is not supported", m.opcode)),
    }
}

fn cp_async(ctx: &mut FnCtx<'_>, m: &mut Mods<'_>, ops: &[Operand<'_>]) -> Decoded {
    if m.take("commit_group") {
        m.finish(ctx)?;
        return Ok((Op::CpCommit, Class::Sync));
    }
    if m.take("wait_all") {
        m.finish(ctx)?;
        return Ok((Op::CpWait { pending: 0, all: true }, Class::Sync));
    }
    if m.take("wait_group") {
        m.finish(ctx)?;
        ctx.arity(m.opcode, ops, &[1])?;
        let pending = ctx.literal(&ops[0])?.min(u64::from(u32::MAX)) as u32;
        return Ok((Op::CpWait { pending, all: false }, Class::Sync));
    }
    let global_only = m.take("cg");
    if !global_only && !m.take("ca") {
        return ctx.error(format!("`{}` is not supported", m.opcode));
    }
    let hint = m.take("L2::cache_hint");
    m.ignore(&["L2::64B", "L2::128B", "L2::256B", "shared::cta", "shared", "global"]);
    m.finish(ctx)?;
    let ops = if hint { &ops[..ops.len().saturating_sub(1)] } else { ops };
    ctx.arity(m.opcode, ops, &[3, 4])?;
    let bytes = ctx.literal(&ops[2])?;
    if !matches!((bytes, global_only), (16, _) | (4 | 8, false)) {
        return ctx.error(format!("`{}` cannot copy {bytes} bytes", m.opcode));
    }
    let (dst, src) = (ctx.addr(&ops[0])?, ctx.addr(&ops[1])?);
    let (mut src_size, mut ignore) = (None, None);
    if let Some(o) = ops.get(3) {
        // The fourth operand is a byte count, or a predicate that suppresses the read.
        match ctx.guard(o) {
            Ok(p) => ignore = Some(p),
            Err(_) => src_size = Some(ctx.src(o, Ty::U32)?),
        }
    }
    Ok((Op::CpAsync { bytes: bytes as u8, dst, src, src_size, ignore }, Class::Memory))
}
