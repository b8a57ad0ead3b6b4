//! Declarations of parameters, and of variables with their initialisers.

use std::collections::HashMap;

use crate::error::Result;
use crate::ir::{Param, Space, Symbol, Ty};
use crate::lex::Tok;
use crate::parse::cursor::Cursor;

/// Largest variable accepted: keeps a malformed size from exhausting the host's memory.
const MAX_BYTES: u64 = 1 << 30;

/// The number behind `.align`.
fn alignment(c: &mut Cursor<'_, '_>) -> Result<u32> {
    let align = c.small_int()?;
    if !align.is_power_of_two() || align > 1 << 16 {
        return c.error(format!("alignment {align} is not a power of two up to 65536"));
    }
    Ok(align)
}

/// The declaration behind `.global`, `.const`, `.shared` or `.local`, up to and including its `;`.
pub(crate) fn variable(
    c: &mut Cursor<'_, '_>,
    space: &str,
    external: bool,
    names: &HashMap<String, u32>,
) -> Result<Symbol> {
    let (mut align, mut lanes, mut ty) = (0, 1, None);
    let name = loop {
        let word = c.word()?;
        match word {
            ".align" => align = alignment(c)?,
            ".v2" => lanes = 2,
            ".v4" => lanes = 4,
            ".attribute" => while c.next()? != Tok::Punct(b')') {},
            _ => match word.strip_prefix('.').map(Ty::parse) {
                Some(Some(t)) if t != Ty::Pred => ty = Some(t),
                Some(_) => return c.error(format!("unknown variable attribute `{word}`")),
                None => break word,
            },
        }
    };
    let Some(ty) = ty else { return c.error(format!("variable `{name}` has no type")) };
    let (mut size, mut dynamic, mut open) = (u64::from(ty.size()) * lanes, false, false);
    while c.accept(b'[') {
        if c.accept(b']') {
            open = true;
            continue;
        }
        size = size.saturating_mul(c.int()?);
        c.expect(b']')?;
    }
    if open && external {
        (dynamic, size) = (true, 0);
    }
    if size > MAX_BYTES {
        return c.error(format!("variable `{name}` is larger than {MAX_BYTES} bytes"));
    }
    let mut init =
        Initialiser { ty, names, bytes: Vec::new(), relocations: Vec::new(), limit: MAX_BYTES as usize };
    if c.accept(b'=') {
        init.value(c, 0)?;
    }
    if open && !external {
        size = init.bytes.len() as u64;
    }
    if init.bytes.len() as u64 > size {
        return c.error(format!("initialiser of `{name}` is longer than the variable"));
    }
    c.expect(b';')?;
    let space = match space {
        ".const" => Space::Const,
        ".shared" => Space::Shared,
        ".local" => Space::Local,
        _ => Space::Global,
    };
    let align = align.max(ty.size() * lanes as u32);
    Ok(Symbol {
        name: name.into(),
        space,
        align,
        size,
        dynamic,
        init: init.bytes,
        relocations: init.relocations,
    })
}

/// The declaration behind `.param`, placed at the next aligned offset.
pub(crate) fn param(c: &mut Cursor<'_, '_>, offset: u32) -> Result<Param> {
    let mut align = 0;
    let mut ty = None;
    let name = loop {
        let word = c.word()?;
        match word {
            ".align" => align = alignment(c)?,
            ".ptr" => {
                while c.accept_word(".global")
                    || c.accept_word(".const")
                    || c.accept_word(".shared")
                    || c.accept_word(".local")
                {}
                if c.accept_word(".align") {
                    c.int()?;
                }
            }
            _ => match word.strip_prefix('.').map(Ty::parse) {
                Some(Some(t)) => ty = Some(t),
                Some(None) => return c.error(format!("unknown parameter attribute `{word}`")),
                None => break word,
            },
        }
    };
    let Some(ty) = ty else { return c.error(format!("parameter `{name}` has no type")) };
    let mut size = u64::from(ty.size());
    if c.accept(b'[') {
        size = size.saturating_mul(c.int()?);
        c.expect(b']')?;
    }
    let align = align.max(ty.size()).max(1);
    let offset = offset.next_multiple_of(align);
    // 32,764 bytes is the largest parameter block that any device takes.
    if size > 32764 || u64::from(offset) + size > 60000 {
        return c.error(format!("parameter `{name}` is too large"));
    }
    Ok(Param { name: name.to_string(), offset, size: size as u32, align })
}

struct Initialiser<'n> {
    ty: Ty,
    names: &'n HashMap<String, u32>,
    bytes: Vec<u8>,
    relocations: Vec<(u64, u32, i64)>,
    limit: usize,
}

impl Initialiser<'_> {
    fn value(&mut self, c: &mut Cursor<'_, '_>, depth: u32) -> Result<()> {
        if depth > 8 || self.bytes.len() > self.limit {
            return c.error("initialiser nested too deeply or too long");
        }
        if !c.accept(b'{') {
            return self.scalar(c);
        }
        if c.accept(b'}') {
            return Ok(());
        }
        loop {
            self.value(c, depth + 1)?;
            if c.accept(b'}') {
                return Ok(());
            }
            c.expect(b',')?;
        }
    }

    fn scalar(&mut self, c: &mut Cursor<'_, '_>) -> Result<()> {
        let size = self.ty.size() as usize;
        if let Some(Tok::Word(_)) = c.peek() {
            return self.address(c, size);
        }
        let negative = c.accept(b'-');
        let bits = match (c.next()?, self.ty) {
            (Tok::Int(v), _) => v,
            (Tok::F32(v), Ty::F64) => f64::from(f32::from_bits(v)).to_bits(),
            (Tok::F64(v), Ty::F32) => u64::from((f64::from_bits(v) as f32).to_bits()),
            (Tok::F32(v), _) => u64::from(v),
            (Tok::F64(v), _) => v,
            _ => return c.error("expected a number"),
        };
        let bits = match negative {
            true if self.ty.float() => bits ^ 1 << (self.ty.bits() - 1),
            true => bits.wrapping_neg(),
            false => bits,
        };
        let wide = u128::from(bits).to_le_bytes();
        self.bytes.extend_from_slice(wide.get(..size).unwrap_or(&wide));
        Ok(())
    }

    /// The address of an earlier variable, `generic(name)` or `name+4`.
    fn address(&mut self, c: &mut Cursor<'_, '_>, size: usize) -> Result<()> {
        let wrapped = c.accept_word("generic");
        if wrapped {
            c.expect(b'(')?;
        }
        let name = c.word()?;
        if wrapped {
            c.expect(b')')?;
        }
        let offset = if c.accept(b'+') { c.int()? as i64 } else { 0 };
        match self.names.get(name) {
            Some(&id) if size == 8 => {
                self.relocations.push((self.bytes.len() as u64, id, offset));
                self.bytes.extend_from_slice(&[0; 8]);
                Ok(())
            }
            Some(_) => c.error(format!("the address of `{name}` does not fit {size} bytes")),
            None => c.error(format!("unknown name `{name}` in an initialiser")),
        }
    }
}
