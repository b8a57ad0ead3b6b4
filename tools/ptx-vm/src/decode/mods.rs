//! The modifiers of an opcode.

use crate::error::Result;
use crate::ir::{FMod, Op, Round, Ty};
use crate::parse::context::FnCtx;
use crate::report::Class;

pub(crate) type Decoded = Result<(Op, Class)>;

/// The modifiers of an opcode that have not been used yet.
pub(crate) struct Mods<'a> {
    pub opcode: &'a str,
    list: Vec<&'a str>,
}

impl<'a> Mods<'a> {
    /// The opcode without its modifiers, and these.
    pub fn new(opcode: &'a str) -> (&'a str, Self) {
        let mut parts = opcode.split('.');
        let base = parts.next().unwrap_or("");
        (base, Mods { opcode, list: parts.collect() })
    }

    /// Takes one modifier if it is there.
    pub fn take(&mut self, name: &str) -> bool {
        let at = self.list.iter().position(|m| *m == name);
        at.map(|i| self.list.remove(i)).is_some()
    }

    /// Takes all modifiers that change neither result nor checks.
    pub fn ignore(&mut self, names: &[&str]) {
        self.list.retain(|m| !names.contains(m));
    }

    /// Takes the first modifier that `f` understands.
    pub fn find<T>(&mut self, f: impl Fn(&str) -> Option<T>) -> Option<T> {
        let (i, v) = self.list.iter().enumerate().find_map(|(i, m)| f(m).map(|v| (i, v)))?;
        self.list.remove(i);
        Some(v)
    }

    /// Takes the first modifier that is a type.
    pub fn ty(&mut self, ctx: &FnCtx<'_>) -> Result<Ty> {
        match self.find(Ty::parse) {
            Some(ty) => Ok(ty),
            None => ctx.error(format!("`{}` has no type that is supported", self.opcode)),
        }
    }

    /// Rounding, `.ftz`, `.sat`, `.relu`, `.NaN`.
    pub fn float(&mut self) -> FMod {
        let round = self.find(|m| {
            Some(match m {
                "rn" => (Round::Near, false),
                "rna" => (Round::Away, false),
                "rz" => (Round::Zero, false),
                "rm" => (Round::Down, false),
                "rp" => (Round::Up, false),
                "rni" => (Round::Near, true),
                "rzi" => (Round::Zero, true),
                "rmi" => (Round::Down, true),
                "rpi" => (Round::Up, true),
                _ => return None,
            })
        });
        let (round, integral) = round.unwrap_or((Round::Near, false));
        FMod {
            round,
            integral,
            ftz: self.take("ftz"),
            sat: self.take("sat"),
            relu: self.take("relu"),
            nan: self.take("NaN"),
            abs: false,
        }
    }

    /// All modifiers must have been used by now.
    pub fn finish(&self, ctx: &FnCtx<'_>) -> Result<()> {
        match self.list.first() {
            Some(m) => ctx.error(format!("unknown modifier `.{m}` in `{}`", self.opcode)),
            None => Ok(()),
        }
    }
}
