//! The module and the function being parsed: their names and their parts so far.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::ir::{FRAME_BASE, Function, Reg, Space, Symbol};

/// The parts of a module while it is parsed.
#[derive(Default)]
pub(crate) struct Parts {
    pub symbols: Vec<Symbol>,
    pub functions: Vec<Function>,
    /// Module-scope names.
    pub names: HashMap<String, u32>,
    pub by_name: HashMap<String, u32>,
    pub target: String,
    pub version: String,
}

/// What a name inside a function stands for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Name {
    Reg(Reg),
    Pred(u16),
    Local(u32),
    /// Address in parameter space and size.
    Param(u32, u32),
    Symbol(u32),
}

/// Names and counters of the function being decoded, and the operands of the current instruction.
pub(crate) struct FnCtx<'p> {
    pub parts: &'p mut Parts,
    pub f: Function,
    pub(super) scopes: Vec<HashMap<String, Name>>,
    /// Enclosing scopes by id, innermost last; ids are never reused.
    pub(super) scope_ids: Vec<u32>,
    pub(super) next_scope: u32,
    pub(super) labels: HashMap<(u32, String), u32>,
    pub(super) targets: HashMap<(u32, String), Vec<String>>,
    /// Instructions whose targets are resolved at the end of the body.
    pub(super) pending: Vec<(usize, String, Vec<u32>)>,
    pub line: u32,
    pub reads: Vec<u16>,
    pub pred_reads: Vec<u16>,
    pub writes: Vec<u16>,
    pub pred_writes: Vec<u16>,
    /// Label operand of the current branch.
    pub label: Option<String>,
}

impl<'p> FnCtx<'p> {
    /// A function whose body begins at `line`: only its parameters have names.
    pub(super) fn new(parts: &'p mut Parts, f: Function, line: u32) -> Self {
        let mut names = HashMap::new();
        let base = if f.entry { 0 } else { FRAME_BASE as u32 };
        for p in f.params.iter().chain(&f.rets) {
            names.insert(p.name.clone(), Name::Param(base + p.offset, p.size));
        }
        FnCtx {
            parts,
            f,
            scopes: vec![names],
            scope_ids: vec![0],
            next_scope: 1,
            labels: HashMap::new(),
            targets: HashMap::new(),
            pending: Vec::new(),
            line,
            reads: Vec::new(),
            pred_reads: Vec::new(),
            writes: Vec::new(),
            pred_writes: Vec::new(),
            label: None,
        }
    }

    pub fn error<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(Error::Parse { line: self.line, function: String::new(), message: message.into() })
    }

    /// The meaning of a name, innermost scope first.
    pub fn lookup(&self, name: &str) -> Option<Name> {
        let local = self.scopes.iter().rev().find_map(|s| s.get(name).copied());
        local.or_else(|| self.parts.names.get(name).map(|&id| Name::Symbol(id)))
    }

    pub(super) fn declare(&mut self, name: String, what: Name) -> Result<()> {
        let Some(scope) = self.scopes.last_mut() else { return self.error("declaration outside a body") };
        if scope.insert(name.clone(), what).is_some() {
            return self.error(format!("`{name}` is declared twice"));
        }
        Ok(())
    }

    /// Notes that the body uses a module symbol.
    pub fn uses_symbol(&mut self, id: u32) -> Space {
        self.f.symbols.push(id);
        self.parts.symbols.get(id as usize).map_or(Space::Global, |s| s.space)
    }
}
