//! Resolves operands: names to slots, literals to bits, and notes what the instruction reads and writes.

use crate::error::Result;
use crate::ir::{Addr, FRAME_BASE, Guard, Reg, Space, Src, Sreg, Ty};
use crate::parse::context::{FnCtx, Name};
use crate::parse::cursor::Operand;

impl FnCtx<'_> {
    /// The operand count must be one of `counts`.
    pub fn arity(&self, opcode: &str, ops: &[Operand<'_>], counts: &[usize]) -> Result<()> {
        if counts.contains(&ops.len()) {
            return Ok(());
        }
        self.error(format!("`{opcode}` takes {counts:?} operands, found {}", ops.len()))
    }

    /// A source of type `ty`.
    pub fn src(&mut self, op: &Operand<'_>, ty: Ty) -> Result<Src> {
        match op {
            Operand::Word(name) => self.named_src(name, 0, ty),
            Operand::Offset(name, offset) => self.named_src(name, *offset, ty),
            Operand::Int(v) => Ok(Src::Imm(match ty {
                Ty::F32 if *v <= u64::from(u32::MAX) => *v,
                Ty::F64 => *v,
                _ => truncate(*v, ty.bits()),
            })),
            Operand::F32(bits) => Ok(Src::Imm(match ty {
                Ty::F64 => f64::from(f32::from_bits(*bits)).to_bits(),
                _ => u64::from(*bits),
            })),
            Operand::F64(bits) => Ok(Src::Imm(match ty {
                Ty::F32 => u64::from((f64::from_bits(*bits) as f32).to_bits()),
                _ => *bits,
            })),
            other => self.error(format!("expected a register or a number, found {other:?}")),
        }
    }

    fn named_src(&mut self, name: &str, offset: i64, ty: Ty) -> Result<Src> {
        let found = self.lookup(name);
        match found {
            Some(Name::Reg(reg)) if offset == 0 => {
                if u32::from(reg.size) < ty.size() {
                    return self.error(format!("register `{name}` is too small for the operand's type"));
                }
                self.reads.push(reg.slot);
                Ok(Src::Reg(reg))
            }
            Some(Name::Pred(pred)) if ty == Ty::Pred && offset == 0 => {
                self.pred_reads.push(pred);
                Ok(Src::Pred(pred))
            }
            Some(Name::Local(at)) => Ok(Src::Local((i64::from(at).wrapping_add(offset)) as u32)),
            Some(Name::Param(at, _)) => Ok(Src::Imm(i64::from(at).wrapping_add(offset) as u64)),
            Some(Name::Symbol(id)) => {
                self.uses_symbol(id);
                Ok(Src::Sym(id, offset))
            }
            Some(_) => self.error(format!("`{name}` does not fit here")),
            None => match special(name) {
                Some(s) => Ok(Src::Special(s)),
                None if name == "WARP_SZ" => Ok(Src::Imm(32)),
                None => self.error(format!("unknown name `{name}`")),
            },
        }
    }

    /// A destination register that holds at least `ty`.
    pub fn dst(&mut self, op: &Operand<'_>, ty: Ty) -> Result<Reg> {
        match self.sink(op, ty)? {
            Some(reg) => Ok(reg),
            None => self.error("`_` is not allowed as destination here"),
        }
    }

    /// A destination register or `_`.
    pub fn sink(&mut self, op: &Operand<'_>, ty: Ty) -> Result<Option<Reg>> {
        match op {
            Operand::Word("_") => Ok(None),
            Operand::Word(name) => match self.lookup(name) {
                Some(Name::Reg(reg)) if u32::from(reg.size) >= ty.size() => {
                    self.writes.push(reg.slot);
                    Ok(Some(reg))
                }
                Some(Name::Reg(_)) => self.error(format!("register `{name}` is too small for the result")),
                _ => self.error(format!("`{name}` is not a register")),
            },
            other => self.error(format!("expected a register, found {other:?}")),
        }
    }

    /// A predicate destination or `_`.
    pub fn pred_sink(&mut self, op: &Operand<'_>) -> Result<Option<u16>> {
        match op {
            Operand::Word("_") => Ok(None),
            Operand::Word(name) => match self.lookup(name) {
                Some(Name::Pred(p)) => {
                    self.pred_writes.push(p);
                    Ok(Some(p))
                }
                _ => self.error(format!("`{name}` is not a predicate")),
            },
            other => self.error(format!("expected a predicate, found {other:?}")),
        }
    }

    pub fn pred_dst(&mut self, op: &Operand<'_>) -> Result<u16> {
        match self.pred_sink(op)? {
            Some(p) => Ok(p),
            None => self.error("`_` is not allowed as destination here"),
        }
    }

    /// `d|p` or `d`.
    pub fn pair<'o, 'a>(&self, op: &'o Operand<'a>) -> (&'o Operand<'a>, Option<&'o Operand<'a>>) {
        match op {
            Operand::Pair(a, b) => (a, Some(b)),
            other => (other, None),
        }
    }

    /// A predicate source, possibly `!p`.
    pub fn guard(&mut self, op: &Operand<'_>) -> Result<Guard> {
        let (negated, inner) = match op {
            Operand::Not(inner) => (true, &**inner),
            other => (false, other),
        };
        if let Operand::Word(name) = inner
            && let Some(Name::Pred(pred)) = self.lookup(name)
        {
            self.pred_reads.push(pred);
            return Ok(Guard { pred, negated });
        }
        self.error(format!("expected a predicate, found {inner:?}"))
    }

    /// `[base+offset]`; also reports the space a named base lies in.
    pub fn addr(&mut self, op: &Operand<'_>) -> Result<Addr> {
        let Operand::Memory(base, offset, extra) = op else {
            return self.error(format!("expected a memory operand, found {op:?}"));
        };
        if !extra.is_empty() {
            return self.error("coordinates are not allowed here");
        }
        self.base(base, *offset)
    }

    /// The base of a memory operand.
    pub fn base(&mut self, base: &Operand<'_>, offset: i64) -> Result<Addr> {
        let base = match base {
            // A shared address may be held in 32 bits, so any register of four bytes or more serves.
            Operand::Word(name) => match self.lookup(name) {
                Some(Name::Reg(reg)) if reg.size >= 4 => {
                    self.reads.push(reg.slot);
                    Src::Reg(reg)
                }
                Some(Name::Reg(_)) => {
                    return self.error(format!("register `{name}` is too small for an address"));
                }
                _ => self.named_src(name, 0, Ty::U64)?,
            },
            Operand::Int(v) => Src::Imm(*v),
            other => return self.error(format!("expected an address, found {other:?}")),
        };
        Ok(Addr { base, offset })
    }

    /// The elements of a vector operand, or the single operand itself.
    pub fn elements<'o, 'a>(&self, op: &'o Operand<'a>) -> &'o [Operand<'a>] {
        match op {
            Operand::Vector(list) => list,
            other => std::slice::from_ref(other),
        }
    }

    /// A list of sources of exactly `n` elements.
    pub fn srcs(&mut self, op: &Operand<'_>, ty: Ty, n: usize) -> Result<Box<[Src]>> {
        let list = self.elements(op);
        if list.len() != n {
            return self.error(format!("expected {n} registers, found {}", list.len()));
        }
        list.iter().map(|o| self.src(o, ty)).collect()
    }

    /// A list of destinations of exactly `n` elements.
    pub fn dsts(&mut self, op: &Operand<'_>, ty: Ty, n: usize) -> Result<Box<[Reg]>> {
        let list = self.elements(op);
        if list.len() != n {
            return self.error(format!("expected {n} registers, found {}", list.len()));
        }
        list.iter().map(|o| self.dst(o, ty)).collect()
    }

    /// An integer literal.
    pub fn literal(&self, op: &Operand<'_>) -> Result<u64> {
        match op {
            Operand::Int(v) => Ok(*v),
            other => self.error(format!("expected an integer literal, found {other:?}")),
        }
    }

    /// Address (relative to the call frame) and size of a parameter named in a call.
    pub fn call_param(&self, op: &Operand<'_>) -> Result<(u32, u32)> {
        if let Operand::Word(name) = op
            && let Some(Name::Param(at, size)) = self.lookup(name)
            && u64::from(at) >= FRAME_BASE
        {
            return Ok((at - FRAME_BASE as u32, size));
        }
        self.error(format!("expected a `.param` variable as argument, found {op:?}"))
    }
}

pub(crate) fn truncate(v: u64, bits: u32) -> u64 {
    if bits == 0 || bits >= 64 { v } else { v & ((1 << bits) - 1) }
}

/// State space modifiers.
pub(crate) fn space(name: &str) -> Option<Space> {
    Some(match name {
        "global" => Space::Global,
        "shared" | "shared::cta" | "shared::cluster" => Space::Shared,
        "local" => Space::Local,
        "const" => Space::Const,
        "param" | "param::entry" | "param::func" => Space::Param,
        _ => return None,
    })
}

fn special(name: &str) -> Option<Sreg> {
    if let Some((reg, axis)) = name.rsplit_once('.') {
        let axis = match axis {
            "x" => 0,
            "y" => 1,
            "z" => 2,
            _ => return None,
        };
        return Some(match reg {
            "%tid" => Sreg::Tid(axis),
            "%ntid" => Sreg::Ntid(axis),
            "%ctaid" | "%clusterid" => Sreg::Ctaid(axis),
            "%nctaid" | "%nclusterid" => Sreg::Nctaid(axis),
            "%cluster_ctaid" => Sreg::Zero,
            "%cluster_nctaid" => Sreg::One,
            _ => return None,
        });
    }
    Some(match name {
        "%laneid" => Sreg::LaneId,
        "%warpid" => Sreg::WarpId,
        "%nwarpid" => Sreg::NWarpId,
        "%smid" => Sreg::SmId,
        "%nsmid" => Sreg::NSmId,
        "%gridid" => Sreg::GridId,
        "%clock" | "%clock_hi" => Sreg::Clock,
        "%clock64" => Sreg::Clock64,
        "%globaltimer" | "%globaltimer_lo" => Sreg::GlobalTimer,
        "%lanemask_eq" => Sreg::LaneMask(0),
        "%lanemask_lt" => Sreg::LaneMask(1),
        "%lanemask_le" => Sreg::LaneMask(2),
        "%lanemask_gt" => Sreg::LaneMask(3),
        "%lanemask_ge" => Sreg::LaneMask(4),
        "%dynamic_smem_size" => Sreg::DynamicSmem,
        "%total_smem_size" => Sreg::TotalSmem,
        "%cluster_ctarank" | "%is_explicit_cluster" => Sreg::Zero,
        "%cluster_nctarank" => Sreg::One,
        _ => return None,
    })
}
