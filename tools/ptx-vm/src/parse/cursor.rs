//! A position in the token stream, and the operand grammar.

use crate::error::{Error, Result};
use crate::lex::{Tok, Token};

/// An operand before names are resolved.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Operand<'a> {
    Word(&'a str),
    /// Two's complement.
    Int(u64),
    F32(u32),
    F64(u64),
    /// `sym+4`
    Offset(&'a str, i64),
    /// `{a, b}`
    Vector(Vec<Operand<'a>>),
    /// `(a, b)` of a call
    List(Vec<Operand<'a>>),
    /// `[base+offset]`, for tensor copies also `[map, {coordinates}]`
    Memory(Box<Operand<'a>>, i64, Vec<Operand<'a>>),
    /// `d|p`
    Pair(Box<Operand<'a>>, Box<Operand<'a>>),
    /// `!p`
    Not(Box<Operand<'a>>),
}

/// Deepest nesting of braces in operands and initialisers: keeps recursion bounded on hostile input.
const MAX_DEPTH: u32 = 8;

pub(crate) struct Cursor<'a, 't> {
    pub toks: &'t [Token<'a>],
    pub pos: usize,
}

impl<'a> Cursor<'a, '_> {
    pub fn line(&self) -> u32 {
        let at = self.pos.min(self.toks.len().saturating_sub(1));
        self.toks.get(at).map_or(1, |t| t.line)
    }

    pub fn error<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(Error::Parse { line: self.line(), function: String::new(), message: message.into() })
    }

    pub fn peek(&self) -> Option<Tok<'a>> {
        self.toks.get(self.pos).map(|t| t.tok)
    }

    pub fn peek_at(&self, ahead: usize) -> Option<Tok<'a>> {
        self.toks.get(self.pos + ahead).map(|t| t.tok)
    }

    pub fn next(&mut self) -> Result<Tok<'a>> {
        match self.peek() {
            Some(tok) => {
                self.pos += 1;
                Ok(tok)
            }
            None => self.error("unexpected end of the text"),
        }
    }

    /// Takes the punctuation if it comes next.
    pub fn accept(&mut self, c: u8) -> bool {
        let found = self.peek() == Some(Tok::Punct(c));
        self.pos += usize::from(found);
        found
    }

    pub fn expect(&mut self, c: u8) -> Result<()> {
        if self.accept(c) {
            return Ok(());
        }
        let found = self.peek().map_or("the end of the text".to_string(), show);
        self.error(format!("expected `{}`, found {found}", c as char))
    }

    /// Takes the word if it comes next.
    pub fn accept_word(&mut self, word: &str) -> bool {
        let found = matches!(self.peek(), Some(Tok::Word(w)) if w == word);
        self.pos += usize::from(found);
        found
    }

    pub fn word(&mut self) -> Result<&'a str> {
        match self.next()? {
            Tok::Word(word) => Ok(word),
            other => {
                self.pos -= 1;
                self.error(format!("expected a name, found {}", show(other)))
            }
        }
    }

    pub fn int(&mut self) -> Result<u64> {
        let negative = self.accept(b'-');
        match self.next()? {
            Tok::Int(v) => Ok(if negative { v.wrapping_neg() } else { v }),
            other => {
                self.pos -= 1;
                self.error(format!("expected an integer, found {}", show(other)))
            }
        }
    }

    /// A count that must fit 32 bits.
    pub fn small_int(&mut self) -> Result<u32> {
        let v = self.int()?;
        u32::try_from(v).or_else(|_| self.error(format!("{v} does not fit 32 bits")))
    }

    /// Skips to behind the next `;`.
    pub fn skip_statement(&mut self) -> Result<()> {
        while self.next()? != Tok::Punct(b';') {}
        Ok(())
    }

    /// Operands up to and including the `;`.
    pub fn operands(&mut self) -> Result<Vec<Operand<'a>>> {
        let mut out = Vec::new();
        if self.accept(b';') {
            return Ok(out);
        }
        loop {
            out.push(self.operand(0)?);
            if self.accept(b';') {
                return Ok(out);
            }
            self.expect(b',')?;
        }
    }

    fn operand(&mut self, depth: u32) -> Result<Operand<'a>> {
        if depth > MAX_DEPTH {
            return self.error("operands nested too deeply");
        }
        let first = self.single(depth)?;
        if self.accept(b'|') {
            return Ok(Operand::Pair(Box::new(first), Box::new(self.single(depth)?)));
        }
        Ok(first)
    }

    fn sequence(&mut self, close: u8, depth: u32) -> Result<Vec<Operand<'a>>> {
        let mut out = Vec::new();
        if self.accept(close) {
            return Ok(out);
        }
        loop {
            out.push(self.operand(depth + 1)?);
            if self.accept(close) {
                return Ok(out);
            }
            self.expect(b',')?;
        }
    }

    fn single(&mut self, depth: u32) -> Result<Operand<'a>> {
        match self.next()? {
            Tok::Punct(b'{') => Ok(Operand::Vector(self.sequence(b'}', depth)?)),
            Tok::Punct(b'(') => Ok(Operand::List(self.sequence(b')', depth)?)),
            Tok::Punct(b'!') => Ok(Operand::Not(Box::new(self.operand(depth + 1)?))),
            Tok::Punct(b'[') => self.memory(depth),
            Tok::Punct(b'-') => match self.next()? {
                Tok::Int(v) => Ok(Operand::Int(v.wrapping_neg())),
                Tok::F32(v) => Ok(Operand::F32(v ^ 1 << 31)),
                Tok::F64(v) => Ok(Operand::F64(v ^ 1 << 63)),
                other => self.error(format!("expected a number after `-`, found {}", show(other))),
            },
            Tok::Int(v) => Ok(Operand::Int(v)),
            Tok::F32(v) => Ok(Operand::F32(v)),
            Tok::F64(v) => Ok(Operand::F64(v)),
            Tok::Word(w) => match self.offset()? {
                Some(offset) => Ok(Operand::Offset(w, offset)),
                None => Ok(Operand::Word(w)),
            },
            other => {
                self.pos -= 1;
                self.error(format!("expected an operand, found {}", show(other)))
            }
        }
    }

    /// `+4`, `+-16` or `-16` behind a name.
    fn offset(&mut self) -> Result<Option<i64>> {
        let minus = match self.peek() {
            Some(Tok::Punct(b'+')) => false,
            Some(Tok::Punct(b'-')) => true,
            _ => return Ok(None),
        };
        self.pos += 1;
        let v = self.int()? as i64;
        Ok(Some(if minus { v.wrapping_neg() } else { v }))
    }

    fn memory(&mut self, depth: u32) -> Result<Operand<'a>> {
        let (base, offset) = match self.operand(depth + 1)? {
            Operand::Offset(w, offset) => (Operand::Word(w), offset),
            other => (other, 0),
        };
        let mut extra = Vec::new();
        while self.accept(b',') {
            extra.push(self.operand(depth + 1)?);
        }
        self.expect(b']')?;
        Ok(Operand::Memory(Box::new(base), offset, extra))
    }
}

/// A token as it appears in messages.
pub(crate) fn show(tok: Tok<'_>) -> String {
    match tok {
        Tok::Word(w) => format!("`{w}`"),
        Tok::Int(v) => format!("`{v}`"),
        Tok::F32(_) | Tok::F64(_) => "a float".to_string(),
        Tok::Str => "a string".to_string(),
        Tok::Punct(c) => format!("`{}`", c as char),
    }
}
