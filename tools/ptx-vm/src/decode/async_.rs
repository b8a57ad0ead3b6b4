//! Asynchronous copies.

use crate::decode::mods::{Decoded, Mods};
use crate::ir::{Bulk, MbarOp, Op, Ty, Wgmma};
use crate::parse::context::FnCtx;
use crate::parse::cursor::Operand;
use crate::report::Class;

pub(crate) fn decode(ctx: &mut FnCtx<'_>, base: &str, m: &mut Mods<'_>, ops: &[Operand<'_>]) -> Decoded {
    match base {
        // Hints about register budgets and the launch order of dependent grids.
        "setmaxnreg" | "griddepcontrol" => Ok((Op::Nop, Class::Sync)),
        "cp" if m.take("async") => cp_async(ctx, m, ops),
        "mbarrier" => mbarrier(ctx, m, ops),
        "wgmma" => wgmma(ctx, m, ops),
        _ => ctx.error(format!("`{}` is not supported", m.opcode)),
    }
}

fn mbarrier(ctx: &mut FnCtx<'_>, m: &mut Mods<'_>, ops: &[Operand<'_>]) -> Decoded {
    let name = m.find(|n| {
        ["init", "inval", "arrive", "expect_tx", "test_wait", "try_wait"].into_iter().find(|k| *k == n)
    });
    let (tx, parity) = (m.take("expect_tx"), m.take("parity"));
    m.ignore(&["release", "acquire", "relaxed", "cta", "shared", "shared::cta", "b64"]);
    m.finish(ctx)?;
    let op = match name {
        Some("init") => MbarOp::Init,
        Some("inval") => MbarOp::Inval,
        Some("arrive") if tx => MbarOp::ArriveTx,
        Some("arrive") => MbarOp::Arrive,
        Some("expect_tx") => MbarOp::ExpectTx,
        Some("test_wait" | "try_wait") if parity => MbarOp::WaitParity,
        Some("test_wait" | "try_wait") => MbarOp::WaitState,
        _ => return ctx.error(format!("`{}` is not supported", m.opcode)),
    };
    let (mut d, mut p) = (None, None);
    let rest = match op {
        MbarOp::Init | MbarOp::Inval | MbarOp::ExpectTx => ops,
        _ => ops.get(1..).unwrap_or(&[]),
    };
    let arity: &[usize] = match op {
        MbarOp::Inval => &[1],
        MbarOp::Arrive => &[1, 2],
        MbarOp::WaitState | MbarOp::WaitParity => &[2, 3],
        _ => &[2],
    };
    ctx.arity(m.opcode, rest, arity)?;
    let addr = ctx.addr(&rest[0])?;
    let ty = if op == MbarOp::WaitState { Ty::B64 } else { Ty::U32 };
    // A third operand is a time to wait at most: here nobody sleeps.
    let a = rest.get(1).map(|o| ctx.src(o, ty)).transpose()?;
    match op {
        MbarOp::Arrive | MbarOp::ArriveTx => d = ctx.sink(&ops[0], Ty::B64)?,
        MbarOp::WaitState | MbarOp::WaitParity => p = Some(ctx.pred_dst(&ops[0])?),
        _ => {}
    }
    Ok((Op::Mbarrier { op, d, p, addr, a }, Class::Sync))
}

fn wgmma(ctx: &mut FnCtx<'_>, m: &mut Mods<'_>, ops: &[Operand<'_>]) -> Decoded {
    m.ignore(&["sync", "aligned"]);
    if m.take("fence") {
        m.finish(ctx)?;
        return Ok((Op::WgmmaFence, Class::Sync));
    }
    if m.take("commit_group") {
        m.finish(ctx)?;
        return Ok((Op::WgmmaCommit, Class::Sync));
    }
    if m.take("wait_group") {
        m.finish(ctx)?;
        ctx.arity(m.opcode, ops, &[1])?;
        let pending = ctx.literal(&ops[0])?.min(u64::from(u32::MAX)) as u32;
        return Ok((Op::WgmmaWait { pending }, Class::Sync));
    }
    let async_form = m.take("mma_async");
    let n = m.find(|s| s.strip_prefix("m64n")?.strip_suffix("k16")?.parse::<usize>().ok());
    let (d_ty, input, b_ty) = (m.ty(ctx)?, m.ty(ctx)?, m.ty(ctx)?);
    m.finish(ctx)?;
    let known = async_form && d_ty == Ty::F32 && input == b_ty && matches!(input, Ty::Bf16 | Ty::F16);
    let Some(n) = n.filter(|n| known && n.is_multiple_of(8) && (8..=256).contains(n)) else {
        return ctx.error(format!("`{}` is not supported", m.opcode));
    };
    let from_registers = matches!(ops.get(1), Some(Operand::Vector(_)));
    ctx.arity(m.opcode, ops, if from_registers { &[7] } else { &[8] })?;
    let a = if from_registers { ctx.srcs(&ops[1], Ty::B32, 4)? } else { [ctx.src(&ops[1], Ty::B64)?].into() };
    let b = ctx.src(&ops[2], Ty::B64)?;
    let accumulate = ctx.guard(&ops[3])?;
    let mut flags = [1u64; 2];
    for (f, o) in flags.iter_mut().zip(&ops[4..6]) {
        *f = ctx.literal(o)?;
    }
    let mut transposed = [false; 2];
    if !from_registers {
        transposed[0] = ctx.literal(&ops[6])? == 1;
    }
    transposed[1] = ctx.literal(&ops[ops.len() - 1])? == 1;
    let d = ctx.dsts(&ops[0], Ty::F32, n / 2)?;
    // The sums are written when the group is waited for: the executor keeps the books itself.
    ctx.writes.clear();
    let negate = flags.map(|f| f != 1);
    Ok((Op::Wgmma(Box::new(Wgmma { input, d, a, b, accumulate, negate, transposed })), Class::Mma))
}

fn cp_async(ctx: &mut FnCtx<'_>, m: &mut Mods<'_>, ops: &[Operand<'_>]) -> Decoded {
    if m.take("bulk") {
        return bulk(ctx, m, ops);
    }
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

fn bulk(ctx: &mut FnCtx<'_>, m: &mut Mods<'_>, ops: &[Operand<'_>]) -> Decoded {
    if m.take("commit_group") {
        m.finish(ctx)?;
        return Ok((Op::BulkCommit, Class::Sync));
    }
    if m.take("wait_group") {
        // Whether the writes or only the reads have ended makes no difference here.
        m.ignore(&["read"]);
        m.finish(ctx)?;
        ctx.arity(m.opcode, ops, &[1])?;
        let pending = ctx.literal(&ops[0])?.min(u64::from(u32::MAX)) as u32;
        return Ok((Op::BulkWait { pending }, Class::Sync));
    }
    let tensor = m.take("tensor");
    let rank = m.find(|s| s.strip_suffix('d')?.parse::<usize>().ok().filter(|r| (1..=5).contains(r)));
    let hint = m.take("L2::cache_hint");
    let counted = m.take("mbarrier::complete_tx::bytes");
    let grouped = m.take("bulk_group");
    // The first space is the destination's.
    let to_shared = m.opcode.find(".shared").zip(m.opcode.find(".global")).is_some_and(|(s, g)| s < g);
    let windows = m.take("im2col");
    m.ignore(&["tile", "global", "shared::cta", "shared::cluster"]);
    m.finish(ctx)?;
    let direction = if to_shared { counted && !grouped } else { grouped && !counted };
    let images = !windows || to_shared && rank.is_some_and(|r| r >= 3);
    if !direction || !images || tensor != rank.is_some() {
        return ctx.error(format!("`{}` is not supported", m.opcode));
    }
    let ops = if hint { &ops[..ops.len().saturating_sub(1)] } else { ops };
    let count = 2 + usize::from(!tensor) + usize::from(to_shared) + usize::from(windows);
    ctx.arity(m.opcode, ops, &[count])?;
    let (global, shared) = if to_shared { (&ops[1], &ops[0]) } else { (&ops[0], &ops[1]) };
    let shared = ctx.addr(shared)?;
    let moved = match (rank, global) {
        (Some(rank), Operand::Memory(base, offset, extra)) => {
            let [coordinates] = extra.as_slice() else {
                return ctx.error(format!("`{}` takes a map with its coordinates", m.opcode));
            };
            let map = ctx.base(base, *offset)?;
            let within = if windows { Some(ctx.srcs(&ops[3], Ty::U16, rank - 2)?) } else { None };
            Bulk::Tensor { map, at: ctx.srcs(coordinates, Ty::B32, rank)?, within }
        }
        (Some(_), _) => return ctx.error(format!("`{}` takes a map with its coordinates", m.opcode)),
        (None, global) => Bulk::Range { global: ctx.addr(global)?, bytes: ctx.src(&ops[2], Ty::U32)? },
    };
    let moved = Box::new(moved);
    let op = if to_shared {
        Op::BulkLoad { to: shared, from: moved, barrier: ctx.addr(&ops[if tensor { 2 } else { 3 }])? }
    } else {
        Op::BulkStore { from: shared, to: moved }
    };
    Ok((op, Class::Memory))
}
