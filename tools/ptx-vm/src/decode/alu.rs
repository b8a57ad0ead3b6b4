//! Arithmetic and logic.

use crate::decode::mods::{Decoded, Mods};
use crate::decode::moves::bool_op;
use crate::ir::{Bool, CarryOp, FloatOp, Guard, IntOp, Op, PrmtMode, Src, Ty};
use crate::parse::context::FnCtx;
use crate::parse::cursor::Operand;
use crate::report::Class;

const NONE: Src = Src::Imm(0);

pub(crate) fn arithmetic(ctx: &mut FnCtx<'_>, base: &str, m: &mut Mods<'_>, ops: &[Operand<'_>]) -> Decoded {
    if let Some(done) = special_forms(ctx, base, m, ops) {
        return done;
    }
    // The type decides between the integer and the float reading of `add`, `min`, ...
    let float_op = float_op(base);
    let int = int_op(base);
    if float_op.is_none() && int.is_none() {
        return ctx.error(format!("unknown instruction `{}`", m.opcode));
    }
    let ty = peek_type(m);
    match (float_op, int, ty) {
        (Some((op, n)), _, Some(ty)) if ty.float() => float(ctx, op, n, m, ops),
        (_, Some(n), Some(Ty::Pred)) => pred_logic(ctx, base, n, m, ops),
        (_, Some(n), Some(ty)) if !ty.float() => int_arith(ctx, base, n, m, ops),
        _ => ctx.error(format!("`{}` has no type that is supported", m.opcode)),
    }
}

fn peek_type(m: &Mods<'_>) -> Option<Ty> {
    m.opcode.split('.').skip(1).find_map(Ty::parse)
}

fn float_op(base: &str) -> Option<(FloatOp, usize)> {
    Some(match base {
        "add" => (FloatOp::Add, 2),
        "sub" => (FloatOp::Sub, 2),
        "mul" => (FloatOp::Mul, 2),
        "fma" | "mad" => (FloatOp::Fma, 3),
        "div" => (FloatOp::Div, 2),
        "sqrt" => (FloatOp::Sqrt, 1),
        "rsqrt" => (FloatOp::Rsqrt, 1),
        "rcp" => (FloatOp::Rcp, 1),
        "ex2" => (FloatOp::Ex2, 1),
        "lg2" => (FloatOp::Lg2, 1),
        "sin" => (FloatOp::Sin, 1),
        "cos" => (FloatOp::Cos, 1),
        "tanh" => (FloatOp::Tanh, 1),
        "min" => (FloatOp::Min, 2),
        "max" => (FloatOp::Max, 2),
        "abs" => (FloatOp::Abs, 1),
        "neg" => (FloatOp::Neg, 1),
        "copysign" => (FloatOp::CopySign, 2),
        _ => return None,
    })
}

/// Number of sources of an integer instruction.
fn int_op(base: &str) -> Option<usize> {
    Some(match base {
        "abs" | "neg" | "not" | "cnot" | "popc" | "clz" | "bfind" | "brev" => 1,
        "add" | "sub" | "mul" | "mul24" | "div" | "rem" | "min" | "max" | "shl" | "shr" | "and" | "or"
        | "xor" | "szext" | "bmsk" | "addc" | "subc" => 2,
        "mad" | "mad24" | "madc" | "shf" | "bfe" | "prmt" | "sad" | "dp4a" | "dp2a" => 3,
        _ => return None,
    })
}

fn float(ctx: &mut FnCtx<'_>, op: FloatOp, n: usize, m: &mut Mods<'_>, ops: &[Operand<'_>]) -> Decoded {
    let special = matches!(
        op,
        FloatOp::Div
            | FloatOp::Sqrt
            | FloatOp::Rsqrt
            | FloatOp::Rcp
            | FloatOp::Ex2
            | FloatOp::Lg2
            | FloatOp::Sin
            | FloatOp::Cos
            | FloatOp::Tanh
    );
    if special {
        m.ignore(&["approx", "full"]);
    }
    m.ignore(&["noftz"]);
    let mut fm = m.float();
    fm.abs = m.take("abs");
    if m.take("xorsign") {
        return ctx.error(format!("modifier `.xorsign` in `{}` is not supported", m.opcode));
    }
    let ty = m.ty(ctx)?;
    m.finish(ctx)?;
    ctx.arity(m.opcode, ops, &[n + 1])?;
    let directed = fm.round != crate::ir::Round::Near;
    if ty == Ty::F64 && directed && !matches!(op, FloatOp::Add | FloatOp::Sub | FloatOp::Mul) {
        return ctx
            .error(format!("`{}`: directed rounding of this f64 operation is not supported", m.opcode));
    }
    let mut s = [NONE; 3];
    for (s, o) in s.iter_mut().zip(&ops[1..]) {
        *s = ctx.src(o, ty)?;
    }
    let class = if special { Class::Special } else { Class::Float };
    Ok((Op::Float { op, ty, m: fm, s, d: ctx.dst(&ops[0], ty)? }, class))
}

fn pred_logic(ctx: &mut FnCtx<'_>, base: &str, n: usize, m: &mut Mods<'_>, ops: &[Operand<'_>]) -> Decoded {
    let ty = m.ty(ctx)?;
    m.finish(ctx)?;
    ctx.arity(m.opcode, ops, &[n + 1])?;
    debug_assert_eq!(ty, Ty::Pred);
    let op = match (base, n) {
        // NVRTC also writes it so.
        ("not", 1) | ("xor", 2) if n == 1 || matches!(ops[2], Operand::Int(u64::MAX)) => {
            let mut a = ctx.guard(&ops[1])?;
            let b = a;
            a.negated = !a.negated;
            // not p = !p and !p
            let b = Guard { negated: !b.negated, ..b };
            Op::PredLogic { op: Bool::And, a, b, d: ctx.pred_dst(&ops[0])? }
        }
        (_, 2) => {
            let Some(op) = bool_op(base) else {
                return ctx.error(format!("`{}` is not supported", m.opcode));
            };
            let (a, b) = (ctx.guard(&ops[1])?, ctx.guard(&ops[2])?);
            Op::PredLogic { op, a, b, d: ctx.pred_dst(&ops[0])? }
        }
        _ => return ctx.error(format!("`{}` is not supported", m.opcode)),
    };
    Ok((op, Class::Integer))
}

/// Which part of a product is wanted.
fn part(m: &mut Mods<'_>) -> Option<&'static str> {
    ["lo", "hi", "wide"].into_iter().find(|p| m.take(p))
}

fn int_arith(ctx: &mut FnCtx<'_>, base: &str, n: usize, m: &mut Mods<'_>, ops: &[Operand<'_>]) -> Decoded {
    let part = part(m);
    let cc = m.take("cc");
    let sat = m.take("sat");
    let relu = m.take("relu");
    let shift = m.take("shiftamt");
    let direction = m.find(|d| match d {
        "l" => Some(true),
        "r" => Some(false),
        _ => None,
    });
    let wrap = m.find(|w| match w {
        "wrap" => Some(true),
        "clamp" => Some(false),
        _ => None,
    });
    let mode = m.find(prmt_mode);
    let ty = m.ty(ctx)?;
    let ty2 = m.find(Ty::parse);
    m.finish(ctx)?;
    if cc || matches!(base, "addc" | "subc" | "madc") {
        return carry(ctx, base, part, cc, ty, m, ops);
    }
    let op = match (base, part) {
        ("add", None) => {
            if sat {
                IntOp::AddSat
            } else {
                IntOp::Add
            }
        }
        ("sub", None) => {
            if sat {
                IntOp::SubSat
            } else {
                IntOp::Sub
            }
        }
        ("mul", Some("lo")) => IntOp::MulLo,
        ("mul", Some("hi")) => IntOp::MulHi,
        ("mul", Some("wide")) => IntOp::MulWide,
        ("mad", Some("lo")) => IntOp::MadLo,
        ("mad", Some("hi")) => {
            if sat {
                IntOp::MadHiSat
            } else {
                IntOp::MadHi
            }
        }
        ("mad", Some("wide")) => IntOp::MadWide,
        ("mul24", Some("lo")) => IntOp::Mul24Lo,
        ("mul24", Some("hi")) => IntOp::Mul24Hi,
        ("mad24", Some("lo")) => IntOp::Mad24Lo,
        ("mad24", Some("hi")) if !sat => IntOp::Mad24Hi,
        ("div", None) => IntOp::Div,
        ("rem", None) => IntOp::Rem,
        ("abs", None) => IntOp::Abs,
        ("neg", None) => IntOp::Neg,
        ("min", None) => {
            if relu {
                IntOp::MinRelu
            } else {
                IntOp::Min
            }
        }
        ("max", None) => {
            if relu {
                IntOp::MaxRelu
            } else {
                IntOp::Max
            }
        }
        ("shl", None) => IntOp::Shl,
        ("shr", None) => IntOp::Shr,
        ("and", None) => IntOp::And,
        ("or", None) => IntOp::Or,
        ("xor", None) => IntOp::Xor,
        ("not", None) => IntOp::Not,
        ("cnot", None) => IntOp::Cnot,
        ("popc", None) => IntOp::Popc,
        ("clz", None) => IntOp::Clz,
        ("bfind", None) => IntOp::Bfind { shift },
        ("brev", None) => IntOp::Brev,
        ("bfe", None) => IntOp::Bfe,
        ("sad", None) => IntOp::Sad,
        ("szext", None) => IntOp::Szext { wrap: wrap == Some(true) },
        ("bmsk", None) => IntOp::Bmsk { wrap: wrap == Some(true) },
        ("prmt", None) => IntOp::Prmt(mode.unwrap_or(PrmtMode::Index)),
        ("shf", None) => match direction {
            Some(true) => IntOp::ShfL { wrap: wrap == Some(true) },
            Some(false) => IntOp::ShfR { wrap: wrap == Some(true) },
            None => return ctx.error("`shf` without a direction"),
        },
        ("dp4a", None) => IntOp::Dp4a { a: ty.signed(), b: ty2.unwrap_or(ty).signed() },
        ("dp2a", Some(p)) if p != "wide" => {
            IntOp::Dp2a { a: ty.signed(), b: ty2.unwrap_or(ty).signed(), high: p == "hi" }
        }
        _ => return ctx.error(format!("`{}` is not supported", m.opcode)),
    };
    ctx.arity(m.opcode, ops, &[n + 1])?;
    int_operands(ctx, op, n, ty, ops)
}

/// Types of sources and result: most share the instruction's type.
fn int_operands(ctx: &mut FnCtx<'_>, op: IntOp, n: usize, ty: Ty, ops: &[Operand<'_>]) -> Decoded {
    let wide = match ty {
        Ty::U16 => Ty::U32,
        Ty::S16 => Ty::S32,
        Ty::U32 => Ty::U64,
        Ty::S32 => Ty::S64,
        other => other,
    };
    if !matches!(ty.size(), 2 | 4 | 8) || matches!(op, IntOp::MulWide | IntOp::MadWide) && ty.size() == 8 {
        return ctx.error("integer arithmetic of this width is not supported");
    }
    let mut s = [NONE; 3];
    for (i, (s, o)) in s.iter_mut().zip(&ops[1..=n]).enumerate() {
        let t = match op {
            IntOp::Shl | IntOp::Shr if i == 1 => Ty::U32,
            IntOp::Bfe if i > 0 => Ty::U32,
            IntOp::MadWide if i == 2 => wide,
            _ => ty,
        };
        *s = ctx.src(o, t)?;
    }
    let dty = match op {
        IntOp::MulWide | IntOp::MadWide => wide,
        IntOp::Popc | IntOp::Clz | IntOp::Bfind { .. } => Ty::U32,
        _ => ty,
    };
    Ok((Op::Int { op, ty, s, d: ctx.dst(&ops[0], dty)? }, Class::Integer))
}

fn prmt_mode(name: &str) -> Option<PrmtMode> {
    Some(match name {
        "f4e" => PrmtMode::F4e,
        "b4e" => PrmtMode::B4e,
        "rc8" => PrmtMode::Rc8,
        "ecl" => PrmtMode::Ecl,
        "ecr" => PrmtMode::Ecr,
        "rc16" => PrmtMode::Rc16,
        _ => return None,
    })
}

fn carry(
    ctx: &mut FnCtx<'_>,
    base: &str,
    part: Option<&str>,
    carry_out: bool,
    ty: Ty,
    m: &Mods<'_>,
    ops: &[Operand<'_>],
) -> Decoded {
    let op = match (base, part) {
        ("add" | "addc", None) => CarryOp::Add,
        ("sub" | "subc", None) => CarryOp::Sub,
        ("mad" | "madc", Some("lo")) => CarryOp::MadLo,
        ("mad" | "madc", Some("hi")) => CarryOp::MadHi,
        _ => return ctx.error(format!("`{}` is not supported", m.opcode)),
    };
    if !matches!(ty.size(), 4 | 8) {
        return ctx.error(format!("`{}`: carry needs 32 or 64 bits", m.opcode));
    }
    let n = if matches!(op, CarryOp::Add | CarryOp::Sub) { 2 } else { 3 };
    ctx.arity(m.opcode, ops, &[n + 1])?;
    let mut s = [NONE; 3];
    for (s, o) in s.iter_mut().zip(&ops[1..]) {
        *s = ctx.src(o, ty)?;
    }
    let carry_in = base.ends_with('c');
    Ok((Op::Carry { op, ty, s, carry_in, carry_out, d: ctx.dst(&ops[0], ty)? }, Class::Integer))
}

/// Instructions whose operands do not follow the common pattern.
fn special_forms(ctx: &mut FnCtx<'_>, base: &str, m: &mut Mods<'_>, ops: &[Operand<'_>]) -> Option<Decoded> {
    match base {
        "lop3" => Some(lop3(ctx, m, ops)),
        "bfi" => Some(bfi(ctx, m, ops)),
        _ => None,
    }
}

fn lop3(ctx: &mut FnCtx<'_>, m: &mut Mods<'_>, ops: &[Operand<'_>]) -> Decoded {
    let ty = m.ty(ctx)?;
    m.finish(ctx)?;
    ctx.arity(m.opcode, ops, &[5])?;
    let s = [ctx.src(&ops[1], ty)?, ctx.src(&ops[2], ty)?, ctx.src(&ops[3], ty)?];
    let table = ctx.literal(&ops[4])? as u8;
    Ok((Op::Int { op: IntOp::Lop3(table), ty, s, d: ctx.dst(&ops[0], ty)? }, Class::Integer))
}

/// `bfi d, a, b, position, length`: the only integer operation with four sources.
fn bfi(ctx: &mut FnCtx<'_>, m: &mut Mods<'_>, ops: &[Operand<'_>]) -> Decoded {
    let ty = m.ty(ctx)?;
    m.finish(ctx)?;
    ctx.arity(m.opcode, ops, &[5])?;
    let s = [ctx.src(&ops[1], ty)?, ctx.src(&ops[2], ty)?];
    let (pos, len) = (ctx.src(&ops[3], Ty::U32)?, ctx.src(&ops[4], Ty::U32)?);
    Ok((Op::Bfi { ty, s, pos, len, d: ctx.dst(&ops[0], ty)? }, Class::Integer))
}
