//! A parsed module and what the host may ask about its kernels.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::ir::{Function, Param, Space, Symbol};
use crate::parse;

/// A PTX module, parsed and decoded.
#[derive(Debug, Clone)]
pub struct Module {
    /// Distinguishes modules in a [`crate::Memory`].
    pub(crate) id: u64,
    pub(crate) source: Arc<str>,
    pub(crate) symbols: Arc<Vec<Symbol>>,
    pub(crate) functions: Arc<Vec<Function>>,
    pub(crate) names: Arc<HashMap<String, u32>>,
    by_name: Arc<HashMap<String, u32>>,
    target: String,
}

/// A kernel of a module.
#[derive(Debug, Clone)]
pub struct Kernel<'m> {
    pub(crate) module: &'m Module,
    pub(crate) function: u32,
    /// Offsets of shared variables by symbol.
    pub(crate) shared: Vec<(u32, u64)>,
    /// Bytes of static shared memory.
    pub static_shared: u32,
}

impl Module {
    /// Parses PTX text. Whatever is not understood is an error that names the line.
    pub fn parse(text: &str) -> Result<Module> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let parts = parse::parse(text)?;
        Ok(Module {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            source: text.into(),
            symbols: Arc::new(parts.symbols),
            functions: Arc::new(parts.functions),
            names: Arc::new(parts.names),
            by_name: Arc::new(parts.by_name),
            target: parts.target,
        })
    }

    /// The `.target` directive, such as `sm_90a`.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The names of the kernels in the order of the text.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.functions.iter().filter(|f| f.entry).map(|f| f.name.as_str())
    }

    /// A kernel by its (mangled) name.
    pub fn kernel(&self, name: &str) -> Result<Kernel<'_>> {
        let id = self.by_name.get(name).copied().filter(|&id| self.functions[id as usize].entry);
        let function = id.ok_or_else(|| Error::NoKernel(name.to_string()))?;
        let mut kernel = Kernel { module: self, function, shared: Vec::new(), static_shared: 0 };
        kernel.place_shared()?;
        Ok(kernel)
    }

    /// The text of a line, without surrounding space.
    pub(crate) fn line(&self, line: u32) -> &str {
        self.source.lines().nth(line.saturating_sub(1) as usize).unwrap_or("").trim()
    }
}

impl Kernel<'_> {
    pub(crate) fn f(&self) -> &Function {
        &self.module.functions[self.function as usize]
    }

    /// The kernel's name.
    pub fn name(&self) -> &str {
        &self.f().name
    }

    /// The parameters with their offsets in the parameter block.
    pub fn params(&self) -> &[Param] {
        &self.f().params
    }

    /// Size of the parameter block in bytes.
    pub fn param_bytes(&self) -> u32 {
        self.f().param_bytes
    }

    /// `__launch_bounds__`: the largest block.
    pub fn maxntid(&self) -> Option<[u32; 3]> {
        self.f().maxntid
    }

    /// `.reqntid`: the only block size allowed.
    pub fn reqntid(&self) -> Option<[u32; 3]> {
        self.f().reqntid
    }

    /// Instructions of its text that take an issue slot, device functions not included; see [`crate::Counts::issued`].
    pub fn instructions(&self) -> usize {
        self.f().code.iter().filter(|i| i.takes_a_slot()).count()
    }

    /// Bytes of local memory per thread, device functions not included.
    pub fn local_bytes(&self) -> u32 {
        self.f().local_bytes
    }

    /// Lays out the shared variables the kernel and its callees use; dynamic ones follow the static ones.
    fn place_shared(&mut self) -> Result<()> {
        let (mut reached, mut stack) = (vec![false; self.module.functions.len()], vec![self.function]);
        let mut symbols: Vec<u32> = Vec::new();
        while let Some(id) = stack.pop() {
            if !std::mem::replace(&mut reached[id as usize], true) {
                let f = &self.module.functions[id as usize];
                stack.extend(&f.calls);
                symbols.extend(&f.symbols);
            }
        }
        symbols.sort_unstable();
        symbols.dedup();
        symbols.retain(|&id| self.module.symbols[id as usize].space == Space::Shared);
        let (fixed, dynamic): (Vec<u32>, Vec<u32>) =
            symbols.into_iter().partition(|&id| !self.module.symbols[id as usize].dynamic);
        let mut end = 0u64;
        for id in fixed {
            let s = &self.module.symbols[id as usize];
            let at = end.next_multiple_of(u64::from(s.align.max(1)));
            self.shared.push((id, at));
            end = at + s.size;
        }
        for &id in &dynamic {
            end = end.next_multiple_of(u64::from(self.module.symbols[id as usize].align.max(16)));
        }
        self.shared.extend(dynamic.into_iter().map(|id| (id, end)));
        self.static_shared = u32::try_from(end).map_err(|_| Error::Launch {
            kernel: self.name().to_string(),
            message: format!("{end} bytes of static shared memory"),
        })?;
        Ok(())
    }
}
