//! Function bodies: scopes, declarations, labels; each statement is decoded as soon as it is read.

use std::collections::HashMap;

use crate::decode;
use crate::error::Result;
use crate::ir::{FRAME_BASE, Function, Guard, Inst, Op, Reg, Ty};
use crate::lex::Tok;
use crate::parse::context::{FnCtx, Name, Parts};
use crate::parse::cursor::Cursor;
use crate::parse::vars::{param, variable};
use crate::report::Class;

/// Most registers of one kind in one function.
const MAX_REGS: u32 = 60_000;
/// Deepest nesting of `{ }` in a body.
const MAX_SCOPES: usize = 64;

pub(crate) fn body(c: &mut Cursor<'_, '_>, parts: &mut Parts, f: Function) -> Result<Function> {
    let mut ctx = FnCtx::new(parts, f, c.line());
    c.expect(b'{')?;
    while !ctx.scope_ids.is_empty() {
        ctx.statement(c)?;
    }
    ctx.finish()
}

impl FnCtx<'_> {
    fn statement(&mut self, c: &mut Cursor<'_, '_>) -> Result<()> {
        self.line = c.line();
        match c.peek() {
            Some(Tok::Punct(b'{')) => {
                c.pos += 1;
                if self.scopes.len() >= MAX_SCOPES {
                    return self.error("scopes nested too deeply");
                }
                self.scopes.push(HashMap::new());
                self.scope_ids.push(self.next_scope);
                self.next_scope += 1;
                Ok(())
            }
            Some(Tok::Punct(b'}')) => {
                c.pos += 1;
                self.scopes.pop();
                self.scope_ids.pop();
                Ok(())
            }
            Some(Tok::Punct(b';')) => {
                c.pos += 1;
                Ok(())
            }
            Some(Tok::Word(word)) if c.peek_at(1) == Some(Tok::Punct(b':')) => self.label_here(c, word),
            Some(Tok::Word(word)) if word.starts_with('.') => self.declaration(c, word),
            _ => self.instruction(c),
        }
    }

    fn label_here(&mut self, c: &mut Cursor<'_, '_>, name: &str) -> Result<()> {
        c.pos += 2;
        let key = (self.scope_ids.last().copied().unwrap_or(0), name.to_string());
        if c.accept_word(".branchtargets") {
            let mut list = vec![c.word()?.to_string()];
            while c.accept(b',') {
                list.push(c.word()?.to_string());
            }
            c.expect(b';')?;
            self.targets.insert(key, list);
        } else if self.labels.insert(key, self.f.code.len() as u32).is_some() {
            return self.error(format!("label `{name}` is declared twice"));
        }
        Ok(())
    }

    fn declaration(&mut self, c: &mut Cursor<'_, '_>, word: &str) -> Result<()> {
        c.pos += 1;
        match word {
            ".reg" => self.registers(c),
            ".shared" => {
                let symbol = variable(c, word, false, &self.parts.names)?;
                let id = self.parts.symbols.len() as u32;
                self.declare(symbol.name.clone(), Name::Symbol(id))?;
                self.parts.symbols.push(symbol);
                Ok(())
            }
            ".local" => {
                let symbol = variable(c, word, false, &self.parts.names)?;
                let offset = self.f.local_bytes.next_multiple_of(symbol.align.max(1));
                let end = u64::from(offset) + symbol.size;
                if end > 512 << 10 {
                    return self.error("more than 512 KiB of local memory");
                }
                self.f.local_bytes = (end as u32).next_multiple_of(8);
                self.declare(symbol.name, Name::Local(offset))
            }
            ".param" => {
                let p = param(c, self.f.frame_bytes)?;
                c.expect(b';')?;
                self.f.frame_bytes = (p.offset + p.size).next_multiple_of(4);
                self.declare(p.name, Name::Param(FRAME_BASE as u32 + p.offset, p.size))
            }
            ".pragma" | ".loc" => loc_or_pragma(c, word),
            other => self.error(format!("unknown directive `{other}`")),
        }
    }

    /// `.reg .b32 %r<7>, %x;`
    fn registers(&mut self, c: &mut Cursor<'_, '_>) -> Result<()> {
        let word = c.word()?;
        let ty = match word.strip_prefix('.').and_then(Ty::parse) {
            Some(ty) if ty != Ty::B128 => ty,
            _ => return self.error(format!("register type `{word}` is not supported")),
        };
        loop {
            let name = c.word()?;
            if c.accept(b'<') {
                let count = c.small_int()?;
                c.expect(b'>')?;
                if count > MAX_REGS {
                    return self.error(format!("more than {MAX_REGS} registers"));
                }
                for i in 0..count {
                    self.register(format!("{name}{i}"), ty)?;
                }
            } else {
                self.register(name.to_string(), ty)?;
            }
            if c.accept(b';') {
                return Ok(());
            }
            c.expect(b',')?;
        }
    }

    fn register(&mut self, name: String, ty: Ty) -> Result<()> {
        let counter = if ty == Ty::Pred { &mut self.f.preds } else { &mut self.f.slots };
        let slot = *counter;
        let step = if ty.size() == 8 { 2 } else { 1 };
        *counter += step;
        if u32::from(*counter) > MAX_REGS {
            return self.error(format!("more than {MAX_REGS} registers"));
        }
        // An 8-bit register behaves as a 16-bit one: loads and conversions fill it, nothing computes in it.
        let size = ty.size().max(2) as u8;
        self.declare(name, if ty == Ty::Pred { Name::Pred(slot) } else { Name::Reg(Reg { slot, size }) })
    }

    fn instruction(&mut self, c: &mut Cursor<'_, '_>) -> Result<()> {
        for list in [&mut self.reads, &mut self.pred_reads, &mut self.writes, &mut self.pred_writes] {
            list.clear();
        }
        let mut guard = None;
        if c.accept(b'@') {
            let negated = c.accept(b'!');
            let name = c.word()?;
            let Some(Name::Pred(pred)) = self.lookup(name) else {
                return self.error(format!("`{name}` is not a predicate"));
            };
            self.pred_reads.push(pred);
            guard = Some(Guard { pred, negated });
        }
        let opcode = c.word()?;
        let operands = c.operands()?;
        let (op, class) = decode::decode(self, opcode, &operands)?;
        let pc = self.f.code.len();
        if let Some(label) = self.label.take() {
            self.pending.push((pc, label, self.scope_ids.clone()));
        }
        self.f.code.push(Inst {
            op,
            guard,
            line: self.line,
            class,
            reads: unique(&mut self.reads),
            pred_reads: unique(&mut self.pred_reads),
            writes: unique(&mut self.writes),
            pred_writes: unique(&mut self.pred_writes),
        });
        Ok(())
    }

    fn resolve<T: Clone>(map: &HashMap<(u32, String), T>, scopes: &[u32], name: &str) -> Option<T> {
        scopes.iter().rev().find_map(|&id| map.get(&(id, name.to_string())).cloned())
    }

    /// Resolves labels and closes the code with a `ret`, so that control never runs off its end.
    fn finish(mut self) -> Result<Function> {
        for (pc, label, scopes) in std::mem::take(&mut self.pending) {
            self.line = self.f.code[pc].line;
            let find = |name: &str| match Self::resolve(&self.labels, &scopes, name) {
                Some(pc) => Ok(pc),
                None => self.error(format!("unknown label `{name}`")),
            };
            let op = match &self.f.code[pc].op {
                Op::Brx { index, .. } => {
                    let Some(list) = Self::resolve(&self.targets, &scopes, &label) else {
                        return self.error(format!("unknown branch target list `{label}`"));
                    };
                    let targets = list.iter().map(|n| find(n)).collect::<Result<_>>()?;
                    Op::Brx { index: *index, targets }
                }
                _ => Op::Bra { target: find(&label)? },
            };
            self.f.code[pc].op = op;
        }
        let none = || Vec::new().into_boxed_slice();
        self.f.code.push(Inst {
            op: Op::Ret,
            guard: None,
            line: self.line,
            class: Class::Control,
            reads: none(),
            pred_reads: none(),
            writes: none(),
            pred_writes: none(),
        });
        self.f.symbols.sort_unstable();
        self.f.symbols.dedup();
        Ok(self.f)
    }
}

fn unique(list: &mut Vec<u16>) -> Box<[u16]> {
    list.sort_unstable();
    list.dedup();
    list.as_slice().into()
}

/// `.loc 1 2 3` ends with the line, `.pragma "x";` with a semicolon.
fn loc_or_pragma(c: &mut Cursor<'_, '_>, word: &str) -> Result<()> {
    if word == ".pragma" {
        return c.skip_statement();
    }
    let line = c.toks.get(c.pos - 1).map_or(0, |t| t.line);
    while c.peek().is_some() && c.line() == line {
        c.pos += 1;
    }
    Ok(())
}
